#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "arrays.hpp"
#include "model_on_device.hpp"
#include "shapes.hpp"

namespace charrnn_fast::bindings {
namespace {

template <class T>
void check_step(const Model<T>& model) {
  if (model.network().directions() > 1)
    throw py::value_error(
        "bidirectional must be False for step, got True: such a network reads whole "
        "sequences");
}

// x [T, B, I] or tokens [T, B]; for one step x [B, I] or tokens [B].
template <class T>
SequenceInput<T> sequence(const Model<T>& model, const py::object& x, bool one_step) {
  const Index features = model.network().shape().input_size;
  const bool dense = py::isinstance<py::array_t<T>>(x);
  const py::array array = dense ? checked_array<T>(x, "x") : checked_array<Token>(x, "x");
  Shape shape = shape_of(array);
  if (one_step) shape.insert(shape.begin(), 1);
  const Shape wanted = dense ? Shape{-1, -1, features} : Shape{-1, -1};
  if (shape.size() != wanted.size() || (dense && shape[2] != features))
    throw py::value_error(std::string("x must have shape [") + (one_step ? "" : "T, ") + "B" +
                          (dense ? ", " + std::to_string(features) + "]" : "] of tokens") +
                          ", got " + text(shape_of(array)));
  if (shape[1] < 1) throw py::value_error("the batch of x must be >= 1, got 0");
  // An empty array's pointer is arbitrary; the network only tests which of the two is null.
  return {shape[0], shape[1], dense ? nullptr : static_cast<const Token*>(array.data()),
          dense ? static_cast<const T*>(array.data()) : nullptr};
}

template <class T>
py::tuple forward_kept(Model<T>& model, const py::object& x, const py::object& state, bool keep,
                       const py::object& lengths, const py::object& mask_seed) {
  const SequenceInput<T> in = sequence(model, x, false);
  const MaskSeed seed(mask_seed);
  typename Model<T>::Batch batch{in.seq_len, in.batch, in.tokens, in.x};
  batch.mask_seed = seed.get();
  if (!lengths.is_none()) batch.lengths = input<Index>(lengths, "lengths", {in.batch});
  const Shape states = state_shape(model, in.batch);
  const T* state_0 = state.is_none() ? nullptr : input<T>(state, "state", states);
  auto y = new_array<T>({in.seq_len, in.batch, model.output_size()});
  auto state_n = new_array<T>(states);
  Index id = 0;
  {
    T *py = y.mutable_data(), *ps = state_n.mutable_data();
    py::gil_scoped_release release;
    id = model.forward(batch, state_0, keep, py, ps);
  }
  return py::make_tuple(y, state_n, id);
}

template <class T>
py::tuple forward(Model<T>& model, const py::object& x, const py::object& state, bool keep,
                  const py::object& lengths, const py::object& mask_seed) {
  const py::tuple results = forward_kept(model, x, state, keep, lengths, mask_seed);
  return py::make_tuple(results[0], results[1]);
}

template <class T>
typename Model<T>::Kept kept_now(Model<T>& model) {
  py::gil_scoped_release release;  // another thread may be computing
  return model.kept();
}

template <class T>
py::tuple backward(Model<T>& model, const py::object& dy, const py::object& dstate, Index id) {
  const auto kept = kept_now(model);
  if (id != 0 && kept.id != id)
    throw std::runtime_error(
        "backward must follow its own forward, got a later one from another thread");
  if (kept.id == 0) throw py::value_error("backward must follow a forward with keep, got none");
  const Network<T>& network = model.network();
  const Index steps = kept.seq_len, batch = kept.batch;
  const T* dy_data =
      dy.is_none() ? nullptr : input<T>(dy, "dy", {steps, batch, model.output_size()});
  const Shape states = state_shape(model, batch);
  const T* dstate_n = dstate.is_none() ? nullptr : input<T>(dstate, "dstate", states);
  auto dstate_0 = new_array<T>(states);
  if (dstate_n)
    std::copy_n(dstate_n, dstate_0.size(), dstate_0.mutable_data());
  else
    std::fill_n(dstate_0.mutable_data(), dstate_0.size(), T(0));
  py::object dx = py::none();
  T* dx_data = nullptr;
  if (!kept.tokens) {
    auto array = new_array<T>({steps, batch, network.shape().input_size});
    dx_data = array.mutable_data();
    dx = array;
  }
  auto flat = new_array<T>({network.parameter_elements()});
  {
    T *ps = dstate_0.mutable_data(), *pg = flat.mutable_data();
    py::gil_scoped_release release;
    model.backward(kept, dy_data, ps, dx_data, pg);
  }
  py::dict gradients;
  for (const Parameter& p : network.parameters())
    gradients[py::str(p.name)] = parameter_view(p, flat.mutable_data(), flat, true);
  return py::make_tuple(dx, dstate_0, gradients);
}

template <class T>
py::array_t<T> step(Model<T>& model, const py::object& x, const py::object& state) {
  check_step(model);
  const SequenceInput<T> in = sequence(model, x, true);
  T* const state_data = output<T>(state, "state", state_shape(model, in.batch));
  auto y = new_array<T>({in.batch, model.output_size()});
  T* const y_data = y.mutable_data();
  py::gil_scoped_release release;
  model.step(in, state_data, y_data);
  return y;
}

// The object as an array of T with these flags, else null: hardly more than a comparison. Also null
// for a subclass, which may have a mask or its own shape.
template <class T>
const py::detail::PyArray_Proxy* plain_array(const py::object& object, int flags) {
  static const PyObject* const descr = py::dtype::of<T>().release().ptr();
  if (Py_TYPE(object.ptr()) != py::detail::npy_api::get().PyArray_Type_) return nullptr;
  const auto* array = py::detail::array_proxy(object.ptr());
  return array->descr == descr && (array->flags & flags) == flags ? array : nullptr;
}

// Fast path of step: x [I] or [B, I] in the network's layout. Else returns None and changes
// nothing. A small network's step takes less time than the thorough checks.
template <class T>
py::object step_plain(Model<T>& model, const py::object& x, const py::object& state) {
  using py::detail::npy_api;
  constexpr int plain = npy_api::NPY_ARRAY_C_CONTIGUOUS_ | npy_api::NPY_ARRAY_ALIGNED_;
  const auto* in = plain_array<T>(x, plain);
  const auto* carried = plain_array<T>(state, plain | npy_api::NPY_ARRAY_WRITEABLE_);
  const NetworkShape& shape = model.network().shape();
  if (model.network().directions() > 1) return py::none();
  if (!in || !carried || in->nd < 1 || in->nd > 2 || carried->nd != 4 ||
      in->dimensions[in->nd - 1] != shape.input_size)
    return py::none();
  const Index batch = in->nd == 2 ? in->dimensions[0] : 1;
  const Index wanted[] = {model.network().num_states(), shape.num_layers, batch, shape.hidden_size};
  if (batch < 1 || !std::equal(wanted, wanted + 4, carried->dimensions)) return py::none();
  auto y = in->nd == 2 ? py::array_t<T>({batch, model.output_size()})
                       : py::array_t<T>(model.output_size());
  T* const y_data = y.mutable_data();
  const SequenceInput<T> sequence{1, batch, nullptr, reinterpret_cast<const T*>(in->data)};
  py::gil_scoped_release release;
  model.step(sequence, reinterpret_cast<T*>(carried->data), y_data);
  return y;
}

template <class T>
void read(Model<T>& model, const py::object& x, const py::object& state,
          const std::string& weights) {
  const Storage storage = storage_named(weights);
  const SequenceInput<T> in = sequence(model, x, false);
  T* const state_data = output<T>(state, "state", state_shape(model, in.batch));
  py::gil_scoped_release release;
  model.read({in.seq_len, in.batch, in.tokens, in.x}, state_data, storage);
}

template <class T>
std::pair<double, Index> evaluate(Model<T>& model, const py::object& inputs,
                                  const py::object& targets, const py::object& state,
                                  const py::object& lengths) {
  check_step(model);
  const LossBatch<T> in(inputs, targets, lengths, py::none());
  T* const state_data = output<T>(state, "state", state_shape(model, in.batch.batch));
  py::gil_scoped_release release;
  const auto result = model.evaluate(in.batch, in.targets, state_data);
  return {result.loss_sum, result.count};
}

template <class T>
py::array_t<double> stream_losses(Model<T>& model, const py::object& inputs,
                                  const py::object& targets, const py::object& state,
                                  const py::object& lengths) {
  check_step(model);
  const LossBatch<T> in(inputs, targets, lengths, py::none());
  T* const state_data = output<T>(state, "state", state_shape(model, in.batch.batch));
  auto losses = new_array<double>({in.batch.batch});
  double* const data = losses.mutable_data();
  py::gil_scoped_release release;
  model.evaluate(in.batch, in.targets, state_data, data);
  return losses;
}

template <class T>
py::tuple accumulate(Model<T>& model, const py::object& inputs, const py::object& targets,
                     const py::object& state, const py::object& mask_seed,
                     const py::object& lengths, const py::object& streams) {
  LossBatch<T> in(inputs, targets, lengths, mask_seed);
  if (!streams.is_none()) in.batch.streams = input<Index>(streams, "streams", {in.batch.batch});
  const Shape states = state_shape(model, in.batch.batch);
  const T* const state_0 = input<T>(state, "state", states);
  auto state_n = new_array<T>(states);
  typename Model<T>::Losses losses;
  {
    T* const ps = state_n.mutable_data();
    py::gil_scoped_release release;
    losses = model.accumulate(in.batch, in.targets, state_0, ps);
  }
  return py::make_tuple(losses.loss_sum, losses.count, state_n);
}

// gradients: a view of the model's memory, which stays where it is; of another device a copy.
template <class T>
py::tuple accumulated(const py::object& self) {
  auto& model = self.cast<Model<T>&>();
  const Network<T>& network = model.network();
  Device& device = network.device();
  const Index elements = network.parameter_elements();
  typename Model<T>::Accumulated sum{};
  {
    py::gil_scoped_release release;  // another thread may be computing
    sum = model.accumulated();
  }
  py::array_t<T> gradients;
  if (device.is_host) {
    gradients = py::array_t<T>({elements}, sum.gradients, self);
  } else {
    gradients = new_array<T>({elements});
    T* const copy = gradients.mutable_data();
    py::gil_scoped_release release;
    device.download(sum.gradients, elements, copy);
  }
  return py::make_tuple(gradients, sum.losses.loss_sum, sum.losses.count);
}

// gradients: what accumulated() returned, with other values; None: they stay.
template <class T>
void set_accumulated(Model<T>& model, double loss_sum, Index count, const py::object& gradients) {
  const Network<T>& network = model.network();
  const Index elements = network.parameter_elements();
  const T* const given =
      gradients.is_none() ? nullptr : input<T>(gradients, "gradients", {elements});
  py::gil_scoped_release release;
  model.set_accumulated({loss_sum, count});
  T* const ours = model.accumulated().gradients;
  if (given && given != ours) network.device().upload(given, elements, ours);
}

template <class T>
Index memory(const Model<T>& model, Index seq_len, Index batch, bool training,
             const py::object& lengths) {
  const std::uint64_t mask_seed = 0;
  typename Model<T>::Batch in{seq_len, batch, nullptr, nullptr};
  if (training) in.mask_seed = &mask_seed;  // costs nothing if all rates are 0
  if (!lengths.is_none()) in.lengths = input<Index>(lengths, "lengths", {batch});
  return model.memory(in, training);
}

template <class T>
py::array_t<Token> sample(Model<T>& model, Index length, const py::object& tokens,
                          const py::object& state, const py::object& seeds, std::uint64_t position,
                          double temperature, Index top_k, double top_p, const std::string& weights,
                          double repetition_penalty, const py::object& recent) {
  const Storage storage = storage_named(weights);
  const py::array first = checked_array<Token>(tokens, "tokens");
  if (first.ndim() != 1 || first.shape(0) < 1)
    throw py::value_error("tokens must have shape [B], got " + text(shape_of(first)));
  if (length < 0) throw py::value_error("length must be >= 0, got " + std::to_string(length));
  const Index batch = first.shape(0);
  const auto* seed_data = input<std::uint64_t>(seeds, "seeds", {batch});
  T* const state_data = output<T>(state, "state", state_shape(model, batch));
  SamplingOptions options{temperature, top_k, top_p};
  options.repetition_penalty = repetition_penalty;
  Token* recent_data = nullptr;
  if (!recent.is_none()) {
    const py::array given = checked_array<Token>(recent, "recent");
    if (given.ndim() != 2 || given.shape(0) < 1)
      throw py::value_error("recent must have shape [window, B], got " + text(shape_of(given)));
    options.repetition_window = given.shape(0);
    recent_data = output<Token>(recent, "recent", {given.shape(0), batch});
  }
  auto drawn = new_array<Token>({length, batch});
  Token* const drawn_data = drawn.mutable_data();
  py::gil_scoped_release release;
  model.sample(length, batch, static_cast<const Token*>(first.data()), state_data, seed_data,
               position, options, drawn_data, storage, recent_data);
  return drawn;
}

template <class T>
py::array_t<Token> sample_streams(Model<T>& model, Index length, const py::object& tokens,
                                  const py::object& state, const py::object& seeds,
                                  const py::object& positions, const py::object& temperatures,
                                  const py::object& top_k, const py::object& top_p,
                                  const std::string& weights, const py::object& penalties,
                                  const py::object& windows, const py::object& recent) {
  const Storage storage = storage_named(weights);
  const py::array first = checked_array<Token>(tokens, "tokens");
  if (first.ndim() != 1 || first.shape(0) < 1)
    throw py::value_error("tokens must have shape [B], got " + text(shape_of(first)));
  if (length < 0) throw py::value_error("length must be >= 0, got " + std::to_string(length));
  const Index batch = first.shape(0);
  const auto* seed = input<std::uint64_t>(seeds, "seeds", {batch});
  const auto* position = input<std::uint64_t>(positions, "positions", {batch});
  const auto* temperature = input<double>(temperatures, "temperatures", {batch});
  const auto* k = input<Index>(top_k, "top_k", {batch});
  const auto* p = input<double>(top_p, "top_p", {batch});
  std::vector<StreamSampling> streams;
  for (Index b = 0; b < batch; ++b)
    streams.push_back({seed[b], position[b], {temperature[b], k[b], p[b]}});
  Token* recent_data = nullptr;
  if (!penalties.is_none()) {
    const auto* penalty = input<double>(penalties, "penalties", {batch});
    const auto* window = input<Index>(windows, "windows", {batch});
    Index longest = 0;
    for (Index b = 0; b < batch; ++b) {
      SamplingOptions& o = streams[static_cast<std::size_t>(b)].options;
      o.repetition_penalty = penalty[b], o.repetition_window = window[b];
      longest = std::max(longest, window[b]);
    }
    recent_data = output<Token>(recent, "recent", {longest, batch});
  }
  T* const state_data = output<T>(state, "state", state_shape(model, batch));
  auto drawn = new_array<Token>({length, batch});
  Token* const drawn_data = drawn.mutable_data();
  py::gil_scoped_release release;
  model.sample(length, batch, static_cast<const Token*>(first.data()), state_data, streams.data(),
               drawn_data, storage, recent_data);
  return drawn;
}

template <class T>
py::array_t<T> next(Model<T>& model, const py::object& tokens, const py::object& state,
                    const std::string& weights) {
  const Storage storage = storage_named(weights);
  const py::array fed = checked_array<Token>(tokens, "tokens");
  if (fed.ndim() != 1 || fed.shape(0) < 1)
    throw py::value_error("tokens must have shape [B], got " + text(shape_of(fed)));
  const Index batch = fed.shape(0);
  T* const state_data = output<T>(state, "state", state_shape(model, batch));
  auto result = new_array<T>({batch, model.output_size()});
  T* const data = result.mutable_data();
  py::gil_scoped_release release;
  model.next(batch, static_cast<const Token*>(fed.data()), state_data, data, storage);
  return result;
}

template <class T>
void register_model(py::module_& m, const char* name) {
  using M = Model<T>;
  py::class_<M, std::shared_ptr<M>>(m, name)
      .def(py::init([](const std::string& cell, Index input_size, Index hidden_size,
                       Index output_size, Index num_layers, const std::string& bias,
                       bool bidirectional, Index proj_size, bool layer_norm, const py::dict& rates,
                       const py::object& device, const std::string& nonlinearity,
                       const std::string& compute_dtype) {
             return std::make_shared<M>(
                 NetworkShape{cell, input_size, hidden_size, output_size, num_layers,
                              bias_named(bias), bidirectional, proj_size, layer_norm,
                              regularization(rates), nonlinearity, compute_named(compute_dtype)},
                 device_of(device));
           }),
           py::arg("cell"), py::arg("input_size"), py::arg("hidden_size"), py::arg("output_size"),
           py::arg("num_layers"), py::arg("bias"), py::arg("bidirectional") = false,
           py::arg("proj_size") = 0, py::arg("layer_norm") = false,
           py::arg("regularization") = py::dict(), py::arg("device") = py::none(),
           py::arg("nonlinearity") = "tanh", py::arg("compute_dtype") = "float32")
      .def_property_readonly("num_states",
                             [](const M& self) { return self.network().num_states(); })
      .def_property_readonly("num_parameters",
                             [](const M& self) {
                               Index n = 0;
                               for (const Parameter& p : self.network().parameters())
                                 n += p.elements();
                               return n;
                             })
      .def_property_readonly("version", &M::version)
      .def_property_readonly("kept",
                             [](M& self) {
                               const auto kept = kept_now(self);
                               return py::make_tuple(kept.id, kept.seq_len, kept.batch);
                             })
      .def("parameter_shapes", [](const M& self) { return parameter_shapes(self.network()); })
      .def(
          "parameter",
          [](const py::object& self, const std::string& parameter) {
            const M& model = self.cast<const M&>();
            const Network<T>& network = model.network();
            return parameter_on(network.device(), find_parameter(network, parameter),
                                model.parameters(), self);
          },
          py::arg("name"))
      .def(
          "set_parameter",
          [](M& self, const std::string& parameter, const py::object& value) {
            const Parameter& p = find_parameter(self.network(), parameter);
            check_parameter<T>(p, value);
            const auto view = view_of<T>(value);
            py::gil_scoped_release release;
            self.change_parameter(
                p, [&](const Parameter& of, T* flat) { copy_parameter(of, view, flat); });
          },
          py::arg("name"), py::arg("value"))
      .def(
          "state_shape",
          [](const M& self, Index batch) { return py::tuple(py::cast(state_shape(self, batch))); },
          py::arg("batch"))
      .def("forward", &forward<T>, py::arg("x"), py::arg("state"), py::arg("keep"),
           py::arg("lengths") = py::none(), py::arg("mask_seed") = py::none())
      .def("forward_kept", &forward_kept<T>, py::arg("x"), py::arg("state"), py::arg("keep"),
           py::arg("lengths") = py::none(), py::arg("mask_seed") = py::none())
      .def("backward", &backward<T>, py::arg("dy"), py::arg("dstate"), py::arg("id") = 0)
      .def("read", &read<T>, py::arg("x"), py::arg("state"), py::arg("weights") = "")
      .def("step", &step<T>, py::arg("x"), py::arg("state"))
      .def("step_plain", &step_plain<T>)
      .def("evaluate", &evaluate<T>, py::arg("inputs"), py::arg("targets"), py::arg("state"),
           py::arg("lengths") = py::none())
      .def("stream_losses", &stream_losses<T>, py::arg("inputs"), py::arg("targets"),
           py::arg("state"), py::arg("lengths") = py::none())
      .def("accumulate", &accumulate<T>, py::arg("inputs"), py::arg("targets"), py::arg("state"),
           py::arg("mask_seed") = py::none(), py::arg("lengths") = py::none(),
           py::arg("streams") = py::none())
      .def("forward_on_device", &forward_on_device<T>, py::arg("seq_len"), py::arg("batch"),
           py::arg("x"), py::arg("tokens"), py::arg("state_0"), py::arg("keep"), py::arg("lengths"),
           py::arg("mask_seed"), py::arg("y"), py::arg("state_n"))
      .def("backward_on_device", &backward_on_device<T>, py::arg("id"), py::arg("dy"),
           py::arg("dstate"), py::arg("dx"), py::arg("gradients"))
      .def("step_on_device", &step_on_device<T>, py::arg("batch"), py::arg("x"), py::arg("tokens"),
           py::arg("state"), py::arg("y"))
      .def("gradient_places", &gradient_places<T>)
      .def_property_readonly("parameter_elements",
                             [](const M& self) { return self.network().parameter_elements(); })
      .def_property_readonly("kept_tokens", [](M& self) { return kept_now(self).tokens; })
      .def("accumulated", &accumulated<T>)
      .def("set_accumulated", &set_accumulated<T>, py::arg("loss_sum"), py::arg("count"),
           py::arg("gradients") = py::none())
      .def("clear_gradients", &M::clear_gradients, py::call_guard<py::gil_scoped_release>())
      .def("memory", &memory<T>, py::arg("seq_len"), py::arg("batch"), py::arg("training") = true,
           py::arg("lengths") = py::none())
      .def_property_readonly("held_memory",
                             [](M& self) {
                               py::gil_scoped_release release;  // another thread may be computing
                               return self.held_memory();
                             })
      .def("sample", &sample<T>, py::arg("length"), py::arg("tokens"), py::arg("state"),
           py::arg("seeds"), py::arg("position"), py::arg("temperature"), py::arg("top_k"),
           py::arg("top_p"), py::arg("weights") = "", py::arg("repetition_penalty") = 1.0,
           py::arg("recent") = py::none())
      .def("sample_streams", &sample_streams<T>, py::arg("length"), py::arg("tokens"),
           py::arg("state"), py::arg("seeds"), py::arg("positions"), py::arg("temperatures"),
           py::arg("top_k"), py::arg("top_p"), py::arg("weights") = "",
           py::arg("penalties") = py::none(), py::arg("windows") = py::none(),
           py::arg("recent") = py::none())
      .def("next", &next<T>, py::arg("tokens"), py::arg("state"), py::arg("weights") = "")
      .def(
          "check_weights",
          [](const M& self, const std::string& weights) {
            self.network().check_storage(storage_named(weights));
          },
          py::arg("weights"))
      .def("end_drawing", &M::end_drawing, py::call_guard<py::gil_scoped_release>());
}

}  // namespace

void register_models(py::module_& m) {
  register_model<float>(m, "ModelFloat32");
  register_model<double>(m, "ModelFloat64");
}

}  // namespace charrnn_fast::bindings
