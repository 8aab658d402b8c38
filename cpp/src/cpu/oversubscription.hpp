// Oversubscription: how many threads to use while other programs run.
//
// Shares of the work are fixed, so a team is as slow as its slowest thread. A thread that shares
// its processor with another program takes twice as long. Between barriers all threads wait out its
// time slices, so two threads can be slower than one. Each run measures how its threads spent their
// time. If fewer threads would have been as fast, fewer are used for a while.
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

  explicit Oversubscription(int most) : most_(most), limit_(most) {}

  // Number of threads to use for a run that asks for `parts`.
  int limit(int parts, std::int64_t now);
  // Whether to measure a run: reading the threads' clocks takes a microsecond.
  bool measures(std::int64_t now);
  // After a run of `parts` threads.
  void add(int parts, const Run& run, std::int64_t now);

 private:
  int most_, limit_;
  bool trial_ = false;  // running the full team again after a time with fewer
  std::int64_t measured_ = 0, pause_ = 0, retry_ = 0;
  double wall_ = 0, threads_ = 0, worked_ = 0, lost_ = 0, most_lost_ = 0;  // since a decision
};

}  // namespace charrnn_fast
