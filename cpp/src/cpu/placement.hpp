// Keeps workers off the processor of their caller.
//
// A worker that wakes up often lands on the processor of the thread that woke it, and stays there
// for many milliseconds while another processor is idle. So the caller's processor is taken out of
// the affinity of its workers. A call looks where it runs (a few nanoseconds); only if that has
// changed does it make system calls. Elsewhere than on Linux nothing is done.
#pragma once

#include <cstdint>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace charrnn_fast {

// How many processors this process was given at the start; 0: unknown.
int processors_at_start();

#if defined(__linux__)

// Where workers may run: on the processors of the caller. A caller pinned to one processor does not
// pin them: they keep the processors of the last caller that had several, at first those that the
// process was given at the start. Not for several threads at once.
class Placement {
 public:
  // One worker's.
  struct Place {
    unsigned version = 0, sets = 0;  // as of the last visit
    cpu_set_t left;                  // its affinity as it was left then
  };

  Placement();
  // At the beginning of a call, by the caller.
  void look(std::int64_t now);
  // Sets the affinity of worker number i (from 1), if need be. With more workers than other
  // processors, those beyond run on any. What another program has set for a worker (taskset -a)
  // stays, until the processors of the caller change. (Of two processors, a whole process that is
  // sent to the worker's looks like a caller that pins itself there: the worker leaves.)
  void place(std::thread& worker, int i, Place& place) const;

 private:
  cpu_set_t callers_, allowed_;      // the affinity of the last caller; of workers, at most
  int processor_ = -1;               // the last caller's
  unsigned version_ = 0, sets_ = 1;  // raised when either of the above changes; when allowed_ does
  std::int64_t next_look_ = 0;       // at the caller's affinity
};

#else

class Placement {
 public:
  struct Place {};
  void look(std::int64_t) {}
  void place(std::thread&, int, Place&) const {}
};

#endif

}  // namespace charrnn_fast
