#include "charrnn_fast/model.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "draws.hpp"
#include "errors.hpp"
#include "model_common.hpp"
#include "squares.hpp"

namespace charrnn_fast {

template <class T>
Model<T>::Model(const NetworkShape& shape, Device& device) : Model(Network<T>(shape, device)) {}

template <class T>
Model<T>::Model(Network<T> network) : network_(std::move(network)) {
  for (auto& storages : packed_)
    for (PackedCopy& copy : storages) copy.weights = AlignedBuffer<T>(*device_);
  parameters_.reserve(network_.parameter_elements());
  device_->zero(parameters_.get(), network_.parameter_elements());
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
  return {network_.packs_backward(from.parameters, in.batch) ? packed(from, Packing::backward)
                                                             : nullptr,
          dense ? packed(from, Packing::backward_dense) : nullptr};
}

template <class T>
void Model<T>::run_forward(const Source& from, const SequenceInput<T>& in, const T* state_0,
                           bool keep, T* state_n, Storage storage) {
  const PackedWeights<T> weights = packed_forward(from, in, storage);
  tape_.reserve(network_.tape_elements(in, keep));
  workspace_.reserve(network_.forward_elements(in));
  network_.forward(from.parameters, weights, in, state_0, keep, tape_.get(), state_n,
                   workspace_.get());
}

// Starts from the gradient of the top layer's h in dh_. With weight drop, the gradients are by the
// dropped weights until drop_gradients.
template <class T>
void Model<T>::run_backward(const Source& from, const SequenceInput<T>& in, int threads, T* dstate,
                            T* dx, T* gradients) {
  network_.backward(from.parameters, packed_backward(from, in, dx != nullptr), in, tape_.get(),
                    dh_.get(), dstate, dx, gradients, threads, workspace_.get());
}
template <class T>
void Model<T>::drop_gradients(const std::uint64_t* mask_seed, T* gradients) const {
  if (mask_seed && network_.shape().regularization.weight_drop > 0)
    network_.drop_weights_backward(*mask_seed, gradients);
}

// ---- forward, backward and single steps -----------------------------------------------------

template <class T>
Index Model<T>::forward(const Batch& given, const T* state_0, bool keep, T* y, T* state_n) {
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  const Batch batch = own("x", given);
  // The tape of a kept forward is overwritten: backward must not use it.
  kept_id_ = 0;
  SequenceInput<T> in = sort(batch);
  gather(batch, keep, in);  // the caller may change its arrays before backward
  const Index rows = in.rows(), O = output_size();
  if (in.mask_seed) {
    kept_mask_seed_ = *in.mask_seed;
    in.mask_seed = &kept_mask_seed_;
  }
  const Source from = source(in);
  if (!direct(in)) state_.reserve(state_elements(in.batch));
  T* const last = direct(in) ? state_n : state_.get();
  run_forward(from, in, states_in(in, state_0), keep, last);
  states_out(in, last, state_n);
  const T* result = network_.hidden(in, keep, tape_.get());
  if (network_.shape().output_size > 0) {
    if (!direct(in)) y_.reserve(std::max<Index>(1, rows * O));
    T* const to = direct(in) ? y : y_.get();
    network_.decode(packed(from, Packing::decoder), result, rows, to);
    result = to;
  }
  rows_out(in, result, O, y);
  if (!keep) return 0;
  kept_input_ = in;
  kept_source_ = from;
  kept_version_ = version_;
  return kept_id_ = ++num_kept_;
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
          "backward must follow its own forward, got a later one from another call");
  const SequenceInput<T>& in = kept_input_;
  const int threads = device_->most_parts();
  const Index rows = in.rows(), H = network_.hidden_width(), I = network_.shape().input_size;
  const Index elements = network_.parameter_elements();
  const bool decoder = network_.shape().output_size > 0;
  T* into = gradients;
  if (!device_->is_host) {
    given_gradients_.reserve(elements);
    into = given_gradients_.get();
  }
  device_->zero(into, elements);
  dh_.reserve(std::max<Index>(1, rows * H));
  workspace_.reserve(std::max(decoder ? network_.decode_backward_elements(threads) : 0,
                              network_.backward_elements(in, threads)));
  if (!dy)
    device_->zero(dh_.get(), rows * H);
  else if (decoder)
    network_.decode_backward(kept_source_.parameters, network_.hidden(in, true, tape_.get()),
                             rows_in(in, dy, output_size(), false, y_), rows, dh_.get(), into,
                             threads, workspace_.get());
  else
    rows_in(in, dy, H, true, dh_);
  states_in(in, dstate);
  T* const carried = direct(in) ? dstate : state_.get();
  if (dx && !direct(in)) dx_.reserve(std::max<Index>(1, rows * I));
  T* const dx_rows = !dx || direct(in) ? dx : dx_.get();
  run_backward(kept_source_, in, threads, carried, dx_rows, into);
  drop_gradients(in.mask_seed, into);
  states_out(in, carried, dstate);
  if (dx) rows_out(in, dx_rows, I, dx);
  if (into != gradients) device_->download(into, elements, gradients);
}

template <class T>
void Model<T>::read(const Batch& given, T* state, Storage storage) {
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  const Batch batch = own("x", given);
  kept_id_ = 0;  // its tape is overwritten
  SequenceInput<T> in = sort(batch);
  gather(batch, false, in);
  if (!direct(in)) state_.reserve(state_elements(in.batch));
  T* const last = direct(in) ? state : state_.get();
  run_forward(source(in), in, states_in(in, state), false, last, storage);
  states_out(in, last, state);
}

template <class T>
void Model<T>::step(const SequenceInput<T>& given, T* state, T* y) {
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  SequenceInput<T> in = given;
  if (in.tokens) {
    own_tokens("x", given.tokens, in.batch);
    in.tokens = given_tokens_.upload(in.batch);
  }
  const Index outputs = in.batch * output_size();
  Index states = 0;
  T *carried = state, *result = y;
  if (!device_->is_host) {
    states = state_elements(in.batch);
    const Index inputs = in.x ? in.batch * network_.shape().input_size : 0;
    staged_.reserve(states + outputs + inputs);
    carried = staged_.get(), result = carried + states;
    T* const x = result + outputs;
    device_->upload(state, states, carried);
    device_->upload(in.x, inputs, x);
    if (in.x) in.x = x;
  }
  // A tape of its own: step may be called between forward and backward.
  const Source from{parameters_.get(), version_};
  const PackedWeights<T> weights = packed_forward(from, in);
  const Index workspace = network_.forward_elements(in);
  workspace_.reserve(workspace + network_.tape_elements(in, false));
  T* const tape = workspace_.get() + workspace;
  network_.forward(parameters_.get(), weights, in, carried, false, tape, carried, workspace_.get());
  const T* const h = network_.hidden(in, false, tape);
  if (network_.shape().output_size > 0)
    network_.decode(packed(from, Packing::decoder), h, in.batch, result);
  else
    device_->copy(h, outputs, result);
  if (device_->is_host) return;
  device_->download(carried, states, state);
  device_->download(result, outputs, y);
}

// ---- training and evaluation ----------------------------------------------------------------

// In the caller's order: the order of a padded batch's loss. Into numbers_[0]; stream_sums: of the
// device, or null.
template <class T>
void Model<T>::add_up_losses(const SequenceInput<T>& in, double* stream_sums) const {
  const Index* const ranks = in.offsets ? ranks_.there() : nullptr;
  kernels_of<T>(*device_).sum_losses(
      LossSumArgs<T>{steps_of(in), ranks, losses_.get(), numbers_.get(), stream_sums});
}

template <class T>
double Model<T>::first_number() const {
  double number;
  device_->download(numbers_.get(), 1, &number);
  return number;
}

// Array by array, as clip_grad_norm sums a dict of gradients.
template <class T>
double Model<T>::sum_of_gradient_squares() const {
  const auto& parameters = network_.parameters();
  const auto count = static_cast<Index>(parameters.size());
  double *const sums = numbers_.get() + 1, *const chunks = sums + count;
  for (Index i = 0; i < count; ++i) {
    const Parameter& p = parameters[static_cast<std::size_t>(i)];
    sum_of_squares(*device_, gradients_.get() + p.offset, p.elements(), chunks, sums + i);
  }
  kernels_of<T>(*device_).add_up(sums, count, numbers_.get());
  return first_number();
}

// Adds the gradient of scale * the sum of the losses to gradients_; the sum is in numbers_[0]. The
// new states, in the network's row order, are at the start of state_.
template <class T>
void Model<T>::add_gradients(const SequenceInput<T>& in, const Token* targets, const T* state_0,
                             double scale, int threads) {
  const Source from = source(in);
  T* const state_n = state_.get();
  T* const dstate = state_n + state_elements(in.batch);
  run_forward(from, in, states_in(in, state_0), true, state_n);
  network_.head(parameters_.get(), network_.hidden(in, true, tape_.get()),
                gather_targets(in, targets), in.rows(), static_cast<T>(scale), losses_.get(),
                dh_.get(), gradients_.get(), threads, workspace_.get());
  device_->zero(dstate, state_elements(in.batch));
  run_backward(from, in, threads, dstate, nullptr, gradients_.get());
  add_up_losses(in);
}

template <class T>
void Model<T>::check_optimizer(const Optimizer<T>& optimizer) const {
  require(optimizer.elements() == network_.parameter_elements() && &optimizer.device() == device_,
          "optimizer must be made for this network, got one of another");
}

// Updates the parameters by gradients_ * scale, unless that or the loss is not finite. The loss is
// loss_scale * the sum of the losses: loss_sum, or if that is null numbers_[0].
template <class T>
typename Model<T>::TrainResult Model<T>::apply(const std::uint64_t* mask_seed,
                                               const double* loss_sum, double loss_scale,
                                               double scale, Optimizer<T>& optimizer,
                                               const TrainOptions& options) {
  drop_gradients(mask_seed, gradients_.get());
  if (kernels_of<T>(*device_).control)
    return apply_there(loss_sum, loss_scale, scale, optimizer, options);
  const double loss = loss_scale * (loss_sum ? *loss_sum : first_number());
  const TrainResult result{loss, std::sqrt(sum_of_gradient_squares()) * scale};
  if (!result.finite()) return result;
  ++version_;
  optimizer.step(parameters_.get(), gradients_.get(), options.learning_rate,
                 scale * clip_factor(result.gradient_norm, options.clip_norm), options.clip_value);
  return result;
}

// The same on a device that decides by itself: the host reads the loss and the norm once, after the
// update.
template <class T>
typename Model<T>::TrainResult Model<T>::apply_there(const double* loss_sum, double loss_scale,
                                                     double scale, Optimizer<T>& optimizer,
                                                     const TrainOptions& options) {
  const Index arrays = static_cast<Index>(network_.parameters().size());
  const Index chunks = gradient_chunks(), numbers = 2 * chunks + arrays + 1;
  if (control_.size() == 0) {  // the chunks do not change
    control_.reserve(numbers + control_numbers);
    Index *chunk = control_.get(), *first = chunk + 2 * chunks;
    for (const Parameter& p : network_.parameters()) {
      *first++ = (chunk - control_.get()) / 2;
      for (Index i = 0; i < p.elements(); i += square_chunk) {
        *chunk++ = p.offset + i;
        *chunk++ = p.offset + std::min(i + square_chunk, p.elements());
      }
    }
    *first++ = chunks;
    std::fill_n(first, control_numbers, Index(0));
    control_.upload(numbers + control_numbers);
  }
  Index* const there = control_.there();
  double* const sums = numbers_.get();
  auto* const control = reinterpret_cast<UpdateControl<T>*>(there + numbers + 1);
  kernels_of<T>(*device_).control(ControlArgs<T>{
      .gradients = gradients_.get(),
      .num_arrays = arrays,
      .num_chunks = chunks,
      .chunks = there,
      .arrays = there + 2 * chunks,
      .sums = sums + 2,
      .sum_of_squares = sums + 1,
      .finished = reinterpret_cast<std::uint32_t*>(there + numbers),
      .loss_sum = loss_sum ? nullptr : sums,
      .loss = loss_sum ? *loss_sum : 0,
      .loss_scale = loss_scale,
      .scale = scale,
      .clip_norm = options.clip_norm,
      .control = control,
  });
  optimizer.launch(parameters_.get(), gradients_.get(), options.learning_rate, 1,
                   options.clip_value, control);
  double read[2];
  device_->download(sums, 2, read);
  const TrainResult result{loss_scale * (loss_sum ? *loss_sum : read[0]),
                           std::sqrt(read[1]) * scale};
  if (!result.finite()) return result;
  ++version_;
  optimizer.set_num_steps(optimizer.num_steps() + 1);
  return result;
}

namespace {

// The factor of a sum of losses.
double reduction_scale(const TrainOptions& options, Index count) {
  if (!options.mean) return 1;
  return count > 0 ? 1.0 / static_cast<double>(count) : 0.0;
}

std::string text(const std::optional<std::uint64_t>& seed) {
  return seed ? std::to_string(*seed) : "none";
}

}  // namespace

template <class T>
typename Model<T>::TrainResult Model<T>::train_step(const Batch& given, const Token* targets,
                                                    T* state, Optimizer<T>& optimizer,
                                                    const TrainOptions& options) {
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  const Batch batch = own("inputs", given);
  Index count;
  targets = own_targets(batch, targets, &count);
  const double scale = reduction_scale(options, count);
  check_optimizer(optimizer);
  sum_ = {};
  const int threads = device_->most_parts();
  const SequenceInput<T> in = prepare(batch, true, threads);
  device_->zero(gradients_.get(), network_.parameter_elements());
  add_gradients(in, targets, state, scale, threads);
  const TrainResult result = apply(in.mask_seed, nullptr, scale, 1, optimizer, options);
  if (result.finite()) states_out(in, state_.get(), state);
  return result;
}

template <class T>
typename Model<T>::Losses Model<T>::accumulate(const Batch& given, const Token* targets,
                                               const T* state_0, T* state_n) {
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  const Batch micro_batch = own("inputs", given);
  Index count;
  targets = own_targets(micro_batch, targets, &count);
  const auto mask_seed =
      micro_batch.mask_seed ? std::optional(*micro_batch.mask_seed) : std::nullopt;
  const bool first = sum_.version != version_;
  require(first || mask_seed == sum_.mask_seed,
          "mask_seed must be that of the other micro-batches, ", text(sum_.mask_seed), ", got ",
          text(mask_seed));
  // If memory runs out, the sum must not hold half a micro-batch.
  Sum sum = std::exchange(sum_, Sum{});
  if (first) sum = {version_, 0, 0, 0, mask_seed};
  const int threads = device_->most_parts();
  const SequenceInput<T> in = prepare(micro_batch, true, threads, sum.streams);
  if (first) device_->zero(gradients_.get(), network_.parameter_elements());
  add_gradients(in, targets, state_0, 1, threads);
  const double loss = first_number();
  states_out(in, state_.get(), state_n);
  sum.loss += loss;
  sum.count += count;
  sum.streams += micro_batch.batch;
  sum_ = sum;
  return {loss, count};
}

template <class T>
typename Model<T>::TrainResult Model<T>::update(Optimizer<T>& optimizer,
                                                const TrainOptions& options) {
  check_optimizer(optimizer);
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  check_accumulated("update");
  const Sum sum = std::exchange(sum_, Sum{});
  const double scale = reduction_scale(options, sum.count);
  return apply(sum.mask_seed ? &*sum.mask_seed : nullptr, &sum.loss, scale, scale, optimizer,
               options);
}

template <class T>
void Model<T>::clear_gradients() {
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  sum_ = {};
}

template <class T>
void Model<T>::check_accumulated(const char* name) const {
  require(sum_.version == version_, name,
          " must follow accumulate, got no gradients since the parameters last changed");
}

template <class T>
typename Model<T>::Accumulated Model<T>::accumulated() {
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  check_accumulated("accumulated");
  return {gradients_.get(), {sum_.loss, sum_.count}};
}

template <class T>
void Model<T>::set_accumulated(const Losses& losses) {
  require(losses.count >= 0, "count must be >= 0, got ", losses.count);
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  check_accumulated("set_accumulated");
  sum_.loss = losses.loss_sum;
  sum_.count = losses.count;
}

template <class T>
typename Model<T>::Losses Model<T>::evaluate(const Batch& given, const Token* targets, T* state,
                                             double* stream_losses) {
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  const Batch batch = own("inputs", given);
  Index count;
  targets = own_targets(batch, targets, &count);
  const int threads = device_->most_parts();
  const SequenceInput<T> in = prepare(batch, false, threads);
  T* const last = direct(in) ? state : state_.get();
  run_forward(source(in), in, states_in(in, state), false, last);
  states_out(in, last, state);
  network_.head(parameters_.get(), network_.hidden(in, false, tape_.get()),
                gather_targets(in, targets), in.rows(), T(1), losses_.get(), nullptr, nullptr,
                threads, workspace_.get());
  double* const sums = stream_losses ? numbers_.get() + 1 : nullptr;
  add_up_losses(in, sums);
  if (sums) device_->download(sums, in.batch, stream_losses);
  return {first_number(), count};
}

// ---- sampling and updates by hand -----------------------------------------------------------

template <class T>
void Model<T>::check_samples() const {
  const NetworkShape& shape = network_.shape();
  require(shape.output_size > 0, "output_size of a network that samples must be >= 1, got 0");
  require(shape.output_size == shape.input_size,
          "output_size of a network that samples must be its "
          "input_size, ",
          shape.input_size, ", got ", shape.output_size);
}

template <class T>
void Model<T>::sample(Index length, Index batch, const Token* first, T* state,
                      const std::uint64_t* seeds, std::uint64_t position,
                      const SamplingOptions& options, Token* drawn, Storage storage,
                      Token* recent) {
  check(options);
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  sampled_.reserve(batch);
  for (Index b = 0; b < batch; ++b) sampled_.get()[b] = {seeds[b], position, options};
  sample_streams(length, batch, first, state, drawn, storage, recent);
}

template <class T>
void Model<T>::sample(Index length, Index batch, const Token* first, T* state,
                      const StreamSampling* streams, Token* drawn, Storage storage, Token* recent) {
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  sampled_.reserve(batch);
  for (Index b = 0; b < batch; ++b) check((sampled_.get()[b] = streams[b]).options);
  sample_streams(length, batch, first, state, drawn, storage, recent);
}

// With the streams that sampled_ has.
template <class T>
void Model<T>::sample_streams(Index length, Index batch, const Token* first, T* state, Token* drawn,
                              Storage storage, Token* recent) {
  check_samples();
  const Index V = network_.shape().output_size;
  // With a penalty the recent tokens stand before those drawn, so that each draw has its window.
  Index window = 0;
  bool penalizes = false;
  for (Index b = 0; b < batch; ++b) {
    const SamplingOptions& o = sampled_.get()[b].options;
    penalizes |= o.repetition_penalty > 1;
    window = std::max(window, o.repetition_window);
  }
  const Index before = penalizes ? window * batch : 0;
  if (recent && penalizes) {
    given_targets_.reserve(before);  // a checked copy
    std::copy_n(recent, before, given_targets_.get());
    for (Index i = 0; i < before; ++i)
      require(given_targets_.get()[i] >= -1 && given_targets_.get()[i] < V, "recent[", i / batch,
              ", ", i % batch, "] must be in -1 to ", V - 1, ", got ", given_targets_.get()[i]);
  }
  own_tokens("tokens", first, batch);
  Token* const tokens = given_tokens_.upload(batch);  // drawn tokens replace those fed
  const SequenceInput<T> in{1, batch, tokens, nullptr};
  const Index states = state_elements(batch);
  T* carried = state;
  Token* to = drawn;
  if (!device_->is_host || penalizes) {
    drawn_.reserve(std::max<Index>(1, before + length * batch));
    to = drawn_.get() + before;
  }
  if (!device_->is_host) {
    state_.reserve(states);
    device_->upload(state, states, state_.get());
    carried = state_.get();
  }
  if (penalizes) {
    if (!recent) {
      given_targets_.reserve(before);
      std::fill_n(given_targets_.get(), before, Token(-1));
    }
    device_->upload(given_targets_.get(), before, drawn_.get());
  }
  const Source from{parameters_.get(), version_};
  const PackedWeights<T> weights = packed_forward(from, in, storage);
  const T* const decoder = packed(from, Packing::decoder, storage);
  const Kernels<T>& k = kernels_of<T>(*device_);
  const Index workspace = network_.forward_elements(in);
  const Index tape_elements = (network_.tape_elements(in, false) + 15) / 16 * 16;
  const Index logits_elements = (batch * V + 15) / 16 * 16;
  workspace_.reserve(workspace + tape_elements + logits_elements + k.draw_scratch(V, batch));
  T *const tape = workspace_.get() + workspace, *const logits = tape + tape_elements;
  double failure[3] = {-1, -1, -1};
  numbers_.reserve(3);
  device_->upload(failure, 3, numbers_.get());
  DrawArgs<T> draw{};
  draw.logits = logits;
  draw.vocab_size = V;
  draw.streams = sampled_.upload(batch);
  draw.tokens = tokens;
  draw.scratch = logits + logits_elements;
  draw.failure = numbers_.get();
  draw.drawn = to;
  draw.recent_stride = batch;
  draw.window = penalizes ? window : 0;
  const bool at_once = !penalizes && network_.sample(parameters_.get(), weights, decoder, length,
                                                     batch, carried, draw, tape);
  if (at_once) device_->download(numbers_.get(), 3, failure);
  check_draw<T>(failure);
  for (Index i = 0; i < length && !at_once; ++i) {
    network_.forward(parameters_.get(), weights, in, carried, false, tape, carried,
                     workspace_.get());
    network_.decode(decoder, network_.hidden(in, false, tape), batch, logits, storage);
    draw.step = static_cast<std::uint64_t>(i);
    draw.drawn = to + i * batch;
    if (penalizes) draw.recent = draw.drawn - before;
    k.draw(draw, {0, batch});
    // Reading another device's memory would wait for it.
    if (!device_->is_host && i + 1 < length) continue;
    device_->download(numbers_.get(), 3, failure);
    check_draw<T>(failure);
  }
  if (recent && penalizes) device_->download(drawn_.get() + length * batch, before, recent);
  if (to != drawn) device_->download(to, length * batch, drawn);
  if (!device_->is_host) device_->download(carried, states, state);
}

template <class T>
void Model<T>::next(Index batch, const Token* tokens, T* state, T* log_probabilities,
                    Storage storage) {
  check_samples();
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  const Index V = network_.shape().output_size, states = state_elements(batch);
  own_tokens("tokens", tokens, batch);
  const SequenceInput<T> in{1, batch, given_tokens_.upload(batch), nullptr};
  T *carried = state, *result = log_probabilities;
  if (!device_->is_host) {
    staged_.reserve(states + batch * V);
    carried = staged_.get(), result = carried + states;
    device_->upload(state, states, carried);
  }
  // A tape of its own, as for step.
  const Source from{parameters_.get(), version_};
  const PackedWeights<T> weights = packed_forward(from, in, storage);
  const T* const decoder = packed(from, Packing::decoder, storage);
  const Index workspace = network_.forward_elements(in);
  workspace_.reserve(workspace + network_.tape_elements(in, false));
  T* const tape = workspace_.get() + workspace;
  network_.forward(parameters_.get(), weights, in, carried, false, tape, carried, workspace_.get());
  network_.decode(decoder, network_.hidden(in, false, tape), batch, result, storage);
  kernels_of<T>(*device_).log_softmax(LogSoftmaxArgs<T>{result, V, result}, {0, batch});
  if (!device_->is_host) {
    device_->download(carried, states, state);
    device_->download(result, batch * V, log_probabilities);
  }
  for (Index i = 0; i < batch * V; ++i)
    require(log_probabilities[i] == log_probabilities[i],
            "logits must be finite, got some that are not: the weights are damaged");
}

template <class T>
void Model<T>::update(Optimizer<T>& optimizer, const T* gradients, double learning_rate) {
  check_optimizer(optimizer);
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  ++version_;
  if (!device_->is_host) {
    given_gradients_.reserve(network_.parameter_elements());
    device_->upload(gradients, network_.parameter_elements(), given_gradients_.get());
    gradients = given_gradients_.get();
  }
  optimizer.step(parameters_.get(), gradients, learning_rate);
}

template class Model<float>;
template class Model<double>;

}  // namespace charrnn_fast
