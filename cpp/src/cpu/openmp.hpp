// GCC's OpenMP runtime, libgomp, where something else has loaded it.
//
// Its threads spin for milliseconds after their work. The pool's own threads would compete with
// them for the processors; as members of a libgomp team they are the same threads. The library does
// not link to it: there may be none, or several copies.
#pragma once

#include <cstdint>

namespace charrnn_fast {

struct OpenMp {
  // Calls f(data) on a team of threads, the calling one included.
  void (*parallel)(void (*f)(void* data), void* data, unsigned threads, unsigned flags);
  int (*in_parallel)();
  int (*max_threads)();
  int (*num_threads)();  // in f: of the team
  int (*thread_num)();   // in f: of the caller
};

// The library that PyTorch uses; if it is not loaded and only_pytorchs is false, any other. Null if
// there is none, and in a process that was forked when it had one: the threads are missing there,
// and the first team would wait for them forever. Looks for new libraries only if `now` is 10 ms
// after it last did.
const OpenMp* find_openmp(bool only_pytorchs, std::int64_t now);

// Whether this thread was the process's first.
bool on_main_thread();
// The system's number of the calling thread; 0 if unknown.
int this_thread();
// Processor time of a thread of this process, in nanoseconds; -1 if there is no such thread.
std::int64_t processor_time(int thread);

}  // namespace charrnn_fast
