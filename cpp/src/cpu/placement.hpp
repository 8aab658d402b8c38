// Placement: keeps workers off their caller's processor.
//
// A worker often wakes up on the processor of the thread that woke it. It stays there for many
// milliseconds while another processor is idle. So workers' affinity excludes the caller's
// processor. A call checks which processor it runs on (a few nanoseconds); only after a change does
// it make system calls. Only on Linux.
#pragma once

#include <cstdint>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace charrnn_fast {

// Number of processors of this process at the start; 0: unknown.
int processors_at_start();

#if defined(__linux__)

// Workers run on the caller's processors. A caller pinned to one processor does not pin them: they
// keep those of the last caller that had several, initially the process's at the start. Not
// thread-safe.
class Placement {
 public:
  // State of one worker.
  struct Place {
    unsigned version = 0, sets = 0;  // at the last check
    cpu_set_t left;                  // its affinity after that check
  };

  Placement();
  // The caller must call this at the beginning of a call.
  void look(std::int64_t now);
  // Sets the affinity of worker number i (from 1) if needed. Workers in excess of the other
  // processors run on any. An affinity set by another program (taskset -a) stays until the caller's
  // processors change. (With two processors, moving the whole process to the worker's looks like a
  // caller pinned there: the worker leaves.)
  void place(std::thread& worker, int i, Place& place) const;

 private:
  cpu_set_t callers_, allowed_;      // affinity of the last caller; the workers' widest
  int processor_ = -1;               // the last caller's
  unsigned version_ = 0, sets_ = 1;  // raised when the above change; when allowed_ does
  std::int64_t next_look_ = 0;       // when to read the caller's affinity
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
