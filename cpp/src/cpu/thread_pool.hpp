// A small thread pool for work of microseconds.
//
// run(parts, f) calls f(team) on up to `parts` threads at once, including the caller. A waiting
// thread spins for a bounded time (work comes in bursts, and waking a sleeper costs more than a
// kernel), then sleeps. If the pool is busy, the caller runs alone, as a team of one. Results do
// not depend on the team's size, so only the time changes. Teams also shrink under oversubscription
// (see Oversubscription). The pool is never destroyed: a thread may still compute while the process
// exits. A forked child builds a new pool, because the parent's threads do not exist there.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "cpu/oversubscription.hpp"
#include "cpu/placement.hpp"
#include "team.hpp"

namespace charrnn_fast {

// Least work to use another thread: floating-point operations per thread, and per thread between
// two barriers. Tests set both to 0, so that small cases use all threads, even under
// oversubscription.
struct SharingLimits {
  // About 10 microseconds of work, and about 2.
  double operations_per_thread = 1e6, operations_per_barrier = 100e3;
};
SharingLimits& sharing_limits();

// Raised in a forked child, where locks of the parent's other threads stay locked.
int fork_generation();

class ThreadPool {
 public:
  static ThreadPool& instance();

  int size() const { return size_.load(std::memory_order_relaxed); }
  // Throws std::invalid_argument while another thread is in run().
  void resize(int n);
  // Number of runs with a team of more than one, for tests.
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
  Oversubscription oversubscription_;  // these two belong to the thread that set busy_
  Placement placement_;
  std::atomic<std::uint64_t> teams_{0};
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace charrnn_fast
