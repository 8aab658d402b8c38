// The GPU as a device of the package (device.hpp): the component charrnn_fast::cuda, a library of
// its own. It loads, and answers, on a machine without a card or a driver; its header takes no
// CUDA.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "charrnn_fast/device.hpp"

#if defined(__GNUC__)
#define CHARRNN_CUDA_API __attribute__((visibility("default")))
#else
#define CHARRNN_CUDA_API
#endif

namespace charrnn_fast {

struct NetworkShape;

struct CudaCard {
  std::string name;
  int major, minor;  // compute capability
  int multiprocessors;
  std::size_t memory;  // bytes
};

struct CudaCards {
  std::string why_not;        // empty if one of the cards runs the kernels
  int driver, runtime;        // of CUDA, 1000 * major + 10 * minor; 0: none
  std::vector<CudaCard> all;  // by CUDA's ordinals
};
// Never throws, and starts nothing on a card.
CHARRNN_CUDA_API CudaCards cuda_cards();
// What the kernels were compiled for: sm_90 is machine code, compute_80 is code that the driver
// compiles for later cards.
CHARRNN_CUDA_API const std::vector<std::string>& cuda_architectures();

// A card by CUDA's ordinal, with a stream of its own. A process uses one: the first that is asked
// for, which is never destroyed. Throws std::runtime_error if there is no such card, no driver for
// it or no code for it, or if the process uses another.
CHARRNN_CUDA_API Device& cuda_device(int ordinal = 0);

// While it lives, the calls that this thread makes queue their work to `stream`, a cudaStream_t of
// the caller, in place of the device's own stream. Calls of Network and Optimizer on memory of the
// card then only queue: they do not allocate, wait, or use another stream, so that they can be
// captured in a CUDA graph. Between calls on different streams that share memory, such as a Model's
// own, the caller orders (cuda_stream_wait).
class CHARRNN_CUDA_API CudaStreamScope {
 public:
  explicit CudaStreamScope(void* stream);
  ~CudaStreamScope();
  CudaStreamScope(const CudaStreamScope&) = delete;
  CudaStreamScope& operator=(const CudaStreamScope&) = delete;

 private:
  void* before_;
  bool had_;
};
// The same without a scope: from now on, and the device's own again.
CHARRNN_CUDA_API void cuda_give_stream(void* stream);
CHARRNN_CUDA_API void cuda_take_stream_back();
CHARRNN_CUDA_API bool cuda_stream_is_given();
// The stream, a cudaStream_t, to which this thread's calls queue.
CHARRNN_CUDA_API void* cuda_stream();
// What is queued to `waiting` from now on begins when all that is in `ahead` now is done. The host
// waits for neither.
CHARRNN_CUDA_API void cuda_stream_wait(void* waiting, void* ahead);

// A place in that stream, behind all that is queued: whether it is reached. Delete it once.
CHARRNN_CUDA_API void* cuda_new_mark();
CHARRNN_CUDA_API bool cuda_reached(void* mark);
CHARRNN_CUDA_API void cuda_delete_mark(void* mark);

// The card that the process uses; 0 before it uses one.
CHARRNN_CUDA_API int cuda_ordinal();

// The ways to run a recurrent layer over a sequence, with the same bits:
//
//   T1   a block has all weights of the layer, for its rows of the batch
//   T2   a cluster of blocks shares them (compute capability 9.0 and later)
//   T3   the blocks of a grid share them
//   T4   a kernel for each step: every option and size
//
// By itself a call takes T1 where the weights fit a block, else T4. set_cuda_tier: all calls from
// now on take this tier, in every thread; null: as they would by themselves. At first it is what
// the environment's CHARRNN_CUDA_TIER says. Throws std::invalid_argument if there is no such tier.
// A call that cannot take it throws std::invalid_argument, with the reason, before it launches that
// layer.
CHARRNN_CUDA_API void set_cuda_tier(const char* name);
CHARRNN_CUDA_API const char* cuda_tier();  // or null

// How a call runs one pass of a layer.
struct CudaPassPlan {
  const char* tier;
  std::string reason;
  Index launches;
  unsigned blocks, threads;  // of a launch; of a block
  unsigned cluster;          // blocks of a cluster; 1: none
  std::size_t shared;        // bytes of dynamic shared memory of a block
};
struct CudaLayerPlan {
  CudaPassPlan forward, backward;
};
// Of each layer, for sequences of one length, on the card that the process uses; directions are
// alike. Throws std::invalid_argument where a call would.
CHARRNN_CUDA_API std::vector<CudaLayerPlan> cuda_plan(const NetworkShape& shape, Index batch,
                                                      Index seq_len, bool float64 = false);
// The same in words: a line for each layer and pass.
CHARRNN_CUDA_API std::string describe(const std::vector<CudaLayerPlan>& plan);

struct CudaMemory {
  std::size_t free, total;  // bytes
};
// Of the card that the process uses.
CHARRNN_CUDA_API CudaMemory cuda_memory();

}  // namespace charrnn_fast
