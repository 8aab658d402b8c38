// Threads of the CPU's kernels: how many, and whose. Results never depend on them.
#pragma once

#include <string>

namespace charrnn_fast {

// Initially CHARRNN_NUM_THREADS, or the processors this process may use (affinity, cgroup quota).
int get_num_threads();
// n must be at least 1, else throws std::invalid_argument. Not while another thread is computing.
void set_num_threads(int n);

// Threads of the program that this library is part of, for the kernels to run on.
struct Executor {
  void* pool;  // passed to both functions
  // The most tasks that can run at once, with the calling thread. Asked before every run. Below 2
  // the caller computes alone; get_num_threads() bounds it.
  int (*num_threads)(void* pool);
  // Calls task(argument, i) for each i from 0 to n - 1, on any threads, the calling one included;
  // n >= 2. Tasks do not throw. Called by one thread at a time; callers that come meanwhile compute
  // alone. What else runs on the calling thread before `run` returns must not call the network
  // that is computing.
  //
  // Tasks wait for each other. A pool that may run them one after another sets at_once to false:
  // then those that begin within 0.1 ms share the work, and all that come later return at once.
  // Such a pool may also drop tasks, or call them after `run` has returned. If at_once is true, all
  // n tasks must run at the same time, each on a thread of its own, and `run` returns after all of
  // them; else the program hangs.
  void (*run)(void* pool, int n, void (*task)(void* argument, int i), void* argument);
  bool at_once;
};

// The threads to use. Not while another thread is computing: throws std::invalid_argument.
//   "own"     the library's own threads
//   "openmp"  those of GCC's OpenMP runtime (libgomp), once something has loaded one; each calling
//             thread gets a team of its own there
//   "auto"    those of PyTorch's OpenMP runtime while they are awake, for calls from the process's
//             main thread; else the library's own
// Initially CHARRNN_EXECUTOR, else "auto". With OpenMP, teams have at most omp_get_max_threads()
// members, and a caller inside a parallel region computes alone. The library's own threads are used
// where that is 1, in forked children, and with other OpenMP runtimes than libgomp.
void set_executor(const std::string& name);
// Uses the executor, of which it makes a copy, until the next call. Throws std::invalid_argument
// where a function is null. A forked child, which does not have the pool's threads, begins with
// "own".
void set_executor(const Executor& executor);
// What was set: "own", "openmp", "auto"; "host" for an Executor.
std::string get_executor();
// Whose threads the calling thread can use now: "host", "openmp", or only "own".
std::string executor_in_use();

}  // namespace charrnn_fast
