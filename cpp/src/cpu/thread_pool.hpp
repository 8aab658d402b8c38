// A small thread pool for work of microseconds, and the other threads that may take its place.
//
// run(parts, f) calls f(team) on up to `parts` threads at once, including the caller. Waiting
// threads spin for a bounded time, then sleep. If the pool is busy, the caller runs alone, as a
// team of one. Results do not depend on the team's size, so only the time changes. Teams also
// shrink under oversubscription (see Oversubscription). The pool is never destroyed: a thread may
// still compute while the process exits. A forked child builds a new pool, because the parent's
// threads do not exist there.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "charrnn_fast/threads.hpp"
#include "cpu/gathering.hpp"
#include "cpu/openmp.hpp"
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

// Whose threads: see threads.hpp. automatic: one of the others, chosen for each run.
enum class Threads { automatic, own, openmp, host };
constexpr int kinds_of_threads = 4;

// Raised in a forked child, where locks of the parent's other threads stay locked.
int fork_generation();

class ThreadPool {
 public:
  static ThreadPool& instance();

  int size() const { return size_.load(std::memory_order_relaxed); }
  // Throws std::invalid_argument while another thread is in run().
  void resize(int n);
  Threads threads() const { return threads_.load(std::memory_order_relaxed); }
  // Likewise. `host` is that of Threads::host.
  void set_threads(Threads threads, const Executor& host);
  // Whose threads the calling thread can use.
  Threads threads_in_use() const;
  // Number of runs with a team of more than one, for tests.
  std::uint64_t teams(Threads threads) const {
    return teams_[static_cast<int>(threads)].load(std::memory_order_relaxed);
  }
  std::uint64_t teams() const {
    return teams(Threads::own) + teams(Threads::openmp) + teams(Threads::host);
  }

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

  // Whose threads a run has, at most `parts`; 1: the caller's alone.
  struct Choice {
    Threads threads;
    int parts;
    const OpenMp* openmp;
  };
  // When a member of a team worked, in a measured run.
  struct alignas(64) Member {
    Oversubscription::Time begin, end;
  };
  // What the members of a team share. On threads that are not the pool's own, it stays readable for
  // tasks that come too late.
  struct Job {
    Call call = nullptr;
    void* context = nullptr;
    bool measured = false;
    const OpenMp* openmp = nullptr;
    std::atomic<int> openmp_worker{0};  // one of its threads, once known
    Barrier barrier;
    std::vector<Member> members;
    std::atomic<int> parts{0}, done{0};  // of the team at most; threads that are done

    void begin(int part);  // before run, for the clocks
    void run(int part, int of_parts);
  };

  static const int watching_forks;

  ThreadPool(int n, Threads threads);
  void reset(int n);
  Choice choose(std::int64_t now) const;
  bool openmp_is_awake(std::int64_t now);
  // Each runs the job and returns the team's size.
  int run_on_own(std::int64_t called);
  int run_on_openmp();
  int run_on_host();
  void work(Worker& worker);
  int start_workers(int parts);
  void stop_workers();

  std::atomic<int> size_;
  std::atomic<Threads> threads_;
  std::atomic<bool> busy_{false};
  std::atomic<std::uint64_t> teams_[kinds_of_threads]{};
  // All below belong to the thread that set busy_.
  Executor host_{};
  Threads last_threads_ = Threads::own;  // of the last team
  std::int64_t last_end_ = 0;
  Job job_;
  Gathering gathering_;
  Attendance attendance_;
  std::vector<Oversubscription> oversubscription_;  // for each kind of threads
  Placement placement_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace charrnn_fast
