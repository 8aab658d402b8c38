// Networks on the caller's memory, given by addresses: what adapters for other frameworks call.
#include <pybind11/stl.h>

#include <algorithm>
#include <numeric>
#include <optional>

#include "arrays.hpp"
#include "errors.hpp"
#include "free_list.hpp"
#include "network_calls.hpp"
#include "network_common.hpp"
#include "shapes.hpp"

namespace charrnn_fast::bindings {
namespace {

// ---- addresses ----------------------------------------------------------------------------

template <class T>
T* checked(Address address, const std::string& name) {
  require(address != 0, name, " must be the address of an array, got 0");
  require(address % alignof(T) == 0, name, " must be aligned to ", alignof(T),
          " bytes, got address ", address);
  return reinterpret_cast<T*>(address);
}
// 0: null.
template <class T>
T* optional_array(Address address, const std::string& name) {
  return address == 0 ? nullptr : checked<T>(address, name);
}
// An array of n elements: if that is 0, any address will do.
template <class T>
T* checked(Address address, const std::string& name, Index n) {
  return n == 0 ? optional_array<T>(address, name) : checked<T>(address, name);
}

// One array for each entry of parameters().
template <class T>
class CheckedArrays {
 public:
  CheckedArrays(const std::vector<Parameter>& all, const Addresses& addresses, const char* name) {
    require(addresses.size() == all.size(), name, " must have ", all.size(), " addresses, got ",
            addresses.size());
    for (std::size_t i = 0; i < all.size(); ++i)
      arrays_.push_back(checked<T>(addresses[i], std::string(name) + " (" + all[i].name + ")"));
  }
  T*& operator[](std::size_t i) { return arrays_[i]; }
  T* const* get() const { return arrays_.data(); }

 private:
  std::vector<T*> arrays_;
};

// One array for each state, [L*D, B, R] of h and [L*D, B, H] of others; null where there is none.
template <class T, class N>
std::vector<T*> checked_states(const N& network, const std::optional<Addresses>& addresses,
                               const std::string& name) {
  const auto count = static_cast<std::size_t>(network.num_states());
  std::vector<T*> states(count, nullptr);
  if (!addresses) return states;
  require(addresses->size() == count, name, " must have ", count, " addresses, got ",
          addresses->size());
  for (std::size_t s = 0; s < count; ++s)
    states[s] = optional_array<T>((*addresses)[s], name + "[" + std::to_string(s) + "]");
  return states;
}

// The arrays of the states one behind the other; zeros where there is none.
template <class T>
void gather_states(const Network<T>& network, Index batch, const std::vector<const T*>& from,
                   T* to) {
  for (Index s = 0; s < network.num_states(); ++s) {
    const Index first = network.state_offset(s, batch),
                n = network.state_offset(s + 1, batch) - first;
    const T* const state = from[static_cast<std::size_t>(s)];
    state ? network.device().copy(state, n, to + first) : network.device().zero(to + first, n);
  }
}
template <class T>
void scatter_states(const Network<T>& network, Index batch, const T* from,
                    const std::vector<T*>& to) {
  for (Index s = 0; s < network.num_states(); ++s) {
    const Index first = network.state_offset(s, batch),
                n = network.state_offset(s + 1, batch) - first;
    if (T* const state = to[static_cast<std::size_t>(s)])
      network.device().copy(from + first, n, state);
  }
}

// ---- the memory of a call -----------------------------------------------------------------

// Parts of one piece of memory, borrowed or the caller's: first all sizes, then the parts.
template <class T>
class Parts {
 public:
  Index add(Index elements) {
    const Index at = elements_;
    elements_ += aligned(elements);
    return at;
  }
  void borrow() {
    memory_.emplace(elements_);
    all_ = memory_->get();
  }
  Index elements() const { return elements_; }
  // Of the host borrowed, else the caller's; false if that is too small.
  bool get(const Device& device, const Workspace& workspace) {
    if (device.is_host) return borrow(), true;
    if (workspace.elements < elements_) return false;
    all_ = checked<T>(workspace.address, "workspace", elements_);
    return true;
  }
  T* operator[](Index at) const { return all_ + at; }

 private:
  Index elements_ = 0;
  T* all_ = nullptr;
  std::optional<Borrowed<T>> memory_;
};

// The input of a call. Tokens, offsets and stream numbers are copied, and the copies checked: what
// another thread changes meanwhile is not seen.
template <class T>
class Sequence {
 public:
  Sequence(const Network<T>& network, Index seq_len, Index batch, Address x, bool tokens,
           Address offsets, Address streams, const Seed& mask_seed)
      : seed_(mask_seed) {
    require(seq_len >= 0, "seq_len must be >= 0, got ", seq_len);
    require(batch >= 1, "batch must be >= 1, got ", batch);
    static const T nothing{};
    static const Token no_token{};
    in = {seq_len, batch, tokens ? &no_token : nullptr, tokens ? nullptr : &nothing};
    in.mask_seed = seed_ ? &*seed_ : nullptr;
    require(!tokens || network.device().is_host,
            "x of a network on a device must be dense, got tokens");
    const TapeSize size = network.tape_size(in, true);
    require((double(seq_len) + 1) * double(batch) * double(size.per_row + size.per_stream) < 0x1p58,
            "the batch must fit into memory, got seq_len ", seq_len, ", batch ", batch);
    if (offsets != 0) copy_offsets(checked<const Index>(offsets, "offsets"));
    if (streams != 0) {
      const auto* const from = checked<const Index>(streams, "streams");
      streams_.assign(from, from + batch);
      in.streams = streams_.data();
    }
    const Index rows = in.rows();
    if (!tokens) {
      if (const T* const dense = checked<const T>(x, "x", rows)) in.x = dense;
    } else if (const auto* const from = checked<const Token>(x, "x", rows)) {
      tokens_.assign(from, from + rows);
      if (offsets != 0)
        network.check_tokens("x", tokens_.data(), rows);
      else
        network.check_tokens("x", tokens_.data(), seq_len, batch);
      in.tokens = tokens_.data();
    }
  }
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;

  // Of a device: the places of its copies of offsets and streams.
  void add_copies(const Network<T>& network, Parts<T>& memory) {
    if (network.device().is_host) return;
    constexpr Index each = sizeof(Index) / sizeof(T);
    offsets_at_ = memory.add(each * static_cast<Index>(offsets_.size()));
    streams_at_ = memory.add(each * static_cast<Index>(streams_.size()));
  }
  void copy(const Network<T>& network, const Parts<T>& memory) {
    if (network.device().is_host) return;
    const auto copied = [&](const std::vector<Index>& from, Index at) -> const Index* {
      if (from.empty()) return nullptr;
      auto* const to = reinterpret_cast<Index*>(memory[at]);
      network.device().upload(from.data(), static_cast<Index>(from.size()), to);
      return to;
    };
    in.device_offsets = copied(offsets_, offsets_at_);
    in.streams = copied(streams_, streams_at_);
  }

  bool drops_weights(const Network<T>& network) const {
    return in.mask_seed && network.shape().regularization.weight_drop > 0;
  }

  SequenceInput<T> in{};

 private:
  void copy_offsets(const Index* from) {
    offsets_.assign(from, from + in.seq_len + 1);
    require(offsets_[0] == 0, "offsets[0] must be 0, got ", offsets_[0]);
    Index most = in.batch;
    for (Index t = 0; t < in.seq_len; ++t) {
      const auto at = static_cast<std::size_t>(t);
      const Index rows = offsets_[at + 1] - offsets_[at];
      require(rows >= 0 && rows <= most, "offsets must give step ", t, " 0 to ", most,
              " rows, got ", rows);
      most = rows;
    }
    in.offsets = offsets_.data();
  }

  const Seed seed_;
  std::vector<Index> offsets_, streams_;
  std::vector<Token> tokens_;
  Index offsets_at_ = 0, streams_at_ = 0;
};

Packing packing_named(const std::string& name) {
  if (name == "forward") return Packing::forward;
  if (name == "forward_dense") return Packing::forward_dense;
  if (name == "forward_tokens") return Packing::forward_tokens;
  if (name == "backward") return Packing::backward;
  if (name == "backward_dense") return Packing::backward_dense;
  require(name == "decoder",
          "packing must be 'forward', 'forward_dense', 'forward_tokens', 'backward', "
          "'backward_dense' or 'decoder', got ",
          quoted(name));
  return Packing::decoder;
}

// The weights of one call: those given, or packed in the call's memory; dropped before.
template <class T>
class CallWeights {
 public:
  // given: addresses of the packings `layers` and `first_layer`, or none. Without `packs`, a call
  // needs no copy of the layers, without `reads_first` none of the first layer.
  CallWeights(const Network<T>& network, const Sequence<T>& sequence,
              CheckedArrays<const T>& parameters,
              const std::optional<std::pair<Address, Address>>& given, Packing layers, bool packs,
              Packing first_layer, bool reads_first, Parts<T>& memory)
      : network_(network),
        sequence_(sequence),
        parameters_(parameters),
        memory_(memory),
        layers_(layers),
        first_layer_(first_layer),
        packs_layers_(packs && !given),
        packs_first_(reads_first && !given) {
    drops_ = sequence.drops_weights(network);
    require(!drops_ || !given, "packed must be None where weights are dropped, got addresses");
    if (given) {
      packed.layers = packs ? checked<const T>(given->first, "packed[0]")
                            : optional_array<const T>(given->first, "packed[0]");
      if (reads_first) packed.first_layer = checked<const T>(given->second, "packed[1]");
    }
    if (packs_layers_) layers_at_ = memory.add(network.packed_elements(layers));
    if (packs_first_) first_at_ = memory.add(network.packed_elements(first_layer));
    if (!drops_) return;
    const auto& all = network.parameters();
    for (std::size_t i = 0; i < all.size(); ++i)
      dropped_at_.push_back(is_dropped(all[i]) ? memory.add(all[i].elements()) : -1);
  }
  CallWeights(const CallWeights&) = delete;
  CallWeights& operator=(const CallWeights&) = delete;

  // After the memory was borrowed.
  void make() {
    if (drops_) {
      std::vector<T*> dropped(dropped_at_.size(), nullptr);
      for (std::size_t i = 0; i < dropped.size(); ++i)
        if (dropped_at_[i] >= 0) dropped[i] = memory_[dropped_at_[i]];
      network_.drop_weights(*sequence_.in.mask_seed, parameters_.get(),
                            ParameterArrays<T>(dropped.data()));
      for (std::size_t i = 0; i < dropped.size(); ++i)
        if (dropped[i]) parameters_[i] = dropped[i];
    }
    const auto pack = [&](bool wanted, Packing packing, Index at, const T*& to) {
      if (!wanted) return;
      network_.pack(packing, parameters_.get(), memory_[at]);
      to = memory_[at];
    };
    pack(packs_layers_, layers_, layers_at_, packed.layers);
    pack(packs_first_, first_layer_, first_at_, packed.first_layer);
  }

  static bool is_dropped(const Parameter& p) { return p.name.compare(0, 9, "weight_hh") == 0; }

  PackedWeights<T> packed{};

 private:
  const Network<T>& network_;
  const Sequence<T>& sequence_;
  CheckedArrays<const T>& parameters_;
  Parts<T>& memory_;
  Packing layers_, first_layer_;
  bool packs_layers_, packs_first_, drops_ = false;
  Index layers_at_ = 0, first_at_ = 0;
  std::vector<Index> dropped_at_;
};

// Sets the decoder's arrays, or all others, to 0.
template <class T>
void clear(const Network<T>& network, T* const* gradients, bool decoder) {
  const std::vector<Parameter>& all = network.parameters();
  for (std::size_t i = 0; i < all.size(); ++i)
    if (decoder == (all[i].name.compare(0, 8, "decoder.") == 0))
      network.device().zero(gradients[i], all[i].elements());
}

}  // namespace

// ---- the calls ----------------------------------------------------------------------------

template <class T>
Index network_forward(const Network<T>& network, const Addresses& parameters, Address x,
                      Index seq_len, Index batch, const std::optional<Addresses>& state_0,
                      Address y, const std::optional<Addresses>& state_n, Address tape, bool tokens,
                      Address offsets, Address streams, const Seed& mask_seed, const Packed& packed,
                      const Workspace& given) {
  Device& device = network.device();
  CheckedArrays<const T> arrays(network.parameters(), parameters, "parameters");
  Sequence<T> sequence(network, seq_len, batch, x, tokens, offsets, streams, mask_seed);
  const SequenceInput<T>& in = sequence.in;
  const auto first = checked_states<const T>(network, state_0, "state_0");
  const auto last = checked_states<T>(network, state_n, "state_n");
  const Index outputs = in.rows() * network.hidden_width();
  T* const to = checked<T>(y, "y", outputs);
  T* kept = optional_array<T>(tape, "tape");
  const bool keep = kept;
  Parts<T> memory;
  CallWeights<T> weights(network, sequence, arrays, packed, Packing::forward, true,
                         tokens ? Packing::forward_tokens : Packing::forward_dense, true, memory);
  const Index workspace = memory.add(network.forward_elements(in));
  const Index state = memory.add(network.state_elements(batch));
  const Index own_tape = memory.add(keep ? 0 : network.tape_elements(in, false));
  sequence.add_copies(network, memory);
  if (!memory.get(device, given)) return memory.elements();
  sequence.copy(network, memory);
  if (!keep) kept = memory[own_tape];
  weights.make();
  gather_states(network, batch, first, memory[state]);
  network.forward(arrays.get(), weights.packed, in, memory[state], keep, kept, memory[state],
                  memory[workspace]);
  device.copy(network.hidden(in, keep, kept), outputs, to);
  scatter_states(network, batch, memory[state], last);
  return device.is_host ? 0 : memory.elements();
}

template <class T>
Index network_backward(const Network<T>& network, const Addresses& parameters, Address x,
                       Index seq_len, Index batch, Address tape, Address dy,
                       const std::optional<Addresses>& dstate_n, Address dx,
                       const std::optional<Addresses>& dstate_0, const Addresses& gradients,
                       bool tokens, Address offsets, Address streams, const Seed& mask_seed,
                       const Packed& packed, const Workspace& given) {
  Device& device = network.device();
  CheckedArrays<const T> arrays(network.parameters(), parameters, "parameters");
  CheckedArrays<T> sums(network.parameters(), gradients, "gradients");
  Sequence<T> sequence(network, seq_len, batch, x, tokens, offsets, streams, mask_seed);
  const SequenceInput<T>& in = sequence.in;
  const T* const kept = checked<const T>(tape, "tape");
  const auto last = checked_states<const T>(network, dstate_n, "dstate_n");
  const auto first = checked_states<T>(network, dstate_0, "dstate_0");
  require(!tokens || dx == 0, "dx of tokens must be 0, got an address");
  const T* const from = optional_array<const T>(dy, "dy");
  T* const to = optional_array<T>(dx, "dx");
  const Index outputs = in.rows() * network.hidden_width();
  const int threads = device.most_parts();
  Parts<T> memory;
  CallWeights<T> weights(network, sequence, arrays, packed, Packing::backward,
                         network.packs_backward(arrays.get(), batch), Packing::backward_dense, to,
                         memory);
  const Index dh = memory.add(outputs);
  const Index dstate = memory.add(network.state_elements(batch));
  const Index workspace = memory.add(network.backward_elements(in, threads));
  sequence.add_copies(network, memory);
  if (!memory.get(device, given)) return memory.elements();
  sequence.copy(network, memory);
  weights.make();
  clear(network, sums.get(), false);
  from ? device.copy(from, outputs, memory[dh]) : device.zero(memory[dh], outputs);
  gather_states(network, batch, last, memory[dstate]);
  network.backward(arrays.get(), weights.packed, in, kept, memory[dh], memory[dstate], to,
                   sums.get(), threads, memory[workspace]);
  if (sequence.drops_weights(network)) network.drop_weights_backward(*in.mask_seed, sums.get());
  scatter_states(network, batch, memory[dstate], first);
  return device.is_host ? 0 : memory.elements();
}

template <class T>
TapeSize tape_size(const Network<T>& network, bool tokens, bool ragged, bool masked) {
  static const T nothing{};
  static const Token no_token{};
  static const Index no_offset = 0;
  static const std::uint64_t no_seed = 0;
  SequenceInput<T> in{1, 1, tokens ? &no_token : nullptr, tokens ? nullptr : &nothing};
  if (ragged) in.offsets = &no_offset;
  if (masked) in.mask_seed = &no_seed;
  return network.tape_size(in, true);
}

SortedRows sorted_rows(const std::vector<Index>& lengths, Index seq_len) {
  require(seq_len >= 0, "seq_len must be >= 0, got ", seq_len);
  const auto batch = static_cast<Index>(lengths.size());
  SortedRows sorted;
  std::vector<Index>& offsets = sorted.offsets;
  offsets.assign(static_cast<std::size_t>(seq_len) + 1, 0);
  for (Index b = 0; b < batch; ++b) {
    const Index length = lengths[static_cast<std::size_t>(b)];
    require(length >= 0 && length <= seq_len, "lengths[", b, "] must be in 0 to ", seq_len,
            ", got ", length);
    for (Index t = 0; t < length; ++t) ++offsets[static_cast<std::size_t>(t) + 1];
  }
  std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
  sorted.order.resize(lengths.size());
  std::iota(sorted.order.begin(), sorted.order.end(), Index(0));
  std::stable_sort(sorted.order.begin(), sorted.order.end(), [&](Index a, Index b) {
    return lengths[static_cast<std::size_t>(a)] > lengths[static_cast<std::size_t>(b)];
  });
  sorted.rows.reserve(static_cast<std::size_t>(offsets.back()));
  for (std::size_t t = 0; t + 1 < offsets.size(); ++t)
    for (Index r = 0; r < offsets[t + 1] - offsets[t]; ++r)
      sorted.rows.push_back(static_cast<Index>(t) * batch +
                            sorted.order[static_cast<std::size_t>(r)]);
  return sorted;
}

// For other sources.
#define CHARRNN_CALLS(T)                                                                           \
  template Index network_forward(const Network<T>&, const Addresses&, Address, Index, Index,       \
                                 const std::optional<Addresses>&, Address,                         \
                                 const std::optional<Addresses>&, Address, bool, Address, Address, \
                                 const Seed&, const Packed&, const Workspace&);                    \
  template Index network_backward(const Network<T>&, const Addresses&, Address, Index, Index,      \
                                  Address, Address, const std::optional<Addresses>&, Address,      \
                                  const std::optional<Addresses>&, const Addresses&, bool,         \
                                  Address, Address, const Seed&, const Packed&, const Workspace&); \
  template TapeSize tape_size(const Network<T>&, bool, bool, bool);
CHARRNN_CALLS(float)
CHARRNN_CALLS(double)
#undef CHARRNN_CALLS

namespace {

template <class T>
void check_decoder(const Network<T>& network, Index rows) {
  require(network.shape().output_size > 0,
          "output_size of a network with a decoder must be >= 1, got 0");
  require(network.device().is_host, "device of a network with decoder calls must be the CPU, got ",
          network.device().name);
  require(rows >= 0, "rows must be >= 0, got ", rows);
  const NetworkShape& shape = network.shape();
  require(double(rows) * double(network.hidden_width() + shape.output_size) < 0x1p58,
          "the batch must fit into memory, got rows ", rows);
}

template <class T>
void decode(const Network<T>& network, const Addresses& parameters, Address h, Index rows,
            Address y, Address packed) {
  check_decoder(network, rows);
  CheckedArrays<const T> arrays(network.parameters(), parameters, "parameters");
  const T* const from = checked<const T>(h, "h", rows);
  T* const to = checked<T>(y, "y", rows);
  const T* weights = optional_array<const T>(packed, "packed");
  py::gil_scoped_release release;
  Parts<T> memory;
  memory.add(weights ? 0 : network.packed_elements(Packing::decoder));
  memory.borrow();
  if (!weights) {
    network.pack(Packing::decoder, arrays.get(), memory[0]);
    weights = memory[0];
  }
  network.decode(weights, from, rows, to);
}

template <class T>
void decode_backward(const Network<T>& network, const Addresses& parameters, Address h, Address dy,
                     Index rows, Address dh, const Addresses& gradients) {
  check_decoder(network, rows);
  CheckedArrays<const T> arrays(network.parameters(), parameters, "parameters");
  CheckedArrays<T> sums(network.parameters(), gradients, "gradients");
  const T* const from = checked<const T>(h, "h", rows);
  const T* const d = checked<const T>(dy, "dy", rows);
  T* const to = checked<T>(dh, "dh", rows);
  const int threads = network.device().most_parts();
  py::gil_scoped_release release;
  Parts<T> memory;
  memory.add(network.decode_backward_elements(threads));
  memory.borrow();
  clear(network, sums.get(), true);
  network.decode_backward(arrays.get(), from, d, rows, to, sums.get(), threads, memory[0]);
}

template <class T>
void head(const Network<T>& network, const Addresses& parameters, Address h, Address targets,
          Index rows, double scale, Address losses, Address dh,
          const std::optional<Addresses>& gradients) {
  check_decoder(network, rows);
  CheckedArrays<const T> arrays(network.parameters(), parameters, "parameters");
  require((dh != 0) == gradients.has_value(), "dh and gradients must be given together");
  std::optional<CheckedArrays<T>> sums;
  if (gradients) sums.emplace(network.parameters(), *gradients, "gradients");
  const T* const from = checked<const T>(h, "h", rows);
  T* const each = checked<T>(losses, "losses", rows);
  T* const to = optional_array<T>(dh, "dh");
  std::vector<Token> classes;
  if (const auto* const given = checked<const Token>(targets, "targets", rows))
    classes.assign(given, given + rows);
  const Index outputs = network.shape().output_size;
  for (Index i = 0; i < static_cast<Index>(classes.size()); ++i) {
    const Token target = classes[static_cast<std::size_t>(i)];
    require(target >= -1 && target < outputs, "targets[", i, "] must be in -1 to ", outputs - 1,
            ", got ", target);
  }
  const int threads = network.device().most_parts();
  py::gil_scoped_release release;
  Parts<T> memory;
  memory.add(network.head_elements(rows, threads));
  memory.borrow();
  if (sums) clear(network, sums->get(), true);
  network.head(arrays.get(), from, classes.data(), rows, static_cast<T>(scale), each, to,
               sums ? ParameterArrays<T>(sums->get()) : nullptr, threads, memory[0]);
}

template <class T>
void pack(const Network<T>& network, const std::string& packing, const Addresses& parameters,
          Address packed) {
  const Packing which = packing_named(packing);
  CheckedArrays<const T> arrays(network.parameters(), parameters, "parameters");
  T* const to = checked<T>(packed, "packed", network.packed_elements(which));
  py::gil_scoped_release release;
  if (to) network.pack(which, arrays.get(), to);
}

template <class T>
py::array_t<T> new_tape(const Network<T>&, Index elements) {
  require(elements >= 0, "elements must be >= 0, got ", elements);
  require(double(elements) < 0x1p58, "elements must fit into memory, got ", elements);
  const auto bytes = static_cast<std::size_t>(elements) * sizeof(T);
  void* const memory = FreeList::instance().take(bytes);
  const py::capsule owner(memory, [](void* p) { FreeList::instance().give_back(p); });
  return py::array_t<T>(elements, static_cast<T*>(memory), owner);
}

py::tuple sorted(const py::object& lengths, Index seq_len) {
  const py::array array = checked_array<Index>(lengths, "lengths");
  if (array.ndim() != 1 || array.shape(0) < 1)
    throw py::value_error("lengths must have shape [B], got " + text(shape_of(array)));
  const auto* const from = static_cast<const Index*>(array.data());
  const SortedRows found = sorted_rows({from, from + array.shape(0)}, seq_len);
  const auto array_of = [](const std::vector<Index>& values) {
    return py::array_t<Index>(static_cast<py::ssize_t>(values.size()), values.data());
  };
  return py::make_tuple(array_of(found.order), array_of(found.offsets), array_of(found.rows));
}

// workspace: address and elements.
Workspace workspace_of(const std::optional<std::pair<Address, Index>>& given) {
  return given ? Workspace{given->first, given->second} : Workspace{};
}

template <class T>
Index forward(const Network<T>& network, const Addresses& parameters, Address x, Index seq_len,
              Index batch, const std::optional<Addresses>& state_0, Address y,
              const std::optional<Addresses>& state_n, Address tape, bool tokens, Address offsets,
              Address streams, const Seed& mask_seed, const Packed& packed,
              const std::optional<std::pair<Address, Index>>& workspace) {
  return network_forward(network, parameters, x, seq_len, batch, state_0, y, state_n, tape, tokens,
                         offsets, streams, mask_seed, packed, workspace_of(workspace));
}
template <class T>
Index backward(const Network<T>& network, const Addresses& parameters, Address x, Index seq_len,
               Index batch, Address tape, Address dy, const std::optional<Addresses>& dstate_n,
               Address dx, const std::optional<Addresses>& dstate_0, const Addresses& gradients,
               bool tokens, Address offsets, Address streams, const Seed& mask_seed,
               const Packed& packed, const std::optional<std::pair<Address, Index>>& workspace) {
  return network_backward(network, parameters, x, seq_len, batch, tape, dy, dstate_n, dx, dstate_0,
                          gradients, tokens, offsets, streams, mask_seed, packed,
                          workspace_of(workspace));
}

template <class T>
void register_network(py::module_& m, const char* name) {
  using N = Network<T>;
  py::class_<N>(m, name)
      .def(py::init([](const std::string& cell, Index input_size, Index hidden_size,
                       Index output_size, Index num_layers, const std::string& bias,
                       bool bidirectional, Index proj_size, bool layer_norm, const py::dict& rates,
                       const std::string& nonlinearity, const py::object& device,
                       const std::string& compute_dtype) {
             return std::make_unique<N>(
                 NetworkShape{cell, input_size, hidden_size, output_size, num_layers,
                              bias_named(bias), bidirectional, proj_size, layer_norm,
                              regularization(rates), nonlinearity, compute_named(compute_dtype)},
                 device_of(device));
           }),
           py::arg("cell"), py::arg("input_size"), py::arg("hidden_size"), py::arg("output_size"),
           py::arg("num_layers"), py::arg("bias"), py::arg("bidirectional") = false,
           py::arg("proj_size") = 0, py::arg("layer_norm") = false,
           py::arg("regularization") = py::dict(), py::arg("nonlinearity") = "tanh",
           py::arg("device") = py::none(), py::arg("compute_dtype") = "float32")
      .def_property_readonly("num_states", &N::num_states)
      .def_property_readonly("hidden_width", &N::hidden_width)
      .def(
          "state_shapes",
          [](const N& self, Index batch) {
            py::list shapes;
            for (Index s = 0; s < self.num_states(); ++s)
              shapes.append(py::make_tuple(self.shape().num_layers * self.directions(), batch,
                                           self.state_width(s)));
            return py::tuple(shapes);
          },
          py::arg("batch"))
      .def("parameter_shapes", [](const N& self) { return parameter_shapes(self); })
      .def(
          "tape_size",
          [](const N& self, bool tokens, bool ragged, bool masked) {
            const TapeSize size = tape_size(self, tokens, ragged, masked);
            return py::make_tuple(size.per_row, size.per_stream, size.constant);
          },
          py::arg("tokens") = false, py::arg("ragged") = false, py::arg("masked") = false)
      .def("new_tape", &new_tape<T>, py::arg("elements"))
      .def("forward", &forward<T>, py::call_guard<py::gil_scoped_release>(), py::arg("parameters"),
           py::arg("x"), py::arg("seq_len"), py::arg("batch"), py::arg("state_0"), py::arg("y"),
           py::arg("state_n"), py::arg("tape") = 0, py::kw_only(), py::arg("tokens") = false,
           py::arg("offsets") = 0, py::arg("streams") = 0, py::arg("mask_seed") = py::none(),
           py::arg("packed") = py::none(), py::arg("workspace") = py::none())
      .def("backward", &backward<T>, py::call_guard<py::gil_scoped_release>(),
           py::arg("parameters"), py::arg("x"), py::arg("seq_len"), py::arg("batch"),
           py::arg("tape"), py::arg("dy"), py::arg("dstate_n"), py::arg("dx"), py::arg("dstate_0"),
           py::arg("gradients"), py::kw_only(), py::arg("tokens") = false, py::arg("offsets") = 0,
           py::arg("streams") = 0, py::arg("mask_seed") = py::none(),
           py::arg("packed") = py::none(), py::arg("workspace") = py::none())
      .def("decode", &decode<T>, py::arg("parameters"), py::arg("h"), py::arg("rows"), py::arg("y"),
           py::arg("packed") = 0)
      .def("decode_backward", &decode_backward<T>, py::arg("parameters"), py::arg("h"),
           py::arg("dy"), py::arg("rows"), py::arg("dh"), py::arg("gradients"))
      .def("head", &head<T>, py::arg("parameters"), py::arg("h"), py::arg("targets"),
           py::arg("rows"), py::arg("scale"), py::arg("losses"), py::arg("dh") = 0,
           py::arg("gradients") = py::none())
      .def(
          "packed_elements",
          [](const N& self, const std::string& packing) {
            return self.packed_elements(packing_named(packing));
          },
          py::arg("packing"))
      .def("pack", &pack<T>, py::arg("packing"), py::arg("parameters"), py::arg("packed"));
}

}  // namespace

void register_networks(py::module_& m) {
  register_network<float>(m, "NetworkFloat32");
  register_network<double>(m, "NetworkFloat64");
  m.def("sorted_rows", &sorted, py::arg("lengths"), py::arg("seq_len"));
  m.def("free_list_bytes", [] { return FreeList::instance().held(); });
  m.def(
      "set_free_list_limit",
      [](std::size_t bytes) {
        const std::size_t before = FreeList::instance().limit();
        FreeList::instance().set_limit(bytes);
        return before;
      },
      py::arg("bytes"));
}

}  // namespace charrnn_fast::bindings
