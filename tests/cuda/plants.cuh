// Small kernels that use each part of the execution model, right and with a mistake that is often
// made: the emulator must find every mistake and report nothing else. Plain C++ but for what
// kernels/device.cuh gives, so nvcc compiles them as well.
#pragma once

#include "kernels/device.cuh"

namespace plants {

using namespace charrnn_fast::cuda;

#if !defined(PLANTS_CLUSTERS)
#define PLANTS_CLUSTERS 1  // 0 for cards without clusters
#endif

// Reverses x within a block, by shared memory.
template <bool planted>
__global__ void reverse(const float* x, float* y) {
  float* const s = shared_memory<float>();
  const unsigned i = threadIdx.x;
  s[i] = x[i];
  if (!planted) sync_block();
  y[i] = s[blockDim.x - 1 - i];
}

// Moves values round the block for some steps. Planted: the buffer is written again before all have
// read it.
template <bool planted>
__global__ void rotate(float* x, int steps) {
  CHARRNN_SHARED(float, s, 64);
  const unsigned i = threadIdx.x;
  float v = x[i];
  for (int step = 0; step < steps; ++step) {
    s[i] = v;
    sync_block();
    v = s[(i + 1) % blockDim.x];
    if (!planted) sync_block();
  }
  x[i] = v;
}

// Planted: only one warp comes to the barrier.
template <bool planted>
__global__ void part_at_barrier(float* y) {
  CHARRNN_SHARED(float, s, 64);
  const unsigned i = threadIdx.x;
  if (i < 32) s[i] = 1;
  if (!planted || i < 32) sync_block();
  y[i] = s[i % 32];
}

// Planted: the two halves of the block meet in two barriers.
template <bool planted>
__global__ void two_barriers(float* y) {
  const unsigned i = threadIdx.x;
  if (planted && i >= 32)
    sync_block();
  else
    sync_block();
  y[i] = 1;
}

// Adds up a warp's values in shared memory. Planted: counts on lanes that go in step.
template <bool planted>
__global__ void warp_sum(const float* x, float* y) {
  CHARRNN_SHARED(float, s, 32);
  const unsigned i = threadIdx.x;
  s[i] = x[i];
  if (!planted) sync_warp();
  for (unsigned distance = 16; distance > 0; distance /= 2) {
    const float other = i < distance ? s[i + distance] : 0;
    if (!planted) sync_warp();
    if (i < distance) s[i] += other;
    if (!planted) sync_warp();
  }
  if (i == 0) *y = s[0];
}

// The same by shuffles. Planted: half of the warp names all lanes.
template <bool planted>
__global__ void shuffle_sum(const float* x, float* y) {
  const unsigned i = threadIdx.x;
  float v = x[i];
  if (planted && i >= 16) return;
  for (unsigned distance = 16; distance > 0; distance /= 2) v += shuffle_xor(v, distance);
  if (i == 0) *y = v;
}

// Copies a tile to shared memory in the background, double-buffered, and adds it up backwards.
// mistake 1: uses a tile without waiting for its copy; 2: waits for its own copies only; 3: waits
// for the wrong group.
template <int mistake>
__global__ void tiles(const float* x, float* y, int num_tiles) {
  CHARRNN_SHARED(float, s, 2 * 128);
  const unsigned i = threadIdx.x;
  float sum = 0;
  copy_async<16>(s + 4 * i, x + 4 * i);
  commit_copies();
  for (int tile = 0; tile < num_tiles; ++tile) {
    if (tile + 1 < num_tiles)
      copy_async<16>(s + (tile + 1) % 2 * 128 + 4 * i, x + (tile + 1) * 128 + 4 * i);
    commit_copies();
    if (mistake == 3)
      wait_copies<2>();
    else if (mistake != 1)
      wait_copies<1>();
    if (mistake != 2) sync_block();
    for (unsigned k = 0; k < 4; ++k) sum += s[tile % 2 * 128 + 127 - 4 * i - k];
    sync_block();
  }
  y[i] = sum;
}

#if PLANTS_CLUSTERS
// Every block of a cluster reads all blocks' values. mistake 1: reads before all have written; 2:
// leaves while others may still read.
template <int mistake>
__global__ void cluster_sum(const float* x, float* y) {
  CHARRNN_SHARED(float, s, 32);
  const unsigned i = threadIdx.x, rank = cluster_rank();
  s[i] = x[blockIdx.x * blockDim.x + i];
  if (mistake == 1)
    sync_block();
  else
    sync_cluster();
  float sum = 0;
  for (unsigned block = 0; block < cluster_blocks(); ++block) {
    const unsigned from = (rank + block) % cluster_blocks();
    sum += remote(s, from)[i];
  }
  if (mistake != 2) sync_cluster();
  y[blockIdx.x * blockDim.x + i] = sum;
}

// Blocks of a cluster pass their values on to the next by asynchronous stores, double-buffered, as
// a recurrence passes h. mistake 1: does not wait for the stores; 2: waits for the other phase; 3:
// expects more bytes than come; 4: stores before the neighbour has read the buffer.
template <int mistake>
__global__ void cluster_ring(float* x, int steps) {
  CHARRNN_SHARED(float, s, 2 * 32);
  CHARRNN_SHARED(Mbarrier, full, 2);
  const unsigned i = threadIdx.x, next = (cluster_rank() + 1) % cluster_blocks();
  if (i == 0) {
    mbarrier_init(&full[0], 1);
    mbarrier_init(&full[1], 1);
  }
  sync_cluster();
  float v = x[blockIdx.x * blockDim.x + i];
  for (int step = 0; step < steps; ++step) {
    const unsigned buffer = static_cast<unsigned>(step) % 2;
    const unsigned phase = static_cast<unsigned>(step) / 2 % 2;
    if (i == 0)
      mbarrier_arrive(&full[buffer],
                      static_cast<std::uint32_t>((blockDim.x + (mistake == 3)) * sizeof(float)));
    store_async(remote(&s[buffer * 32 + i], next), v, remote(&full[buffer], next));
    if (mistake != 1) mbarrier_wait(&full[buffer], mistake == 2 ? 1 - phase : phase);
    v = s[buffer * 32 + i] + 1;
    if (mistake != 4) sync_cluster();  // all have read before the buffer is stored to again
  }
  sync_cluster();
  x[blockIdx.x * blockDim.x + i] = v;
}
#endif

// A barrier of all blocks: an arrival counter that goes on over the launches, `blocks` more each.
// mistake 1: the arrival does not release.
template <int mistake>
__device__ void grid_barrier(std::uint32_t* arrived) {
  sync_block();
  if (threadIdx.x == 0) {
    const std::uint32_t before = mistake == 1 ? add_relaxed(arrived, 1) : add_release(arrived, 1);
    const std::uint32_t until = (before / gridDim.x + 1) * gridDim.x;
    while (load_acquire(arrived) < until) {
    }
  }
  sync_block();
}

// Each block adds its neighbours' values, step by step. mistake 1: see above; 2: no barrier. Counts
// on all blocks: a launch that is not cooperative is the third mistake.
template <int mistake>
__global__ void grid_steps(float* x, std::uint32_t* arrived, int steps) {
  const unsigned n = gridDim.x, block = blockIdx.x, i = threadIdx.x, width = blockDim.x;
  for (int step = 0; step < steps; ++step) {
    const float* const from = x + static_cast<unsigned>(step) % 2 * n * width;
    float* const to = x + static_cast<unsigned>(step + 1) % 2 * n * width;
    to[block * width + i] =
        from[(block + 1) % n * width + i] + from[(block + n - 1) % n * width + i];
    if (mistake != 2) grid_barrier<mistake>(arrived);
  }
}

// A value is its own flag: 16 bytes of three numbers and the step. mistake 1: takes whatever is
// there.
template <int mistake>
__global__ void words_ring(Words4* words, std::uint32_t* y, int steps) {
  const unsigned n = gridDim.x, block = blockIdx.x;
  if (threadIdx.x > 0) return;
  std::uint32_t v = block;
  for (int step = 1; step <= steps; ++step) {
    const std::uint32_t tag = static_cast<std::uint32_t>(step);
    Words4* const row = words + static_cast<unsigned>(step) % 3 * n;
    store_relaxed_words(&row[block], Words4{{v, v, v, tag}});
    Words4 got = load_relaxed_words(&row[(block + 1) % n]);
    while (mistake != 1 && got.w[3] != tag) got = load_relaxed_words(&row[(block + 1) % n]);
    v = got.w[0] + 1;
  }
  y[block] = v;
}

// mistake 1: writes one element past the dynamic shared memory; 2: reads one; 3: writes past a
// global array; 4: leaves the last element of y unwritten; 5: reads shared memory that nothing
// wrote.
template <int mistake>
__global__ void bounds(const float* x, float* y, int n) {
  float* const s = shared_memory<float>();
  const int i = static_cast<int>(threadIdx.x);
  if (!(mistake == 5 && i == 3)) s[mistake == 1 ? i + 1 : i] = x[i];
  sync_block();
  if (mistake == 4 && i == n - 1) return;
  y[mistake == 3 ? i + 1 : i] = s[mistake == 2 ? i + 1 : i];
}

// d = a b of 16 x 8 and 8 x 8, by one warp. Planted: b's fragment transposed.
template <bool planted>
__global__ void product_tf32(const float* a, const float* b, float* d) {
  const unsigned g = threadIdx.x / 4, t = threadIdx.x % 4;
  const std::uint32_t fa[4] = {to_tf32(a[g * 8 + t]), to_tf32(a[(g + 8) * 8 + t]),
                               to_tf32(a[g * 8 + t + 4]), to_tf32(a[(g + 8) * 8 + t + 4])};
  const std::uint32_t fb[2] = {to_tf32(planted ? b[g * 8 + t] : b[t * 8 + g]),
                               to_tf32(planted ? b[g * 8 + t + 4] : b[(t + 4) * 8 + g])};
  float fd[4] = {};
  mma_tf32(fd, fa, fb);
  d[g * 8 + 2 * t] = fd[0];
  d[g * 8 + 2 * t + 1] = fd[1];
  d[(g + 8) * 8 + 2 * t] = fd[2];
  d[(g + 8) * 8 + 2 * t + 1] = fd[3];
}

// d = a b of 16 x 16 and 16 x 8 in bfloat16. Planted: the two numbers of a register exchanged.
template <bool planted>
__global__ void product_bf16(const float* a, const float* b, float* d) {
  const unsigned g = threadIdx.x / 4, t = threadIdx.x % 4;
  const auto pair = [](float first, float second) {
    return planted ? pack_bf16(second, first) : pack_bf16(first, second);
  };
  std::uint32_t fa[4], fb[2];
  for (unsigned k = 0; k < 2; ++k) {
    for (unsigned half = 0; half < 2; ++half) {
      const float* const row = a + (g + 8 * half) * 16 + 8 * k + 2 * t;
      fa[2 * k + half] = pack_bf16(row[0], row[1]);
    }
    fb[k] = pair(b[(8 * k + 2 * t) * 8 + g], b[(8 * k + 2 * t + 1) * 8 + g]);
  }
  float fd[4] = {};
  mma_bf16(fd, fa, fb);
  d[g * 8 + 2 * t] = fd[0];
  d[g * 8 + 2 * t + 1] = fd[1];
  d[(g + 8) * 8 + 2 * t] = fd[2];
  d[(g + 8) * 8 + 2 * t + 1] = fd[3];
}

// The number of the last element above a limit of each warp, by a vote.
__global__ void last_above(const float* x, unsigned* y, float limit) {
  const unsigned above = votes(x[threadIdx.x] > limit);
  if (threadIdx.x % 32 == 0) {
    unsigned last = 0;
    for (unsigned i = 0; i < 32; ++i)
      if (above >> i & 1) last = i;
    y[threadIdx.x / 32] = last;
  }
}

}  // namespace plants
