// All of CUDA that is not plain C++: launches, shared memory, barriers, loads and stores with an
// order, asynchronous copies, clusters, matrix units. Kernels call these functions and use CUDA's
// threadIdx, blockIdx, blockDim and gridDim, and nothing else of CUDA.
//
// Under nvcc they are inline assembly (PTX ISA 8.1). Under another compiler they are those of the
// emulator (tests/cuda/emulator), which runs the same kernels on the CPU.
//
// What orders memory: sync_block, sync_warp, cluster_arrive and cluster_wait, mbarriers, and
// store_release before load_acquire of the value. Shuffles, relaxed accesses and the order in which
// blocks begin do not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "charrnn_fast/cuda.hpp"

#if defined(__CUDACC__)

#include <cuda_runtime.h>

// Before a loop whose counter indexes an array that must stay in registers.
#define CHARRNN_UNROLL _Pragma("unroll")
// Of a kernel: threads of a block, at most.
#define CHARRNN_THREADS(n) __launch_bounds__(n)
// And so many blocks of a multiprocessor at once: the compiler keeps to the registers for them.
#define CHARRNN_THREADS_OF_BLOCKS(n, blocks) __launch_bounds__(n, blocks)

#include <cstring>
#include <mutex>
#include <set>
#include <stdexcept>
#include <utility>

namespace charrnn_fast {
namespace cuda {

using Stream = cudaStream_t;
using Mbarrier = std::uint64_t;
constexpr unsigned full_warp = 0xffffffffu;

struct Grid {
  dim3 blocks, threads;
  std::size_t shared = 0;    // bytes of dynamic shared memory of a block
  unsigned cluster = 1;      // blocks of a cluster, along x
  bool cooperative = false;  // all blocks are resident at once
};

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// ---- the host's side ----------------------------------------------------------------------
constexpr const char* device_name = "cuda";

// Never throws, and leaves the current card and its context alone.
inline CudaCards find_cards() {
  CudaCards found{};
  (void)cudaRuntimeGetVersion(&found.runtime);
  (void)cudaDriverGetVersion(&found.driver);
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  (void)cudaGetLastError();
  const auto version = [](int number) {
    return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
  };
  if (found.driver == 0)
    found.why_not = "there is no NVIDIA driver (libcuda.so.1)";
  else if (status == cudaErrorInsufficientDriver)
    found.why_not = "the driver is too old: it must be for CUDA " + version(found.runtime) +
                    " or later, it is for CUDA " + version(found.driver);
  else if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0))
    found.why_not = "the driver finds no card (CUDA_VISIBLE_DEVICES may hide it)";
  else if (status != cudaSuccess)
    found.why_not = std::string("CUDA does not start: ") + cudaGetErrorString(status);
  for (int i = 0; found.why_not.empty() && i < count; ++i) {
    cudaDeviceProp properties;
    const cudaError_t read = cudaGetDeviceProperties(&properties, i);
    if (read != cudaSuccess) {
      found.why_not = "card " + std::to_string(i) + ": " + cudaGetErrorString(read);
      found.all.clear();
      break;
    }
    found.all.push_back({properties.name, properties.major, properties.minor,
                         properties.multiProcessorCount, properties.totalGlobalMem});
  }
  return found;
}

// The card of this process: CUDA's ordinal. Set before any other call.
inline int& chosen_card() {
  static int ordinal = 0;
  return ordinal;
}
// CUDA's current card is the calling thread's own. While this lives it is the chosen one.
class OnCard {
 public:
  OnCard() {
    check(cudaGetDevice(&before_), "current card");
    if (before_ != chosen_card()) check(cudaSetDevice(chosen_card()), "card");
  }
  ~OnCard() {
    if (before_ != chosen_card()) (void)cudaSetDevice(before_);
  }
  OnCard(const OnCard&) = delete;
  OnCard& operator=(const OnCard&) = delete;

 private:
  int before_ = 0;
};
// Bytes.
inline void memory_of_card(std::size_t* free, std::size_t* total) {
  const OnCard on_card;
  check(cudaMemGetInfo(free, total), "memory of the card");
}
// Why the card cannot run a kernel of this program, or an empty string.
template <class... P>
std::string why_not_run(void (*kernel)(P...)) {
  const OnCard on_card;
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
  (void)cudaGetLastError();
  return status == cudaSuccess ? "" : cudaGetErrorString(status);
}

inline Stream new_stream() {
  const OnCard on_card;
  Stream stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
  return stream;
}
// Null when out of memory.
inline void* allocate_bytes(std::size_t bytes) {
  const OnCard on_card;
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, bytes > 0 ? bytes : 1);
  if (status == cudaSuccess) return memory;
  (void)cudaGetLastError();  // else the next launch would report it
  if (status != cudaErrorMemoryAllocation) check(status, "memory of the device");
  return nullptr;
}
// Once queued work, of any stream, has ended: it may use the memory. Destructors call this, so a
// fault of that work is left to the next call that can throw: CUDA reports it again.
inline void release_bytes(void* memory) noexcept {
  int before = 0;
  const bool known = cudaGetDevice(&before) == cudaSuccess && before != chosen_card();
  if (known) (void)cudaSetDevice(chosen_card());
  (void)cudaDeviceSynchronize();
  (void)cudaFree(memory);
  if (known) (void)cudaSetDevice(before);
  (void)cudaGetLastError();
}
inline void wait_for(Stream stream) {
  const OnCard on_card;
  check(cudaStreamSynchronize(stream), "work of the device");
}
// An event behind all that a stream has now.
inline void* new_mark(Stream stream) {
  const OnCard on_card;
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
  check(cudaEventRecord(event, stream), "an event");
  return event;
}
inline bool has_reached(void* mark) {
  const OnCard on_card;
  const cudaError_t status = cudaEventQuery(static_cast<cudaEvent_t>(mark));
  if (status == cudaErrorNotReady) return false;
  check(status, "work of the device");
  return true;
}
inline void delete_mark(void* mark) { (void)cudaEventDestroy(static_cast<cudaEvent_t>(mark)); }
inline Stream stream_of(void* handle) { return static_cast<cudaStream_t>(handle); }
inline void* handle_of(Stream stream) { return stream; }
// What is queued to `waiting` from now on begins when all that is in `ahead` is done.
inline void wait_in_stream(Stream waiting, Stream ahead) {
  const OnCard on_card;
  struct Event {  // a wait is for the event's state at the call: one serves all
    cudaEvent_t it = nullptr;
    ~Event() {
      if (it) (void)cudaEventDestroy(it);
    }
  };
  static thread_local Event event;
  if (!event.it) check(cudaEventCreateWithFlags(&event.it, cudaEventDisableTiming), "an event");
  check(cudaEventRecord(event.it, ahead), "an event");
  check(cudaStreamWaitEvent(waiting, event.it, 0), "an event");
}
inline cudaMemoryType type_of(const void* memory) {
  cudaPointerAttributes attributes;
  check(cudaPointerGetAttributes(&attributes, memory), "an array's place");
  return attributes.type;
}
// Has read `from`, of the host, when it returns: memory that is not pinned is copied first. If it
// is the device's, the copy is queued.
inline void copy_in(Stream stream, const void* from, std::size_t bytes, void* to) {
  const OnCard on_card;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "copy to the device");
  const cudaMemoryType type = type_of(from);
  if (type != cudaMemoryTypeUnregistered && type != cudaMemoryTypeDevice) wait_for(stream);
}
// Has written `to`, of the host, when it returns. If it is the device's, the copy is queued.
inline void copy_out(Stream stream, const void* from, std::size_t bytes, void* to) {
  const OnCard on_card;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "copy from the device");
  if (type_of(to) != cudaMemoryTypeDevice) wait_for(stream);
}
inline void copy_within(Stream stream, const void* from, std::size_t bytes, void* to) {
  const OnCard on_card;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "copy on the device");
}
inline void set_zero(Stream stream, void* to, std::size_t bytes) {
  const OnCard on_card;
  check(cudaMemsetAsync(to, 0, bytes, stream), "zeros on the device");
}

// What kernels ask of the card.
struct CardFacts {
  std::string name;
  int capability;  // 90: 9.0
  int multiprocessors;
  std::size_t shared_per_block;  // bytes that a block may ask for
  unsigned cluster;              // most blocks of a cluster; 1: no clusters
  bool cooperative;
};
inline const CardFacts& card_facts() {
  static const CardFacts facts = [] {
    cudaDeviceProp card;
    check(cudaGetDeviceProperties(&card, chosen_card()), "properties of the card");
    constexpr unsigned most_blocks = 16;
    return CardFacts{card.name,
                     card.major * 10 + card.minor,
                     card.multiProcessorCount,
                     card.sharedMemPerBlockOptin,
                     card.major >= 9 ? most_blocks : 1,
                     card.cooperativeLaunch != 0};
  }();
  return facts;
}

// The most blocks of a cluster that every card with clusters takes.
constexpr unsigned portable_cluster = 8;
// Lets a kernel have as much dynamic shared memory as the current card gives a block, once: its
// limit is the process's, and another thread may be about to launch it with more than this one.
inline void allow_shared(const void* kernel) {
  static std::mutex mutex;
  static auto* const allowed = new std::set<const void*>;  // threads may outlive static objects
  const std::lock_guard<std::mutex> lock(mutex);
  if (allowed->count(kernel) != 0) return;
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), "attributes of a kernel");
  check(cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
            static_cast<int>(card_facts().shared_per_block - attributes.sharedSizeBytes)),
        "shared memory of a kernel");
  allowed->insert(kernel);
}
// Lets the kernel have the grid's shared memory and cluster, if the card does; on the chosen card.
template <class... P>
void allow(const Grid& grid, void (*kernel)(P...)) {
  constexpr std::size_t unasked = 48 << 10;
  if (grid.shared > unasked) allow_shared(reinterpret_cast<const void*>(kernel));
  if (grid.cluster > portable_cluster)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
          "cluster of a kernel");
}
// attributes: room for 2.
inline cudaLaunchConfig_t launch_config(const Grid& grid, Stream stream,
                                        cudaLaunchAttribute* attributes) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared;
  config.stream = stream;
  config.attrs = attributes;
  if (grid.cluster > 1) {
    auto& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {grid.cluster, 1, 1};
  }
  if (grid.cooperative) {
    auto& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  return config;
}

// Throws std::runtime_error if the card refuses the launch.
template <class... P, class... A>
void launch(const Grid& grid, Stream stream, void (*kernel)(P...), A&&... arguments) {
  const OnCard on_card;
  cudaLaunchAttribute attributes[2];
  allow(grid, kernel);
  const cudaLaunchConfig_t config = launch_config(grid, stream, attributes);
  check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(std::forward<A>(arguments))...),
        "launch of a kernel");
}

// The most blocks of a cooperative launch on the current card.
template <class... P>
int resident_blocks(const Grid& grid, void (*kernel)(P...)) {
  const OnCard on_card;
  int each = 0;
  allow(grid, kernel);
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
            &each, kernel, static_cast<int>(grid.threads.x * grid.threads.y * grid.threads.z),
            grid.shared),
        "occupancy of a kernel");
  return each * card_facts().multiprocessors;
}
// The most clusters that run at once; 0 where the card has none of that size.
template <class... P>
int resident_clusters(const Grid& grid, void (*kernel)(P...)) {
  const OnCard on_card;
  constexpr int first_with_clusters = 90;
  cudaFuncAttributes code;
  check(cudaFuncGetAttributes(&code, kernel), "attributes of a kernel");
  if (code.ptxVersion < first_with_clusters) return 0;  // compiled without: it would do nothing
  int clusters = 0;
  cudaLaunchAttribute attributes[2];
  allow(grid, kernel);
  const cudaLaunchConfig_t config = launch_config(grid, nullptr, attributes);
  const cudaError_t status =
      cudaOccupancyMaxActiveClusters(&clusters, reinterpret_cast<const void*>(kernel), &config);
  if (status == cudaErrorInvalidClusterSize) {
    (void)cudaGetLastError();
    return 0;
  }
  check(status, "occupancy of clusters");
  return clusters;
}

// ---- shared memory ------------------------------------------------------------------------
extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[];

// The launch's dynamic shared memory, aligned to 128 bytes.
template <class T>
__device__ __forceinline__ T* shared_memory() {
  return reinterpret_cast<T*>(dynamic_shared_bytes);
}

// Declares `name`, a pointer to `count` elements of the block's static shared memory. Once a line.
#define CHARRNN_SHARED(type, name, count)                                             \
  __shared__ __align__(                                                               \
      16) unsigned char name##_bytes[sizeof(type) * static_cast<std::size_t>(count)]; \
  type* const name = reinterpret_cast<type*>(name##_bytes)

// x, of which the compiler knows nothing: it computes again what depends on it, where it would keep
// that in registers.
__device__ __forceinline__ std::int64_t forgotten(std::int64_t x) {
  asm volatile("" : "+l"(x));
  return x;
}

// n neighbouring elements of shared memory, in as few accesses as can be. `from` must be aligned to
// 16 bytes where n of them are a multiple of 16 bytes.
template <int n, class T>
__device__ __forceinline__ void load_shared(const T* from, T (&to)[n]) {
  if constexpr (n * sizeof(T) % 16 == 0) {
    constexpr int each = 16 / static_cast<int>(sizeof(T));
    CHARRNN_UNROLL
    for (int i = 0; i < n; i += each) {
      const int4 words = *reinterpret_cast<const int4*>(from + i);
      memcpy(to + i, &words, sizeof words);
    }
  } else {
    CHARRNN_UNROLL
    for (int i = 0; i < n; ++i) to[i] = from[i];
  }
}

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- blocks and warps ---------------------------------------------------------------------
__device__ __forceinline__ void sync_block() { __syncthreads(); }
// A barrier of `threads` threads of the block, a multiple of 32; 1 <= barrier < 16.
__device__ __forceinline__ void sync_part(unsigned barrier, unsigned threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void sync_warp(unsigned mask = full_warp) { __syncwarp(mask); }

template <class T>
__device__ __forceinline__ T shuffle(T value, unsigned lane, unsigned mask = full_warp) {
  return __shfl_sync(mask, value, static_cast<int>(lane));
}
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, unsigned bits, unsigned mask = full_warp) {
  return __shfl_xor_sync(mask, value, static_cast<int>(bits));
}
template <class T>
__device__ __forceinline__ T shuffle_up(T value, unsigned lanes, unsigned mask = full_warp) {
  return __shfl_up_sync(mask, value, lanes);
}
template <class T>
__device__ __forceinline__ T shuffle_down(T value, unsigned lanes, unsigned mask = full_warp) {
  return __shfl_down_sync(mask, value, lanes);
}
__device__ __forceinline__ unsigned votes(bool predicate, unsigned mask = full_warp) {
  return __ballot_sync(mask, predicate);
}

// ---- accesses that other blocks see (scope: the device) -----------------------------------
__device__ __forceinline__ std::uint32_t load_acquire(const std::uint32_t* from) {
  std::uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ __forceinline__ void store_release(std::uint32_t* to, std::uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ __forceinline__ std::uint32_t load_relaxed(const std::uint32_t* from) {
  std::uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ __forceinline__ void store_relaxed(std::uint32_t* to, std::uint32_t value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
// Adds and returns what was there. _release: what the thread wrote before is seen by who acquires.
__device__ __forceinline__ std::uint32_t add_relaxed(std::uint32_t* to, std::uint32_t value) {
  std::uint32_t before;
  asm volatile("atom.add.relaxed.gpu.global.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(to), "r"(value)
               : "memory");
  return before;
}
__device__ __forceinline__ std::uint32_t add_release(std::uint32_t* to, std::uint32_t value) {
  std::uint32_t before;
  asm volatile("atom.add.release.gpu.global.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(to), "r"(value)
               : "memory");
  return before;
}
__device__ __forceinline__ std::uint32_t add_acquire_release(std::uint32_t* to,
                                                             std::uint32_t value) {
  std::uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(to), "r"(value)
               : "memory");
  return before;
}
// 16 bytes at once, aligned to 16: none of the four words is older than another.
struct Words4 {
  std::uint32_t w[4];
};
__device__ __forceinline__ Words4 load_relaxed_words(const Words4* from) {
  Words4 v;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "l"(from)
               : "memory");
  return v;
}
__device__ __forceinline__ void store_relaxed_words(Words4* to, const Words4& v) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.w[0]),
               "r"(v.w[1]), "r"(v.w[2]), "r"(v.w[3])
               : "memory");
}

// ---- asynchronous copies from global to shared memory -------------------------------------
template <int bytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async takes 4, 8 or 16 bytes");
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
                 "l"(global)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(shared)),
                 "l"(global), "n"(bytes)
                 : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until at most so many of this thread's committed groups are under way. Other threads see the
// copies after a barrier.
template <int groups_left>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups_left) : "memory");
}

// ---- clusters (sm_90) ---------------------------------------------------------------------
// Whether kernels can use what follows: 0 where they are compiled for older cards.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define CHARRNN_CLUSTERS 1
#else
#define CHARRNN_CLUSTERS 0
#endif
#if CHARRNN_CLUSTERS
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ unsigned cluster_blocks() {
  unsigned blocks;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return blocks;
}
// The two halves of a barrier of all threads of the cluster. No block may leave before the last
// access of another block to its shared memory.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ void sync_cluster() {
  cluster_arrive();
  cluster_wait();
}
// The same place in the shared memory of another block of the cluster.
template <class T>
__device__ __forceinline__ T* remote(T* own, unsigned rank) {
  std::uint64_t address;
  asm volatile("mapa.u64 %0, %1, %2;"
               : "=l"(address)
               : "l"(reinterpret_cast<std::uint64_t>(own)), "r"(rank));
  return reinterpret_cast<T*>(address);
}

// A barrier in shared memory of `count` arrivals and of the bytes that they expect. Its phases
// have parities 0, 1, 0, ...
__device__ __forceinline__ void mbarrier_init(Mbarrier* barrier, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void mbarrier_arrive(Mbarrier* barrier, std::uint32_t bytes = 0) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(
                   shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void mbarrier_wait(Mbarrier* barrier, unsigned parity) {
  std::uint32_t done = 0;
  while (!done)
    asm volatile(
        "{ .reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
}
// Of an address that remote() gave.
__device__ __forceinline__ std::uint32_t cluster_address(const void* remote_pointer) {
  std::uint32_t address;
  asm("{ .reg .u64 t;\n"
      "cvta.to.shared::cluster.u64 t, %1;\n"
      "cvt.u32.u64 %0, t; }"
      : "=r"(address)
      : "l"(remote_pointer));
  return address;
}
// Stores to another block and counts the bytes at that block's barrier. `to` and `barrier` are
// remote().
template <class T>
__device__ __forceinline__ void store_async(T* to, T value, Mbarrier* barrier) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "st.async takes 4 or 8 bytes");
  if constexpr (sizeof(T) == 4) {
    std::uint32_t bits;
    memcpy(&bits, &value, 4);
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(
            cluster_address(to)),
        "r"(bits), "r"(cluster_address(barrier))
        : "memory");
  } else {
    std::uint64_t bits;
    memcpy(&bits, &value, 8);
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u64 [%0], %1, [%2];" ::"r"(
            cluster_address(to)),
        "l"(bits), "r"(cluster_address(barrier))
        : "memory");
  }
}
#endif

// ---- matrix units: d += a b, one tile of a warp, d 16 x 8 ----------------------------------
// Fragments of lane 4 g + t: d (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1).
// TF32, depth 8: a (g, t), (g+8, t), (g, t+4), (g+8, t+4); b (t, g), (t+4, g).
__device__ __forceinline__ void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4],
                                         const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Rounds to TF32's 10 bits, ties away from zero; the operand of mma_tf32.
__device__ __forceinline__ std::uint32_t to_tf32(float value) {
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}
// bfloat16, depth 16, two in a register, the lower first: a (g, 2t), (g+8, 2t), (g, 2t+8),
// (g+8, 2t+8), each with its right neighbour; b (2t, g), (2t+8, g), each with the one below.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4],
                                         const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// fma that takes subnormal operands as zeros and turns a subnormal result into a zero.
__host__ __device__ __forceinline__ float fma_flushed(float a, float b, float c) {
  float result = 0;
#if defined(__CUDA_ARCH__)
  asm("fma.rn.ftz.f32 %0, %1, %2, %3;" : "=f"(result) : "f"(a), "f"(b), "f"(c));
#endif
  return result;  // of the device alone: the host calls no kernel's code
}
// Two numbers as bfloat16 in a register, rounded to nearest, ties to even.
__device__ __forceinline__ std::uint32_t pack_bf16(float lower, float upper) {
  std::uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(upper), "f"(lower));
  return bits;
}

}  // namespace cuda
}  // namespace charrnn_fast

#else

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "emulator/emulator.hpp"

#define CHARRNN_UNROLL
#define CHARRNN_THREADS(n)
#define CHARRNN_THREADS_OF_BLOCKS(n, blocks)
#define CHARRNN_CLUSTERS 1

namespace charrnn_fast {
namespace cuda {

using Stream = cuda_emulator::Stream*;
using Mbarrier = cuda_emulator::Mbarrier;
using Grid = cuda_emulator::Grid;
using cuda_emulator::full_warp;
using Where = cuda_emulator::Where;

// ---- the host's side ----------------------------------------------------------------------
constexpr const char* device_name = "emulated";

inline CudaCards find_cards() {
  const cuda_emulator::Card& card = cuda_emulator::card();
  return {"",
          0,
          0,
          {{std::string(card.name) + ", emulated", card.compute_capability / 10,
            card.compute_capability % 10, card.multiprocessors, cuda_emulator::all_memory}}};
}
inline int& chosen_card() {
  static int ordinal = 0;
  return ordinal;
}
inline void memory_of_card(std::size_t* free, std::size_t* total) {
  *total = cuda_emulator::all_memory;
  *free = *total - cuda_emulator::allocated_bytes();
}
template <class... P>
std::string why_not_run(void (*)(P...)) {
  return "";
}

inline Stream new_stream() { return new cuda_emulator::Stream; }
inline void* allocate_bytes(std::size_t bytes) { return cuda_emulator::allocate(bytes); }
inline void release_bytes(void* memory) {
  cuda_emulator::synchronize();
  cuda_emulator::release(memory);
}
inline void wait_for(Stream stream) { stream->synchronize(); }
inline void* new_mark(Stream stream) {
  auto* const event = new cuda_emulator::Event;
  event->record(*stream);
  return event;
}
inline bool has_reached(void* mark) { return static_cast<cuda_emulator::Event*>(mark)->reached(); }
inline void delete_mark(void* mark) { delete static_cast<cuda_emulator::Event*>(mark); }
// 1 and 2 are CUDA's names for the default stream and that of a thread.
inline Stream stream_of(void* handle) {
  return reinterpret_cast<std::uintptr_t>(handle) <= 2 ? &cuda_emulator::default_stream()
                                                       : static_cast<Stream>(handle);
}
inline void* handle_of(Stream stream) { return stream; }
inline void wait_in_stream(Stream waiting, Stream ahead) {
  cuda_emulator::Event event;
  event.record(*ahead);
  waiting->wait(event);
}
inline void copy_in(Stream stream, const void* from, std::size_t bytes, void* to) {
  if (cuda_emulator::is_device(from)) return stream->copy(from, bytes, to);
  const auto* const first = static_cast<const unsigned char*>(from);
  auto copy = std::make_shared<const std::vector<unsigned char>>(first, first + bytes);
  stream->enqueue([copy, to] { std::memcpy(to, copy->data(), copy->size()); });
}
inline void copy_out(Stream stream, const void* from, std::size_t bytes, void* to) {
  if (cuda_emulator::is_device(to)) return stream->copy(from, bytes, to);
  stream->download(from, bytes, to, false);
  stream->synchronize();
}
inline void copy_within(Stream stream, const void* from, std::size_t bytes, void* to) {
  stream->copy(from, bytes, to);
}
inline void set_zero(Stream stream, void* to, std::size_t bytes) { stream->fill(to, 0, bytes); }

template <class... P, class... A>
void launch(const Grid& grid, Stream stream, void (*kernel)(P...), A&&... arguments) {
  cuda_emulator::launch(grid, *stream, kernel, std::forward<A>(arguments)...);
}
template <class... P>
int resident_blocks(const Grid& grid, void (*)(P...)) {
  return cuda_emulator::resident_blocks(grid);
}
template <class... P>
int resident_clusters(const Grid& grid, void (*)(P...)) {
  return cuda_emulator::resident_blocks(grid) / static_cast<int>(grid.cluster);
}
struct CardFacts {
  std::string name;
  int capability, multiprocessors;
  std::size_t shared_per_block;
  unsigned cluster;
  bool cooperative;
};
inline CardFacts card_facts() {
  const cuda_emulator::Card& card = cuda_emulator::card();
  return {card.name,
          card.compute_capability,
          card.multiprocessors,
          card.shared_per_block,
          static_cast<unsigned>(card.cluster_size),
          true};
}

template <class T>
T* shared_memory() {
  return static_cast<T*>(cuda_emulator::dynamic_shared());
}
#define CHARRNN_SHARED(type, name, count)                                                          \
  type* const name = [&] {                                                                         \
    static const char key = 0;                                                                     \
    return static_cast<type*>(                                                                     \
        ::cuda_emulator::static_shared(&key, sizeof(type) * static_cast<std::size_t>(count), 16)); \
  }()

inline std::int64_t forgotten(std::int64_t x) { return x; }
template <int n, class T>
void load_shared(const T* from, T (&to)[n]) {
  if (n * sizeof(T) % 16 == 0 && reinterpret_cast<std::uintptr_t>(from) % 16 != 0)
    throw std::logic_error("load_shared: the address is not a multiple of 16");
  for (int i = 0; i < n; ++i) to[i] = from[i];
}

inline void sync_block(Where where = Where::current()) { cuda_emulator::sync_threads(0, 0, where); }
inline void sync_part(unsigned barrier, unsigned threads, Where where = Where::current()) {
  cuda_emulator::sync_threads(barrier, threads, where);
}
inline void sync_warp(unsigned mask = full_warp, Where where = Where::current()) {
  cuda_emulator::sync_warp(mask, where);
}

template <class T>
T shuffle_with(cuda_emulator::Shuffle how, T value, unsigned operand, unsigned mask, Where where) {
  static_assert(sizeof(T) <= 8, "shuffles take at most 8 bytes");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = cuda_emulator::shuffle(how, mask, bits, operand, 32, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T>
T shuffle(T value, unsigned lane, unsigned mask = full_warp, Where where = Where::current()) {
  return shuffle_with(cuda_emulator::Shuffle::index, value, lane, mask, where);
}
template <class T>
T shuffle_xor(T value, unsigned bits, unsigned mask = full_warp, Where where = Where::current()) {
  return shuffle_with(cuda_emulator::Shuffle::exclusive_or, value, bits, mask, where);
}
template <class T>
T shuffle_up(T value, unsigned lanes, unsigned mask = full_warp, Where where = Where::current()) {
  return shuffle_with(cuda_emulator::Shuffle::up, value, lanes, mask, where);
}
template <class T>
T shuffle_down(T value, unsigned lanes, unsigned mask = full_warp, Where where = Where::current()) {
  return shuffle_with(cuda_emulator::Shuffle::down, value, lanes, mask, where);
}
inline unsigned votes(bool predicate, unsigned mask = full_warp, Where where = Where::current()) {
  return cuda_emulator::ballot(mask, predicate, where);
}

inline std::uint32_t load_acquire(const std::uint32_t* from, Where where = Where::current()) {
  cuda_emulator::poll(where);
  return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}
inline void store_release(std::uint32_t* to, std::uint32_t value) {
  __atomic_store_n(to, value, __ATOMIC_RELEASE);
  cuda_emulator::progress();
}
inline std::uint32_t load_relaxed(const std::uint32_t* from, Where where = Where::current()) {
  cuda_emulator::poll(where);
  return __atomic_load_n(from, __ATOMIC_RELAXED);
}
inline void store_relaxed(std::uint32_t* to, std::uint32_t value) {
  __atomic_store_n(to, value, __ATOMIC_RELAXED);
  cuda_emulator::progress();
}
inline std::uint32_t add_relaxed(std::uint32_t* to, std::uint32_t value) {
  cuda_emulator::progress();
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}
inline std::uint32_t add_release(std::uint32_t* to, std::uint32_t value) {
  cuda_emulator::progress();
  return __atomic_fetch_add(to, value, __ATOMIC_RELEASE);
}
inline std::uint32_t add_acquire_release(std::uint32_t* to, std::uint32_t value) {
  cuda_emulator::progress();
  return __atomic_fetch_add(to, value, __ATOMIC_ACQ_REL);
}
struct alignas(16) Words4 {
  std::uint32_t w[4];
};
inline Words4 load_relaxed_words(const Words4* from, Where where = Where::current()) {
  cuda_emulator::poll(where);
  Words4 v;
  for (int i = 0; i < 4; ++i) v.w[i] = __atomic_load_n(&from->w[i], __ATOMIC_RELAXED);
  return v;
}
inline void store_relaxed_words(Words4* to, const Words4& v) {
  for (int i = 0; i < 4; ++i) __atomic_store_n(&to->w[i], v.w[i], __ATOMIC_RELAXED);
  cuda_emulator::progress();
}

template <int bytes>
void copy_async(void* shared, const void* global, Where where = Where::current()) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async takes 4, 8 or 16 bytes");
  cuda_emulator::copy_async(shared, global, bytes, where);
}
inline void commit_copies() { cuda_emulator::commit_copies(); }
template <int groups_left>
void wait_copies() {
  cuda_emulator::wait_copies(groups_left);
}

inline unsigned cluster_rank() { return cuda_emulator::cluster_rank(); }
inline unsigned cluster_blocks() { return cuda_emulator::cluster_blocks(); }
inline void cluster_arrive(Where where = Where::current()) { cuda_emulator::cluster_arrive(where); }
inline void cluster_wait(Where where = Where::current()) { cuda_emulator::cluster_wait(where); }
inline void sync_cluster(Where where = Where::current()) {
  cluster_arrive(where);
  cluster_wait(where);
}
template <class T>
T* remote(T* own, unsigned rank, Where where = Where::current()) {
  return static_cast<T*>(cuda_emulator::remote(own, rank, where));
}
inline void mbarrier_init(Mbarrier* barrier, unsigned count, Where where = Where::current()) {
  cuda_emulator::mbarrier_init(barrier, count, where);
}
inline void mbarrier_arrive(Mbarrier* barrier, std::uint32_t bytes = 0,
                            Where where = Where::current()) {
  cuda_emulator::mbarrier_arrive(barrier, bytes, where);
}
inline void mbarrier_wait(Mbarrier* barrier, unsigned parity, Where where = Where::current()) {
  cuda_emulator::mbarrier_wait(barrier, parity, where);
}
template <class T>
void store_async(T* to, T value, Mbarrier* barrier, Where where = Where::current()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "st.async takes 4 or 8 bytes");
  cuda_emulator::store_async(to, &value, sizeof(T), barrier, where);
}

inline void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                     Where where = Where::current()) {
  cuda_emulator::mma_m16n8k8_tf32(d, a, b, where);
}
inline std::uint32_t to_tf32(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return value == value ? (bits + 0x1000u) & 0xFFFFE000u : bits;
}
inline void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                     Where where = Where::current()) {
  cuda_emulator::mma_m16n8k16_bf16(d, a, b, where);
}
inline float fma_flushed(float a, float b, float c) {
  const auto flushed = [](float x) {
    return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
  };
  return flushed(std::fma(flushed(a), flushed(b), flushed(c)));
}
inline std::uint32_t pack_bf16(float lower, float upper) {
  const auto rounded = [](float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return value == value ? (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16 : (bits >> 16) | 0x40u;
  };
  return rounded(lower) | rounded(upper) << 16;
}

}  // namespace cuda
}  // namespace charrnn_fast

#endif
