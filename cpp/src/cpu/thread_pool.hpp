// A small pool of threads for work of microseconds.
//
// run(parts, f) calls f(team) on up to `parts` threads at once, the caller among them. Waiting
// spins for a bounded time (work comes in bursts, and waking a sleeper costs more than a kernel),
// then sleeps. A caller who finds the pool busy runs alone, as a team of one: since no result
// depends on the team's size, that changes only the time. For the same reason teams shrink while
// other programs take the processors (see Crowding). The pool is never destroyed (a thread may
// still compute while the process exits) and is built anew in a forked child, whose parent's
// threads do not exist there.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "cpu/crowding.hpp"
#include "cpu/placement.hpp"
#include "team.hpp"

namespace charrnn_fast {

// From how much work on more threads are called: floating-point operations for each thread, and for
// each thread between two barriers. Tests set both to 0, so that small cases run on all threads,
// crowded or not.
struct SharingLimits {
  // Some 10 microseconds of work, and some 2.
  double operations_per_thread = 1e6, operations_per_barrier = 100e3;
};
SharingLimits& sharing_limits();

// Raised in a forked child: what the parent's other threads had locked stays locked there.
int fork_generation();

class ThreadPool {
 public:
  static ThreadPool& instance();

  int size() const { return size_.load(std::memory_order_relaxed); }
  // Throws std::invalid_argument while another thread is in run().
  void resize(int n);
  // How often run() had a team of more than one, for tests.
  std::uint64_t teams() const { return teams_.load(std::memory_order_relaxed); }

  // f must not throw.
  using Call = Device::TeamFunction;
  void run_erased(int parts, Call call, void* context);
  template <class F>
  void run(int parts, F&& f) {
    using Function = std::remove_reference_t<F>;
    run_erased(
        parts, [](void* context, const Team& team) { (*static_cast<Function*>(context))(team); },
        const_cast<void*>(static_cast<const void*>(&f)));
  }

 private:
  struct Worker;

  static const int watching_forks;

  explicit ThreadPool(int n);
  void work(Worker& worker);
  void start_workers(int n);
  void stop_workers();

  std::atomic<int> size_;
  std::atomic<bool> busy_{false};
  Crowding crowding_;  // whoever has busy_ set has these two
  Placement placement_;
  std::atomic<std::uint64_t> teams_{0};
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace charrnn_fast
