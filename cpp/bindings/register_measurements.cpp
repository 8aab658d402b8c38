// The kernels' parts by themselves, for tests of accuracy and for benchmarks.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>

#include "arrays.hpp"
#include "charrnn_fast/math.hpp"
#include "dispatch.hpp"
#include "errors.hpp"
#include "thread_pool.hpp"

namespace charrnn_fast::bindings {
namespace {

template <class T>
using MathFunction = void (*)(const T*, T*, Index);

template <class T>
MathFunction<T> math_function(const std::string& name) {
  const Kernels<T>& k = kernels<T>();
  if (name == "exp") return k.exp;
  if (name == "sigmoid") return k.sigmoid;
  if (name == "tanh") return k.tanh;
  fail("function is '", name, "', it takes 'exp', 'sigmoid' or 'tanh'");
}

long double true_value(const std::string& name, long double x) {
  if (name == "exp") return std::exp(x);
  if (name == "tanh") return std::tanh(x);
  return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
}

double math_ulp_bound(const std::string& name) {
  math_function<float>(name);
  return name == "exp"    ? MathUlpBounds::exp
         : name == "tanh" ? MathUlpBounds::tanh
                          : MathUlpBounds::sigmoid;
}

template <class T>
py::array_t<T> apply(const std::string& name, const py::object& x) {
  const MathFunction<T> function = math_function<T>(name);
  const py::array array = checked_array<T>(x, "x");
  auto out = new_array<T>(shape_of(array));
  function(static_cast<const T*>(array.data()), out.mutable_data(), array.size());
  return out;
}

// |got - expected| in units in the last place of expected, among the subnormals of their step.
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

std::pair<double, double> math_max_ulp(const std::string& name, std::uint64_t first,
                                       std::uint64_t count, std::uint64_t stride) {
  const MathFunction<float> function = math_function<float>(name);
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
    function(x, y, n);
    for (Index i = 0; i < n; ++i) {
      const double error = ulp_error(y[i], true_value(name, x[i]));
      if (error > worst) worst = error, at = x[i];
    }
  }
  return {worst, at};
}

template <class T>
py::array_t<T> gemm_of(const py::object& a, const py::object& b) {
  const py::array left = checked_array<T>(a, "a"), right = checked_array<T>(b, "b");
  if (left.ndim() != 2 || right.ndim() != 2 || left.shape(1) != right.shape(0))
    throw py::value_error("a has shape " + text(shape_of(left)) + " and b " +
                          text(shape_of(right)) + ", they take [M, K] and [K, N]");
  const Index M = left.shape(0), K = left.shape(1), N = right.shape(1);
  const Kernels<T>& k = kernels<T>();
  const Index panels = (N + k.gemm_units - 1) / k.gemm_units;
  AlignedBuffer<T> packed;
  packed.reserve(std::max<Index>(1, panels * k.gemm_units * K));
  auto c = new_array<T>({M, N});
  const PackArgs<T> pack{static_cast<const T*>(right.data()), 1, N, 1, N, K, packed.get()};
  const GemmArgs<T> args{static_cast<const T*>(left.data()),
                         K,
                         packed.get(),
                         nullptr,
                         false,
                         N,
                         K,
                         c.mutable_data(),
                         N};
  py::gil_scoped_release release;
  ThreadPool::instance().run(ThreadPool::instance().size(), [&](const Team& team) {
    k.pack(pack, team.share(panels));
    team.wait();
    k.gemm(args, team.share(M), {0, panels});
  });
  return c;
}

template <class T>
double fma_peak_of(double seconds) {
  const Kernels<T>& k = kernels<T>();
  using Clock = std::chrono::steady_clock;
  constexpr Index iterations = 200000;
  const auto begin = Clock::now();
  double best = 0;
  volatile T sink;
  do {
    const auto start = Clock::now();
    sink = k.fma_loop(iterations);
    const double elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::max(best, double(iterations) * k.fma_loop_flops / elapsed);
  } while (std::chrono::duration<double>(Clock::now() - begin).count() < seconds);
  (void)sink;
  return best;
}

}  // namespace

void register_measurements(py::module_& m) {
  m.def("math_ulp_bound", &math_ulp_bound, py::arg("function"));
  m.def("math_max_ulp", &math_max_ulp, py::arg("function"), py::arg("first"), py::arg("count"),
        py::arg("stride"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "apply_math",
      [](const std::string& function, const py::object& x) {
        return py::isinstance<py::array_t<double>>(x) ? py::array(apply<double>(function, x))
                                                      : py::array(apply<float>(function, x));
      },
      py::arg("function"), py::arg("x"));
  m.def(
      "gemm",
      [](const py::object& a, const py::object& b) {
        return py::isinstance<py::array_t<double>>(a) ? py::array(gemm_of<double>(a, b))
                                                      : py::array(gemm_of<float>(a, b));
      },
      py::arg("a"), py::arg("b"));
  m.def(
      "fma_peak",
      [](const std::string& dtype, double seconds) {
        return dtype == "float64" ? fma_peak_of<double>(seconds) : fma_peak_of<float>(seconds);
      },
      py::arg("dtype"), py::arg("seconds"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace charrnn_fast::bindings
