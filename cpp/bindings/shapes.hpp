// A network's shape from Python's arguments, and its parameters' shapes for Python.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "charrnn_fast/network.hpp"
#include "charrnn_fast/registry.hpp"

namespace charrnn_fast::bindings {

namespace py = pybind11;

inline Bias bias_named(const std::string& name) {
  if (name == "double") return Bias::both;
  if (name == "single") return Bias::single;
  if (name == "none") return Bias::none;
  throw py::value_error("bias must be 'double', 'single' or 'none', got '" + name + "'");
}

inline double rate(const py::dict& rates, const char* name) {
  return rates.contains(name) ? rates[name].cast<double>() : 0.0;
}

inline Regularization regularization(const py::dict& rates) {
  Regularization r;
  for (const DropoutRate& known : dropout_rates) r.*known.value = rate(rates, known.name);
  for (int s = 0; s < 2; ++s) r.zoneout[s] = rate(rates, zoneout_rates[s]);
  r.variational = rates.contains("variational") && rates["variational"].cast<bool>();
  return r;
}

// The shapes of the parameters, as PyTorch has them, by name.
template <class T>
py::dict parameter_shapes(const Network<T>& network) {
  py::dict shapes;
  for (const Parameter& p : network.parameters())
    shapes[py::str(p.name)] =
        p.cols > 0 ? py::tuple(py::make_tuple(p.rows, p.cols)) : py::tuple(py::make_tuple(p.rows));
  return shapes;
}

}  // namespace charrnn_fast::bindings
