#include <pybind11/stl.h>

#include <cstdint>
#include <map>

#include "arrays.hpp"

namespace charrnn_fast::bindings {
namespace {

// An optimizer, the model it updates, and memory for gradients that arrive array by array.
template <class T>
struct BoundOptimizer {
  std::shared_ptr<Model<T>> model;
  Optimizer<T> optimizer;
  AlignedBuffer<T> gradients{};
  ForkSafeMutex mutex{};  // for `gradients`

  Index slot_index(const std::string& name) const {
    const auto& names = optimizer.slot_names();
    for (std::size_t i = 0; i < names.size(); ++i)
      if (names[i] == name) return static_cast<Index>(i);
    throw py::value_error("slot must be one of slot_names, got '" + name + "'");
  }
};

template <class T>
void optimizer_step(BoundOptimizer<T>& self, const py::dict& gradients, double learning_rate) {
  const Network<T>& network = self.model->network();
  if (gradients.size() != network.parameters().size())
    throw py::value_error("gradients must have " + std::to_string(network.parameters().size()) +
                          " arrays, got " + std::to_string(gradients.size()));
  std::vector<StridedView<T>> views;
  for (const Parameter& p : network.parameters()) {
    if (!gradients.contains(p.name))
      throw py::value_error("gradients must have '" + p.name + "', got none");
    const auto gradient = py::reinterpret_borrow<py::object>(gradients[py::str(p.name)]);
    check_parameter<T>(p, gradient);
    views.push_back(view_of<T>(gradient));
  }
  py::gil_scoped_release release;
  std::lock_guard<ForkSafeMutex> lock(self.mutex);
  self.gradients.reserve(network.parameter_elements());
  std::fill_n(self.gradients.get(), network.parameter_elements(), T(0));
  for (std::size_t i = 0; i < views.size(); ++i)
    copy_parameter(network.parameters()[i], views[i], self.gradients.get());
  self.model->update(self.optimizer, self.gradients.get(), learning_rate);
}

// gradients: the address of a flat array of the device.
template <class T>
void optimizer_step_on_device(BoundOptimizer<T>& self, std::uintptr_t gradients,
                              double learning_rate) {
  py::gil_scoped_release release;
  self.model->update(self.optimizer, reinterpret_cast<const T*>(gradients), learning_rate);
}

template <class T>
Index held_memory(BoundOptimizer<T>& self) {
  py::gil_scoped_release release;  // another thread may be computing
  std::lock_guard<ForkSafeMutex> lock(self.mutex);
  return self.optimizer.held_memory() + self.gradients.size() * Index(sizeof(T));
}

template <class T>
void check_optimizer(const Model<T>& model, const BoundOptimizer<T>& optimizer) {
  if (optimizer.model.get() != &model)
    throw py::value_error("optimizer must be made for this network, got one of another");
}

TrainOptions train_options(double learning_rate, double clip_norm, double clip_value,
                           const std::string& reduction) {
  if (reduction != "mean" && reduction != "sum")
    throw py::value_error("reduction must be 'mean' or 'sum', got '" + reduction + "'");
  return {learning_rate, clip_norm, clip_value, reduction == "mean"};
}

template <class T>
std::pair<double, double> train_step(Model<T>& model, const py::object& inputs,
                                     const py::object& targets, const py::object& state,
                                     BoundOptimizer<T>& optimizer, double learning_rate,
                                     double clip_norm, double clip_value,
                                     const std::string& reduction, const py::object& mask_seed,
                                     const py::object& lengths) {
  const LossBatch<T> in(inputs, targets, lengths, mask_seed);
  const TrainOptions options = train_options(learning_rate, clip_norm, clip_value, reduction);
  check_optimizer(model, optimizer);
  T* const state_data = output<T>(state, "state", state_shape(model, in.batch.batch));
  py::gil_scoped_release release;
  const auto result =
      model.train_step(in.batch, in.targets, state_data, optimizer.optimizer, options);
  return {result.loss, result.gradient_norm};
}

template <class T>
std::pair<double, double> update(Model<T>& model, BoundOptimizer<T>& optimizer,
                                 double learning_rate, double clip_norm, double clip_value,
                                 const std::string& reduction) {
  const TrainOptions options = train_options(learning_rate, clip_norm, clip_value, reduction);
  check_optimizer(model, optimizer);
  py::gil_scoped_release release;
  const auto result = model.update(optimizer.optimizer, options);
  return {result.loss, result.gradient_norm};
}

template <class T>
void register_optimizer(py::module_& m, const char* name, const char* model_name) {
  using O = BoundOptimizer<T>;
  py::class_<O>(m, name)
      .def(py::init([](const std::string& rule, std::shared_ptr<Model<T>> network,
                       const std::map<std::string, double>& hyper) {
             Optimizer<T> optimizer(rule, optimizer_options(rule, hyper),
                                    network->network().parameter_elements(),
                                    network->network().device());
             return std::make_unique<O>(O{std::move(network), std::move(optimizer)});
           }),
           py::arg("rule"), py::arg("model"), py::arg("hyper"))
      .def_property(
          "num_steps", [](const O& self) { return self.optimizer.num_steps(); },
          [](O& self, Index n) {
            if (n < 0) throw py::value_error("num_steps must be >= 0, got " + std::to_string(n));
            self.optimizer.set_num_steps(n);
          })
      .def_property_readonly("slot_names",
                             [](const O& self) {
                               py::list names;
                               for (const auto& slot : self.optimizer.slot_names())
                                 names.append(slot);
                               return py::tuple(names);
                             })
      .def(
          "slot",
          [](const py::object& self, const std::string& slot, const std::string& parameter) {
            O& o = self.cast<O&>();
            return parameter_on<T>(o.optimizer.device(),
                                   find_parameter(o.model->network(), parameter),
                                   o.optimizer.slot(o.slot_index(slot)), self);
          },
          py::arg("slot"), py::arg("name"))
      .def(
          "set_slot",
          [](O& self, const std::string& slot, const std::string& parameter,
             const py::object& value) {
            const Parameter& p = find_parameter(self.model->network(), parameter);
            check_parameter<T>(p, value);
            T* const flat = self.optimizer.slot(self.slot_index(slot));
            Device& device = self.optimizer.device();
            if (device.is_host) return copy_parameter(p, view_of<T>(value), flat);
            std::vector<T> copy(static_cast<std::size_t>(self.optimizer.elements()));
            device.download(flat, self.optimizer.elements(), copy.data());
            copy_parameter(p, view_of<T>(value), copy.data());
            device.upload(copy.data(), self.optimizer.elements(), flat);
          },
          py::arg("slot"), py::arg("name"), py::arg("value"))
      .def("step", &optimizer_step<T>, py::arg("gradients"), py::arg("learning_rate"))
      .def("step_on_device", &optimizer_step_on_device<T>, py::arg("gradients"),
           py::arg("learning_rate"))
      .def_property_readonly("held_memory", &held_memory<T>)
      .def_static(
          "memory",
          [](const std::string& rule, const Model<T>& network,
             const std::map<std::string, double>& hyper) {
            return Optimizer<T>::memory(rule, optimizer_options(rule, hyper),
                                        network.network().parameter_elements());
          },
          py::arg("rule"), py::arg("model"), py::arg("hyper"));

  // Methods of the model that need the optimizer's type.
  py::object model = m.attr(model_name);
  model.attr("train_step") = py::cpp_function(
      &train_step<T>, py::name("train_step"), py::is_method(model), py::arg("inputs"),
      py::arg("targets"), py::arg("state"), py::arg("optimizer"), py::arg("learning_rate"),
      py::arg("clip_norm"), py::arg("clip_value"), py::arg("reduction"),
      py::arg("mask_seed") = py::none(), py::arg("lengths") = py::none());
  model.attr("update") = py::cpp_function(
      &update<T>, py::name("update"), py::is_method(model), py::arg("optimizer"),
      py::arg("learning_rate"), py::arg("clip_norm"), py::arg("clip_value"), py::arg("reduction"));
}

}  // namespace

void register_optimizers(py::module_& m) {
  register_optimizer<float>(m, "OptimizerFloat32", "ModelFloat32");
  register_optimizer<double>(m, "OptimizerFloat64", "ModelFloat64");
}

}  // namespace charrnn_fast::bindings
