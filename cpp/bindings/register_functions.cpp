// Losses, clipping and sampling on the caller's arrays.
#include <pybind11/stl.h>

#include "arrays.hpp"
#include "charrnn_fast/losses.hpp"
#include "cpu/dispatch.hpp"
#include "errors.hpp"
#include "masks.hpp"

namespace charrnn_fast::bindings {
namespace {

// Calls f with the array as float or double.
template <class F>
auto with_floats(const py::object& x, const char* name, F&& f) -> decltype(f(float())) {
  if (py::isinstance<py::array_t<float>>(x)) return f(float());
  if (py::isinstance<py::array_t<double>>(x)) return f(double());
  const std::string got =
      py::isinstance<py::array>(x)
          ? "dtype " + py::str(x.attr("dtype")).cast<std::string>()
          : "type " + py::str(py::type::of(x).attr("__name__")).cast<std::string>();
  throw py::type_error(std::string(name) + " must be float32 or float64, got " + got);
}

bool is_mean(const std::string& reduction) {
  if (reduction != "mean" && reduction != "sum")
    throw py::value_error("reduction must be 'mean' or 'sum', got '" + reduction + "'");
  return reduction == "mean";
}

template <class T>
const T* weights_of(const py::object& weights, const Shape& shape) {
  return weights.is_none() ? nullptr : input<T>(weights, "weights", shape);
}

// Index text of a flat array's element in this shape: "[1, 2]"; "" for a single number.
std::string place(const Shape& shape, Index flat) {
  Shape at(shape.size());
  for (std::size_t i = shape.size(); i-- > 0; flat /= shape[i]) at[i] = flat % shape[i];
  return at.empty() ? "" : text(at);
}

// targets: any shape with one number per row of the logits.
py::tuple cross_entropy_of(const py::object& logits, const py::object& targets,
                           const std::string& reduction, const py::object& weights) {
  return with_floats(logits, "logits", [&](auto scalar) -> py::tuple {
    using T = decltype(scalar);
    const py::array array = checked_array<T>(logits, "logits");
    if (array.ndim() != 2 || array.shape(1) < 1)
      throw py::value_error("logits must have shape [N, V], got " + text(shape_of(array)));
    const Index rows = array.shape(0), classes = array.shape(1);
    const bool mean = is_mean(reduction);
    const py::array target_array = checked_array<Token>(targets, "targets");
    if (target_array.size() != rows)
      throw py::value_error("targets must have shape [" + std::to_string(rows) + "], got " +
                            text(shape_of(target_array)));
    const auto* target_data = static_cast<const Token*>(target_array.data());
    const T* const w = weights_of<T>(weights, {rows});
    auto dlogits = new_array<T>({rows, classes});
    T* const d = dlogits.mutable_data();
    const T* const x = static_cast<const T*>(array.data());
    double loss;
    try {
      py::gil_scoped_release release;
      loss = cross_entropy(x, target_data, rows, classes, mean, d, w);
    } catch (const BadElement& bad) {
      throw py::value_error(bad.name + place(shape_of(target_array), bad.place) + bad.problem);
    }
    return py::make_tuple(loss, dlogits);
  });
}

// An elementwise loss: arrays of one shape, which is arbitrary.
template <class F>
py::tuple element_loss_of(const char* name, const py::object& x, const py::object& targets,
                          const std::string& reduction, const py::object& weights, F&& loss_of) {
  return with_floats(x, name, [&](auto scalar) -> py::tuple {
    using T = decltype(scalar);
    const py::array array = checked_array<T>(x, name);
    const Shape shape = shape_of(array);
    const bool mean = is_mean(reduction);
    const T* const z = input<T>(targets, "targets", shape);
    const T* const w = weights_of<T>(weights, shape);
    auto gradient = new_array<T>(shape);
    T* const d = gradient.mutable_data();
    const T* const data = static_cast<const T*>(array.data());
    const Index n = array.size();
    double loss;
    {
      py::gil_scoped_release release;
      loss = loss_of(data, z, n, mean, d, w);
    }
    return py::make_tuple(loss, gradient);
  });
}

// Elementwise work takes any layout without gaps: row-major or transposed.
template <class T>
T* whole(const py::object& x, const char* name) {
  auto array = py::reinterpret_borrow<py::array>(x);
  if (!(array.flags() & (py::array::c_style | py::array::f_style)))
    throw py::value_error(std::string(name) + " must be contiguous");
  check_aligned(array, name);
  return static_cast<T*>(const_cast<void*>(array.data()));
}
template <class T>
T* whole_writable(const py::object& x, const char* name) {
  if (!py::reinterpret_borrow<py::array>(x).writeable())
    throw py::value_error(std::string(name) + " must be writable, got a read-only array");
  return whole<T>(x, name);
}
Index size_of(const py::object& x) { return py::reinterpret_borrow<py::array>(x).size(); }

py::array_t<Token> draw(const py::object& logits, const py::object& seeds, std::uint64_t position,
                        double temperature, Index top_k, double top_p, double repetition_penalty,
                        const py::object& recent) {
  return with_floats(logits, "logits", [&](auto scalar) {
    using T = decltype(scalar);
    const py::array array = checked_array<T>(logits, "logits");
    if (array.ndim() != 2 || array.shape(1) < 1)
      throw py::value_error("logits must have shape [B, V], got " + text(shape_of(array)));
    SamplingOptions options{temperature, top_k, top_p};
    options.repetition_penalty = repetition_penalty;
    const Index batch = array.shape(0), classes = array.shape(1);
    const Token* recent_data = nullptr;
    if (!recent.is_none()) {
      const py::array given = checked_array<Token>(recent, "recent");
      if (given.ndim() != 2)
        throw py::value_error("recent must have shape [window, B], got " + text(shape_of(given)));
      options.repetition_window = given.shape(0);
      recent_data = input<Token>(recent, "recent", {given.shape(0), batch});
    }
    check(options);
    const auto* seed_data = input<std::uint64_t>(seeds, "seeds", {batch});
    AlignedBuffer<T> workspace;
    workspace.reserve(draw_elements<T>(classes));
    auto drawn = new_array<Token>({batch});
    draw_tokens(static_cast<const T*>(array.data()), batch, classes, seed_data, position, options,
                drawn.mutable_data(), workspace.get(), recent_data);
    return drawn;
  });
}

template <class T>
py::array mask(std::uint64_t seed, std::uint32_t site, double rate, std::uint32_t time,
               const py::object& streams, Index cols) {
  const py::array array = checked_array<Index>(streams, "streams");
  if (array.ndim() != 1)
    throw py::value_error("streams must have shape [N], got " + text(shape_of(array)));
  if (cols < 0) throw py::value_error("cols must be >= 0, got " + std::to_string(cols));
  MaskArgs<T> p = mask_args<T>(MaskKind::dropout, rate, seed, site);
  auto out = new_array<T>({array.shape(0), cols});
  p.time = time;
  p.streams = static_cast<const Index*>(array.data());
  p.out = out.mutable_data();
  p.out_stride = p.cols = cols;
  kernels<T>().mask(p, {0, array.shape(0)});
  return py::array(out);
}

}  // namespace

void register_functions(py::module_& m) {
  m.def("cross_entropy", &cross_entropy_of, py::arg("logits"), py::arg("targets"),
        py::arg("reduction"), py::arg("weights"));
  m.def(
      "binary_cross_entropy",
      [](const py::object& logits, const py::object& targets, const std::string& reduction,
         const py::object& weights) {
        return element_loss_of("logits", logits, targets, reduction, weights,
                               [](auto... args) { return binary_cross_entropy(args...); });
      },
      py::arg("logits"), py::arg("targets"), py::arg("reduction"), py::arg("weights"));
  m.def(
      "mean_square",
      [](const py::object& y, const py::object& targets, const std::string& reduction,
         const py::object& weights) {
        return element_loss_of("y", y, targets, reduction, weights,
                               [](auto... args) { return mean_square(args...); });
      },
      py::arg("y"), py::arg("targets"), py::arg("reduction"), py::arg("weights"));
  m.def(
      "sum_of_squares",
      [](const py::object& x) {
        return with_floats(x, "x", [&](auto scalar) {
          return sum_of_squares(whole<decltype(scalar)>(x, "x"), size_of(x));
        });
      },
      py::arg("x"));
  m.def(
      "scale",
      [](const py::object& x, double factor) {
        with_floats(x, "x", [&](auto scalar) {
          using T = decltype(scalar);
          scale(whole_writable<T>(x, "x"), size_of(x), static_cast<T>(factor));
        });
      },
      py::arg("x"), py::arg("factor"));
  m.def(
      "clip_value",
      [](const py::object& x, double limit) {
        with_floats(x, "x", [&](auto scalar) {
          using T = decltype(scalar);
          clip_value(whole_writable<T>(x, "x"), size_of(x), static_cast<T>(limit));
        });
      },
      py::arg("x"), py::arg("limit"));
  m.def("clip_factor", &clip_factor, py::arg("norm"), py::arg("limit"));
  m.def("sample_tokens", &draw, py::arg("logits"), py::arg("seeds"), py::arg("position"),
        py::arg("temperature"), py::arg("top_k"), py::arg("top_p"),
        py::arg("repetition_penalty") = 1.0, py::arg("recent") = py::none());
  m.def(
      "mask",
      [](std::uint64_t seed, std::uint32_t site, double rate, std::uint32_t time,
         const py::object& streams, Index cols, const std::string& dtype) {
        if (dtype != "float32" && dtype != "float64")
          throw py::value_error("dtype must be 'float32' or 'float64', got '" + dtype + "'");
        return (dtype == "float32" ? mask<float> : mask<double>)(seed, site, rate, time, streams,
                                                                 cols);
      },
      py::arg("seed"), py::arg("site"), py::arg("rate"), py::arg("time"), py::arg("streams"),
      py::arg("cols"), py::arg("dtype"));
  m.def("philox", py::overload_cast<std::uint64_t, std::uint64_t, std::uint32_t>(&philox),
        py::arg("seed"), py::arg("position"), py::arg("lane"));
}

}  // namespace charrnn_fast::bindings
