#include "measure.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>

#include "charrnn_fast/math.hpp"
#include "charrnn_fast/network.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/thread_pool.hpp"
#include "errors.hpp"

namespace charrnn_fast {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The time of the shortest run (at least one) within `seconds`.
template <class F>
double best_seconds(double seconds, F&& run) {
  const auto begin = Clock::now();
  double best = std::numeric_limits<double>::infinity();
  do {
    const auto start = Clock::now();
    run();
    best = std::min(best, seconds_since(start));
  } while (seconds_since(begin) < seconds);
  return best;
}

struct Function {
  const char* name;
  double bound;
  long double (*exact)(long double);
};

const Function functions[] = {
    {"exp", MathUlpBounds::exp, [](long double x) { return std::exp(x); }},
    {"sigmoid", MathUlpBounds::sigmoid,
     [](long double x) {
       return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
     }},
    {"tanh", MathUlpBounds::tanh, [](long double x) { return std::tanh(x); }},
    {"softplus", MathUlpBounds::softplus,
     [](long double x) { return x < 0 ? std::log1p(std::exp(x)) : x + std::log1p(std::exp(-x)); }},
};

const Function& find(const std::string& name) {
  for (const Function& f : functions)
    if (f.name == name) return f;
  fail("function must be 'exp', 'sigmoid', 'tanh' or 'softplus', got ", quoted(name));
}

// |got - expected| in units in the last place of expected; for subnormals, in their spacing.
double ulp_error(float got, long double expected) {
  if (std::isnan(expected)) return std::isnan(got) ? 0 : std::numeric_limits<double>::infinity();
  // Beyond the largest float plus half a step, infinity is the rounded value.
  if (expected >= 0x1.ffffffp127L && std::isinf(got) && got > 0) return 0;
  if (std::isinf(expected) || !std::isfinite(got))
    return got == expected ? 0 : std::numeric_limits<double>::infinity();
  int exponent;
  std::frexp(expected, &exponent);
  const long double ulp = std::ldexp(1.0L, std::max(exponent, -125) - 24);
  return static_cast<double>(std::fabs(static_cast<long double>(got) - expected) / ulp);
}

}  // namespace

template <class T>
void apply_math(const std::string& function, const T* x, Index n, T* out) {
  const std::string name = find(function).name;
  const Kernels<T>& k = kernels<T>();
  (name == "exp"       ? k.exp
   : name == "sigmoid" ? k.sigmoid
   : name == "tanh"    ? k.tanh
                       : k.softplus)(x, out, n);
}

double math_ulp_bound(const std::string& function) { return find(function).bound; }

std::pair<double, double> math_max_ulp(const std::string& function, std::uint64_t first,
                                       std::uint64_t count, std::uint64_t stride) {
  const Function& f = find(function);
  double worst = 0, at = 0;
  constexpr Index block = 4096;
  float x[block], y[block];
  for (std::uint64_t done = 0; done < count; done += block) {
    const Index n = static_cast<Index>(std::min<std::uint64_t>(block, count - done));
    for (Index i = 0; i < n; ++i) {
      const auto bits =
          static_cast<std::uint32_t>(first + (done + static_cast<std::uint64_t>(i)) * stride);
      std::memcpy(&x[i], &bits, sizeof bits);
    }
    apply_math(function, x, n, y);
    for (Index i = 0; i < n; ++i) {
      const double error = ulp_error(y[i], f.exact(x[i]));
      if (error > worst) worst = error, at = static_cast<double>(x[i]);
    }
  }
  return {worst, at};
}

template <class T>
void multiply(const T* a, const T* b, Index rows, Index cols, Index depth, T* c) {
  const Kernels<T>& k = kernels<T>();
  const Index units = k.gemm_units, panels = (cols + units - 1) / units;
  // Packs as much of b at a time as stays in a second-level cache.
  const Index most = std::max<Index>(1, (Index(1) << 16) / std::max<Index>(1, depth * units));
  const Index scratch = most * units * depth + 16;
  const int threads = ThreadPool::instance().size();
  AlignedBuffer<T> packed;
  packed.reserve(threads * scratch);
  ThreadPool::instance().run(threads, [&](const Team& team) {
    const bool by_columns = panels >= team.parts;
    const Range my_rows = by_columns ? Range{0, rows} : team.share(rows);
    const Range mine = by_columns ? team.share(panels) : Range{0, panels};
    T* const to = packed.get() + team.part * scratch;
    for (Index panel = mine.begin; panel < mine.end; panel += most) {
      const Index n = std::min(most, mine.end - panel), first = panel * units;
      const Index width = std::min(n * units, cols - first);
      k.pack(PackArgs<T>{b + first, 1, cols, 1, width, depth, to}, {0, n});
      k.gemm(
          GemmArgs<T>{
              a, depth, {to, units, units * depth}, nullptr, false, width, depth, c + first, cols},
          my_rows, {0, n});
    }
  });
}

template <class T>
double fma_peak(double seconds) {
  const Kernels<T>& k = kernels<T>();
  constexpr Index iterations = 200000;  // some milliseconds
  volatile T sink;
  const double best = best_seconds(seconds, [&] { sink = k.fma_loop(iterations); });
  (void)sink;
  return double(iterations) * k.fma_loop_flops / best;
}

double read_bandwidth(Index bytes, double seconds) {
  if (bytes < 64) fail("bytes must be >= 64, got ", bytes);
  const Kernels<float>& k = kernels<float>();
  const Index n = bytes / Index(sizeof(float));
  AlignedBuffer<float> buffer;
  buffer.reserve(n);
  std::fill_n(buffer.get(), n, 1.0f);
  constexpr Index bytes_of_a_run = Index(1) << 26;  // some milliseconds
  const Index passes = std::max<Index>(1, bytes_of_a_run / bytes);
  volatile float sink;
  const double best = best_seconds(seconds, [&] {
    for (Index pass = 0; pass < passes; ++pass) sink = k.read_loop(buffer.get(), n);
  });
  (void)sink;
  return double(passes) * double(n) * double(sizeof(float)) / best;
}

template <class T>
double time_steps(Model<T>& model, const T* x, Index batch, T* state, Index count) {
  if (count < 1) fail("count must be >= 1, got ", count);
  AlignedBuffer<T> y;
  y.reserve(batch * model.output_size());
  const SequenceInput<T> in{1, batch, nullptr, x};
  const auto start = Clock::now();
  for (Index n = 0; n < count; ++n) model.step(in, state, y.get());
  return seconds_since(start) / double(count);
}

template void apply_math(const std::string&, const float*, Index, float*);
template void apply_math(const std::string&, const double*, Index, double*);
template void multiply(const float*, const float*, Index, Index, Index, float*);
template void multiply(const double*, const double*, Index, Index, Index, double*);
template double fma_peak<float>(double);
template double fma_peak<double>(double);
template double time_steps(Model<float>&, const float*, Index, float*, Index);
template double time_steps(Model<double>&, const double*, Index, double*, Index);

}  // namespace charrnn_fast
