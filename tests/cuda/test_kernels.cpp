// The CUDA kernels and their launchers: networks, models and optimizers give the CPU's bits, for
// all cells and options. Run by the emulator, in any order of the threads; or on a card
// (ON_A_CARD).
//
//   test_kernels ORDER EVERY FIRST [TIER [UNITS ROWS [barrier]]]
//
// Every EVERY-th case, from number FIRST; a card has its own order. TIER: all layers take it, and
// cases with options that only T4 takes are left out; some layers are larger then. UNITS and ROWS
// are of TierLimits.
//
// The CPU's kernels round a fused multiply-add once, so its instruction set must have one.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "charrnn_fast/cuda.hpp"
#include "charrnn_fast/threads.hpp"
#include "device_cases.hpp"
#include "fused_cases.hpp"
#include "tiers.hpp"

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

// Fewer launches, by as much as docs/gpu.md says.
void check_launches(charrnn_fast::Device& device, charrnn_fast::Device& separate) {
  const auto launches = [] { return cuda_emulator::statistics().launches; };
  const charrnn_fast::Launches few = charrnn_fast::launches_of(device, launches);
  const charrnn_fast::Launches many = charrnn_fast::launches_of(separate, launches);
  const std::uint64_t pairs[][2] = {{few.train, many.train},
                                    {few.update, many.update},
                                    {few.evaluate, many.evaluate},
                                    {few.sample, many.sample}};
  for (const auto& [now, before] : pairs)
    std::printf("%llu launches, %llu without\n", static_cast<unsigned long long>(now),
                static_cast<unsigned long long>(before));
  CHECK(few.update == 2, "%llu launches of an update", static_cast<unsigned long long>(few.update));
  CHECK(few.sample == 2, "%llu launches of a text", static_cast<unsigned long long>(few.sample));
}

}  // namespace
#endif

namespace {

using namespace charrnn_fast;

// Layers whose products have several chains, or weights in shared memory. Ragged, by bits of
// Options.
struct Size {
  int cell;
  Index hidden_size;
  int number;
};
constexpr Size sizes[] = {{0, 150, 5}, {2, 47, 0}, {3, 69, 8}, {4, 33, 2}, {5, 100, 6}, {2, 90, 7}};

template <class T>
void check_sizes(Device& device, int every, int first) {
  for (const Size& size : sizes) {
    if (size.number % every != first % every) continue;
    const Options options{size.number % 2 == 0, true, false, false, false, false};
    Case<T> c(kernels<T>().cells[size.cell], options, size.number);
    c.shape.hidden_size = size.hidden_size;
    if (cuda::tier_limits().units > 0) cuda::tier_limits().units = (size.hidden_size + 2) / 3;
    char what[80];
    std::snprintf(what, sizeof what, "%s of %d units, %d bytes", c.shape.cell.c_str(),
                  static_cast<int>(size.hidden_size), static_cast<int>(sizeof(T)));
    check_case(device, c, what);
  }
}

// x with ten bits of fraction: of its two neighbours the nearer one, of two as near the even one.
float nearest_tf32(float x) {
  int exponent;
  const float fraction = std::frexp(x, &exponent);  // 0.5 to 1, of which 11 bits stay
  return std::ldexp(std::nearbyint(std::ldexp(fraction, 11)), exponent - 11);
}

// Products that round their operands to TF32 give what plain ones give of rounded operands.
void check_tf32(Device& device) {
  const Kernels<float>& k = kernels_of<float>(device);
  const Index rows = 37, cols = 45, depth = 150, panels = (cols + k.gemm_units - 1) / k.gemm_units;
  const auto a = random_values<float>(rows * depth, 1), b = random_values<float>(depth * cols, 2);
  const auto run = [&](const std::vector<float>& left, const std::vector<float>& right,
                       Compute compute) {
    std::vector<AlignedBuffer<float>> buffers;
    const auto fill = [&](const std::vector<float>& values) {
      AlignedBuffer<float>& buffer = buffers.emplace_back(device);
      buffer.reserve(static_cast<Index>(values.size()));
      device.upload(values.data(), static_cast<Index>(values.size()), buffer.get());
      return buffer.get();
    };
    const auto zeros = [&](Index n) { return fill(std::vector<float>(std::size_t(n), 0)); };
    float *const x = fill(left), *const w = fill(right), *const c = zeros(rows * cols);
    float* const packed = zeros(panels * k.gemm_units * depth);
    k.pack({w, 1, cols, 1, cols, depth, packed, Storage::full, compute}, {0, panels});
    k.gemm({x,
            depth,
            {packed, k.gemm_units, k.gemm_units * depth, Storage::full, compute},
            nullptr,
            false,
            cols,
            depth,
            c,
            cols},
           {0, rows}, {0, panels});
    std::vector<float> found = values_of(device, c, rows * cols);
    // The gradient of a weight [cols, rows]: products of the rows of W and of A, as depth rows.
    float *const gradient = zeros(cols * rows), *const scratch = zeros(k.gemm_tn_scratch());
    GemmTnArgs<float> args{w, cols, depth, {{x, rows, rows, gradient, rows}, {}}, 1, nullptr};
    args.compute = compute;
    k.gemm_tn(args, {0, cols}, scratch);
    const auto gradients = values_of(device, gradient, cols * rows);
    found.insert(found.end(), gradients.begin(), gradients.end());
    return found;
  };
  const auto rounded = [](std::vector<float> values) {
    for (float& x : values) x = nearest_tf32(x);
    return values;
  };
  const auto found = run(a, b, Compute::tf32);
  CHECK(same_bits(found, run(rounded(a), rounded(b), Compute::float32)), "TF32");
  CHECK(!same_bits(found, run(a, b, Compute::float32)), "TF32 rounds");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4 || argc == 6 || argc > 8 || (argc == 8 && std::strcmp(argv[7], "barrier") != 0)) {
    std::fputs("usage: test_kernels ORDER EVERY FIRST [TIER [UNITS ROWS [barrier]]]\n", stderr);
    return 2;
  }
  set_num_threads(1);
  const int every = std::atoi(argv[2]), first = std::atoi(argv[3]);
#if !defined(ON_A_CARD)
  cuda_emulator::set_order(std::strtoull(argv[1], nullptr, 10));
#endif
  try {
    Device& device = cuda_device();
    const char* const tier = argc > 4 ? argv[4] : nullptr;
    const bool persistent = tier && std::strcmp(tier, "T4") != 0;
    set_cuda_tier(tier);
    if (argc > 5) cuda::tier_limits() = {std::atoi(argv[5]), std::atoi(argv[6]), argc == 8};
    if (first == 0) {
      check_tf32(device);
      check_separate<float>(device);
      check_separate<double>(device);
#if !defined(ON_A_CARD)
      for (const bool dense : {false, true})
        CHECK(run_separate<float>(device, dense, Captured()) ==
                  run_separate<float>(cpu_device(), dense),
              "captured, %s", dense ? "dense" : "tokens");
#endif
    }
    if (!tier) {
      check_fused<float>(device, every, first);
      check_fused<double>(device, every, first);
      SeparateDevice separate(device);
      check_fused<float>(separate, 3 * every, 3 * first);
      check_fused<double>(separate, 3 * every, 3 * first);
#if !defined(ON_A_CARD)
      if (first == 0) check_launches(device, separate);
#endif
    }
    check_models<float>(device, every, first, persistent);
    check_models<double>(device, every, first, persistent);
    if (tier) {
      check_sizes<float>(device, every, first);
      if (std::strcmp(tier, "T1") != 0) check_sizes<double>(device, every, first);
    }
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
