// Handlers of XLA's foreign function interface, by which JAX calls networks. Built with CHARRNN_JAX
// alone, against headers of jaxlib; no function of XLA is linked.
//
// A handler runs on a thread of XLA, without the GIL, on XLA's buffers: row-major arrays of the
// shapes that python/charrnn_fast/jax/operators.py declares, which are checked here again, as a
// program may come from a file.
#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string_view>

#include "arrays.hpp"
#include "charrnn_fast/device.hpp"
#include "errors.hpp"
#include "free_list.hpp"
#include "network_calls.hpp"
#include "shapes.hpp"
#include "storage/json.hpp"
#include "xla/ffi/api/ffi.h"

namespace charrnn_fast::bindings {
namespace {

namespace ffi = xla::ffi;

// ---- networks by name ---------------------------------------------------------------------

Index integer(JsonValue value, const std::string& key) {
  const auto n = value.is(JsonValue::Kind::integer) ? value.unsigned_integer() : std::nullopt;
  require(n && *n <= std::uint64_t(1) << 62, "network: ", key, " must be an integer >= 0, got ",
          shown(value.source()));
  return static_cast<Index>(*n);
}

bool boolean(JsonValue value, const std::string& key) {
  require(value.is(JsonValue::Kind::boolean), "network: ", key, " must be true or false, got ",
          shown(value.source()));
  return value.boolean();
}

std::string string(JsonValue value, const std::string& key) {
  require(value.is(JsonValue::Kind::string), "network: ", key, " must be a string, got ",
          shown(value.source()));
  return value.string();
}

void read_rates(JsonValue rates, Regularization& to) {
  require(rates.is(JsonValue::Kind::object), "network: regularization must be an object");
  rates.each_entry([&](const std::string& key, JsonValue value) {
    if (key == "variational") {
      to.variational = boolean(value, key);
      return;
    }
    require(value.is(JsonValue::Kind::integer) || value.is(JsonValue::Kind::number),
            "network: ", key, " must be a number, got ", shown(value.source()));
    double* rate = nullptr;
    for (const DropoutRate& known : dropout_rates)
      if (key == known.name) rate = &(to.*known.value);
    for (int s = 0; s < 2; ++s)
      if (key == zoneout_rates[s]) rate = &to.zoneout[s];
    require(rate, "network: regularization must have no key ", quoted(key));
    *rate = value.number();
  });
}

// The arguments of _core.NetworkFloat32, as JSON.
NetworkShape parsed(std::string_view name) {
  const Json document{std::string(name), {3, 64, true}};
  require(document.root().is(JsonValue::Kind::object), "network must be an object of JSON");
  NetworkShape shape;
  document.root().each_entry([&](const std::string& key, JsonValue value) {
    if (key == "cell")
      shape.cell = string(value, key);
    else if (key == "input_size")
      shape.input_size = integer(value, key);
    else if (key == "hidden_size")
      shape.hidden_size = integer(value, key);
    else if (key == "num_layers")
      shape.num_layers = integer(value, key);
    else if (key == "bias")
      shape.bias = bias_named(string(value, key));
    else if (key == "bidirectional")
      shape.bidirectional = boolean(value, key);
    else if (key == "proj_size")
      shape.proj_size = integer(value, key);
    else if (key == "layer_norm")
      shape.layer_norm = boolean(value, key);
    else if (key == "nonlinearity")
      shape.nonlinearity = string(value, key);
    else if (key == "compute_dtype")
      shape.compute = compute_named(string(value, key));
    else if (key == "regularization")
      read_rates(value, shape.regularization);
    else
      fail("network must have no key ", quoted(key));
  });
  return shape;
}

// Made once, and never destroyed: threads of XLA may call to the end of the process.
template <class T>
const Network<T>& network_named(std::string_view name) {
  static std::mutex mutex;
  static auto& known = *new std::map<std::string, std::unique_ptr<const Network<T>>, std::less<>>;
  const std::lock_guard lock(mutex);
  auto found = known.find(name);
  if (found == known.end())
    found = known.emplace(name, std::make_unique<const Network<T>>(parsed(name))).first;
  return *found->second;
}

// ---- buffers ------------------------------------------------------------------------------

template <class T>
constexpr ffi::DataType dtype_of = ffi::DataType::INVALID;
template <>
constexpr ffi::DataType dtype_of<float> = ffi::DataType::F32;
template <>
constexpr ffi::DataType dtype_of<double> = ffi::DataType::F64;
template <>
constexpr ffi::DataType dtype_of<std::int32_t> = ffi::DataType::S32;
template <>
constexpr ffi::DataType dtype_of<std::uint32_t> = ffi::DataType::U32;

Shape shape_of(const ffi::AnyBuffer& buffer) {
  return Shape(buffer.dimensions().begin(), buffer.dimensions().end());
}

template <class T>
T* checked(const ffi::AnyBuffer& buffer, const std::string& name, const Shape& shape) {
  require(buffer.element_type() == dtype_of<std::remove_const_t<T>>, name, " must have XLA's type ",
          static_cast<int>(dtype_of<std::remove_const_t<T>>), ", got ",
          static_cast<int>(buffer.element_type()));
  require(shape_of(buffer) == shape, name, " must have shape ", text(shape), ", got ",
          text(shape_of(buffer)));
  return static_cast<T*>(buffer.untyped_data());
}

// The operands of a call, one after another.
class Operands {
 public:
  explicit Operands(const ffi::RemainingArgs& args) : args_(args) {}

  ffi::AnyBuffer first() const {
    const auto buffer = args_.get<ffi::AnyBuffer>(0);
    require(buffer.has_value(), "the call must have operands, got none");
    return *buffer;
  }
  template <class T>
  const T* next(const std::string& name, const Shape& shape) {
    const auto buffer = args_.get<ffi::AnyBuffer>(at_++);
    require(buffer.has_value(), name, " must be operand ", at_ - 1, ", got ", args_.size());
    return checked<const T>(*buffer, name, shape);
  }
  void end() const {
    require(at_ == args_.size(), "the call must have ", at_, " operands, got ", args_.size());
  }

 private:
  const ffi::RemainingArgs& args_;
  std::size_t at_ = 0;
};

class Results {
 public:
  explicit Results(const ffi::RemainingRets& rets) : rets_(rets) {}

  template <class T>
  T* next(const std::string& name, const Shape& shape) {
    auto buffer = rets_.get<ffi::AnyBuffer>(at_++);
    require(buffer.has_value(), name, " must be result ", at_ - 1, ", got ", rets_.size());
    return checked<T>(**buffer, name, shape);
  }
  void end() const {
    require(at_ == rets_.size(), "the call must have ", at_, " results, got ", rets_.size());
  }

 private:
  const ffi::RemainingRets& rets_;
  std::size_t at_ = 0;
};

// ---- calls --------------------------------------------------------------------------------

constexpr const char* state_names[] = {"h", "c"};
constexpr Index mark_words = 4;

struct Attributes {
  std::string_view network;
  Index folds;  // independent calls of B / folds streams each that share this one
  bool ragged, masked;
};

template <class T>
Address address(T* pointer) {
  return reinterpret_cast<Address>(pointer);
}

// What forward and backward of a sequence share: x [T, B, I], the states, the parameters, with
// `ragged` lengths [B] and with `masked` a seed [2], in this order.
template <class T>
class Call {
 public:
  Call(const Attributes& attributes, Operands& in)
      : network(network_named<T>(attributes.network)), folds_(attributes.folds) {
    const Shape shape = shape_of(in.first());
    require(shape.size() == 3, "x must have shape [T, B, I], got ", text(shape));
    seq_len = shape[0];
    batch = shape[1];
    require(folds_ >= 1 && batch % folds_ == 0, "folds must divide the batch ", batch, ", got ",
            folds_);
    x_ = in.next<const T>("x", {seq_len, batch, input_size()});
    for (Index s = 0; s < network.num_states(); ++s)
      states_.push_back(in.next<const T>(std::string(state_names[s]) + "_0", state_shape(s)));
    for (const Parameter& p : network.parameters())
      parameters.push_back(
          address(in.next<const T>(p.name, p.cols > 0 ? Shape{p.rows, p.cols} : Shape{p.rows})));
    if (attributes.ragged) {
      const auto* const lengths = in.next<const std::int32_t>("lengths", {batch});
      sorted_ = sorted_rows({lengths, lengths + batch}, seq_len);
    }
    if (attributes.masked) {
      const auto* const words = in.next<const std::uint32_t>("seed", {2});
      seed = std::uint64_t(words[0]) << 32 | words[1];
      // Each of the calls that share this one draws the masks that it would draw alone.
      if (folds_ > 1 || sorted_)
        for (Index r = 0; r < batch; ++r)
          streams_.push_back((sorted_ ? sorted_->order[std::size_t(r)] : r) % (batch / folds_));
    }
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  Index input_size() const { return network.shape().input_size; }
  Index rows() const { return sorted_ ? sorted_->offsets.back() : seq_len * batch; }
  Shape state_shape(Index s) const {
    return {network.shape().num_layers * network.directions(), batch, network.state_width(s)};
  }
  Shape hidden_shape() const { return {seq_len, batch, network.hidden_width()}; }
  Index hidden_elements() const { return seq_len * batch * network.hidden_width(); }
  // Elements of T, of all calls' own tapes: never fewer than this call's.
  Index tape_elements() const {
    const TapeSize size = tape_size(network, false, sorted_.has_value(), seed.has_value());
    return size.per_row * seq_len * batch + size.per_stream * batch + size.constant * folds_;
  }
  Shape tape_shape() const {
    return {tape_elements() * static_cast<Index>(sizeof(T) / sizeof(std::uint32_t))};
  }

  // An array of the caller as the network takes it: a copy where rows are sorted.
  Address sorted_in(const T* from, Index features) {
    if (!sorted_) return address(from);
    T* const to = borrow(rows() * features);
    for (std::size_t n = 0; n < sorted_->rows.size(); ++n)
      std::copy_n(from + sorted_->rows[n] * features, features, to + Index(n) * features);
    return address(to);
  }
  // Where the network writes what the caller gets as `to`, after `finish`.
  Address sorted_out(T* to, Index features) {
    if (!sorted_) return address(to);
    T* const own = borrow(rows() * features);
    unsorted_.push_back({own, to, features});
    return address(own);
  }
  Addresses states_in(const std::vector<const T*>& from) {
    Addresses to;
    for (Index s = 0; s < network.num_states(); ++s) {
      const T* const state = from[std::size_t(s)];
      if (!sorted_) {
        to.push_back(address(state));
        continue;
      }
      T* const own = borrow(elements(s));
      each_state_row(s, [&](Index sorted, Index given, Index width) {
        std::copy_n(state + given, width, own + sorted);
      });
      to.push_back(address(own));
    }
    return to;
  }
  Addresses states_out(const std::vector<T*>& to) {
    Addresses own;
    for (Index s = 0; s < network.num_states(); ++s)
      own.push_back(address(sorted_ ? borrow(elements(s)) : to[std::size_t(s)]));
    if (sorted_) last_ = {own, to};
    return own;
  }
  void finish() {
    for (const Unsorted& one : unsorted_) {
      std::fill_n(one.to, seq_len * batch * one.features, T(0));
      for (std::size_t n = 0; n < sorted_->rows.size(); ++n)
        std::copy_n(one.from + Index(n) * one.features, one.features,
                    one.to + sorted_->rows[n] * one.features);
    }
    for (Index s = 0; s < static_cast<Index>(last_.from.size()); ++s) {
      const auto* const own = reinterpret_cast<const T*>(last_.from[std::size_t(s)]);
      each_state_row(s, [&](Index sorted, Index given, Index width) {
        std::copy_n(own + sorted, width, last_.to[std::size_t(s)] + given);
      });
    }
    unsorted_.clear();
    last_ = {};
  }

  void forward(T* y, const std::optional<std::vector<T*>>& state_n, void* tape) {
    std::optional<Addresses> last;
    if (state_n) last = states_out(*state_n);
    network_forward(network, parameters, x(), seq_len, batch, first(),
                    sorted_out(y, network.hidden_width()), last, address(tape), false, offsets(),
                    streams(), seed, std::nullopt);
  }
  void backward(const void* tape, const T* dy, const std::vector<const T*>& dstate_n, T* dx,
                const std::vector<T*>& dstate_0, const Addresses& gradients) {
    const Address from = sorted_in(dy, network.hidden_width());
    const Addresses last = states_in(dstate_n);
    const Address to = dx ? sorted_out(dx, input_size()) : 0;
    network_backward(network, parameters, x(), seq_len, batch, address(tape), from, last, to,
                     states_out(dstate_0), gradients, false, offsets(), streams(), seed,
                     std::nullopt);
  }

  T* borrow(Index n) {
    memory_.emplace_back(n);
    return memory_.back().get();
  }

  // Of the tape of a forward: its number and, for each of the calls that share it, how many they
  // are and which of them it is. JAX may take the calls' results apart, and may put together those
  // of several forwards; then the tapes, whose parts lie across each other, are of no use.
  void mark(std::uint32_t* marks) const {
    static std::atomic<std::uint64_t> last{0};
    const std::uint64_t number = ++last;
    for (Index i = 0; i < folds_; ++i) {
      const std::uint64_t words[] = {number, number >> 32, std::uint64_t(folds_), std::uint64_t(i)};
      for (Index w = 0; w < mark_words; ++w)
        marks[i * mark_words + w] = static_cast<std::uint32_t>(words[w]);
    }
  }
  bool is_marked(const std::uint32_t* marks) const {
    for (Index i = 0; i < folds_; ++i) {
      const std::uint32_t* const m = marks + i * mark_words;
      if (m[0] != marks[0] || m[1] != marks[1] || m[2] != static_cast<std::uint32_t>(folds_) ||
          m[3] != static_cast<std::uint32_t>(i))
        return false;
    }
    return true;
  }
  Shape marks_shape() const { return {folds_, mark_words}; }

  const Network<T>& network;
  Index seq_len, batch;
  Addresses parameters;
  Seed seed;

 private:
  struct Unsorted {
    const T* from;
    T* to;
    Index features;
  };
  struct States {
    Addresses from;
    std::vector<T*> to;
  };

  Address x() {
    if (!sorted_x_) sorted_x_ = sorted_in(x_, input_size());
    return *sorted_x_;
  }
  const Addresses& first() {
    if (sorted_states_.empty()) sorted_states_ = states_in(states_);
    return sorted_states_;
  }
  Address offsets() const { return sorted_ ? address(sorted_->offsets.data()) : 0; }
  Address streams() const { return streams_.empty() ? 0 : address(streams_.data()); }
  Index elements(Index s) const {
    const Shape shape = state_shape(s);
    return shape[0] * shape[1] * shape[2];
  }
  // Calls f(place among the network's, place among the caller's, elements).
  template <class F>
  void each_state_row(Index s, F&& f) const {
    const Index layers = state_shape(s)[0], width = state_shape(s)[2];
    for (Index l = 0; l < layers; ++l)
      for (Index r = 0; r < batch; ++r)
        f((l * batch + r) * width, (l * batch + sorted_->order[std::size_t(r)]) * width, width);
  }

  Index folds_;
  const T* x_;
  std::vector<const T*> states_;
  std::optional<SortedRows> sorted_;
  std::vector<Index> streams_;
  std::optional<Address> sorted_x_;
  Addresses sorted_states_;
  std::vector<Unsorted> unsorted_;
  States last_;
  std::deque<Borrowed<T>> memory_;
};

template <class T>
std::vector<T*> next_states(Results& out, const Call<T>& call, const char* format) {
  std::vector<T*> states;
  for (Index s = 0; s < call.network.num_states(); ++s)
    states.push_back(out.next<T>(std::string(format) + state_names[s], call.state_shape(s)));
  return states;
}

template <class T>
void forward(const Attributes& attributes, bool keep, Operands in, Results out) {
  Call<T> call(attributes, in);
  in.end();
  T* const y = out.next<T>("y", call.hidden_shape());
  const std::vector<T*> last = next_states(out, call, "last ");
  std::uint32_t *tape = nullptr, *marks = nullptr;
  if (keep) {
    tape = out.next<std::uint32_t>("tape", call.tape_shape());
    marks = out.next<std::uint32_t>("marks", call.marks_shape());
  }
  out.end();
  if (call.batch == 0) return;  // the kernels take at least one row
  call.forward(y, last, tape);
  call.finish();
  if (keep) call.mark(marks);
}

template <class T>
void backward(const Attributes& attributes, bool wants_dx, bool wants_weights, Operands in,
              Results out) {
  Call<T> call(attributes, in);
  const Network<T>& network = call.network;
  const void* tape = in.next<const std::uint32_t>("tape", call.tape_shape());
  const auto* const marks = in.next<const std::uint32_t>("marks", call.marks_shape());
  const T* const dy = in.next<const T>("dy", call.hidden_shape());
  std::vector<const T*> last;
  for (Index s = 0; s < network.num_states(); ++s)
    last.push_back(in.next<const T>(std::string("d") + state_names[s] + "_n", call.state_shape(s)));
  in.end();
  T* const dx =
      wants_dx ? out.next<T>("dx", {call.seq_len, call.batch, call.input_size()}) : nullptr;
  const std::vector<T*> first = next_states(out, call, "initial d");
  Addresses gradients;
  for (const Parameter& p : network.parameters()) {
    T* const gradient = wants_weights ? out.next<T>("d" + p.name, p.cols > 0 ? Shape{p.rows, p.cols}
                                                                             : Shape{p.rows})
                                      : call.borrow(p.elements());
    gradients.push_back(address(gradient));
    if (call.batch == 0) std::fill_n(gradient, p.elements(), T(0));
  }
  out.end();
  if (call.batch == 0) return;
  if (!call.is_marked(marks)) {
    T* const own = call.borrow(call.tape_elements());
    call.forward(call.borrow(call.hidden_elements()), std::nullopt, own);
    call.finish();
    tape = own;
  }
  call.backward(tape, dy, last, dx, first, gradients);
  call.finish();
}

// ---- the interface to XLA -----------------------------------------------------------------

// Calls f(0.0f) or f(0.0), by the first operand's type; the one place where errors become XLA's.
template <class F>
ffi::Error guarded(const ffi::RemainingArgs& args, F&& f) {
  try {
    const auto x = args.get<ffi::AnyBuffer>(0);
    const auto dtype = x.has_value() ? x->element_type() : ffi::DataType::INVALID;
    require(dtype == ffi::DataType::F32 || dtype == ffi::DataType::F64,
            "x must have dtype float32 or float64, got XLA's type ", static_cast<int>(dtype));
    dtype == ffi::DataType::F32 ? f(0.0f) : f(0.0);
    return ffi::Error::Success();
  } catch (const std::invalid_argument& error) {
    return ffi::Error::InvalidArgument(std::string("charrnn_fast: ") + error.what());
  } catch (const std::bad_alloc& error) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "charrnn_fast: out of memory");
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("charrnn_fast: ") + error.what());
  }
}

ffi::Error handle_forward(std::string_view network, std::int64_t folds, bool ragged, bool masked,
                          bool keep, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  return guarded(args, [&](auto zero) {
    forward<decltype(zero)>({network, folds, ragged, masked}, keep, Operands(args), Results(rets));
  });
}

ffi::Error handle_backward(std::string_view network, std::int64_t folds, bool ragged, bool masked,
                           bool wants_dx, bool wants_weights, ffi::RemainingArgs args,
                           ffi::RemainingRets rets) {
  return guarded(args, [&](auto zero) {
    backward<decltype(zero)>({network, folds, ragged, masked}, wants_dx, wants_weights,
                             Operands(args), Results(rets));
  });
}

auto attributes() {
  return ffi::Ffi::Bind()
      .Attr<std::string_view>("network")
      .Attr<std::int64_t>("folds")
      .Attr<bool>("ragged")
      .Attr<bool>("masked");
}

XLA_FFI_DEFINE_HANDLER(xla_forward, handle_forward,
                       attributes().Attr<bool>("keep").RemainingArgs().RemainingRets());
XLA_FFI_DEFINE_HANDLER(xla_backward, handle_backward,
                       attributes()
                           .Attr<bool>("wants_dx")
                           .Attr<bool>("wants_weights")
                           .RemainingArgs()
                           .RemainingRets());

}  // namespace

void register_jax(py::module_& m) {
  m.def("jax_handlers", [] {
    py::dict handlers;
    handlers["charrnn_fast_forward"] = py::capsule(reinterpret_cast<void*>(xla_forward));
    handlers["charrnn_fast_backward"] = py::capsule(reinterpret_cast<void*>(xla_backward));
    return handlers;
  });
}

}  // namespace charrnn_fast::bindings
