// The CUDA kernels and their launchers: networks, models and optimizers give the CPU's bits, for
// all cells and options. Run by the emulator, in any order of the threads; or on a card
// (ON_A_CARD).
//
//   test_kernels ORDER EVERY FIRST    every EVERY-th case, from number FIRST; a card has its own
//   order
//
// The CPU's kernels round a fused multiply-add once, so its instruction set must have one.
#include <cstdlib>
#include <stdexcept>

#include "charrnn_fast/cuda.hpp"
#include "charrnn_fast/threads.hpp"
#include "device_cases.hpp"

#if !defined(ON_A_CARD)
#include "kernels/launch.cuh"

namespace {

// A call of a network, on the caller's stream: it uses no other, neither allocates nor waits, can
// be captured in a graph, and gives when that is replayed what it gives directly.
struct Captured {
  template <class F>
  void operator()(F&& call) const {
    const auto own = [] { return charrnn_fast::cuda::own_stream(); };
    static cuda_emulator::Stream& stream = *new cuda_emulator::Stream;
    charrnn_fast::cuda_device().synchronize();
    stream.begin_capture();
    {
      const charrnn_fast::CudaStreamScope scope(&stream);
      call();
    }
    auto graph = stream.end_capture();
    for (cuda_emulator::Stream* const other : {own(), &cuda_emulator::default_stream()})
      if (other->queued() > 0) throw std::runtime_error("work is queued to another stream");
    stream.replay(graph);
    charrnn_fast::cuda_stream_wait(own(), &stream);
  }
};

}  // namespace
#endif

int main(int argc, char** argv) {
  using namespace charrnn_fast;
  if (argc != 4) {
    std::fputs("usage: test_kernels ORDER EVERY FIRST\n", stderr);
    return 2;
  }
  set_num_threads(1);
  const int every = std::atoi(argv[2]), first = std::atoi(argv[3]);
#if !defined(ON_A_CARD)
  cuda_emulator::set_order(std::strtoull(argv[1], nullptr, 10));
#endif
  try {
    Device& device = cuda_device();
    if (first == 0) {
      check_separate<float>(device);
      check_separate<double>(device);
#if !defined(ON_A_CARD)
      for (const bool dense : {false, true})
        CHECK(run_separate<float>(device, dense, Captured()) ==
                  run_separate<float>(cpu_device(), dense),
              "captured, %s", dense ? "dense" : "tokens");
#endif
    }
    check_models<float>(device, every, first);
    check_models<double>(device, every, first);
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
#if !defined(ON_A_CARD)
  const cuda_emulator::Statistics done = cuda_emulator::statistics();
  std::printf("%s: %llu launches, %llu threads, %llu thread-steps\n", isa_in_use().c_str(),
              static_cast<unsigned long long>(done.launches),
              static_cast<unsigned long long>(done.threads),
              static_cast<unsigned long long>(done.switches));
#endif
  return report();
}
