// plants.cuh as device code: compiled by tests/test_cuda.py, run by nothing yet.
#include "plants.cuh"

namespace plants {

template __global__ void reverse<false>(const float*, float*);
template __global__ void rotate<false>(float*, int);
template __global__ void part_at_barrier<false>(float*);
template __global__ void two_barriers<false>(float*);
template __global__ void warp_sum<false>(const float*, float*);
template __global__ void shuffle_sum<false>(const float*, float*);
template __global__ void tiles<0>(const float*, float*, int);
template __global__ void grid_steps<0>(float*, std::uint32_t*, int);
template __global__ void words_ring<0>(Words4*, std::uint32_t*, int);
template __global__ void bounds<0>(const float*, float*, int);
template __global__ void product_tf32<false>(const float*, const float*, float*);
template __global__ void product_bf16<false>(const float*, const float*, float*);
#if PLANTS_CLUSTERS
template __global__ void cluster_sum<0>(const float*, float*);
template __global__ void cluster_ring<0>(float*, int);

void launch_all(Stream stream, float* x, float* y) {
  launch({.blocks = 4, .threads = 32, .cluster = 2}, stream, cluster_sum<0>, x, y);
  launch({.blocks = 4, .threads = 32, .cooperative = true}, stream, rotate<false>, x, 1);
}
#endif

}  // namespace plants
