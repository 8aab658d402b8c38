#include "charrnn_fast/registry.hpp"

#include "arrays.hpp"

// As in _core.pyi: tuples of dicts, from which Python's registry makes its objects.
namespace charrnn_fast::bindings {
namespace {

py::dict describe(const CellInfo& cell) {
  py::dict d;
  d["name"] = cell.name;
  d["nonlinearity"] = cell.nonlinearity;
  d["gates"] = cell.gates;
  d["unit_weights"] = cell.params_name;
  d["num_states"] = cell.num_states;
  d["num_split"] = cell.num_split;
  d["num_saved"] = cell.num_saved;
  d["forget_gate"] = cell.forget_gate < 0 ? py::object(py::none()) : py::int_(cell.forget_gate);
  d["takes_projection"] = cell.takes_projection();
  d["bounded"] = cell.bounded;
  return d;
}

py::dict describe(const OptimizerInfo& optimizer) {
  py::dict options;
  for (const OptimizerOption& option : optimizer.options)
    options[py::str(option.name)] =
        option.is_flag ? py::object(py::bool_(option.initial != 0)) : py::float_(option.initial);
  py::dict d;
  d["name"] = optimizer.name;
  d["options"] = options;
  return d;
}

}  // namespace

void register_registry(py::module_& m) {
  py::list all_cells, all_optimizers, rates, computes;
  for (const CellInfo& cell : cells()) all_cells.append(describe(cell));
  for (const OptimizerInfo& optimizer : optimizers()) all_optimizers.append(describe(optimizer));
  for (const DropoutRate& rate : dropout_rates) rates.append(rate.name);
  for (const ComputeInfo& info : compute_dtypes) computes.append(info.name);
  m.attr("cells") = py::tuple(all_cells);
  m.attr("optimizers") = py::tuple(all_optimizers);
  m.attr("dropout_rates") = py::tuple(rates);
  m.attr("compute_dtypes") = py::tuple(computes);
  m.def(
      "compute_dtypes_on",
      [](const py::object& device) {
        py::list names;
        for (const ComputeInfo& info : compute_dtypes)
          if (can_compute(device_of(device), info.compute)) names.append(info.name);
        return py::tuple(names);
      },
      py::arg("device"));
}

}  // namespace charrnn_fast::bindings
