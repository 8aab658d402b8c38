#include "charrnn_fast/model.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "charrnn_fast/threads.hpp"
#include "errors.hpp"
#include "thread_pool.hpp"

namespace charrnn_fast {

void ForkSafeMutex::lock() {
  if (generation_ != fork_generation()) {
    generation_ = fork_generation();
    mutex_.release();  // who holds it does not exist here
    mutex_ = std::make_unique<std::mutex>();
  }
  mutex_->lock();
}

template <class T>
Model<T>::Model(const NetworkShape& shape) : Model(Network<T>(shape)) {}

template <class T>
Model<T>::Model(Network<T> network) : network_(std::move(network)) {
  parameters_.reserve(network_.parameter_elements());
  std::fill_n(parameters_.get(), network_.parameter_elements(), T(0));
}

template <class T>
Index Model<T>::output_size() const {
  const Index outputs = network_.shape().output_size;
  return outputs > 0 ? outputs : network_.hidden_width();
}

template <class T>
Index Model<T>::state_elements(Index batch) const {
  return network_.state_elements(batch);
}

template <class T>
typename Model<T>::Source Model<T>::source(const SequenceInput<T>& in) {
  if (!in.mask_seed || network_.shape().regularization.weight_drop == 0)
    return {parameters_.get(), version_};
  dropped_.reserve(network_.parameter_elements());
  network_.drop_weights(*in.mask_seed, parameters_.get(), dropped_.get());
  return {dropped_.get(), -++num_dropped_};
}

template <class T>
const T* Model<T>::packed(const Source& from, Packing packing, Storage storage) {
  PackedCopy& copy = packed_[static_cast<int>(packing)][static_cast<int>(storage)];
  if (copy.version != from.version) {
    copy.weights.reserve(std::max<Index>(1, network_.packed_elements(packing, storage)));
    network_.pack(packing, from.parameters, copy.weights.get(), storage);
    copy.version = from.version;
  }
  return copy.weights.get();
}

template <class T>
PackedWeights<T> Model<T>::packed_forward(const Source& from, const SequenceInput<T>& in,
                                          Storage storage) {
  return {packed(from, Packing::forward, storage),
          in.x ? packed(from, Packing::forward_dense, storage) : nullptr, storage};
}

template <class T>
PackedWeights<T> Model<T>::packed_backward(const Source& from, const SequenceInput<T>& in,
                                           bool dense) {
  // Rows of wide layers lie pages apart: reading those as they stand costs more than packing.
  constexpr Index few_streams = 4, widest = 512;
  const bool as_they_stand = in.batch <= few_streams && network_.shape().hidden_size <= widest;
  return {as_they_stand ? nullptr : packed(from, Packing::backward),
          dense ? packed(from, Packing::backward_dense) : nullptr};
}

template <class T>
void Model<T>::check_targets(const Token* targets, Index seq_len, Index batch) const {
  const Index classes = network_.shape().output_size;
  require(classes > 0, "a loss takes a network with output_size");
  for (Index i = 0; i < seq_len * batch; ++i)
    if (targets[i] < -1 || targets[i] >= classes)
      fail("targets[", i / batch, ", ", i % batch, "] is ", targets[i],
           ", it takes classes from 0 to ", classes - 1, ", or -1 to ignore");
}

template <class T>
void Model<T>::run_forward(const Source& from, const SequenceInput<T>& in, const T* state_0,
                           bool keep, T* state_n) {
  const PackedWeights<T> weights = packed_forward(from, in);
  tape_.reserve(network_.tape_elements(in, keep));
  network_.forward(from.parameters, weights, in, state_0, keep, tape_.get(), state_n);
}

// From the gradient of the top layer's h in dh_.
template <class T>
void Model<T>::run_backward(const Source& from, const SequenceInput<T>& in, T* dstate, T* dx,
                            T* gradients) {
  network_.backward(from.parameters, packed_backward(from, in, dx != nullptr), in, tape_.get(),
                    dh_.get(), dstate, dx, gradients, get_num_threads(), workspace_.get());
  if (in.mask_seed && network_.shape().regularization.weight_drop > 0)
    network_.drop_weights_backward(*in.mask_seed, gradients);
}

// ---- sequences of different lengths ---------------------------------------------------------

// What the network takes for a batch, without the tokens or x: their rows in its order, see
// each_row.
template <class T>
SequenceInput<T> Model<T>::sort(const Batch& in) {
  SequenceInput<T> sorted{in.seq_len, in.batch, nullptr, nullptr};
  sorted.mask_seed = in.mask_seed;
  if (!in.lengths) return sorted;
  for (Index b = 0; b < in.batch; ++b)
    require(in.lengths[b] >= 0 && in.lengths[b] <= in.seq_len, "lengths[", b, "] is ",
            in.lengths[b], ", it takes 0 to ", in.seq_len);
  order_.resize(static_cast<std::size_t>(in.batch));
  std::iota(order_.begin(), order_.end(), Index(0));
  // Equals in the caller's order; std::stable_sort would allocate.
  std::sort(order_.begin(), order_.end(), [&](Index a, Index b) {
    return in.lengths[a] != in.lengths[b] ? in.lengths[a] > in.lengths[b] : a < b;
  });
  offsets_.assign(static_cast<std::size_t>(in.seq_len) + 1, 0);
  for (Index b = 0; b < in.batch; ++b)  // first the rows of each step
    for (Index t = 0; t < in.lengths[b]; ++t) ++offsets_[static_cast<std::size_t>(t) + 1];
  std::partial_sum(offsets_.begin(), offsets_.end(), offsets_.begin());
  sorted.offsets = offsets_.data();
  sorted.streams = order_.data();
  return sorted;
}

// f(row of the network, row t * B + b of the caller) for every row.
template <class T>
template <class F>
void Model<T>::each_row(const SequenceInput<T>& in, F&& f) const {
  for (Index t = 0; t < in.seq_len; ++t) {
    const Index first = in.offsets[t], rows = in.offsets[t + 1] - first;
    for (Index r = 0; r < rows; ++r) f(first + r, t * in.batch + in.streams[r]);
  }
}

// States of the caller's order in the network's, or back.
template <class T>
void Model<T>::sort_states(const T* from, Index batch, bool back, T* to) const {
  for (Index s = 0; s < network_.num_states(); ++s) {
    const Index width = network_.state_width(s), offset = network_.state_offset(s, batch);
    const Index all = network_.state_offset(s + 1, batch) - offset;
    for (Index first = offset; first < offset + all; first += batch * width)
      for (Index r = 0; r < batch; ++r) {
        const Index ours = first + r * width, theirs = first + order_[std::size_t(r)] * width;
        std::copy_n(from + (back ? ours : theirs), width, to + (back ? theirs : ours));
      }
  }
}

template <class T>
void Model<T>::forward(const Batch& batch, const T* state_0, bool keep, T* y, T* state_n) {
  if (batch.tokens) network_.check_tokens("x", batch.tokens, batch.seq_len, batch.batch);
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  // The tape of a kept forward is overwritten; backward would read the new one.
  kept_id_ = 0;
  SequenceInput<T> in = sort(batch);
  const Index rows = in.rows(), all_rows = in.seq_len * in.batch;
  const Index I = network_.shape().input_size, O = output_size();
  const bool sorted = in.offsets;
  // A copy: the caller may change its arrays before it calls backward.
  if (!sorted && !keep) {
    in.tokens = batch.tokens, in.x = batch.x;
  } else if (batch.tokens) {
    tokens_.reserve(std::max<Index>(1, rows));
    Token* const to = tokens_.get();
    in.tokens = to;
    if (sorted)
      each_row(in, [&](Index n, Index row) { to[n] = batch.tokens[row]; });
    else
      std::copy_n(batch.tokens, rows, to);
  } else {
    x_.reserve(std::max<Index>(1, rows * I));
    T* const to = x_.get();
    in.x = to;
    if (sorted)
      each_row(in, [&](Index n, Index row) { std::copy_n(batch.x + row * I, I, to + n * I); });
    else
      std::copy_n(batch.x, rows * I, to);
  }
  if (in.mask_seed) {
    kept_mask_seed_ = *in.mask_seed;
    in.mask_seed = &kept_mask_seed_;
  }
  const T* first = state_0;
  T* last = state_n;
  if (sorted) {
    state_.reserve(std::max<Index>(1, state_elements(in.batch)));
    last = state_.get();
    if (state_0) {
      sort_states(state_0, in.batch, false, state_.get());
      first = state_.get();
    }
  }
  const Source from = source(in);
  run_forward(from, in, first, keep, last);
  if (sorted) sort_states(last, in.batch, true, state_n);
  const T* const h = network_.hidden(in, keep, tape_.get());
  const T* result = h;
  if (network_.shape().output_size > 0) {
    T* to = y;
    if (sorted) {
      y_.reserve(std::max<Index>(1, rows * O));
      to = y_.get();
    }
    network_.decode(from.parameters, packed(from, Packing::decoder), h, rows, to);
    result = to;
  }
  if (sorted) {
    std::fill_n(y, all_rows * O, T(0));
    each_row(in, [&](Index n, Index row) { std::copy_n(result + n * O, O, y + row * O); });
  } else if (result != y) {
    std::copy_n(result, rows * O, y);
  }
  if (!keep) return;
  kept_input_ = in;
  kept_source_ = from;
  kept_id_ = ++num_kept_;
  kept_version_ = version_;
}

template <class T>
typename Model<T>::Kept Model<T>::kept_now() const {
  if (kept_id_ == 0 || kept_version_ != version_) return {0, 0, 0, false};
  return {kept_id_, kept_input_.seq_len, kept_input_.batch, kept_input_.tokens != nullptr};
}

template <class T>
typename Model<T>::Kept Model<T>::kept() {
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  return kept_now();
}

template <class T>
void Model<T>::backward(const Kept& expected, const T* dy, T* dstate, T* dx, T* gradients) {
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  require(expected.id != 0 && expected.id == kept_now().id,
          "backward belongs to the last forward, which another call has replaced");
  const SequenceInput<T>& in = kept_input_;
  const int threads = get_num_threads();
  const Index rows = in.rows(), all_rows = in.seq_len * in.batch, H = network_.hidden_width();
  const Index I = network_.shape().input_size, O = output_size();
  const bool sorted = in.offsets, decoder = network_.shape().output_size > 0;
  std::fill_n(gradients, network_.parameter_elements(), T(0));
  dh_.reserve(std::max<Index>(1, rows * H));
  workspace_.reserve(std::max(decoder ? network_.decode_backward_elements(threads) : 0,
                              network_.backward_elements(threads)));
  if (dy && sorted) {
    y_.reserve(std::max<Index>(1, rows * O));
    each_row(in, [&](Index n, Index row) { std::copy_n(dy + row * O, O, y_.get() + n * O); });
    dy = y_.get();
  }
  if (!dy)
    std::fill_n(dh_.get(), rows * H, T(0));
  else if (decoder)
    network_.decode_backward(kept_source_.parameters, network_.hidden(in, true, tape_.get()), dy,
                             rows, dh_.get(), gradients, threads, workspace_.get());
  else
    std::copy_n(dy, rows * H, dh_.get());
  if (!sorted) return run_backward(kept_source_, in, dstate, dx, gradients);
  state_.reserve(std::max<Index>(1, state_elements(in.batch)));
  sort_states(dstate, in.batch, false, state_.get());
  if (dx) dx_.reserve(std::max<Index>(1, rows * I));
  run_backward(kept_source_, in, state_.get(), dx ? dx_.get() : nullptr, gradients);
  sort_states(state_.get(), in.batch, true, dstate);
  if (!dx) return;
  std::fill_n(dx, all_rows * I, T(0));
  each_row(in, [&](Index n, Index row) { std::copy_n(dx_.get() + n * I, I, dx + row * I); });
}

template <class T>
void Model<T>::step(const SequenceInput<T>& in, T* state, T* y) {
  if (in.tokens) network_.check_tokens("x", in.tokens, 1, in.batch);
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  // A tape of its own: step may be called between forward and backward.
  const Source from{parameters_.get(), version_};
  const PackedWeights<T> weights = packed_forward(from, in);
  workspace_.reserve(network_.tape_elements(in, false));
  network_.forward(parameters_.get(), weights, in, state, false, workspace_.get(), state);
  const T* const h = network_.hidden(in, false, workspace_.get());
  if (network_.shape().output_size > 0)
    network_.decode(parameters_.get(), packed(from, Packing::decoder), h, in.batch, y);
  else
    std::copy_n(h, in.batch * network_.hidden_width(), y);
}

template <class T>
typename Model<T>::TrainResult Model<T>::train_step(const SequenceInput<T>& in,
                                                    const Token* targets, T* state,
                                                    Optimizer<T>& optimizer,
                                                    const TrainOptions& options) {
  if (in.tokens) network_.check_tokens("inputs", in.tokens, in.seq_len, in.batch);
  check_targets(targets, in.seq_len, in.batch);
  require(optimizer.elements() == network_.parameter_elements(),
          "optimizer was made for another network");
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  const Index rows = in.seq_len * in.batch, H = network_.hidden_width();
  const Index elements = network_.parameter_elements();
  const int threads = get_num_threads();
  kept_id_ = 0;
  const Source from = source(in);
  state_.reserve(state_elements(in.batch) * 2);
  T* const state_n = state_.get();
  T* const dstate = state_n + state_elements(in.batch);
  run_forward(from, in, state, true, state_n);

  Index count = 0;
  for (Index i = 0; i < rows; ++i) count += targets[i] >= 0;
  const double scale = options.mean ? (count > 0 ? 1.0 / static_cast<double>(count) : 0.0) : 1.0;
  losses_.reserve(std::max<Index>(1, rows));
  dh_.reserve(std::max<Index>(1, rows * H));
  gradients_.reserve(elements);
  workspace_.reserve(
      std::max(network_.head_elements(rows, threads), network_.backward_elements(threads)));
  std::fill_n(gradients_.get(), elements, T(0));
  network_.head(parameters_.get(), network_.hidden(in, true, tape_.get()), targets, rows,
                static_cast<T>(scale), losses_.get(), dh_.get(), gradients_.get(), threads,
                workspace_.get());
  double loss = 0;
  for (Index i = 0; i < rows; ++i) loss += static_cast<double>(losses_.get()[i]);
  loss *= scale;
  std::fill_n(dstate, state_elements(in.batch), T(0));
  run_backward(from, in, dstate, nullptr, gradients_.get());

  // Array by array, as clip_grad_norm sums a dict of gradients.
  double squares = 0;
  for (const Parameter& p : network_.parameters())
    squares += sum_of_squares(gradients_.get() + p.offset, p.elements());
  const double norm = std::sqrt(squares);
  if (!std::isfinite(loss) || !std::isfinite(norm)) return {loss, norm};
  ++version_;
  optimizer.step(parameters_.get(), gradients_.get(), options.learning_rate,
                 clip_factor(norm, options.clip_norm), options.clip_value);
  std::copy_n(state_n, state_elements(in.batch), state);
  return {loss, norm};
}

template <class T>
typename Model<T>::Evaluation Model<T>::evaluate(const SequenceInput<T>& in, const Token* targets,
                                                 T* state) {
  if (in.tokens) network_.check_tokens("inputs", in.tokens, in.seq_len, in.batch);
  check_targets(targets, in.seq_len, in.batch);
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  const Index rows = in.seq_len * in.batch;
  const int threads = get_num_threads();
  kept_id_ = 0;
  run_forward(Source{parameters_.get(), version_}, in, state, false, state);
  losses_.reserve(std::max<Index>(1, rows));
  workspace_.reserve(network_.head_elements(rows, threads));
  network_.head(parameters_.get(), network_.hidden(in, false, tape_.get()), targets, rows, T(1),
                losses_.get(), nullptr, nullptr, threads, workspace_.get());
  Evaluation result{0, 0};
  for (Index i = 0; i < rows; ++i) {
    result.loss_sum += static_cast<double>(losses_.get()[i]);
    result.count += targets[i] >= 0;
  }
  return result;
}

template <class T>
void Model<T>::sample(Index length, Index batch, const Token* first, T* state,
                      const std::uint64_t* seeds, std::uint64_t position,
                      const SamplingOptions& options, Token* drawn, Storage storage) {
  const NetworkShape& shape = network_.shape();
  require(shape.output_size > 0, "sampling takes a network with output_size");
  require(shape.output_size == shape.input_size, "sampling feeds each output back: output_size is ",
          shape.output_size, " and input_size is ", shape.input_size, ", they must be equal");
  check(options);
  network_.check_tokens("tokens", first, 1, batch);
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  const Index V = shape.output_size;
  SequenceInput<T> in{1, batch, first, nullptr};
  const Source from{parameters_.get(), version_};
  const PackedWeights<T> weights = packed_forward(from, in, storage);
  const T* const decoder = packed(from, Packing::decoder, storage);
  const Index tape = (network_.tape_elements(in, false) + 15) / 16 * 16;
  const Index logits_elements = (batch * V + 15) / 16 * 16;
  workspace_.reserve(tape + logits_elements + draw_elements<T>(V));
  T* const logits = workspace_.get() + tape;
  for (Index i = 0; i < length; ++i) {
    network_.forward(parameters_.get(), weights, in, state, false, workspace_.get(), state);
    network_.decode(parameters_.get(), decoder, network_.hidden(in, false, workspace_.get()), batch,
                    logits, storage);
    draw_tokens(logits, batch, V, seeds, position + static_cast<std::uint64_t>(i), options,
                drawn + i * batch, logits + logits_elements);
    in.tokens = drawn + i * batch;
  }
}

template <class T>
void Model<T>::update(Optimizer<T>& optimizer, const T* gradients, double learning_rate) {
  require(optimizer.elements() == network_.parameter_elements(),
          "optimizer was made for another network");
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  ++version_;
  optimizer.step(parameters_.get(), gradients, learning_rate);
}

template class Model<float>;
template class Model<double>;

}  // namespace charrnn_fast
