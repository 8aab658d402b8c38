// Oversubscription: how many threads to use while other programs run.
//
// Shares of the work are fixed, so a team is as slow as its slowest thread. A thread that shares
// its processor with another program takes twice as long. Between barriers all threads wait out its
// time slices, so two threads can be slower than one. Each run measures how its threads spent their
// time. If fewer threads would have been as fast, fewer are used for a while.
//
// Threads of other libraries in this process often spin for a while after their work. That they
// have stopped shows in the process's clock: then all threads are tried again at once.
#pragma once

#include <cstdint>

namespace charrnn_fast {

std::int64_t wall_clock();  // nanoseconds, of a monotonic clock

// Nanoseconds that a thread has waited for others.
struct Waits {
  std::int64_t spinning = 0;
  std::int64_t asleep = 0;  // until the event it waited for (not until it ran again)
};
Waits& waits_of_this_thread();

// Processor time of the process without the calling thread, in nanoseconds; 0 if unknown.
std::int64_t time_of_other_threads();

class Oversubscription {
 public:
  // This thread's time, in nanoseconds.
  struct Time {
    std::int64_t wall, on_processor;
    Waits waits;
    static Time now();
  };
  // How a team spent its time, in nanoseconds.
  struct Run {
    std::int64_t wall = 0;
    std::int64_t worked = 0;               // sum over threads: on a processor and not spinning
    std::int64_t lost = 0, most_lost = 0;  // sum and maximum over threads: ready but not running
    // Adds one thread's time, from `called`, when it was called, to `end`.
    void add(std::int64_t called, const Time& begin, const Time& end);
  };

  // spins: how long, in nanoseconds, threads of these teams may spin after a run.
  explicit Oversubscription(int most, std::int64_t spins = 0)
      : most_(most), limit_(most), spins_(spins) {}

  // Number of threads to use for a run that asks for `parts`.
  int limit(int parts, std::int64_t now);
  // Whether to report `others`, the processor time of this process without the calling thread: only
  // while that is the only one.
  bool watches(std::int64_t now) const;
  void watch(std::int64_t others, std::int64_t now);
  // Whether to measure a run: reading the threads' clocks takes a microsecond.
  bool measures(std::int64_t now);
  // After a run of `parts` threads.
  void add(int parts, const Run& run, std::int64_t now);

 private:
  int most_, limit_;
  std::int64_t spins_;
  bool trial_ = false;        // running the full team again after a time with fewer
  bool early_ = false;        // because other threads of this process had stopped
  bool may_be_early_ = true;  // no such trial has failed since the full team was best
  bool others_ran_ = false;
  const void* watcher_ = nullptr;  // the thread that has reported, its report, and the next
  std::int64_t others_ = 0, watched_ = 0, next_watch_ = 0;
  std::int64_t measured_ = 0, pause_ = 0, retry_ = 0;
  double wall_ = 0, threads_ = 0, worked_ = 0, lost_ = 0, most_lost_ = 0;  // since a decision
};

}  // namespace charrnn_fast
