// The exchange of T2: blocks of a cluster write what they pass on into each other's shared memory.
// For sm_90 and later; kernels of older cards are empty.
#pragma once

#include "kernels/persistent.cuh"

namespace charrnn_fast {
namespace cuda {

// Operands of a step are in one of two buffers, each with a barrier that counts the bytes that
// arrive. A block passes a step's values on when its threads have read the operands; another may
// then write the same buffer for the step after the next, since it waits for these values before.
struct InCluster {
  static constexpr int buffers = 2;
  static constexpr bool in_place = true;
  static constexpr std::size_t more_shared = buffers * sizeof(Mbarrier);

#if CHARRNN_CLUSTERS
  template <class Args>
  __device__ InCluster(const Args&, const Tiling&, void* place)
      : full(static_cast<Mbarrier*>(place)) {
    if (threadIdx.x == 0)
      for (int i = 0; i < buffers; ++i) mbarrier_init(full + i, 1);
    sync_cluster();
  }
  __device__ int buffer(int step) const { return step % buffers; }
  __device__ void wait(int step, std::uint32_t bytes) const {
    Mbarrier* const barrier = full + buffer(step);
    if (threadIdx.x == 0) mbarrier_arrive(barrier, bytes);
    mbarrier_wait(barrier, static_cast<unsigned>(step / buffers % 2));
  }
  template <class T>
  __device__ void pass_on(int step, T* operands, int at, T value) const {
    for (unsigned block = 0; block < cluster_blocks(); ++block)
      store_async(remote(operands + at, block), value, remote(full + buffer(step + 1), block));
  }
  __device__ void end_step(int) const {}
  __device__ void end() const { sync_cluster(); }  // others may still write here
#endif

  Mbarrier* full;
};

template <class Pass>
__global__ void CHARRNN_THREADS(persistent_threads)
    persistent_cluster(typename Pass::Args p, Range walk, Range rows, Tiling s) {
#if CHARRNN_CLUSTERS
  run_steps<Pass, InCluster>(p, walk, rows, s);
#endif
}

}  // namespace cuda
}  // namespace charrnn_fast
