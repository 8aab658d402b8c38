// The CUDA kernels and their launchers: networks, models and optimizers give the CPU's bits, for
// all cells and options. Run by the emulator, in any order of the threads; or on a card
// (ON_A_CARD).
//
//   test_kernels ORDER tiles NUMBER
//   test_kernels ORDER EVERY FIRST [TIER [UNITS ROWS [barrier]]]
//
// The first: large tiles of one of the products. The second: every EVERY-th case, from number
// FIRST; a card has its own order. TIER: all layers take it, and cases with options that only T4
// takes are left out; some layers are larger then. UNITS and ROWS are of TierLimits.
//
// The CPU's kernels round a fused multiply-add once, so its instruction set must have one.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iterator>
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

// ---- products -----------------------------------------------------------------------------

// x with ten bits of fraction: of its two neighbours the nearer one, of two as near the even one.
float nearest_tf32(float x) {
  int exponent;
  const float fraction = std::frexp(x, &exponent);  // 0.5 to 1, of which 11 bits stay
  return std::ldexp(std::nearbyint(std::ldexp(fraction, 11)), exponent - 11);
}

// A [rows, depth] @ W [depth, cols] + bias [cols]; and the gradient [cols, rows] of as many numbers
// for which the same memory is W [depth, cols] and A [depth, rows].
template <class T>
struct Products {
  Device& device;
  Index rows, cols, depth;
  Compute compute = Compute::float32;
  Storage storage = Storage::full;

  // At most so many rows in a call.
  std::vector<T> operator()(const std::vector<T>& a, const std::vector<T>& w,
                            Index rows_of_a_call) const {
    const Kernels<T>& k = kernels_of<T>(device);
    std::vector<AlignedBuffer<T>> buffers;
    const auto fill = [&](const std::vector<T>& values) {
      AlignedBuffer<T>& buffer = buffers.emplace_back(device);
      buffer.reserve(static_cast<Index>(values.size()));
      device.upload(values.data(), static_cast<Index>(values.size()), buffer.get());
      return buffer.get();
    };
    const auto zeros = [&](Index n) { return fill(std::vector<T>(std::size_t(n), T(0))); };
    const Index panels = (cols + k.gemm_units - 1) / k.gemm_units;
    const Index words = storage == Storage::full ? depth : (depth + 1) / 2;
    T *const left = fill(a), *const right = fill(w), *const c = zeros(rows * cols);
    T *const packed = zeros(panels * k.gemm_units * words), *const bias =
                                                                fill(random_values<T>(cols, 3));
    k.pack({right, 1, cols, 1, cols, depth, packed, storage, compute}, {0, panels});
    const Weights<T> weights{packed, k.gemm_units, k.gemm_units * words, storage, compute};
    for (Index row = 0; row < rows; row += rows_of_a_call)
      k.gemm({left, depth, weights, bias, false, cols, depth, c, cols},
             {row, std::min(rows, row + rows_of_a_call)}, {0, panels});
    std::vector<T> found = values_of(device, c, rows * cols);
    T *const gradient = zeros(cols * rows), *const scratch = zeros(k.gemm_tn_scratch());
    GemmTnArgs<T> args{right, cols, depth, {{left, rows, rows, gradient, rows}, {}}, 1, nullptr};
    args.compute = compute;
    for (Index row = 0; row < cols; row += rows_of_a_call)
      k.gemm_tn(args, {row, std::min(cols, row + rows_of_a_call)}, scratch);
    const auto gradients = values_of(device, gradient, cols * rows);
    found.insert(found.end(), gradients.begin(), gradients.end());
    return found;
  }
};

// The emulator's matrix units add up as the CPU does. A card's have an order of their own.
#if defined(ON_A_CARD)
constexpr bool rounded_like_the_cpu = false;
#else
constexpr bool rounded_like_the_cpu = true;
#endif

std::vector<float> nearest_tf32(std::vector<float> values) {
  for (float& x : values) x = nearest_tf32(x);
  return values;
}
std::vector<double> nearest_tf32(std::vector<double> values) { return values; }

// Products that round their operands to TF32 give what plain ones give of rounded operands.
void check_tf32(Device& device) {
  const Products<float> plain{device, 37, 45, 150},
      rounding{device, 37, 45, 150, Compute::tf32, Storage::full};
  const auto a = random_values<float>(37 * 150, 1), w = random_values<float>(45 * 150, 2);
  const auto found = rounding(a, w, 37);
  if (rounded_like_the_cpu)
    CHECK(same_bits(found, plain(nearest_tf32(a), nearest_tf32(w), 37)), "TF32");
  CHECK(!same_bits(found, plain(a, w, 37)), "TF32 rounds");
}

// Large tiles, of which every multiprocessor has one, give the same rows' bits as small ones do, in
// calls of a few rows. And the CPU's, but where a card's matrix units have an order of their own:
// then the difference is that of the sums' rounding.
struct RoundedProduct {
  Compute compute;
  Storage storage;
};
constexpr RoundedProduct rounded_products[] = {{Compute::bfloat16, Storage::bfloat16},
                                               {Compute::tf32, Storage::full},
                                               {Compute::float32, Storage::full},
                                               {Compute::float32, Storage::bfloat16},
                                               {Compute::tf32, Storage::bfloat16}};

template <class T>
void check_large_tiles(Device& device, const RoundedProduct& product, bool small_tiles_too) {
#if defined(ON_A_CARD)
  constexpr Index rows = 64 * 20 + 5, cols = 64 * 20 + 13, depth = 150;  // 200 tiles or more
#else
#if defined(__SANITIZE_THREAD__)
  constexpr Index rows = 40, cols = 70, depth = 40, tiles = 1;  // it has memory for few threads
#else
  constexpr Index rows = 64 + 5, cols = 64 + 13, depth = 150, tiles = 2;
#endif
  const cuda_emulator::Card before = cuda_emulator::card();
  cuda_emulator::Card small = before;
  small.multiprocessors = tiles;
  cuda_emulator::set_card(small);
#endif
  const auto [compute, storage] = product;
  const Products<T> on_device{device, rows, cols, depth, compute, storage};
  const Products<T> on_cpu{
      cpu_device(), rows, cols, depth, compute == Compute::tf32 ? Compute::float32 : compute,
      storage};
  const auto a = random_values<T>(rows * depth, 1), w = random_values<T>(cols * depth, 2);
  const std::vector<T> large = on_device(a, w, rows + cols);
  char what[80];
  std::snprintf(what, sizeof what, "large tiles, %d bytes, rounding %d, storage %d",
                static_cast<int>(sizeof(T)), static_cast<int>(compute), static_cast<int>(storage));
  if (small_tiles_too) CHECK(same_bits(large, on_device(a, w, 32)), "%s", what);
#if !defined(ON_A_CARD)
  cuda_emulator::set_card(before);
#endif
  const bool tf32 = compute == Compute::tf32;  // which the CPU takes rounded
  const std::vector<T> expected =
      on_cpu(tf32 ? nearest_tf32(a) : a, tf32 ? nearest_tf32(w) : w, rows + cols);
  double largest = 0;
  for (std::size_t i = 0; i < large.size(); ++i)
    largest = std::max(largest, std::abs(double(large[i]) - double(expected[i])));
  const bool exact = compute == Compute::float32 || rounded_like_the_cpu;
  CHECK(exact ? same_bits(large, expected) : largest < double(depth) * 0x1p-20, "%s: %g", what,
        largest);
}

constexpr int num_products = 1 + static_cast<int>(std::size(rounded_products));

void check_large_tiles(Device& device, int number, bool small_tiles_too) {
  if (number < num_products - 1)
    check_large_tiles<float>(device, rounded_products[number], small_tiles_too);
  else
    check_large_tiles<double>(device, {Compute::float32, Storage::full}, small_tiles_too);
}

void check_cases(Device& device, int every, int first, const char* tier) {
  const bool persistent = tier && std::strcmp(tier, "T4") != 0;
  set_cuda_tier(tier);
  if (first == 0) {
    check_tf32(device);
    for (int i = 0; i < num_products; ++i) check_large_tiles(device, i, true);
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
  check_models<float>(device, every, first, persistent, rounded_like_the_cpu);
  check_models<double>(device, every, first, persistent);
  if (tier) {
    check_sizes<float>(device, every, first);
    if (std::strcmp(tier, "T1") != 0) check_sizes<double>(device, every, first);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const bool tiles = argc == 4 && std::strcmp(argv[2], "tiles") == 0;
  if (argc < 4 || argc == 6 || argc > 8 || (argc == 8 && std::strcmp(argv[7], "barrier") != 0)) {
    std::fputs(
        "usage: test_kernels ORDER tiles NUMBER\n"
        "       test_kernels ORDER EVERY FIRST [TIER [UNITS ROWS [barrier]]]\n",
        stderr);
    return 2;
  }
  set_num_threads(1);
  const int every = tiles ? 1 : std::atoi(argv[2]), first = std::atoi(argv[3]);
#if !defined(ON_A_CARD)
  cuda_emulator::set_order(std::strtoull(argv[1], nullptr, 10));
#endif
  try {
    Device& device = cuda_device();
    if (tiles) {
      check_large_tiles(device, first, false);
    } else {
      if (argc > 5) cuda::tier_limits() = {std::atoi(argv[5]), std::atoi(argv[6]), argc == 8};
      check_cases(device, every, first, argc > 4 ? argv[4] : nullptr);
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
