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

#include "crowding.hpp"
#include "kernels/table.hpp"
#include "placement.hpp"

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

class Barrier {
 public:
  // timed: waits tell how long they slept with a reason, see Crowding.
  Barrier(int parties, bool timed) : parties_(parties), timed_(timed) {}
  void wait(int part);

 private:
  const int parties_;
  const bool timed_;
  std::int64_t opened_at_ = 0;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> round_{0};
};

// One thread's place in a team.
struct Team {
  int part, parts;
  Barrier* barrier;

  // All have arrived, and see what each wrote before.
  void wait() const {
    if (parts > 1) barrier->wait(part);
  }
  // This thread's share of n things, in whole multiples of `grain`.
  Range share(Index n, Index grain = 1) const {
    const Index units = (n + grain - 1) / grain;
    const Index begin = units * part / parts * grain, end = units * (part + 1) / parts * grain;
    return {begin < n ? begin : n, end < n ? end : n};
  }
};

class ThreadPool {
 public:
  static ThreadPool& instance();

  int size() const { return size_.load(std::memory_order_relaxed); }
  // Throws std::invalid_argument while another thread is in run().
  void resize(int n);
  // How often run() had a team of more than one, for tests.
  std::uint64_t teams() const { return teams_.load(std::memory_order_relaxed); }

  // f must not throw.
  template <class F>
  void run(int parts, F&& f) {
    using Function = std::remove_reference_t<F>;
    run_erased(
        parts, [](void* context, const Team& team) { (*static_cast<Function*>(context))(team); },
        const_cast<void*>(static_cast<const void*>(&f)));
  }

 private:
  using Call = void (*)(void*, const Team&);
  struct Worker;

  static const int watching_forks;

  explicit ThreadPool(int n);
  void run_erased(int parts, Call call, void* context);
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
