#include "charrnn_fast/stream.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "network_common.hpp"

namespace charrnn_fast {
namespace {

// Inputs of at most so many features are multiplied within the step.
constexpr Index narrow_input = 8;

}  // namespace

// What all copies of a stream share.
template <class T>
struct Stream<T>::Weights {
  Network<T> network;
  AlignedBuffer<T> parameters, packed[num_packings], zeros;

  Weights(const NetworkShape& shape, const T* given) : network(shape) {
    require(!shape.bidirectional, "bidirectional of a stream must be false, got true");
    const Index n = network.parameter_elements();
    parameters.reserve(n);
    std::copy_n(given, n, parameters.get());
    const Index width = aligned(network.cell_->num_gates * shape.hidden_size) + alignment_elements;
    zeros.reserve(width);
    std::fill_n(zeros.get(), width, T(0));
    pack(Packing::forward);
    if (!narrow()) pack(Packing::forward_dense);
    if (shape.output_size > 0 && !decodes_one()) pack(Packing::decoder);
  }
  // The stream kernels run layers of the cell alone; cell.forward runs the others.
  bool plain() const {
    const NetworkShape& shape = network.shape();
    const double* const zoneout = shape.regularization.zoneout;
    return network.cell_->stream && !rounds() && !shape.layer_norm && shape.proj_size == 0 &&
           zoneout[0] == 0 && zoneout[1] == 0;
  }
  // Products with rounded operands are those of cell.forward and gemm.
  bool rounds() const { return network.shape().compute == Compute::bfloat16; }
  // A decoder of one unit has a kernel of its own.
  bool decodes_one() const { return network.shape().output_size == 1 && !rounds(); }
  bool narrow() const { return plain() && network.shape().input_size <= narrow_input; }
  const T* parameter(Index entry) const {  // null if it is absent
    return network.array(typename Network<T>::Parameters(parameters.get()), entry);
  }
  // offset: in Packing::forward, or -1.
  const T* bias(Index offset) const {
    return offset >= 0 ? packed[static_cast<int>(Packing::forward)].get() + offset : zeros.get();
  }
  charrnn_fast::Weights<T> panels(Packing packing, Index offset, Index columns, Index depth) const {
    return weights_at(network.packed_weights(packing, packed[static_cast<int>(packing)].get()),
                      Storage::full, network.shape().compute, offset, columns, depth);
  }

 private:
  void pack(Packing packing) {
    AlignedBuffer<T>& to = packed[static_cast<int>(packing)];
    to.reserve(network.packed_elements(packing));
    network.pack(packing, parameters.get(), to.get());
  }
};

template <class T>
class Stream<T>::State {
 public:
  explicit State(std::shared_ptr<const Weights> weights)
      : weights_(std::move(weights)),
        k_(*weights_->network.kernels_),
        cell_(*weights_->network.cell_),
        shape_(weights_->network.shape()),
        H_(shape_.hidden_size),
        R_(weights_->network.width()),
        G_(cell_.num_gates),
        plain_(weights_->plain()) {
    memory_.reserve(lay_out(nullptr));
    std::fill_n(memory_.get(), memory_.size(), T(0));
    layers_.resize(static_cast<std::size_t>(shape_.num_layers));
    lay_out(memory_.get());
    set_arguments();
  }
  State(const State& other) : State(other.weights_) {
    for (Index s = 0; s < cell_.num_states; ++s)
      for (std::size_t l = 0; l < layers_.size(); ++l)
        std::copy_n(other.state(s, l), weights_->network.state_width(s), state(s, l));
  }
  State& operator=(const State&) = delete;

  const Network<T>& network() const { return weights_->network; }
  Index outputs() const { return shape_.output_size > 0 ? shape_.output_size : R_; }

  void run(const T* x, Index n, T* y) {
    const Index I = shape_.input_size, O = outputs();
    while (n > 0) {
      const Index steps = std::min(n, stream_block);
      if (row_ + steps > stream_block) rewind();
      const T* in = x;
      for (Layer& layer : layers_) {
        plain_ ? run_plain(layer, in, steps) : run_any(layer, in, steps);
        in = row(layer, row_ + 1);
      }
      put_out(in, steps, y);
      row_ += steps;
      x += steps * I, y += steps * O, n -= steps;
    }
  }

  // Calls f(the state's array, its place in the states given, its width).
  template <class F>
  void each_state(F&& f) const {
    for (Index s = 0; s < cell_.num_states; ++s)
      for (std::size_t l = 0; l < layers_.size(); ++l) {
        const Index width = network().state_width(s);
        f(state(s, l), network().state_offset(s, 1) + static_cast<Index>(l) * width, width);
      }
  }

 private:
  struct Layer {
    T* h;                   // [1 + stream_block] rows; row row_ is the state
    T* states[max_states];  // of those after h
    GemmArgs<T> input;
    LayerNormArgs<T> input_norm;
    StreamArgs<T> plain;
    RecurrentForwardArgs<T> any;
  };

  Index stride() const { return aligned(R_); }
  T* row(const Layer& layer, Index i) const { return layer.h + i * stride(); }
  T* state(Index s, std::size_t l) const {
    return s == 0 ? row(layers_[l], row_) : layers_[l].states[s];
  }

  // Places the arrays in the memory, if there is some; returns the elements they need. Rows are
  // padded to whole vectors.
  Index lay_out(T* memory) {
    Index used = 0;
    const auto take = [&](Index rows, Index cols) {
      T* const at = memory ? memory + used : nullptr;
      used += rows * aligned(cols);
      return at;
    };
    for (Index l = 0; l < shape_.num_layers; ++l) {
      T *const h = take(1 + stream_block, R_), *states[max_states] = {};
      for (Index s = 1; s < cell_.num_states; ++s) states[s] = take(1, H_);
      if (!memory) continue;
      Layer& layer = layers_[static_cast<std::size_t>(l)];
      layer.h = h;
      std::copy_n(states, max_states, layer.states);
    }
    const bool any = !plain_;
    gx_ = take(1, stream_block * G_ * H_ + alignment_elements);
    hidden_ = take(any && shape_.proj_size > 0 ? stream_block : 0, H_);
    staged_ = take(any && shape_.layer_norm ? 1 : 0, G_ * H_);
    for (T*& expectation : zoneout_) expectation = take(any ? 1 : 0, H_);
    T* const rounded = take(weights_->rounds() ? 1 : 0, R_ + 1);
    rounded_ = weights_->rounds() ? reinterpret_cast<Bfloat16*>(rounded) : nullptr;
    return used;
  }

  void set_arguments() {
    const Weights& w = *weights_;
    const Index GH = G_ * H_, split = cell_.num_split * H_;
    const auto& zoneout = shape_.regularization.zoneout;
    Zoneouts<T> zoneouts;
    for (int s = 0; s < 2; ++s)
      if (zoneout[s] > 0) {
        std::fill_n(zoneout_[s], H_, static_cast<T>(zoneout[s]));
        zoneouts.any = true;
        zoneouts.of[s] = {{zoneout_[s], 0, 0}, nullptr};
      }
    for (Index l = 0; l < shape_.num_layers; ++l) {
      const auto& p = w.network.layer(l, 0);
      Layer& layer = layers_[static_cast<std::size_t>(l)];
      const Index I = w.network.layer_input_size(l);
      const bool narrow = l == 0 && w.narrow();
      const T* const bias = w.bias(p.input_bias);
      const auto hh = w.panels(Packing::forward, p.hh, cell_.forward_units * G_, R_);
      // With normalization the bias comes after it.
      if (!narrow)
        layer.input = {
            nullptr,
            l == 0 ? I : stride(),
            w.panels(l == 0 ? Packing::forward_dense : Packing::forward, p.ih, k_.gemm_units, I),
            shape_.layer_norm ? nullptr : bias,
            false,
            GH,
            I,
            gx_,
            GH};
      layer.plain = {.num_gates = G_,
                     .hidden_size = H_,
                     .hh = hh,
                     .gx = narrow ? nullptr : gx_,
                     .input_size = I,
                     .x = nullptr,
                     .ih = w.parameter(p.weight_ih),
                     .input_bias = bias,
                     .split_bias = w.bias(p.split_bias),
                     .params = w.parameter(p.params),
                     .states = {},
                     .stride = stride()};
      std::copy_n(layer.states, max_states, layer.plain.states);
      if (plain_) continue;
      layer.input_norm = {{GH - split, split}, w.parameter(p.gain_ih), bias, gx_, nullptr, nullptr};
      States<T> states{};
      for (Index s = 0; s < cell_.num_states; ++s)
        states.of[s] = {layer.states[s], layer.states[s], s == 0 ? stride() : H_, s > 0};
      layer.any = {
          .steps = {0, 1, nullptr, false},
          .hidden_size = H_,
          .width = R_,
          .hh = hh,
          .gx = gx_,
          .tokens = nullptr,
          .table = nullptr,
          .input_bias = nullptr,
          .split_bias = w.bias(p.split_bias),
          .params = w.parameter(p.params),
          .states = states,
          .saved = nullptr,
          .zoneout = zoneouts,
          .norm = shape_.layer_norm ? RecurrentNorm<T>{w.parameter(p.gain_hh), nullptr}
                                    : RecurrentNorm<T>{},
          .projection =
              shape_.proj_size > 0
                  ? Projection<T>{w.panels(Packing::forward, p.hr, k_.gemm_units, H_), hidden_}
                  : Projection<T>{},
          .rounded = rounded_,
          .staged = shape_.layer_norm ? staged_ : nullptr,
          .staged_in_place = true,
      };
    }
    if (shape_.output_size == 0) return;
    const T* const bias =
        w.network.decoder_bias_ >= 0 ? w.parameter(w.network.decoder_bias_) : w.zeros.get();
    const Index O = shape_.output_size;
    if (w.decodes_one())
      decode_one_ = {R_, stride(), w.parameter(w.network.decoder_weight_), bias[0]};
    else
      decode_ = {nullptr,
                 stride(),
                 w.panels(Packing::decoder, 0, k_.gemm_units, R_),
                 w.network.decoder_bias_ >= 0 ? bias : nullptr,
                 false,
                 O,
                 R_,
                 nullptr,
                 O};
  }

  // The state's row becomes the first.
  void rewind() {
    for (const Layer& layer : layers_) std::copy_n(row(layer, row_), R_, layer.h);
    row_ = 0;
  }

  void run_input(Layer& layer, const T* in, Index steps) {
    layer.input.a = in;
    k_.gemm(layer.input, {0, steps}, {0, ceil_div(layer.input.cols, k_.gemm_units)});
    if (shape_.layer_norm) k_.layer_norm(layer.input_norm, {0, steps});
  }
  void run_plain(Layer& layer, const T* in, Index steps) {
    if (layer.plain.gx)
      run_input(layer, in, steps);
    else
      layer.plain.x = in;
    cell_.stream(layer.plain, row(layer, row_), steps, row(layer, row_ + 1));
  }
  void run_any(Layer& layer, const T* in, Index steps) {
    run_input(layer, in, steps);
    layer.any.steps.seq_len = steps;
    layer.any.states.of[0].initial = row(layer, row_);
    layer.any.states.of[0].rows = row(layer, row_ + 1);
    cell_.begin(layer.any, {0, 1});
    cell_.forward(layer.any, {0, steps}, {0, 1}, {0, ceil_div(H_, cell_.forward_units)});
  }
  void put_out(const T* h, Index steps, T* y) {
    if (weights_->decodes_one()) return k_.stream_decode(decode_one_, h, steps, y);
    if (shape_.output_size > 0) {
      decode_.a = h, decode_.c = y;
      return k_.gemm(decode_, {0, steps}, {0, ceil_div(decode_.cols, k_.gemm_units)});
    }
    for (Index i = 0; i < steps; ++i) std::copy_n(h + i * stride(), R_, y + i * R_);
  }

  std::shared_ptr<const Weights> weights_;
  const Kernels<T>& k_;
  const CellKernels<T>& cell_;
  const NetworkShape& shape_;
  const Index H_, R_, G_;
  const bool plain_;
  AlignedBuffer<T> memory_;
  std::vector<Layer> layers_;
  T *gx_ = nullptr, *hidden_ = nullptr, *staged_ = nullptr, *zoneout_[2] = {};
  Bfloat16* rounded_ = nullptr;
  StreamDecodeArgs<T> decode_one_{};
  GemmArgs<T> decode_{};
  Index row_ = 0;
};

template <class T>
Stream<T>::Stream(const NetworkShape& shape, const T* parameters)
    : state_(std::make_unique<State>(std::make_shared<const Weights>(shape, parameters))) {}
template <class T>
Stream<T>::Stream(const Stream& other) : state_(std::make_unique<State>(*other.state_)) {}
template <class T>
Stream<T>& Stream<T>::operator=(const Stream& other) {
  if (this != &other) state_ = std::make_unique<State>(*other.state_);
  return *this;
}
template <class T>
Stream<T>::Stream(Stream&&) noexcept = default;
template <class T>
Stream<T>& Stream<T>::operator=(Stream&&) noexcept = default;
template <class T>
Stream<T>::~Stream() = default;

template <class T>
const NetworkShape& Stream<T>::shape() const {
  return state_->network().shape();
}
template <class T>
Index Stream<T>::input_size() const {
  return shape().input_size;
}
template <class T>
Index Stream<T>::output_size() const {
  return state_->outputs();
}
template <class T>
Index Stream<T>::state_elements() const {
  return state_->network().state_elements(1);
}

template <class T>
void Stream<T>::run(const T* x, Index n, T* y) {
  require(n >= 0, "n must be >= 0, got ", n);
  state_->run(x, n, y);
}
template <class T>
void Stream<T>::reset() {
  state_->each_state([](T* own, Index, Index width) { std::fill_n(own, width, T(0)); });
}
template <class T>
void Stream<T>::get_state(T* state) const {
  state_->each_state([&](const T* own, Index at, Index n) { std::copy_n(own, n, state + at); });
}
template <class T>
void Stream<T>::set_state(const T* state) {
  state_->each_state([&](T* own, Index at, Index n) { std::copy_n(state + at, n, own); });
}

template class Stream<float>;
template class Stream<double>;

}  // namespace charrnn_fast
