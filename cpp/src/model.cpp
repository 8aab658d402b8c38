#include "charrnn_fast/model.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "errors.hpp"

namespace charrnn_fast {

template <class T>
Model<T>::Model(const NetworkShape& shape, Device& device) : Model(Network<T>(shape, device)) {}

template <class T>
Model<T>::Model(Network<T> network) : network_(std::move(network)) {
  for (auto& storages : packed_)
    for (PackedCopy& copy : storages) copy.weights = AlignedBuffer<T>(*device_);
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

// A few streams read the weights as they stand; but rows of wide layers lie pages apart: reading
// those so costs more than packing.
template <class T>
bool Model<T>::packs_backward(Index batch) const {
  constexpr Index few_streams = 4, widest = 512;
  return batch > few_streams || network_.shape().hidden_size > widest;
}

template <class T>
PackedWeights<T> Model<T>::packed_backward(const Source& from, const SequenceInput<T>& in,
                                           bool dense) {
  return {packs_backward(in.batch) ? packed(from, Packing::backward) : nullptr,
          dense ? packed(from, Packing::backward_dense) : nullptr};
}

template <class T>
void Model<T>::run_forward(const Source& from, const SequenceInput<T>& in, const T* state_0,
                           bool keep, T* state_n) {
  const PackedWeights<T> weights = packed_forward(from, in);
  tape_.reserve(network_.tape_elements(in, keep));
  network_.forward(from.parameters, weights, in, state_0, keep, tape_.get(), state_n);
}

// From the gradient of the top layer's h in dh_. Where weights are left out the gradients are by
// what is left of them, until drop_gradients.
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

// ---- the caller's indices -------------------------------------------------------------------

// Another thread may change the caller's arrays during a call, so copies are checked, and nothing
// but the copies is used. What is kept for backward lies elsewhere: an error changes nothing.

// name: that of the tokens.
template <class T>
typename Model<T>::Batch Model<T>::own(const char* name, const Batch& batch) {
  Batch in = batch;
  if (in.tokens) in.tokens = own_tokens(name, batch.tokens, in.seq_len, in.batch);
  if (in.lengths) {
    given_lengths_.reserve(in.batch);
    in.lengths = std::copy_n(batch.lengths, in.batch, given_lengths_.get()) - in.batch;
    check_lengths(in);
  }
  return in;
}

template <class T>
const Token* Model<T>::own_tokens(const char* name, const Token* tokens, Index seq_len,
                                  Index batch) {
  given_tokens_.reserve(std::max<Index>(1, seq_len * batch));
  std::copy_n(tokens, seq_len * batch, given_tokens_.get());
  network_.check_tokens(name, given_tokens_.get(), seq_len, batch);
  return given_tokens_.get();
}

template <class T>
void Model<T>::check_lengths(const Batch& in) const {
  if (!in.lengths) return;
  for (Index b = 0; b < in.batch; ++b)
    require(in.lengths[b] >= 0 && in.lengths[b] <= in.seq_len, "lengths[", b, "] is ",
            in.lengths[b], ", it takes 0 to ", in.seq_len);
}

// in: own. count: of the targets that are not ignored.
template <class T>
const Token* Model<T>::own_targets(const Batch& in, const Token* targets, Index* count) {
  const Index classes = network_.shape().output_size;
  require(classes > 0, "a loss takes a network with output_size");
  given_targets_.reserve(std::max<Index>(1, in.seq_len * in.batch));
  std::copy_n(targets, in.seq_len * in.batch, given_targets_.get());
  targets = given_targets_.get();
  *count = 0;
  for (Index t = 0; t < in.seq_len; ++t)
    for (Index b = 0; b < in.batch; ++b) {
      if (in.lengths && t >= in.lengths[b]) continue;
      const Token target = targets[t * in.batch + b];
      if (target < -1 || target >= classes)
        fail("targets[", t, ", ", b, "] is ", target, ", it takes classes from 0 to ", classes - 1,
             ", or -1 to ignore");
      *count += target >= 0;
    }
  return targets;
}

// ---- sequences of different lengths ---------------------------------------------------------

// What the network takes for a batch, without the tokens or x: their rows in its order, see
// each_row. Masks number the caller's rows from first_stream on.
template <class T>
SequenceInput<T> Model<T>::sort(const Batch& in, Index first_stream) {
  SequenceInput<T> sorted{in.seq_len, in.batch, nullptr, nullptr};
  sorted.mask_seed = in.mask_seed;
  if (in.lengths) {
    order_.reserve(in.batch);
    ranks_.reserve(in.batch);
    offsets_.reserve(in.seq_len + 1);
    Index *const order = order_.get(), *const offsets = offsets_.get();
    std::iota(order, order + in.batch, Index(0));
    // Equals in the caller's order; std::stable_sort would allocate.
    std::sort(order, order + in.batch, [&](Index a, Index b) {
      return in.lengths[a] != in.lengths[b] ? in.lengths[a] > in.lengths[b] : a < b;
    });
    for (Index r = 0; r < in.batch; ++r) ranks_.get()[order[r]] = r;
    std::fill_n(offsets, in.seq_len + 1, Index(0));
    for (Index b = 0; b < in.batch; ++b)  // first the rows of each step
      for (Index t = 0; t < in.lengths[b]; ++t) ++offsets[t + 1];
    std::partial_sum(offsets, offsets + in.seq_len + 1, offsets);
    sorted.offsets = offsets;
    sorted.streams = order;
  }
  if (first_stream > 0) {
    streams_.reserve(in.batch);
    for (Index r = 0; r < in.batch; ++r)
      streams_.get()[r] = first_stream + (in.lengths ? order_.get()[r] : r);
    sorted.streams = streams_.get();
  }
  return sorted;
}

// f(row of the network, row t * B + b of the caller) for every row.
template <class T>
template <class F>
void Model<T>::each_row(const SequenceInput<T>& in, F&& f) const {
  for (Index t = 0; t < in.seq_len; ++t) {
    const Index first = in.offsets[t], rows = in.offsets[t + 1] - first;
    for (Index r = 0; r < rows; ++r) f(first + r, t * in.batch + order_.get()[r]);
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
        const Index ours = first + r * width, theirs = first + order_.get()[r] * width;
        std::copy_n(from + (back ? ours : theirs), width, to + (back ? theirs : ours));
      }
  }
}

// The batch's tokens or x as the network takes them: those of `batch`, which is own, or a copy that
// a later call finds.
template <class T>
void Model<T>::gather(const Batch& batch, bool copy, SequenceInput<T>& in) {
  const Index rows = in.rows(), I = network_.shape().input_size;
  const bool sorted = in.offsets;
  if (batch.tokens && !sorted && !copy) {
    in.tokens = batch.tokens;
  } else if (batch.tokens) {
    tokens_.reserve(std::max<Index>(1, rows));
    Token* const to = tokens_.get();
    in.tokens = to;
    if (sorted)
      each_row(in, [&](Index n, Index row) { to[n] = batch.tokens[row]; });
    else
      std::copy_n(batch.tokens, rows, to);
  } else if (sorted || copy) {
    x_.reserve(std::max<Index>(1, rows * I));
    T* const to = x_.get();
    in.x = to;
    if (sorted)
      each_row(in, [&](Index n, Index row) { std::copy_n(batch.x + row * I, I, to + n * I); });
    else
      std::copy_n(batch.x, rows * I, to);
  } else {
    in.x = batch.x;
  }
}

template <class T>
const Token* Model<T>::gather_targets(const SequenceInput<T>& in, const Token* targets) {
  if (!in.offsets) return targets;
  targets_.reserve(std::max<Index>(1, in.rows()));
  Token* const to = targets_.get();
  each_row(in, [&](Index n, Index row) { to[n] = targets[row]; });
  return to;
}

// The states that the network begins with, [S, L*D, B, R] of its rows: the caller's own, or sorted
// in state_.
template <class T>
const T* Model<T>::states_in(const SequenceInput<T>& in, const T* state_0) {
  if (!in.offsets || !state_0) return state_0;
  state_.reserve(state_elements(in.batch));
  sort_states(state_0, in.batch, false, state_.get());
  return state_.get();
}

// Those that it ends with, to the caller; `from` may be the caller's own.
template <class T>
void Model<T>::states_out(const SequenceInput<T>& in, const T* from, T* state_n) const {
  if (in.offsets)
    sort_states(from, in.batch, true, state_n);
  else if (from != state_n)
    std::copy_n(from, state_elements(in.batch), state_n);
}

// ---- forward, backward and single steps -----------------------------------------------------

template <class T>
Index Model<T>::forward(const Batch& given, const T* state_0, bool keep, T* y, T* state_n) {
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  const Batch batch = own("x", given);
  // The tape of a kept forward is overwritten; backward would read the new one.
  kept_id_ = 0;
  SequenceInput<T> in = sort(batch);
  gather(batch, keep, in);  // the caller may change its arrays before it calls backward
  const Index rows = in.rows(), all_rows = in.seq_len * in.batch, O = output_size();
  const bool sorted = in.offsets;
  if (in.mask_seed) {
    kept_mask_seed_ = *in.mask_seed;
    in.mask_seed = &kept_mask_seed_;
  }
  if (sorted) state_.reserve(state_elements(in.batch));
  T* const last = sorted ? state_.get() : state_n;
  const Source from = source(in);
  run_forward(from, in, states_in(in, state_0), keep, last);
  states_out(in, last, state_n);
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
          "backward belongs to the last forward, which another call has replaced");
  const SequenceInput<T>& in = kept_input_;
  const int threads = device_->most_parts();
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
  if (!sorted) {
    run_backward(kept_source_, in, threads, dstate, dx, gradients);
    return drop_gradients(in.mask_seed, gradients);
  }
  state_.reserve(state_elements(in.batch));
  sort_states(dstate, in.batch, false, state_.get());
  if (dx) dx_.reserve(std::max<Index>(1, rows * I));
  run_backward(kept_source_, in, threads, state_.get(), dx ? dx_.get() : nullptr, gradients);
  drop_gradients(in.mask_seed, gradients);
  sort_states(state_.get(), in.batch, true, dstate);
  if (!dx) return;
  std::fill_n(dx, all_rows * I, T(0));
  each_row(in, [&](Index n, Index row) { std::copy_n(dx_.get() + n * I, I, dx + row * I); });
}

template <class T>
void Model<T>::step(const SequenceInput<T>& given, T* state, T* y) {
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  SequenceInput<T> in = given;
  if (in.tokens) in.tokens = own_tokens("x", given.tokens, 1, in.batch);
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

// ---- training and evaluation ----------------------------------------------------------------

template <class T>
struct Model<T>::Needs {
  Index dropped, packed, tape, workspace, losses, state, gradients, dh, x;
  Index tokens, targets;
  Index indices;  // lengths and what sort makes of them
  Index bytes() const {
    const Index numbers = dropped + packed + tape + workspace + losses + state + gradients + dh + x;
    return numbers * Index(sizeof(T)) + (tokens + targets) * Index(sizeof(Token)) +
           indices * Index(sizeof(Index));
  }
};

template <class T>
typename Model<T>::Needs Model<T>::needs(const SequenceInput<T>& in, bool training,
                                         int threads) const {
  const Index rows = in.rows(), states = state_elements(in.batch);
  const Index elements = network_.parameter_elements();
  const bool sorted = in.offsets;
  const auto some = [](bool needed, Index n) { return needed ? std::max<Index>(1, n) : 0; };
  const auto copy = [&](bool needed, Packing packing) {
    return some(needed, network_.packed_elements(packing));
  };
  Needs n{};
  n.dropped = some(in.mask_seed && network_.shape().regularization.weight_drop > 0, elements);
  n.packed = copy(true, Packing::forward) + copy(in.x, Packing::forward_dense) +
             copy(training && packs_backward(in.batch), Packing::backward);
  n.tape = network_.tape_elements(in, training);
  n.workspace = std::max(network_.head_elements(rows, threads),
                         training ? network_.backward_elements(threads) : 0);
  n.losses = some(true, rows);
  n.state = training ? 2 * states : some(sorted, states);
  n.gradients = some(training, elements);
  n.dh = some(training, rows * network_.hidden_width());
  n.x = some(sorted && in.x, rows * network_.shape().input_size);
  const Index all_rows = in.seq_len * in.batch;  // of the caller's
  n.tokens = some(!in.x, all_rows) + some(sorted && !in.x, rows);
  n.targets = some(true, all_rows) + some(sorted, rows);
  n.indices = sorted ? 3 * in.batch + in.seq_len + 1 : 0;
  return n;
}

// The batch as the network takes it, and memory for its losses and, `training`, gradients.
template <class T>
SequenceInput<T> Model<T>::prepare(const Batch& batch, bool training, int threads,
                                   Index first_stream) {
  kept_id_ = 0;  // backward would read another tape
  SequenceInput<T> in = sort(batch, first_stream);
  gather(batch, false, in);
  const Needs n = needs(in, training, threads);
  tape_.reserve(n.tape);
  workspace_.reserve(n.workspace);
  losses_.reserve(n.losses);
  state_.reserve(n.state);
  gradients_.reserve(n.gradients);
  dh_.reserve(n.dh);
  return in;
}

// In the caller's order, as the loss of a padded batch adds them up.
template <class T>
double Model<T>::sum_of_losses(const SequenceInput<T>& in) const {
  const T* const losses = losses_.get();
  double sum = 0;
  if (!in.offsets) {
    for (Index i = 0; i < in.rows(); ++i) sum += static_cast<double>(losses[i]);
    return sum;
  }
  for (Index t = 0; t < in.seq_len; ++t) {
    const Index first = in.offsets[t], rows = in.offsets[t + 1] - first;
    for (Index b = 0; b < in.batch; ++b) {
      const Index rank = ranks_.get()[b];
      if (rank < rows) sum += static_cast<double>(losses[first + rank]);
    }
  }
  return sum;
}

// Adds the gradient of scale * the sum of the losses to gradients_, and returns the sum itself;
// the new states, of the network's rows, begin state_.
template <class T>
double Model<T>::add_gradients(const SequenceInput<T>& in, const Token* targets, const T* state_0,
                               double scale, int threads) {
  const Source from = source(in);
  T* const state_n = state_.get();
  T* const dstate = state_n + state_elements(in.batch);
  run_forward(from, in, states_in(in, state_0), true, state_n);
  network_.head(parameters_.get(), network_.hidden(in, true, tape_.get()),
                gather_targets(in, targets), in.rows(), static_cast<T>(scale), losses_.get(),
                dh_.get(), gradients_.get(), threads, workspace_.get());
  std::fill_n(dstate, state_elements(in.batch), T(0));
  run_backward(from, in, threads, dstate, nullptr, gradients_.get());
  return sum_of_losses(in);
}

// Updates the parameters by gradients_ * scale, unless that or the loss is not finite.
template <class T>
typename Model<T>::TrainResult Model<T>::apply(const std::uint64_t* mask_seed, double loss,
                                               double scale, Optimizer<T>& optimizer,
                                               const TrainOptions& options) {
  drop_gradients(mask_seed, gradients_.get());
  // Array by array, as clip_grad_norm sums a dict of gradients.
  double squares = 0;
  for (const Parameter& p : network_.parameters())
    squares += sum_of_squares(gradients_.get() + p.offset, p.elements());
  const TrainResult result{loss, std::sqrt(squares) * scale};
  if (!result.finite()) return result;
  ++version_;
  optimizer.step(parameters_.get(), gradients_.get(), options.learning_rate,
                 scale * clip_factor(result.gradient_norm, options.clip_norm), options.clip_value);
  return result;
}

namespace {

// What a sum of losses is multiplied by.
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
  require(optimizer.elements() == network_.parameter_elements(),
          "optimizer was made for another network");
  sum_ = {};
  const int threads = device_->most_parts();
  const SequenceInput<T> in = prepare(batch, true, threads);
  std::fill_n(gradients_.get(), network_.parameter_elements(), T(0));
  const double loss = scale * add_gradients(in, targets, state, scale, threads);
  const TrainResult result = apply(in.mask_seed, loss, 1, optimizer, options);
  if (result.finite()) states_out(in, state_.get(), state);
  return result;
}

template <class T>
typename Model<T>::Losses Model<T>::accumulate(const Batch& given, const Token* targets,
                                               const T* state_0, T* state_n) {
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  const Batch part = own("inputs", given);
  Index count;
  targets = own_targets(part, targets, &count);
  const auto mask_seed = part.mask_seed ? std::optional(*part.mask_seed) : std::nullopt;
  const bool first = sum_.version != version_;
  require(first || mask_seed == sum_.mask_seed, "mask_seed is ", text(mask_seed),
          ", it takes that of the parts before, ", text(sum_.mask_seed));
  // Where memory runs out there is no half a part in the sum.
  Sum sum = std::exchange(sum_, Sum{});
  if (first) sum = {version_, 0, 0, 0, mask_seed};
  const int threads = device_->most_parts();
  const SequenceInput<T> in = prepare(part, true, threads, sum.streams);
  if (first) std::fill_n(gradients_.get(), network_.parameter_elements(), T(0));
  const double loss = add_gradients(in, targets, state_0, 1, threads);
  states_out(in, state_.get(), state_n);
  sum.loss += loss;
  sum.count += count;
  sum.streams += part.batch;
  sum_ = sum;
  return {loss, count};
}

template <class T>
typename Model<T>::TrainResult Model<T>::update(Optimizer<T>& optimizer,
                                                const TrainOptions& options) {
  require(optimizer.elements() == network_.parameter_elements(),
          "optimizer was made for another network");
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  require(sum_.version == version_,
          "update takes what accumulate has added up since the parameters last changed, and that "
          "is nothing");
  const Sum sum = std::exchange(sum_, Sum{});
  const double scale = reduction_scale(options, sum.count);
  return apply(sum.mask_seed ? &*sum.mask_seed : nullptr, sum.loss * scale, scale, optimizer,
               options);
}

template <class T>
void Model<T>::clear_gradients() {
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  sum_ = {};
}

template <class T>
typename Model<T>::Losses Model<T>::evaluate(const Batch& given, const Token* targets, T* state) {
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  const Batch batch = own("inputs", given);
  Index count;
  targets = own_targets(batch, targets, &count);
  const int threads = device_->most_parts();
  const SequenceInput<T> in = prepare(batch, false, threads);
  T* const last = in.offsets ? state_.get() : state;
  run_forward(source(in), in, states_in(in, state), false, last);
  states_out(in, last, state);
  network_.head(parameters_.get(), network_.hidden(in, false, tape_.get()),
                gather_targets(in, targets), in.rows(), T(1), losses_.get(), nullptr, nullptr,
                threads, workspace_.get());
  return {sum_of_losses(in), count};
}

// ---- memory ---------------------------------------------------------------------------------

template <class T>
Index Model<T>::memory(const Batch& given, bool training) const {
  Batch batch = given;
  require(network_.shape().output_size > 0, "a loss takes a network with output_size");
  require(batch.seq_len >= 0, "seq_len is ", batch.seq_len, ", it takes 0 or more");
  require(batch.batch >= 1, "batch is ", batch.batch, ", it takes 1 or more");
  std::vector<Index> lengths;
  if (given.lengths) {
    lengths.assign(given.lengths, given.lengths + given.batch);
    batch.lengths = lengths.data();
  }
  check_lengths(batch);
  SequenceInput<T> in{batch.seq_len, batch.batch, batch.tokens, batch.x};
  in.mask_seed = batch.mask_seed;
  const double rows = std::max(1.0, double(batch.seq_len)) * double(batch.batch);
  if (rows > 1) {  // many take no more than as often what one takes
    Batch one = batch;
    one.seq_len = one.batch = 1, one.lengths = nullptr;
    require(rows * double(memory(one, training)) < 0x1p62, "seq_len ", batch.seq_len, " and batch ",
            batch.batch, " make an impossibly large batch");
  }
  std::vector<Index> offsets;  // only the last is looked at
  if (batch.lengths) {
    offsets.resize(static_cast<std::size_t>(batch.seq_len) + 1);
    offsets.back() = std::accumulate(lengths.begin(), lengths.end(), Index(0));
    in.offsets = offsets.data();
  }
  return network_.parameter_elements() * Index(sizeof(T)) +
         needs(in, training, device_->most_parts()).bytes();
}

template <class T>
Index Model<T>::held_memory() {
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  Index bytes = 0;
  const auto add = [&](const auto&... buffers) {
    ((bytes += buffers.size() * Index(sizeof *buffers.get())), ...);
  };
  add(parameters_, dropped_, tape_, workspace_, gradients_, dh_, state_, losses_, x_, dx_, y_,
      given_tokens_, given_targets_, given_lengths_, tokens_, targets_, order_, ranks_, offsets_,
      streams_);
  for (const auto& storages : packed_)
    for (const PackedCopy& copy : storages) add(copy.weights);
  return bytes;
}

// ---- sampling and updates by hand -----------------------------------------------------------

template <class T>
void Model<T>::sample(Index length, Index batch, const Token* first, T* state,
                      const std::uint64_t* seeds, std::uint64_t position,
                      const SamplingOptions& options, Token* drawn, Storage storage) {
  const NetworkShape& shape = network_.shape();
  require(shape.output_size > 0, "sampling takes a network with output_size");
  require(shape.output_size == shape.input_size, "sampling feeds each output back: output_size is ",
          shape.output_size, " and input_size is ", shape.input_size, ", they must be equal");
  check(options);
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  const Index V = shape.output_size;
  SequenceInput<T> in{1, batch, own_tokens("tokens", first, 1, batch), nullptr};
  const Source from{parameters_.get(), version_};
  const PackedWeights<T> weights = packed_forward(from, in, storage);
  const T* const decoder = packed(from, Packing::decoder, storage);
  const Index tape = (network_.tape_elements(in, false) + 15) / 16 * 16;
  const Index logits_elements = (batch * V + 15) / 16 * 16;
  workspace_.reserve(tape + logits_elements + draw_elements<T>(V));
  T* const logits = workspace_.get() + tape;
  Token* const tokens = given_tokens_.get();  // those that in points to
  for (Index i = 0; i < length; ++i) {
    network_.forward(parameters_.get(), weights, in, state, false, workspace_.get(), state);
    network_.decode(parameters_.get(), decoder, network_.hidden(in, false, workspace_.get()), batch,
                    logits, storage);
    draw_tokens(logits, batch, V, seeds, position + static_cast<std::uint64_t>(i), options, tokens,
                logits + logits_elements);
    std::copy_n(tokens, batch, drawn + i * batch);
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
