#include <pybind11/stl.h>

#include "arrays.hpp"
#include "measure.hpp"

namespace charrnn_fast::bindings {
namespace {

template <class T>
py::array apply(const std::string& function, const py::object& x) {
  const py::array array = checked_array<T>(x, "x");
  auto out = new_array<T>(shape_of(array));
  apply_math(function, static_cast<const T*>(array.data()), array.size(), out.mutable_data());
  return py::array(out);
}

template <class T>
py::array gemm(const py::object& a, const py::object& b) {
  const py::array left = checked_array<T>(a, "a"), right = checked_array<T>(b, "b");
  if (left.ndim() != 2 || right.ndim() != 2 || left.shape(1) != right.shape(0))
    throw py::value_error("a and b must have shapes [M, K] and [K, N], got " +
                          text(shape_of(left)) + " and " + text(shape_of(right)));
  auto c = new_array<T>({left.shape(0), right.shape(1)});
  const auto *pa = static_cast<const T*>(left.data()), *pb = static_cast<const T*>(right.data());
  const Index rows = left.shape(0), cols = right.shape(1), depth = left.shape(1);
  T* const pc = c.mutable_data();
  {
    py::gil_scoped_release release;
    multiply(pa, pb, rows, cols, depth, pc);
  }
  return py::array(c);
}

template <class T>
double time_steps_of(Model<T>& model, const py::object& x, const py::object& state, Index count) {
  const py::array input_array = checked_array<T>(x, "x");
  const NetworkShape& s = model.network().shape();
  if (input_array.ndim() != 2 || input_array.shape(0) < 1 || input_array.shape(1) != s.input_size)
    throw py::value_error("x must have shape [B, " + std::to_string(s.input_size) + "], got " +
                          text(shape_of(input_array)));
  const Index batch = input_array.shape(0);
  const Shape states{model.network().num_states(), s.num_layers, batch, s.hidden_size};
  T* const state_data = output<T>(state, "state", states);
  const T* const x_data = static_cast<const T*>(input_array.data());
  py::gil_scoped_release release;
  return time_steps(model, x_data, batch, state_data, count);
}

bool is_double(const py::object& x) { return py::isinstance<py::array_t<double>>(x); }

}  // namespace

void register_measurements(py::module_& m) {
  m.def("math_ulp_bound", &math_ulp_bound, py::arg("function"));
  m.def("math_max_ulp", &math_max_ulp, py::arg("function"), py::arg("first"), py::arg("count"),
        py::arg("stride"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "apply_math",
      [](const std::string& function, const py::object& x) {
        return is_double(x) ? apply<double>(function, x) : apply<float>(function, x);
      },
      py::arg("function"), py::arg("x"));
  m.def(
      "gemm",
      [](const py::object& a, const py::object& b) {
        return is_double(a) ? gemm<double>(a, b) : gemm<float>(a, b);
      },
      py::arg("a"), py::arg("b"));
  m.def(
      "fma_peak",
      [](const std::string& dtype, double seconds) {
        return dtype == "float64" ? fma_peak<double>(seconds) : fma_peak<float>(seconds);
      },
      py::arg("dtype"), py::arg("seconds"), py::call_guard<py::gil_scoped_release>());
  m.def("read_bandwidth", &read_bandwidth, py::arg("bytes"), py::arg("seconds"),
        py::call_guard<py::gil_scoped_release>());
  m.def("time_steps", &time_steps_of<float>, py::arg("model"), py::arg("x"), py::arg("state"),
        py::arg("count"));
  m.def("time_steps", &time_steps_of<double>, py::arg("model"), py::arg("x"), py::arg("state"),
        py::arg("count"));
}

}  // namespace charrnn_fast::bindings
