// Runs one kernel of plants.cuh, right or with one of its mistakes, in a range of orders.
//
//   test_emulator CASE MISTAKE FIRST LAST    0: right; orders FIRST to LAST, until something is
//   found test_emulator --list                     each case and how many mistakes it has
//
// Ends with 0 if every result was right and nothing was found, 1 if something was, 2 for wrong
// usage.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "exchange_plants.cuh"
#include "plants.cuh"

namespace {

using namespace plants;
namespace emulator = cuda_emulator;

// An array of the device.
template <class T>
struct Array {
  explicit Array(std::size_t n)
      : size(n), data(static_cast<T*>(emulator::allocate(n * sizeof(T)))) {}
  ~Array() { emulator::release(data); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  const std::size_t size;
  T* const data;
};

struct Run {
  emulator::Stream stream;

  template <class T>
  void upload(const std::vector<T>& from, Array<T>& to) {
    stream.upload(from.data(), from.size() * sizeof(T), to.data);
    stream.synchronize();
  }
  template <class T>
  std::vector<T> download(const Array<T>& from) {
    std::vector<T> to(from.size);
    stream.download(from.data, to.size() * sizeof(T), to.data());
    stream.synchronize();
    return to;
  }
};

std::vector<float> numbers(std::size_t n) {
  std::vector<float> x(n);
  for (std::size_t i = 0; i < n; ++i) x[i] = static_cast<float>(i % 97) - 31;
  return x;
}

// Runs kernel(x, y) and compares y.
template <class T, class Kernel, class... A>
bool gives(const Grid& grid, Kernel kernel, const std::vector<float>& x,
           const std::vector<T>& expected, A... rest) {
  Run run;
  Array<float> in(x.size());
  Array<T> out(expected.size());
  run.upload(x, in);
  launch(grid, &run.stream, kernel, in.data, out.data, rest...);
  return run.download(out) == expected;
}

bool reverse_case(int mistake) {
  const auto x = numbers(64);
  const std::vector<float> y(x.rbegin(), x.rend());
  return gives({1, 64, 64 * sizeof(float)}, mistake ? reverse<true> : reverse<false>, x, y);
}

// Runs kernel(x, steps...) in place.
template <class Kernel, class... A>
bool becomes(const Grid& grid, Kernel kernel, const std::vector<float>& x,
             const std::vector<float>& expected, A... rest) {
  Run run;
  Array<float> array(x.size());
  run.upload(x, array);
  launch(grid, &run.stream, kernel, array.data, rest...);
  return run.download(array) == expected;
}

bool rotate_case(int mistake) {
  const auto x = numbers(64);
  std::vector<float> y(64);
  for (std::size_t i = 0; i < 64; ++i) y[i] = x[(i + 5) % 64];
  return becomes({1, 64}, mistake ? rotate<true> : rotate<false>, x, y, 5);
}

bool barriers_case(int mistake) {
  Run run;
  Array<float> y(64);
  launch({1, 64}, &run.stream,
         mistake == 2   ? two_barriers<true>
         : mistake == 1 ? part_at_barrier<true>
                        : part_at_barrier<false>,
         y.data);
  return run.download(y) == std::vector<float>(64, 1);
}

bool warp_case(int mistake) {
  const auto x = numbers(32);
  float sum = 0;
  for (float v : x) sum += v;
  return gives({1, 32}, mistake == 1 ? warp_sum<true> : warp_sum<false>, x,
               std::vector<float>{sum}) &&
         gives({1, 32}, mistake == 2 ? shuffle_sum<true> : shuffle_sum<false>, x,
               std::vector<float>{sum});
}

bool votes_case(int) {
  const auto x = numbers(64);
  std::vector<unsigned> last(2);
  for (unsigned i = 0; i < 64; ++i)
    if (x[i] > -10 && x[i] < 1000) last[i / 32] = i % 32;
  return gives({1, 64}, last_above, x, last, -10.0f);
}

bool tiles_case(int mistake) {
  constexpr int num_tiles = 5;
  const auto x = numbers(128 * num_tiles);
  std::vector<float> y(32);
  for (std::size_t i = 0; i < 32; ++i)
    for (std::size_t tile = 0; tile < num_tiles; ++tile)
      for (std::size_t k = 0; k < 4; ++k) y[i] += x[tile * 128 + 127 - 4 * i - k];
  void (*const kernels[])(const float*, float*, int) = {tiles<0>, tiles<1>, tiles<2>, tiles<3>};
  return gives({1, 32}, kernels[mistake], x, y, num_tiles);
}

bool cluster_case(int mistake) {
  const auto x = numbers(4 * 32);
  std::vector<float> y(4 * 32);
  for (std::size_t block = 0; block < 4; ++block)
    for (std::size_t i = 0; i < 32; ++i)
      y[block * 32 + i] = x[block / 2 * 64 + i] + x[block / 2 * 64 + 32 + i];
  void (*const kernels[])(const float*, float*) = {cluster_sum<0>, cluster_sum<1>, cluster_sum<2>};
  return gives({.blocks = 4, .threads = 32, .cluster = 2}, kernels[mistake], x, y);
}

bool ring_case(int mistake) {
  constexpr int steps = 7;
  constexpr std::size_t blocks = 4;
  const auto x = numbers(blocks * 32);
  std::vector<float> y(x.size());
  for (std::size_t block = 0; block < blocks; ++block)
    for (std::size_t i = 0; i < 32; ++i)
      y[(block + steps) % blocks * 32 + i] = x[block * 32 + i] + steps;
  void (*const kernels[])(float*, int) = {cluster_ring<0>, cluster_ring<1>, cluster_ring<2>,
                                          cluster_ring<3>, cluster_ring<4>};
  return becomes({.blocks = blocks, .threads = 32, .cluster = blocks}, kernels[mistake], x, y,
                 steps);
}

bool grid_case(int mistake) {
  constexpr std::size_t blocks = 5, width = 8;
  constexpr int steps = 6;
  std::vector<float> x = numbers(blocks * width);
  Run run;
  Array<float> array(2 * x.size());
  Array<std::uint32_t> arrived(1);
  std::vector<float> both(x);
  both.resize(2 * x.size());
  run.upload(both, array);
  run.stream.fill(arrived.data, 0, sizeof(std::uint32_t));
  void (*const kernels[])(float*, std::uint32_t*, int) = {grid_steps<0>, grid_steps<1>,
                                                          grid_steps<2>, grid_steps<0>};
  for (int call = 0; call < 2; ++call)  // the counter goes on
    launch({.blocks = blocks, .threads = width, .cooperative = mistake != 3}, &run.stream,
           kernels[mistake], array.data, arrived.data, steps);
  for (int step = 0; step < 2 * steps; ++step) {
    std::vector<float> next(x.size());
    for (std::size_t block = 0; block < blocks; ++block)
      for (std::size_t i = 0; i < width; ++i)
        next[block * width + i] =
            x[(block + 1) % blocks * width + i] + x[(block + blocks - 1) % blocks * width + i];
    x = next;
  }
  std::vector<float> found = run.download(array);
  found.resize(x.size());
  return found == x;
}

bool words_case(int mistake) {
  constexpr std::size_t blocks = 3;
  constexpr int steps = 10;
  Run run;
  Array<Words4> words(3 * blocks);
  Array<std::uint32_t> y(blocks);
  run.stream.fill(words.data, 0, words.size * sizeof(Words4));
  launch({.blocks = blocks, .threads = 32, .cooperative = true}, &run.stream,
         mistake ? words_ring<1> : words_ring<0>, words.data, y.data, steps);
  std::vector<std::uint32_t> expected(blocks);
  for (std::uint32_t block = 0; block < blocks; ++block)
    expected[block] = (block + steps) % blocks + steps;
  return run.download(y) == expected;
}

bool bounds_case(int mistake) {
  const auto x = numbers(32);
  void (*const kernels[])(const float*, float*, int) = {bounds<0>, bounds<1>, bounds<2>,
                                                        bounds<3>, bounds<4>, bounds<5>};
  return gives({1, 32, 32 * sizeof(float)}, kernels[mistake], x, x, 32);
}

template <class Kernel>
bool multiplies(Kernel kernel, std::size_t depth) {
  auto a = numbers(16 * depth), b = numbers(8 * depth + 3);
  b.erase(b.begin(), b.begin() + 3);
  std::vector<float> d(16 * 8);
  for (std::size_t row = 0; row < 16; ++row)
    for (std::size_t column = 0; column < 8; ++column)
      for (std::size_t k = 0; k < depth; ++k)
        d[row * 8 + column] += a[row * depth + k] * b[k * 8 + column];
  Run run;
  Array<float> da(a.size()), db(b.size()), dd(d.size());
  run.upload(a, da);
  run.upload(b, db);
  launch({1, 32}, &run.stream, kernel, da.data, db.data, dd.data);
  return run.download(dd) == d;  // small whole numbers: exact in every format
}

bool products_case(int mistake) {
  return multiplies(mistake == 1 ? product_tf32<true> : product_tf32<false>, 8) &&
         multiplies(mistake == 2 ? product_bf16<true> : product_bf16<false>, 16);
}

// An LSTM layer of 10 units over 5 steps, for 3 rows of which 1 is longer than the others.
struct Layer {
  static constexpr std::size_t units = 10, batch = 3, steps = 5, rows = 11, states = 2;
  static constexpr std::size_t panel = 4 * panel_units;

  Run run;
  Array<float> weights{units * panel}, gx{rows * 4 * units}, initial{states * batch * units},
      h{states * rows * units};
  Array<Index> offsets{steps + 1};
  Array<std::uint32_t> flags{flag_words};

  Layer() {
    const auto small = [](std::size_t n) {
      std::vector<float> x = numbers(n);
      for (float& v : x) v /= 64;
      return x;
    };
    run.upload(small(weights.size), weights);
    run.upload(small(gx.size), gx);
    run.upload(small(initial.size), initial);
    run.upload(std::vector<Index>{0, 3, 6, 9, 10, 11}, offsets);
    run.stream.fill(flags.data, 0, flag_words * sizeof(std::uint32_t));
  }

  // own_units: of a block
  template <class Exchange, class Kernel>
  std::vector<float> forward(Kernel kernel, std::size_t own_units, std::size_t group_rows) {
    RecurrentForwardArgs<float> p{};
    const Index width = units;
    p.steps = {steps, batch, offsets.data, false};
    p.hidden_size = p.width = width;
    p.hh = {weights.data, panel, width * Index(panel)};
    p.gx = gx.data;
    for (std::size_t s = 0; s < states; ++s)
      p.states.of[s] = {initial.data + s * batch * units, h.data + s * rows * units, width, false};
    p.flags = flags.data;
    const std::size_t blocks = (units + own_units - 1) / own_units, columns = 4 * own_units;
    const std::size_t operand_rows = Exchange::in_place ? group_rows : persistent_rows, stride = 12;
    const Tiling s{static_cast<int>(own_units),
                   static_cast<int>(blocks),
                   static_cast<int>(group_rows),
                   static_cast<int>(columns),
                   1,
                   0,
                   stride,
                   static_cast<int>(operand_rows),
                   false};
    Grid grid{static_cast<unsigned>(blocks * ((batch + group_rows - 1) / group_rows)),
              static_cast<unsigned>((columns + 31) / 32 * 32)};
    grid.shared =
        (Exchange::buffers * operand_rows * stride + columns * persistent_rows) * sizeof(float) +
        Exchange::more_shared;
    grid.cooperative = std::is_base_of_v<InGrid, Exchange>;
    grid.cluster = std::is_base_of_v<InCluster, Exchange> ? static_cast<unsigned>(blocks) : 1;
    launch(grid, &run.stream, kernel, p, Range{0, steps}, Range{0, batch}, s);
    return run.download(h);
  }
  template <class Exchange>
  std::vector<float> forward(std::size_t own_units, std::size_t group_rows) {
    return forward<Exchange>(persistent<ForwardPass<Lstm, float>, Exchange>, own_units, group_rows);
  }
};

bool exchange_case(int mistake) {
  const auto expected = Layer().forward<InBlock>(Layer::units, 2);
  switch (mistake) {
    case 1:
      return Layer().forward<GridMistake<1>>(4, 2) == expected;
    case 2:
      return Layer().forward<GridMistake<2>>(4, 2) == expected;
    case 3:
      return Layer().forward<GridMistake<3>>(4, 2) == expected;
    case 4:
      return Layer().forward<GridMistake<4>>(4, 2) == expected;
    case 5:
      return Layer().forward<ClusterMistake<1>>(5, 2) == expected;
    case 6:
      return Layer().forward<ClusterMistake<2>>(5, 2) == expected;
    case 7:
      return Layer().forward<ClusterMistake<3>>(5, 2) == expected;
    case 8:
      return Layer().forward<ClusterMistake<4>>(5, 2) == expected;
    case 9:  // a block of several, as if it were alone
      return Layer().forward<InBlock>(5, 2) == expected;
    default:
      return Layer().forward<InGrid>(4, 2) == expected &&
             Layer().forward<InGrid>(3, 1) == expected &&
             Layer().forward<InCluster>(5, 2) == expected &&
             Layer().forward<InCluster>(3, 2) == expected;
  }
}

// Launches that a card refuses: all must be findings. Right: the largest that it takes.
bool limits_case(int mistake) {
  Run run;
  Array<float> x(64), y(64);
  run.upload(numbers(64), x);
  const auto try_launch = [&](const Grid& grid) {
    launch(grid, &run.stream, cluster_sum<0>, x.data, y.data);
  };
  switch (mistake) {
    case 1:
      try_launch({1, 1025});
      break;
    case 2:
      try_launch({1, 32, emulator::card().shared_per_block + 1});
      break;
    case 3:
      try_launch({.blocks = 32, .threads = 32, .cluster = 32});
      break;
    case 4:
      try_launch({.blocks = 3, .threads = 32, .cluster = 2});
      break;
    case 5: {
      Grid grid{.blocks = 1, .threads = 64, .shared = 100 << 10, .cooperative = true};
      grid.blocks.x = static_cast<unsigned>(emulator::resident_blocks(grid)) + 1;
      try_launch(grid);
      break;
    }
    case 6:
      emulator::set_card(emulator::a100);
      try_launch({.blocks = 2, .threads = 32, .cluster = 2});
      break;
    default:
      try_launch({.blocks = 16, .threads = 1, .shared = 200 << 10, .cluster = 16});
      return run.stream.synchronize(), true;
  }
  return true;
}

// A captured stream runs when it is replayed, as often as it is.
bool capture_case(int mistake) {
  const auto x = numbers(64);
  Run run;
  Array<float> array(64);
  run.upload(x, array);
  run.stream.begin_capture();
  launch({1, 64}, &run.stream, rotate<false>, array.data, 1);
  try {
    if (mistake == 1) Array<float> more(1);
    if (mistake == 2) run.stream.synchronize();
    if (mistake == 3) {
      emulator::Event event;
      event.record(emulator::default_stream());
      run.stream.wait(event);
    }
  } catch (const emulator::Finding&) {
    run.stream.end_capture();
    throw;
  }
  const auto graph = run.stream.end_capture();
  if (run.download(array) != x) return false;
  for (int i = 0; i < 3; ++i) run.stream.replay(graph);
  const auto found = run.download(array);
  for (std::size_t i = 0; i < 64; ++i)
    if (found[i] != x[(i + 3) % 64]) return false;
  return true;
}

// Two streams: one makes x, the other copies it, then the first makes it anew. mistake 1: the
// second does not wait for the first; 2: it waits for an event of before; 3: the first does not
// wait for the second.
bool streams_case(int mistake) {
  const auto x = numbers(64);
  Run first, second;
  Array<float> made(64), copy(64);
  emulator::Event begun, done, copied;
  begun.record(first.stream);
  first.stream.upload(x.data(), 64 * sizeof(float), made.data);
  launch({1, 64}, &first.stream, rotate<false>, made.data, 1);
  done.record(first.stream);
  if (mistake != 1) second.stream.wait(mistake == 2 ? begun : done);
  second.stream.copy(made.data, 64 * sizeof(float), copy.data);
  copied.record(second.stream);
  if (mistake != 3) first.stream.wait(copied);
  first.stream.fill(made.data, 0, 64 * sizeof(float));
  const auto found = second.download(copy);
  const auto anew = first.download(made);
  for (std::size_t i = 0; i < 64; ++i)
    if (found[i] != x[(i + 1) % 64] || anew[i] != 0) return false;
  return true;
}

// mistake 1: the host reads the device's memory; 2: releases what is no allocation.
bool host_case(int mistake) {
  Array<float> array(4);
  Run run;
  run.upload({1, 2, 3, 4}, array);
  if (mistake == 1 && *static_cast<volatile float*>(array.data) == 1) std::puts("read");
  if (mistake == 2) emulator::release(array.data + 1);
  return run.download(array)[3] == 4;
}

struct Case {
  const char* name;
  int mistakes;
  bool (*run)(int mistake);
};
const Case cases[] = {
    {"reverse", 1, reverse_case}, {"rotate", 1, rotate_case},     {"barriers", 2, barriers_case},
    {"warp", 2, warp_case},       {"votes", 0, votes_case},       {"tiles", 3, tiles_case},
    {"cluster", 2, cluster_case}, {"ring", 4, ring_case},         {"grid", 3, grid_case},
    {"words", 1, words_case},     {"bounds", 5, bounds_case},     {"products", 2, products_case},
    {"limits", 6, limits_case},   {"capture", 3, capture_case},   {"host", 2, host_case},
    {"streams", 3, streams_case}, {"exchange", 9, exchange_case},
};

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--list") == 0) {
    for (const Case& c : cases) std::printf("%s %d\n", c.name, c.mistakes);
    return 0;
  }
  if (argc != 5) {
    std::fputs("usage: test_emulator CASE MISTAKE FIRST LAST | --list\n", stderr);
    return 2;
  }
  const int mistake = std::atoi(argv[2]);
  for (const Case& c : cases) {
    if (std::strcmp(c.name, argv[1]) != 0 || mistake < 0 || mistake > c.mistakes) continue;
    for (int order = std::atoi(argv[3]); order <= std::atoi(argv[4]); ++order) {
      emulator::set_order(static_cast<std::uint64_t>(order));
      try {
        if (c.run(mistake)) continue;
        std::printf("order %d: wrong result\n", order);
      } catch (const emulator::Finding& finding) {
        std::printf("order %d: %s\n", order, finding.what());
      }
      return 1;
    }
    const emulator::Statistics done = emulator::statistics();
    std::printf("right: %llu launches, %llu threads, %llu thread-steps\n",
                static_cast<unsigned long long>(done.launches),
                static_cast<unsigned long long>(done.threads),
                static_cast<unsigned long long>(done.switches));
    return 0;
  }
  std::fprintf(stderr, "there is no case %s with mistake %s\n", argv[1], argv[2]);
  return 2;
}
