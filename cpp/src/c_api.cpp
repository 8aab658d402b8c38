// The C interface: handles, arguments and errors. All work is that of the C++ classes.
#include "charrnn_fast/charrnn_fast.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "charrnn_fast/language_model.hpp"
#include "charrnn_fast/losses.hpp"
#include "charrnn_fast/model.hpp"
#include "charrnn_fast/optimizer.hpp"
#include "charrnn_fast/registry.hpp"
#include "charrnn_fast/stream.hpp"
#include "charrnn_fast/threads.hpp"
#include "charrnn_fast/version.hpp"
#include "compiler.hpp"
#include "cpu/dispatch.hpp"
#include "cuda_library.hpp"
#include "errors.hpp"

using namespace charrnn_fast;

// ---- handles ------------------------------------------------------------------------------

struct charrnn_model {
  std::variant<std::shared_ptr<Model<float>>, std::shared_ptr<Model<double>>> model;
};

struct charrnn_optimizer {
  template <class T>
  struct Of {
    std::shared_ptr<Model<T>> model;
    Optimizer<T> optimizer;
  };
  std::variant<Of<float>, Of<double>> of;
};

struct charrnn_stream {
  std::variant<Stream<float>, Stream<double>> stream;
};

struct charrnn_language_model {
  LanguageModel model;
};

struct charrnn_text_stream {
  TextStream stream;
  std::string piece;
};

namespace {

// ---- errors -------------------------------------------------------------------------------

// Of this thread; no memory is asked for, as that may be what has failed.
thread_local char last_error[1024];

charrnn_status failed(charrnn_status status, const char* message) {
  std::snprintf(last_error, sizeof last_error, "%s", message);
  return status;
}

// Calls f; the one place where errors become statuses.
template <class F>
charrnn_status guarded(F&& f) {
  try {
    f();
    return CHARRNN_OK;
  } catch (const CheckpointError& error) {
    return failed(CHARRNN_BAD_CHECKPOINT, error.what());
  } catch (const std::invalid_argument& error) {
    return failed(CHARRNN_INVALID_ARGUMENT, error.what());
  } catch (const OutOfMemory& error) {
    return failed(CHARRNN_OUT_OF_MEMORY, error.what());
  } catch (const std::bad_alloc&) {
    return failed(CHARRNN_OUT_OF_MEMORY, "out of memory");
  } catch (const std::length_error&) {
    return failed(CHARRNN_OUT_OF_MEMORY, "out of memory: a size beyond all memory was asked for");
  } catch (const std::system_error& error) {
    return failed(CHARRNN_FILE_ERROR, error.what());
  } catch (const NoDevice& error) {
    return failed(CHARRNN_NO_DEVICE, error.what());
  } catch (const std::exception& error) {
    return failed(CHARRNN_INTERNAL_ERROR, error.what());
  } catch (...) {
    return failed(CHARRNN_INTERNAL_ERROR, "an unknown error");
  }
}

// The number that f returns; -1 after an error.
template <class F>
std::int64_t counted(F&& f) {
  std::int64_t n = -1;
  guarded([&] { n = f(); });
  return n;
}

// The text that f returns; null after an error.
template <class F>
const char* named(F&& f) {
  const char* name = nullptr;
  guarded([&] { name = f(); });
  return name;
}

// ---- arguments ----------------------------------------------------------------------------

template <class P>
P* given(P* pointer, const char* name) {
  require(pointer != nullptr, name, " must not be NULL");
  return pointer;
}

// An option struct of any version: what it does not have is 0.
template <class S>
S options(const S* from, const char* name) {
  given(from, name);
  std::size_t size;
  std::memcpy(&size, from, sizeof size);
  require(size >= sizeof size, name, "->size must be sizeof(*", name, "), ", sizeof(S), ", got ",
          size);
  const auto* const bytes = reinterpret_cast<const unsigned char*>(from);
  for (std::size_t i = sizeof(S); i < size; ++i)
    require(bytes[i] == 0, name, " must have no options unknown to this version, of ", sizeof(S),
            " bytes, got one at byte ", i);
  S known{};
  std::memcpy(&known, from, std::min(size, sizeof(S)));
  return known;
}

// Writes as much of a struct as the caller's size says.
template <class S>
void write_struct(S value, S* to, const char* name) {
  given(to, name);
  std::size_t size;
  std::memcpy(&size, to, sizeof size);
  require(size >= sizeof size, name, "->size must be sizeof(*", name, "), ", sizeof(S), ", got ",
          size);
  value.size = size;
  std::memcpy(to, &value, std::min(size, sizeof(S)));
}

bool flag(std::int32_t value, const char* name) {
  require(value == 0 || value == 1, name, " must be 0 or 1, got ", value);
  return value == 1;
}

void check_reserved(std::int32_t value) { require(value == 0, "reserved must be 0, got ", value); }

static_assert(static_cast<int>(Storage::bfloat16) == CHARRNN_WEIGHTS_BFLOAT16 &&
              static_cast<int>(Storage::int8) == CHARRNN_WEIGHTS_INT8);
Storage storage(std::int32_t weights) {
  require(weights >= 0 && weights < num_storages, "weights must be 0, 1 or 2, got ", weights);
  return static_cast<Storage>(weights);
}

template <class F>
auto with(const charrnn_model* model, F&& f) {
  return std::visit([&](const auto& own) { return f(*own); }, given(model, "model")->model);
}

// Takes no lock and no memory.
template <class S, class F>
auto with_stream(S* stream, F&& f) {
  return std::visit(f, given(stream, "stream")->stream);
}

template <class T>
T element_of(const Stream<T>&);

template <class T>
using ElementOf = std::decay_t<decltype(*std::declval<const T&>().parameters())>;

void check_batch(std::int64_t batch) { require(batch >= 1, "batch must be >= 1, got ", batch); }

// Elements of a state, sizes that no memory has refused.
template <class T>
void check_sizes(const Model<T>& model, Index seq_len, Index batch) {
  require(seq_len >= 0, "seq_len must be >= 0, got ", seq_len);
  check_batch(batch);
  const NetworkShape& shape = model.network().shape();
  const double widest = static_cast<double>(std::max(
      {shape.input_size, model.output_size(), shape.hidden_size * shape.num_layers * Index{2}}));
  require(
      static_cast<double>(std::max<Index>(1, seq_len)) * static_cast<double>(batch) * widest < 1e15,
      "the batch must fit into memory, got seq_len ", seq_len, ", batch ", batch);
}

void check_input(const std::int32_t* tokens, const void* x) {
  require((tokens == nullptr) != (x == nullptr), "either tokens or x must be given, got ",
          tokens ? "both" : "none");
}

template <class T>
typename Model<T>::Batch batch_of(const Model<T>& model, const charrnn_batch* from) {
  const charrnn_batch known = options(from, "batch");
  check_sizes(model, known.seq_len, known.batch);
  check_input(known.tokens, known.x);
  return {known.seq_len, known.batch,    known.tokens, static_cast<const T*>(known.x),
          known.lengths, known.mask_seed};
}

template <class T>
const Parameter& parameter_named(const Network<T>& network, const char* name) {
  given(name, "name");
  const auto& all = network.parameters();
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const Parameter& p) { return p.name == name; });
  if (found != all.end()) return *found;
  std::string known;
  for (const Parameter& p : all) known += (known.empty() ? "" : ", ") + p.name;
  fail("name must be one of ", known, ", got ", quoted(name));
}

void check_elements(const Parameter& p, std::int64_t elements) {
  require(elements == p.elements(), "elements of ", p.name, " must be ", p.elements(), ", got ",
          elements);
}

// Of one parameter, between a flat array and the parameter's own shape.
template <class T>
void read_flat(const Parameter& p, const T* flat, T* values) {
  const T* const from = flat + p.offset;
  for (Index r = 0; p.transposed && r < p.rows; ++r)
    for (Index c = 0; c < p.cols; ++c) values[r * p.cols + c] = from[c * p.rows + r];
  if (!p.transposed) std::copy_n(from, p.elements(), values);
}
template <class T>
void write_flat(const Parameter& p, const T* values, T* flat) {
  T* const to = flat + p.offset;
  for (Index r = 0; p.transposed && r < p.rows; ++r)
    for (Index c = 0; c < p.cols; ++c) to[c * p.rows + r] = values[r * p.cols + c];
  if (!p.transposed) std::copy_n(values, p.elements(), to);
}

// ---- shapes -------------------------------------------------------------------------------

static_assert(static_cast<int>(Compute::tf32) == CHARRNN_COMPUTE_TF32 &&
              static_cast<int>(Compute::bfloat16) == CHARRNN_COMPUTE_BFLOAT16);
Compute compute_of(std::int32_t compute_dtype) {
  require(compute_dtype >= CHARRNN_COMPUTE_FLOAT32 && compute_dtype <= CHARRNN_COMPUTE_BFLOAT16,
          "compute_dtype must be CHARRNN_COMPUTE_FLOAT32, _TF32 or _BFLOAT16, got ", compute_dtype);
  return static_cast<Compute>(compute_dtype);
}

// Of a file that is loaded; none: as it says.
std::optional<Compute> loaded_compute(std::int32_t compute_dtype) {
  if (compute_dtype == CHARRNN_COMPUTE_AS_SAVED) return {};
  return compute_of(compute_dtype);
}

NetworkShape shape_of(const charrnn_shape& from) {
  NetworkShape shape;
  shape.cell = given(from.cell, "shape->cell");
  if (from.nonlinearity) shape.nonlinearity = from.nonlinearity;
  shape.input_size = from.input_size;
  shape.hidden_size = from.hidden_size;
  shape.output_size = from.output_size;
  if (from.num_layers != 0) shape.num_layers = from.num_layers;
  shape.proj_size = from.proj_size;
  require(from.bias >= CHARRNN_BIAS_BOTH && from.bias <= CHARRNN_BIAS_NONE,
          "bias must be CHARRNN_BIAS_BOTH, _SINGLE or _NONE, got ", from.bias);
  constexpr Bias biases[] = {Bias::both, Bias::single, Bias::none};
  shape.bias = biases[from.bias];
  shape.bidirectional = flag(from.bidirectional, "bidirectional");
  shape.layer_norm = flag(from.layer_norm, "layer_norm");
  shape.compute = compute_of(from.compute_dtype);
  Regularization& r = shape.regularization;
  r.variational = flag(from.variational, "variational");
  r.input_dropout = from.input_dropout;
  r.dropout = from.dropout;
  r.output_dropout = from.output_dropout;
  r.recurrent_dropout = from.recurrent_dropout;
  r.weight_drop = from.weight_drop;
  r.zoneout[0] = from.zoneout_h;
  r.zoneout[1] = from.zoneout_c;
  return shape;
}

charrnn_shape c_shape_of(const NetworkShape& shape, bool is_float32) {
  charrnn_shape to{};
  // Names that live as long as the library.
  for (const CellInfo& cell : cells())
    if (cell.name == shape.cell && cell.nonlinearity == shape.nonlinearity) {
      to.cell = cell.name;
      to.nonlinearity = cell.nonlinearity;
    }
  to.input_size = shape.input_size;
  to.hidden_size = shape.hidden_size;
  to.output_size = shape.output_size;
  to.num_layers = shape.num_layers;
  to.proj_size = shape.proj_size;
  to.dtype = is_float32 ? CHARRNN_FLOAT32 : CHARRNN_FLOAT64;
  to.bias = shape.bias == Bias::both     ? CHARRNN_BIAS_BOTH
            : shape.bias == Bias::single ? CHARRNN_BIAS_SINGLE
                                         : CHARRNN_BIAS_NONE;
  to.bidirectional = shape.bidirectional;
  to.layer_norm = shape.layer_norm;
  const Regularization& r = shape.regularization;
  to.compute_dtype = static_cast<std::int32_t>(shape.compute);
  to.variational = r.variational;
  to.input_dropout = r.input_dropout;
  to.dropout = r.dropout;
  to.output_dropout = r.output_dropout;
  to.recurrent_dropout = r.recurrent_dropout;
  to.weight_drop = r.weight_drop;
  to.zoneout_h = r.zoneout[0];
  to.zoneout_c = r.zoneout[1];
  return to;
}

// Calls f(0.0f) or f(0.0).
template <class F>
void with_dtype(std::int32_t dtype, F&& f) {
  require(dtype == CHARRNN_FLOAT32 || dtype == CHARRNN_FLOAT64,
          "dtype must be CHARRNN_FLOAT32 or CHARRNN_FLOAT64, got ", dtype);
  if (dtype == CHARRNN_FLOAT32)
    f(0.0f);
  else
    f(0.0);
}

template <class T>
void make_model(const NetworkShape& shape, Device& device, charrnn_model** to) {
  *to = new charrnn_model{std::make_shared<Model<T>>(shape, device)};
}

// Calls f with `elements` numbers of a device, in memory of the host.
template <class T, class F>
void with_copy(Device& device, const T* from, Index elements, F&& f) {
  if (device.is_host) return f(from);
  AlignedBuffer<T> copy;
  copy.reserve(elements);
  device.download(from, elements, copy.get());
  f(static_cast<const T*>(copy.get()));
}

template <class T>
void check_one_way(const Model<T>& model, const char* call) {
  require(model.network().directions() == 1, "the network of ", call,
          " must not be bidirectional: it does not read whole sequences");
}

double top_p_of(double top_p) { return top_p == 0 ? 1 : top_p; }

// ---- optimizers ---------------------------------------------------------------------------

const OptimizerInfo& optimizer_named(const char* name) {
  given(name, "name");
  std::string known;
  for (const OptimizerInfo& info : optimizers()) {
    if (info.name == name) return info;
    known += (known.empty() ? "" : ", ") + quoted(info.name);
  }
  fail("name must be one of ", known, ", got ", quoted(name));
}

template <class F>
auto with(charrnn_optimizer* optimizer, F&& f) {
  return std::visit(std::forward<F>(f), given(optimizer, "optimizer")->of);
}

// The optimizer of models like this one.
template <class T>
Optimizer<T>& optimizer_for(const Model<T>&, charrnn_optimizer* optimizer) {
  auto* const of = std::get_if<charrnn_optimizer::Of<T>>(&given(optimizer, "optimizer")->of);
  require(of != nullptr, "optimizer must be of the model's dtype");
  return of->optimizer;
}

template <class T>
T* slot_of(charrnn_optimizer::Of<T>& of, std::int32_t slot) {
  const auto n = static_cast<std::int32_t>(of.optimizer.slot_names().size());
  require(slot >= 0 && slot < n, "slot must be in 0 to ", n - 1, ", got ", slot);
  return of.optimizer.slot(slot);
}

// ---- texts --------------------------------------------------------------------------------

std::string text_of(const char* text, std::size_t bytes, const char* name) {
  require(text != nullptr || bytes == 0, name, " must not be NULL");
  return std::string(text ? text : "", bytes);
}

std::vector<std::string> texts_of(const char* const* texts, const std::size_t* bytes,
                                  std::size_t count, const char* name) {
  require(texts != nullptr || count == 0, name, " must not be NULL");
  std::vector<std::string> result;
  for (std::size_t i = 0; i < count; ++i) {
    const std::string element = std::string(name) + "[" + std::to_string(i) + "]";
    given(texts[i], element.c_str());
    result.emplace_back(texts[i], bytes ? bytes[i] : std::strlen(texts[i]));
  }
  return result;
}

double penalty_of(double given) {
  return given == 0 ? SamplingOptions().repetition_penalty : given;
}
Index window_of(int64_t given) { return given == 0 ? SamplingOptions().repetition_window : given; }

TextOptions text_options(const charrnn_text_options& from) {
  check_reserved(from.reserved);
  return {from.length,
          text_of(from.prime, from.prime_bytes, "options->prime"),
          from.temperature,
          from.top_k,
          top_p_of(from.top_p),
          texts_of(from.stop, from.stop_bytes, from.num_stop, "options->stop"),
          storage(from.weights),
          penalty_of(from.repetition_penalty),
          window_of(from.repetition_window)};
}

// A symbol has at most four bytes; a byte that is no UTF-8 becomes three.
std::size_t capacity_of(const charrnn_text_options& from) {
  constexpr std::uint64_t most = std::uint64_t{1} << 48;
  require(from.length >= 0 && static_cast<std::uint64_t>(from.length) < most,
          "length must be in 0 to ", most - 1, ", got ", from.length);
  require(from.prime_bytes < most, "prime_bytes must be in 0 to ", most - 1, ", got ",
          from.prime_bytes);
  return static_cast<std::size_t>(from.length) * 4 + from.prime_bytes * 3 + 1;
}

}  // namespace

// ---- the library --------------------------------------------------------------------------

const char* charrnn_last_error(void) { return last_error; }

int32_t charrnn_abi_version(void) { return CHARRNN_ABI_VERSION; }

const char* charrnn_version(void) { return CHARRNN_VERSION; }

const char* charrnn_instruction_set(void) {
  return named([] {
    static const std::string name = isa_in_use();
    return name.c_str();
  });
}

const char* charrnn_compiler(void) { return compiler; }

int32_t charrnn_get_num_threads(void) {
  return static_cast<int32_t>(counted([] { return get_num_threads(); }));
}

charrnn_status charrnn_set_num_threads(int32_t n) {
  return guarded([&] { set_num_threads(n); });
}

charrnn_status charrnn_set_executor(const char* name) {
  return guarded([&] { set_executor(std::string(given(name, "name"))); });
}

const char* charrnn_get_executor(void) {
  return named([]() -> const char* {
    const std::string set = get_executor();
    for (const char* name : {"own", "openmp", "auto", "host"})
      if (set == name) return name;
    throw std::logic_error("the executor has no name in C: " + set);
  });
}

charrnn_status charrnn_set_host_executor(const charrnn_executor* executor) {
  return guarded([&] {
    const charrnn_executor known = options(executor, "executor");
    check_reserved(known.reserved);
    set_executor(
        Executor{known.pool, known.num_threads, known.run, flag(known.at_once, "at_once")});
  });
}

const char* charrnn_cell_name(int32_t index) {
  return named([&]() -> const char* {
    std::vector<const char*> names;  // a cell has one entry for each nonlinearity
    for (const CellInfo& cell : cells())
      if (names.empty() || names.back() != std::string(cell.name)) names.push_back(cell.name);
    return index >= 0 && index < static_cast<int32_t>(names.size())
               ? names[static_cast<std::size_t>(index)]
               : nullptr;
  });
}

const char* charrnn_optimizer_name(int32_t index) {
  return named([&]() -> const char* {
    return index >= 0 && index < static_cast<int32_t>(optimizers().size())
               ? optimizers()[static_cast<std::size_t>(index)].name.c_str()
               : nullptr;
  });
}

// ---- models -------------------------------------------------------------------------------

charrnn_status charrnn_model_create(const charrnn_shape* shape, charrnn_model** model) {
  return charrnn_model_create_on(shape, "cpu", model);
}

charrnn_status charrnn_model_create_on(const charrnn_shape* shape, const char* device,
                                       charrnn_model** model) {
  return guarded([&] {
    given(model, "model");
    const charrnn_shape known = options(shape, "shape");
    Device& there = device_named(given(device, "device"));
    with_dtype(known.dtype,
               [&](auto zero) { make_model<decltype(zero)>(shape_of(known), there, model); });
  });
}

charrnn_status charrnn_device_status(const char* device) {
  return guarded([&] { device_named(given(device, "device")); });
}

void charrnn_model_destroy(charrnn_model* model) { delete model; }

charrnn_status charrnn_model_shape(const charrnn_model* model, charrnn_shape* shape) {
  return guarded([&] {
    with(model, [&](const auto& own) {
      write_struct(c_shape_of(own.network().shape(), model->model.index() == 0), shape, "shape");
    });
  });
}

int64_t charrnn_model_output_size(const charrnn_model* model) {
  return counted([&] { return with(model, [](const auto& own) { return own.output_size(); }); });
}

int64_t charrnn_model_state_elements(const charrnn_model* model, int64_t batch) {
  return counted([&] {
    return with(model, [&](const auto& own) {
      check_sizes(own, 1, batch);
      return own.state_elements(batch);
    });
  });
}

int64_t charrnn_model_num_parameters(const charrnn_model* model) {
  return counted([&] {
    return with(model, [](const auto& own) {
      return static_cast<int64_t>(own.network().parameters().size());
    });
  });
}

charrnn_status charrnn_model_parameter(const charrnn_model* model, int64_t index,
                                       charrnn_parameter* parameter) {
  return guarded([&] {
    with(model, [&](const auto& own) {
      const auto& all = own.network().parameters();
      const auto n = static_cast<int64_t>(all.size());
      require(index >= 0 && index < n, "index must be in 0 to ", n - 1, ", got ", index);
      const Parameter& p = all[static_cast<std::size_t>(index)];
      write_struct({0, p.name.c_str(), p.rows, p.cols}, parameter, "parameter");
    });
  });
}

charrnn_status charrnn_model_get_parameter(charrnn_model* model, const char* name, void* values,
                                           int64_t elements) {
  return guarded([&] {
    with(model, [&](auto& own) {
      using T = ElementOf<std::decay_t<decltype(own)>>;
      const Parameter& p = parameter_named(own.network(), name);
      check_elements(p, elements);
      auto* const to = static_cast<T*>(given(values, "values"));
      own.read_parameters([&](const T* flat) {
        const Network<T>& network = own.network();
        with_copy(network.device(), flat, network.parameter_elements(),
                  [&](const T* here) { read_flat(p, here, to); });
      });
    });
  });
}

charrnn_status charrnn_model_set_parameter(charrnn_model* model, const char* name,
                                           const void* values, int64_t elements) {
  return guarded([&] {
    with(model, [&](auto& own) {
      using T = ElementOf<std::decay_t<decltype(own)>>;
      const Parameter& p = parameter_named(own.network(), name);
      check_elements(p, elements);
      const auto* const from = static_cast<const T*>(given(values, "values"));
      own.change_parameters([&](T* flat) { write_flat(p, from, flat); });
    });
  });
}

charrnn_status charrnn_model_forward(charrnn_model* model, const charrnn_batch* batch,
                                     const void* state_0, int32_t keep, void* y, void* state_n) {
  return guarded([&] {
    with(model, [&](auto& own) {
      using T = ElementOf<std::decay_t<decltype(own)>>;
      own.forward(batch_of(own, batch), static_cast<const T*>(state_0), flag(keep, "keep"),
                  static_cast<T*>(given(y, "y")), static_cast<T*>(given(state_n, "state_n")));
    });
  });
}

charrnn_status charrnn_model_backward(charrnn_model* model, const void* dy, void* dstate, void* dx,
                                      void* gradients) {
  return guarded([&] {
    with(model, [&](auto& own) {
      using T = ElementOf<std::decay_t<decltype(own)>>;
      const auto kept = own.kept();
      require(kept.id != 0,
              "backward must follow a forward with keep, got none that is still valid");
      require(!kept.tokens || !dx, "dx must be NULL after a forward of tokens");
      own.backward(kept, static_cast<const T*>(dy), static_cast<T*>(given(dstate, "dstate")),
                   static_cast<T*>(dx), static_cast<T*>(given(gradients, "gradients")));
    });
  });
}

charrnn_status charrnn_model_step(charrnn_model* model, int64_t batch, const int32_t* tokens,
                                  const void* x, void* state, void* y) {
  return guarded([&] {
    with(model, [&](auto& own) {
      using T = ElementOf<std::decay_t<decltype(own)>>;
      check_one_way(own, "step");
      check_sizes(own, 1, batch);
      check_input(tokens, x);
      own.step({1, batch, tokens, static_cast<const T*>(x)}, static_cast<T*>(given(state, "state")),
               static_cast<T*>(given(y, "y")));
    });
  });
}

int64_t charrnn_model_gradient_elements(const charrnn_model* model) {
  return counted([&] {
    return with(model, [](const auto& own) { return own.network().parameter_elements(); });
  });
}

charrnn_status charrnn_model_get_gradient(const charrnn_model* model, const void* gradients,
                                          const char* name, void* values, int64_t elements) {
  return guarded([&] {
    with(model, [&](const auto& own) {
      using T = ElementOf<std::decay_t<decltype(own)>>;
      const Parameter& p = parameter_named(own.network(), name);
      check_elements(p, elements);
      read_flat(p, static_cast<const T*>(given(gradients, "gradients")),
                static_cast<T*>(given(values, "values")));
    });
  });
}

charrnn_status charrnn_model_clip_norm(const charrnn_model* model, void* gradients, double limit,
                                       double* norm) {
  return guarded([&] {
    with(model, [&](const auto& own) {
      using T = ElementOf<std::decay_t<decltype(own)>>;
      auto* const flat = static_cast<T*>(given(gradients, "gradients"));
      require(limit > 0, "limit must be above 0, got ", limit);
      double squares = 0;
      for (const Parameter& p : own.network().parameters())
        squares += sum_of_squares(flat + p.offset, p.elements());
      const double before = std::sqrt(squares), factor = clip_factor(before, limit);
      if (factor != 1) scale(flat, own.network().parameter_elements(), static_cast<T>(factor));
      if (norm) *norm = before;
    });
  });
}

charrnn_status charrnn_model_clip_value(const charrnn_model* model, void* gradients, double limit) {
  return guarded([&] {
    with(model, [&](const auto& own) {
      using T = ElementOf<std::decay_t<decltype(own)>>;
      require(limit > 0, "limit must be above 0, got ", limit);
      clip_value(static_cast<T*>(given(gradients, "gradients")), own.network().parameter_elements(),
                 static_cast<T>(limit));
    });
  });
}

charrnn_status charrnn_model_sample(charrnn_model* model, int64_t length, int64_t batch,
                                    const int32_t* first, void* state, const uint64_t* seeds,
                                    uint64_t position, const charrnn_sampling* sampling,
                                    int32_t* drawn) {
  return guarded([&] {
    with(model, [&](auto& own) {
      using T = ElementOf<std::decay_t<decltype(own)>>;
      check_one_way(own, "sample");
      require(length >= 0, "length must be >= 0, got ", length);
      check_sizes(own, length, batch);
      require(own.network().shape().input_size == own.output_size(),
              "the model of sample must have input_size = output_size, got ",
              own.network().shape().input_size, " and ", own.output_size());
      const charrnn_sampling known = options(sampling, "options");
      check_reserved(known.reserved);
      const Storage weights = storage(known.weights);
      require(weights == Storage::full || sizeof(T) == sizeof(float),
              "weights of a float64 model must be 0, got ", known.weights);
      const SamplingOptions o{known.temperature, std::min(known.top_k, own.output_size()),
                              top_p_of(known.top_p), penalty_of(known.repetition_penalty),
                              window_of(known.repetition_window)};
      check(o);
      own.sample(length, batch, given(first, "first"), static_cast<T*>(given(state, "state")),
                 given(seeds, "seeds"), position, o, given(drawn, "drawn"), weights, known.recent);
    });
  });
}

// ---- training -----------------------------------------------------------------------------

charrnn_status charrnn_optimizer_option(const char* optimizer, int32_t index,
                                        charrnn_option* option) {
  return guarded([&] {
    const auto& known = optimizer_named(optimizer).options;
    given(option, "option");
    *option = {};
    if (index < 0 || index >= static_cast<int32_t>(known.size())) return;
    const OptimizerOption& found = known[static_cast<std::size_t>(index)];
    *option = {found.name.c_str(), found.initial};
  });
}

charrnn_status charrnn_optimizer_create(const charrnn_model* model, const char* name,
                                        const charrnn_option* options, size_t num_options,
                                        charrnn_optimizer** optimizer) {
  return guarded([&] {
    given(optimizer, "optimizer");
    given(model, "model");
    const OptimizerInfo& rule = optimizer_named(name);
    std::map<std::string, double> values;
    for (std::size_t i = 0; i < num_options; ++i) {
      const charrnn_option& option = given(options, "options")[i];
      values[given(option.name, "options[i].name")] = option.value;
    }
    const OptimizerOptions known = optimizer_options(rule.name, values);
    std::visit(
        [&](const auto& own) {
          using T = ElementOf<std::decay_t<decltype(*own)>>;
          const Network<T>& network = own->network();
          charrnn_optimizer::Of<T> of{
              own, Optimizer<T>(rule.name, known, network.parameter_elements(), network.device())};
          *optimizer = new charrnn_optimizer{std::move(of)};
        },
        model->model);
  });
}

void charrnn_optimizer_destroy(charrnn_optimizer* optimizer) { delete optimizer; }

int64_t charrnn_optimizer_num_steps(const charrnn_optimizer* optimizer) {
  return counted([&] {
    return std::visit([](const auto& of) { return of.optimizer.num_steps(); },
                      given(optimizer, "optimizer")->of);
  });
}

charrnn_status charrnn_optimizer_set_num_steps(charrnn_optimizer* optimizer, int64_t n) {
  return guarded([&] {
    require(n >= 0, "n must be >= 0, got ", n);
    with(optimizer, [&](auto& of) { of.optimizer.set_num_steps(n); });
  });
}

const char* charrnn_optimizer_slot_name(const charrnn_optimizer* optimizer, int32_t slot) {
  return named([&] {
    return std::visit(
        [&](const auto& of) -> const char* {
          const auto& names = of.optimizer.slot_names();
          return slot >= 0 && slot < static_cast<int32_t>(names.size())
                     ? names[static_cast<std::size_t>(slot)].c_str()
                     : nullptr;
        },
        given(optimizer, "optimizer")->of);
  });
}

charrnn_status charrnn_optimizer_get_slot(charrnn_optimizer* optimizer, int32_t slot,
                                          const char* parameter, void* values, int64_t elements) {
  return guarded([&] {
    with(optimizer, [&](auto& of) {
      auto* const flat = slot_of(of, slot);
      const Parameter& p = parameter_named(of.model->network(), parameter);
      check_elements(p, elements);
      using T = std::decay_t<decltype(*flat)>;
      auto* const to = static_cast<T*>(given(values, "values"));
      with_copy(of.optimizer.device(), static_cast<const T*>(flat), of.optimizer.elements(),
                [&](const T* here) { read_flat(p, here, to); });
    });
  });
}

charrnn_status charrnn_optimizer_set_slot(charrnn_optimizer* optimizer, int32_t slot,
                                          const char* parameter, const void* values,
                                          int64_t elements) {
  return guarded([&] {
    with(optimizer, [&](auto& of) {
      auto* const flat = slot_of(of, slot);
      using T = std::decay_t<decltype(*flat)>;
      const Parameter& p = parameter_named(of.model->network(), parameter);
      check_elements(p, elements);
      const auto* const from = static_cast<const T*>(given(values, "values"));
      Device& device = of.optimizer.device();
      if (device.is_host) return write_flat(p, from, flat);
      std::vector<T> here(static_cast<std::size_t>(of.optimizer.elements()));
      write_flat(p, from, here.data());
      device.upload(here.data() + p.offset, p.elements(), flat + p.offset);
    });
  });
}

charrnn_status charrnn_model_update(charrnn_model* model, charrnn_optimizer* optimizer,
                                    const void* gradients, double learning_rate) {
  return guarded([&] {
    with(model, [&](auto& own) {
      using T = ElementOf<std::decay_t<decltype(own)>>;
      require(std::isfinite(learning_rate) && learning_rate >= 0,
              "learning_rate must be finite, at least 0, got ", learning_rate);
      own.update(optimizer_for(own, optimizer),
                 static_cast<const T*>(given(gradients, "gradients")), learning_rate);
    });
  });
}

charrnn_status charrnn_model_train_step(charrnn_model* model, const charrnn_batch* batch,
                                        const int32_t* targets, void* state,
                                        charrnn_optimizer* optimizer,
                                        const charrnn_training* training, double* loss,
                                        double* gradient_norm) {
  return guarded([&] {
    with(model, [&](auto& own) {
      using T = ElementOf<std::decay_t<decltype(own)>>;
      check_one_way(own, "train_step");
      require(own.network().shape().output_size > 0, "the model of train_step must have a decoder");
      const auto in = batch_of(own, batch);
      const charrnn_training known = options(training, "options");
      check_reserved(known.reserved);
      TrainOptions o;
      o.learning_rate = known.learning_rate;
      require(std::isfinite(o.learning_rate) && o.learning_rate >= 0,
              "learning_rate must be finite, at least 0, got ", o.learning_rate);
      require(known.clip_norm >= 0 && known.clip_value >= 0,
              "clip_norm and clip_value must be above 0, or 0 for none, got ", known.clip_norm,
              " and ", known.clip_value);
      if (known.clip_norm > 0) o.clip_norm = known.clip_norm;
      if (known.clip_value > 0) o.clip_value = known.clip_value;
      o.mean = !flag(known.sum, "sum");
      const auto result =
          own.train_step(in, given(targets, "targets"), static_cast<T*>(given(state, "state")),
                         optimizer_for(own, optimizer), o);
      if (loss) *loss = result.loss;
      if (gradient_norm) *gradient_norm = result.gradient_norm;
    });
  });
}

charrnn_status charrnn_model_evaluate(charrnn_model* model, const charrnn_batch* batch,
                                      const int32_t* targets, void* state, double* loss_sum,
                                      int64_t* count) {
  return guarded([&] {
    with(model, [&](auto& own) {
      using T = ElementOf<std::decay_t<decltype(own)>>;
      check_one_way(own, "evaluate");
      require(own.network().shape().output_size > 0, "the model of evaluate must have a decoder");
      const auto result = own.evaluate(batch_of(own, batch), given(targets, "targets"),
                                       static_cast<T*>(given(state, "state")));
      if (loss_sum) *loss_sum = result.loss_sum;
      if (count) *count = result.count;
    });
  });
}

charrnn_status charrnn_cross_entropy(int32_t dtype, const void* logits, const int32_t* targets,
                                     int64_t rows, int64_t classes, int32_t mean,
                                     const void* weights, void* dlogits, double* loss) {
  return guarded([&] {
    require(rows >= 0, "rows must be >= 0, got ", rows);
    require(classes >= 1, "classes must be >= 1, got ", classes);
    with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      *given(loss, "loss") =
          cross_entropy(static_cast<const T*>(given(logits, "logits")), given(targets, "targets"),
                        rows, classes, flag(mean, "mean"),
                        static_cast<T*>(given(dlogits, "dlogits")), static_cast<const T*>(weights));
    });
  });
}

charrnn_status charrnn_binary_cross_entropy(int32_t dtype, const void* logits, const void* targets,
                                            int64_t n, int32_t mean, const void* weights,
                                            void* dlogits, double* loss) {
  return guarded([&] {
    require(n >= 0, "n must be >= 0, got ", n);
    with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      *given(loss, "loss") = binary_cross_entropy(
          static_cast<const T*>(given(logits, "logits")),
          static_cast<const T*>(given(targets, "targets")), n, flag(mean, "mean"),
          static_cast<T*>(given(dlogits, "dlogits")), static_cast<const T*>(weights));
    });
  });
}

charrnn_status charrnn_mean_square(int32_t dtype, const void* y, const void* targets, int64_t n,
                                   int32_t mean, const void* weights, void* dy, double* loss) {
  return guarded([&] {
    require(n >= 0, "n must be >= 0, got ", n);
    with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      *given(loss, "loss") = mean_square(
          static_cast<const T*>(given(y, "y")), static_cast<const T*>(given(targets, "targets")), n,
          flag(mean, "mean"), static_cast<T*>(given(dy, "dy")), static_cast<const T*>(weights));
    });
  });
}

// ---- real time ----------------------------------------------------------------------------

charrnn_status charrnn_stream_create(charrnn_model* model, charrnn_stream** stream) {
  return guarded([&] {
    given(stream, "stream");
    with(model, [&](auto& own) {
      using T = ElementOf<std::decay_t<decltype(own)>>;
      own.read_parameters([&](const T* flat) {
        const Network<T>& network = own.network();
        with_copy(network.device(), flat, network.parameter_elements(), [&](const T* here) {
          *stream = new charrnn_stream{Stream<T>(network.shape(), here)};
        });
      });
    });
  });
}

charrnn_status charrnn_stream_copy(const charrnn_stream* stream, charrnn_stream** copy) {
  return guarded([&] {
    given(stream, "stream");
    *given(copy, "copy") = new charrnn_stream(*stream);
  });
}

void charrnn_stream_destroy(charrnn_stream* stream) { delete stream; }

int64_t charrnn_stream_input_size(const charrnn_stream* stream) {
  return counted(
      [&] { return with_stream(stream, [](const auto& own) { return own.input_size(); }); });
}

int64_t charrnn_stream_output_size(const charrnn_stream* stream) {
  return counted(
      [&] { return with_stream(stream, [](const auto& own) { return own.output_size(); }); });
}

int64_t charrnn_stream_state_elements(const charrnn_stream* stream) {
  return counted(
      [&] { return with_stream(stream, [](const auto& own) { return own.state_elements(); }); });
}

charrnn_status charrnn_stream_run(charrnn_stream* stream, const void* x, int64_t n, void* y) {
  return guarded([&] {
    with_stream(stream, [&](auto& own) {
      using T = decltype(element_of(own));
      require(n == 0 || x != nullptr, "x must not be NULL");
      require(n == 0 || y != nullptr, "y must not be NULL");
      own.run(static_cast<const T*>(x), n, static_cast<T*>(y));
    });
  });
}

charrnn_status charrnn_stream_reset(charrnn_stream* stream) {
  return guarded([&] { with_stream(stream, [](auto& own) { own.reset(); }); });
}

charrnn_status charrnn_stream_get_state(const charrnn_stream* stream, void* state) {
  return guarded([&] {
    with_stream(stream, [&](const auto& own) {
      own.get_state(static_cast<decltype(element_of(own))*>(given(state, "state")));
    });
  });
}

charrnn_status charrnn_stream_set_state(charrnn_stream* stream, const void* state) {
  return guarded([&] {
    with_stream(stream, [&](auto& own) {
      own.set_state(static_cast<const decltype(element_of(own))*>(given(state, "state")));
    });
  });
}

// ---- language models ----------------------------------------------------------------------

charrnn_status charrnn_language_model_load(const char* path, charrnn_language_model** model) {
  return guarded([&] {
    given(model, "model");
    *model = new charrnn_language_model{LanguageModel::load(given(path, "path"))};
  });
}

charrnn_status charrnn_language_model_load_memory(const void* checkpoint, size_t bytes,
                                                  charrnn_language_model** model) {
  return guarded([&] {
    given(model, "model");
    *model = new charrnn_language_model{
        LanguageModel::from_memory(given(checkpoint, "checkpoint"), bytes)};
  });
}

charrnn_status charrnn_language_model_load_on(const char* path, const char* device,
                                              int32_t compute_dtype,
                                              charrnn_language_model** model) {
  return guarded([&] {
    given(model, "model");
    const auto compute = loaded_compute(compute_dtype);
    Device& there = device_named(given(device, "device"));
    *model = new charrnn_language_model{LanguageModel::load(given(path, "path"), compute, there)};
  });
}
charrnn_status charrnn_language_model_load_memory_on(const void* checkpoint, size_t bytes,
                                                     const char* device, int32_t compute_dtype,
                                                     charrnn_language_model** model) {
  return guarded([&] {
    given(model, "model");
    const auto compute = loaded_compute(compute_dtype);
    Device& there = device_named(given(device, "device"));
    *model = new charrnn_language_model{
        LanguageModel::from_memory(given(checkpoint, "checkpoint"), bytes, compute, there)};
  });
}
void charrnn_language_model_destroy(charrnn_language_model* model) { delete model; }

charrnn_status charrnn_language_model_network(const charrnn_language_model* model,
                                              charrnn_model** network) {
  return guarded([&] {
    const LanguageModel& own = given(model, "model")->model;
    given(network, "network");
    if (auto f32 = own.network<float>())
      *network = new charrnn_model{std::move(f32)};
    else
      *network = new charrnn_model{own.network<double>()};
  });
}

int64_t charrnn_language_model_vocab_size(const charrnn_language_model* model) {
  return counted([&] { return given(model, "model")->model.vocabulary().size(); });
}

int32_t charrnn_language_model_has_bytes(const charrnn_language_model* model) {
  return static_cast<int32_t>(counted([&] {
    return given(model, "model")->model.vocabulary().kind() == Vocabulary::Kind::bytes ? 1 : 0;
  }));
}

charrnn_status charrnn_language_model_symbols(const charrnn_language_model* model, int32_t* symbols,
                                              int64_t vocab_size) {
  return guarded([&] {
    const auto& known = given(model, "model")->model.vocabulary().symbols();
    require(vocab_size == static_cast<int64_t>(known.size()), "vocab_size must be ", known.size(),
            ", got ", vocab_size);
    std::copy(known.begin(), known.end(), given(symbols, "symbols"));
  });
}

charrnn_status charrnn_language_model_encode(const charrnn_language_model* model, const char* text,
                                             size_t bytes, int32_t* ids, int64_t capacity,
                                             int64_t* count) {
  return guarded([&] {
    const Vocabulary& vocabulary = given(model, "model")->model.vocabulary();
    given(count, "count");
    const auto found = vocabulary.encode(text_of(text, bytes, "text"));
    const auto n = static_cast<int64_t>(found.size());
    if (n <= capacity && n > 0) std::copy(found.begin(), found.end(), given(ids, "ids"));
    *count = n;
  });
}

charrnn_status charrnn_language_model_decode(const charrnn_language_model* model,
                                             const int32_t* ids, int64_t count, char* text,
                                             size_t capacity, size_t* bytes) {
  return guarded([&] {
    const Vocabulary& vocabulary = given(model, "model")->model.vocabulary();
    given(bytes, "bytes");
    require(count >= 0, "count must be >= 0, got ", count);
    const std::string found = vocabulary.decode(count > 0 ? given(ids, "ids") : nullptr, count);
    if (found.size() <= capacity && !found.empty())
      std::memcpy(given(text, "text"), found.data(), found.size());
    *bytes = found.size();
  });
}

charrnn_status charrnn_language_model_text_capacity(const charrnn_language_model* model,
                                                    const charrnn_text_options* text,
                                                    size_t* bytes) {
  return guarded([&] {
    given(model, "model");
    *given(bytes, "bytes") = capacity_of(options(text, "options"));
  });
}

charrnn_status charrnn_language_model_sample(const charrnn_language_model* model,
                                             const charrnn_text_options* text,
                                             const uint64_t* seeds, size_t num_seeds, char* texts,
                                             size_t capacity, size_t* bytes) {
  return guarded([&] {
    const LanguageModel& own = given(model, "model")->model;
    const charrnn_text_options known = options(text, "options");
    const std::size_t least = capacity_of(known);
    require(capacity >= least, "capacity must be >= ", least, ", got ", capacity);
    require((seeds && texts) || num_seeds == 0, "seeds and texts must not be NULL");
    const auto found =
        own.sample(text_options(known), std::vector<std::uint64_t>(seeds, seeds + num_seeds));
    for (std::size_t i = 0; i < num_seeds; ++i) {
      std::memcpy(texts + i * capacity, found[i].c_str(), found[i].size() + 1);
      if (bytes) bytes[i] = found[i].size();
    }
  });
}

charrnn_status charrnn_text_stream_create(const charrnn_language_model* model,
                                          const charrnn_text_options* text, uint64_t seed,
                                          charrnn_text_stream** stream) {
  return guarded([&] {
    const LanguageModel& own = given(model, "model")->model;
    given(stream, "stream");
    *stream = new charrnn_text_stream{own.stream(text_options(options(text, "options")), seed), {}};
  });
}

void charrnn_text_stream_destroy(charrnn_text_stream* stream) { delete stream; }

charrnn_status charrnn_text_stream_next(charrnn_text_stream* stream, const char** piece,
                                        size_t* bytes) {
  return guarded([&] {
    given(stream, "stream");
    given(piece, "piece");
    const bool more = stream->stream.next(stream->piece);
    *piece = more ? stream->piece.c_str() : nullptr;
    if (bytes) *bytes = more ? stream->piece.size() : 0;
  });
}

charrnn_status charrnn_language_model_beam_search(const charrnn_language_model* model,
                                                  const charrnn_text_options* options_of,
                                                  int64_t beam, char* text, size_t capacity,
                                                  size_t* bytes, double* log_probability) {
  return guarded([&] {
    const LanguageModel& own = given(model, "model")->model;
    const charrnn_text_options known = options(options_of, "options");
    const std::size_t least = capacity_of(known);
    require(capacity >= least, "capacity must be >= ", least, ", got ", capacity);
    given(text, "text");
    const Likeliest found = own.beam_search(text_options(known), beam);
    std::memcpy(text, found.text.c_str(), found.text.size() + 1);
    if (bytes) *bytes = found.text.size();
    if (log_probability) *log_probability = found.log_probability;
  });
}

charrnn_status charrnn_language_model_next_probabilities(const charrnn_language_model* model,
                                                         const char* prime, size_t prime_bytes,
                                                         int32_t weights, double* probabilities,
                                                         int64_t vocab_size) {
  return guarded([&] {
    const LanguageModel& own = given(model, "model")->model;
    require(vocab_size == own.vocabulary().size(), "vocab_size must be ", own.vocabulary().size(),
            ", got ", vocab_size);
    given(probabilities, "probabilities");
    const auto found =
        own.next_probabilities(text_of(prime, prime_bytes, "prime"), storage(weights));
    std::copy(found.begin(), found.end(), probabilities);
  });
}

charrnn_status charrnn_language_model_evaluate(const charrnn_language_model* model,
                                               const char* text, size_t bytes, int32_t weights,
                                               double* loss) {
  return guarded([&] {
    const LanguageModel& own = given(model, "model")->model;
    *given(loss, "loss") = own.evaluate(text_of(text, bytes, "text"), storage(weights));
  });
}

charrnn_status charrnn_language_model_score(const charrnn_language_model* model,
                                            const char* const* texts, const size_t* bytes,
                                            size_t count, int32_t weights, double* scores) {
  return guarded([&] {
    const LanguageModel& own = given(model, "model")->model;
    require(scores != nullptr || count == 0, "scores must not be NULL");
    const auto found = own.score(texts_of(texts, bytes, count, "texts"), storage(weights));
    std::copy(found.begin(), found.end(), scores);
  });
}
