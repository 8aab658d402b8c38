#include "charrnn_fast/model.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

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
  const NetworkShape& shape = network_.shape();
  return shape.output_size > 0 ? shape.output_size : shape.hidden_size;
}

template <class T>
Index Model<T>::state_elements(Index batch) const {
  return network_.num_states() * network_.shape().num_layers * batch * network_.shape().hidden_size;
}

template <class T>
const T* Model<T>::packed(Packing packing, Storage storage) {
  PackedCopy& copy = packed_[static_cast<int>(packing)][static_cast<int>(storage)];
  if (copy.version != version_) {
    copy.weights.reserve(std::max<Index>(1, network_.packed_elements(packing, storage)));
    network_.pack(packing, parameters_.get(), copy.weights.get(), storage);
    copy.version = version_;
  }
  return copy.weights.get();
}

template <class T>
PackedWeights<T> Model<T>::packed_forward(const SequenceInput<T>& in, Storage storage) {
  return {packed(Packing::forward, storage),
          in.x ? packed(Packing::forward_dense, storage) : nullptr, storage};
}

template <class T>
PackedWeights<T> Model<T>::packed_backward(const SequenceInput<T>& in, bool dense) {
  // Rows of wide layers lie pages apart: reading those as they stand costs more than packing.
  constexpr Index few_streams = 4, widest = 512;
  const bool as_they_stand = in.batch <= few_streams && network_.shape().hidden_size <= widest;
  return {as_they_stand ? nullptr : packed(Packing::backward),
          dense ? packed(Packing::backward_dense) : nullptr};
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
void Model<T>::run_forward(const SequenceInput<T>& in, const T* state_0, bool keep, T* state_n) {
  const PackedWeights<T> weights = packed_forward(in);
  tape_.reserve(network_.tape_elements(in, keep));
  network_.forward(parameters_.get(), weights, in, state_0, keep, tape_.get(), state_n);
}

template <class T>
void Model<T>::forward(const SequenceInput<T>& in, const T* state_0, bool keep, T* y, T* state_n) {
  if (in.tokens) network_.check_tokens("x", in.tokens, in.seq_len, in.batch);
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  const Index rows = in.seq_len * in.batch;
  // The tape of a kept forward is overwritten; backward would read the new one.
  kept_id_ = 0;
  run_forward(in, state_0, keep, state_n);
  const T* const h = network_.hidden(in, keep, tape_.get());
  if (network_.shape().output_size > 0)
    network_.decode(parameters_.get(), packed(Packing::decoder), h, rows, y);
  else if (rows > 0)
    std::memcpy(y, h, static_cast<std::size_t>(rows * network_.shape().hidden_size) * sizeof(T));
  if (!keep) return;
  // The caller may change its arrays before it calls backward.
  SequenceInput<T> kept{in.seq_len, in.batch, nullptr, nullptr};
  if (in.tokens) {
    tokens_.reserve(std::max<Index>(1, rows));
    std::copy_n(in.tokens, rows, tokens_.get());
    kept.tokens = tokens_.get();
  } else {
    const Index n = rows * network_.shape().input_size;
    x_.reserve(std::max<Index>(1, n));
    std::copy_n(in.x, n, x_.get());
    kept.x = x_.get();
  }
  kept_input_ = kept;
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
  const Index rows = in.seq_len * in.batch, H = network_.shape().hidden_size;
  std::fill_n(gradients, network_.parameter_elements(), T(0));
  dh_.reserve(std::max<Index>(1, rows * H));
  const Index decoder =
      network_.shape().output_size > 0 ? network_.decode_backward_elements(threads) : 0;
  workspace_.reserve(std::max(decoder, network_.backward_elements(threads)));
  if (network_.shape().output_size > 0)
    network_.decode_backward(parameters_.get(), network_.hidden(in, true, tape_.get()), dy, rows,
                             dh_.get(), gradients, threads, workspace_.get());
  else
    std::copy_n(dy, rows * H, dh_.get());
  const PackedWeights<T> weights = packed_backward(in, dx != nullptr);
  network_.backward(parameters_.get(), weights, in, tape_.get(), dh_.get(), dstate, dx, gradients,
                    threads, workspace_.get());
}

template <class T>
void Model<T>::step(const SequenceInput<T>& in, T* state, T* y) {
  if (in.tokens) network_.check_tokens("x", in.tokens, 1, in.batch);
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  // A tape of its own: step may be called between forward and backward.
  const PackedWeights<T> weights = packed_forward(in);
  workspace_.reserve(network_.tape_elements(in, false));
  network_.forward(parameters_.get(), weights, in, state, false, workspace_.get(), state);
  const T* const h = network_.hidden(in, false, workspace_.get());
  if (network_.shape().output_size > 0)
    network_.decode(parameters_.get(), packed(Packing::decoder), h, in.batch, y);
  else
    std::copy_n(h, in.batch * network_.shape().hidden_size, y);
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
  const Index rows = in.seq_len * in.batch, H = network_.shape().hidden_size;
  const Index elements = network_.parameter_elements();
  const int threads = get_num_threads();
  kept_id_ = 0;
  state_.reserve(state_elements(in.batch) * 2);
  T* const state_n = state_.get();
  T* const dstate = state_n + state_elements(in.batch);
  run_forward(in, state, true, state_n);

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
  network_.backward(parameters_.get(), packed_backward(in, false), in, tape_.get(), dh_.get(),
                    dstate, nullptr, gradients_.get(), threads, workspace_.get());

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
  run_forward(in, state, false, state);
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
  const PackedWeights<T> weights = packed_forward(in, storage);
  const T* const decoder = packed(Packing::decoder, storage);
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
