// The exchanges of persistent kernels (kernels/persistent.cuh, clusters.cuh) with mistakes. A
// kernel of the package runs with them.
#pragma once

#include "kernels/clusters.cuh"

namespace plants {

using namespace charrnn_fast;
using namespace charrnn_fast::cuda;

// 1: the flag is raised before all threads have written; 2: it does not release; 3: nobody waits;
// 4: waits for the step before only.
template <int mistake>
struct GridMistake : InGrid {
  template <class Args>
  __device__ GridMistake(const Args& p, const Tiling& s, void* place) : InGrid(p, s, place) {}
  __device__ void wait(int step, std::uint32_t bytes) const {
    if (mistake == 3 || (mistake == 4 && step == 1)) return sync_block();
    InGrid::wait(mistake == 4 && step > 0 ? step - 1 : step, bytes);
  }
  __device__ void end_step(int step) const {
    if (mistake != 1) sync_block();
    if (threadIdx.x != 0) return;
    if (mistake == 2)
      store_relaxed(own, static_cast<std::uint32_t>(step + 1));
    else
      store_release(own, static_cast<std::uint32_t>(step + 1));
  }
};

// 1: one buffer for all steps; 2: nobody waits; 3: one block of the cluster gets nothing; 4: waits
// for the other phase.
template <int mistake>
struct ClusterMistake : InCluster {
  template <class Args>
  __device__ ClusterMistake(const Args& p, const Tiling& s, void* place) : InCluster(p, s, place) {}
  __device__ int buffer(int step) const { return mistake == 1 ? 0 : InCluster::buffer(step); }
  __device__ void wait(int step, std::uint32_t bytes) const {
    Mbarrier* const barrier = full + InCluster::buffer(step);
    if (threadIdx.x == 0) mbarrier_arrive(barrier, bytes);
    const auto phase = static_cast<unsigned>(step / buffers % 2);
    if (mistake != 2) mbarrier_wait(barrier, mistake == 4 ? 1 - phase : phase);
  }
  template <class T>
  __device__ void pass_on(int step, T* operands, int at, T value) const {
    for (unsigned block = mistake == 3; block < cluster_blocks(); ++block)
      store_async(remote(operands + at, block), value,
                  remote(full + InCluster::buffer(step + 1), block));
  }
};

}  // namespace plants
