// The number of threads that the kernels share their work among. Results never depend on it.
#pragma once

namespace charrnn_fast {

// At first: CHARRNN_NUM_THREADS, or the processors this process may use (affinity, cgroup quota).
int get_num_threads();
// n >= 1; throws std::invalid_argument otherwise. Not while another thread is computing.
void set_num_threads(int n);

}  // namespace charrnn_fast
