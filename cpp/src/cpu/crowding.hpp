// How many threads are worth calling while other programs run.
//
// Shares of the work are fixed, and a team is as slow as its slowest thread: where a processor is
// shared with another program, its thread takes twice as long, and between barriers all wait out
// its time slices, so that two threads can be slower than one. Runs tell what their threads did
// with their time; where fewer threads would have been done as soon, fewer are called, for a while.
#pragma once

#include <cstdint>

namespace charrnn_fast {

std::int64_t wall_clock();  // nanoseconds, of a clock that never goes back

// Nanoseconds that a thread has waited for others.
struct Waits {
  std::int64_t spinning = 0;
  std::int64_t asleep = 0;  // until what it waited for had happened (not until it ran again)
};
Waits& waits_of_this_thread();

class Crowding {
 public:
  // This thread's time, in nanoseconds.
  struct Time {
    std::int64_t wall, on_processor;
    Waits waits;
    static Time now();
  };
  // What a team did, in nanoseconds.
  struct Run {
    std::int64_t wall = 0;
    std::int64_t worked = 0;               // of all threads: on a processor and not spinning
    std::int64_t lost = 0, most_lost = 0;  // of all, of one: ready to run and not running
    // A thread's part: from `called`, when it was called, to `end`.
    void add(std::int64_t called, const Time& begin, const Time& end);
  };

  explicit Crowding(int most) : most_(most), limit_(most) {}

  // Threads to call for a run that would like `parts`.
  int limit(int parts, std::int64_t now);
  // Whether to measure a run: reading the clocks of threads takes a microsecond.
  bool measures(std::int64_t now);
  // After a run of `parts` threads.
  void add(int parts, const Run& run, std::int64_t now);

 private:
  int most_, limit_;
  bool trial_ = false;  // of the full team, after a time with fewer
  std::int64_t measured_ = 0, pause_ = 0, retry_ = 0;
  double wall_ = 0, threads_ = 0, worked_ = 0, lost_ = 0, most_lost_ = 0;  // since a decision
};

}  // namespace charrnn_fast
