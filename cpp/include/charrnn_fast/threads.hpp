// Number of threads of the CPU's kernels. Results never depend on it.
#pragma once

namespace charrnn_fast {

// Initially CHARRNN_NUM_THREADS, or the processors this process may use (affinity, cgroup quota).
int get_num_threads();
// n must be at least 1, else throws std::invalid_argument. Not while another thread is computing.
void set_num_threads(int n);

}  // namespace charrnn_fast
