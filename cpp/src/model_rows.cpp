// A Model's copies of the caller's arrays: checked tokens, targets and lengths; rows and states in
// the network's order, in the device's memory.
#include <algorithm>
#include <numeric>

#include "charrnn_fast/model.hpp"
#include "errors.hpp"
#include "model_common.hpp"

namespace charrnn_fast {

// Another thread may change the caller's arrays during a call: so copies are checked and only they
// are used. What is kept for backward is elsewhere: an error changes nothing.

// name: of the tokens, for errors.
template <class T>
typename Model<T>::Batch Model<T>::own(const char* name, const Batch& batch) {
  Batch in = batch;
  if (in.tokens) {
    own_tokens(name, batch.tokens, in.seq_len, in.batch);
    in.tokens = given_tokens_.get();
  }
  if (in.lengths) {
    given_lengths_.reserve(in.batch);
    in.lengths = std::copy_n(batch.lengths, in.batch, given_lengths_.get()) - in.batch;
    check_lengths(in);
  }
  check_streams(in);
  return in;
}

template <class T>
void Model<T>::own_tokens(const char* name, const Token* tokens, Index rows, Index cols) {
  const Index n = rows * std::max<Index>(1, cols);
  given_tokens_.reserve(std::max<Index>(1, n));
  std::copy_n(tokens, n, given_tokens_.get());
  network_.check_tokens(name, given_tokens_.get(), rows, cols);
}

template <class T>
void Model<T>::check_lengths(const Batch& in) const {
  if (!in.lengths) return;
  for (Index b = 0; b < in.batch; ++b)
    require(in.lengths[b] >= 0 && in.lengths[b] <= in.seq_len, "lengths[", b, "] must be in 0 to ",
            in.seq_len, ", got ", in.lengths[b]);
}

// A mask draws by the low 32 bits of a stream's number. Unlike lengths, a number that is changed
// after the check can only draw another mask: there is no copy.
template <class T>
void Model<T>::check_streams(const Batch& in) const {
  constexpr Index end = Index(1) << 32;
  for (Index b = 0; in.streams && b < in.batch; ++b)
    require(in.streams[b] >= 0 && in.streams[b] < end, "streams[", b, "] must be in 0 to ", end - 1,
            ", got ", in.streams[b]);
}

// in: checked copies. count: number of targets that are not ignored.
template <class T>
const Token* Model<T>::own_targets(const Batch& in, const Token* targets, Index* count) {
  const Index classes = network_.shape().output_size;
  require(classes > 0, "output_size of a network with a loss must be >= 1, got 0");
  given_targets_.reserve(std::max<Index>(1, in.seq_len * in.batch));
  std::copy_n(targets, in.seq_len * in.batch, given_targets_.get());
  targets = given_targets_.get();
  // First without branches, for vectors. Only if a target is bad, find it.
  bool good = true;
  Index counted = 0;
  const auto counts = [&](Index t, Index b) { return !in.lengths || t < in.lengths[b]; };
  const auto is_good = [&](Token target) { return target >= -1 && target < classes; };
  for (Index t = 0; t < in.seq_len; ++t)
    for (Index b = 0; b < in.batch; ++b) {
      const Token target = targets[t * in.batch + b];
      const bool used = counts(t, b);
      good &= !used | is_good(target);
      counted += used & (target >= 0);
    }
  *count = counted;
  if (good) return targets;
  for (Index t = 0; t < in.seq_len; ++t)
    for (Index b = 0; b < in.batch; ++b) {
      const Token target = targets[t * in.batch + b];
      require(!counts(t, b) || is_good(target), "targets[", t, ", ", b, "] must be in -1 to ",
              classes - 1, ", got ", target);
    }
  return targets;
}

// ---- sequences of different lengths ---------------------------------------------------------

// The network's input for a batch, without tokens or x: each_row gives their rows in the network's
// order. Masks number the caller's rows by its streams, or from first_stream.
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
    // Equal lengths in the caller's order; std::stable_sort would allocate.
    std::sort(order, order + in.batch, [&](Index a, Index b) {
      return in.lengths[a] != in.lengths[b] ? in.lengths[a] > in.lengths[b] : a < b;
    });
    for (Index r = 0; r < in.batch; ++r) ranks_.get()[order[r]] = r;
    std::fill_n(offsets, in.seq_len + 1, Index(0));
    for (Index b = 0; b < in.batch; ++b)  // first, count the rows of each step
      for (Index t = 0; t < in.lengths[b]; ++t) ++offsets[t + 1];
    std::partial_sum(offsets, offsets + in.seq_len + 1, offsets);
    ranks_.upload(in.batch);
    sorted.offsets = offsets;
    sorted.device_offsets = offsets_.upload(in.seq_len + 1);
    sorted.streams = order_.upload(in.batch);
  }
  if (in.streams || first_stream > 0) {
    streams_.reserve(in.batch);
    for (Index r = 0; r < in.batch; ++r) {
      const Index b = in.lengths ? order_.get()[r] : r;
      streams_.get()[r] = in.streams ? in.streams[b] : first_stream + b;
    }
    sorted.streams = streams_.upload(in.batch);
  }
  return sorted;
}

// Calls f(the network's row, the caller's row t * B + b) for every row.
template <class T>
template <class F>
void Model<T>::each_row(const SequenceInput<T>& in, F&& f) const {
  for (Index t = 0; t < in.seq_len; ++t) {
    const Index first = in.offsets[t], rows = in.offsets[t + 1] - first;
    for (Index r = 0; r < rows; ++r) f(first + r, t * in.batch + order_.get()[r]);
  }
}

// The caller's rows [T, B, cols] in the network's order, [N, cols] of the device: `given` itself if
// it is such and not `copy`, else in `to`.
template <class T>
const T* Model<T>::rows_in(const SequenceInput<T>& in, const T* given, Index cols, bool copy,
                           AlignedBuffer<T>& to) {
  if (direct(in) && !copy) return given;
  const Index all = in.seq_len * in.batch * cols;
  to.reserve(std::max<Index>(1, in.rows() * cols));
  if (!in.offsets) {
    device_->upload(given, all, to.get());
    return to.get();
  }
  if (!device_->is_host) {
    staged_.reserve(all);
    device_->upload(given, all, staged_.get());
    given = staged_.get();
  }
  kernels_of<T>(*device_).sort_rows(
      SortArgs<T>{steps_of(in), order_.there(), cols, given, to.get()}, {0, in.seq_len});
  return to.get();
}

// The reverse: the network's rows in the caller's order.
template <class T>
void Model<T>::rows_out(const SequenceInput<T>& in, const T* rows, Index cols, T* given) {
  const Index all = in.seq_len * in.batch * cols;
  if (in.offsets) {
    if (!device_->is_host) staged_.reserve(all);
    T* const to = device_->is_host ? given : staged_.get();
    kernels_of<T>(*device_).unsort_rows(SortArgs<T>{steps_of(in), order_.there(), cols, rows, to},
                                        {0, in.seq_len});
    rows = to;
  }
  if (rows != given) device_->download(rows, all, given);
}

// Sorts states from the caller's order to the network's, or back.
template <class T>
void Model<T>::sort_states(const T* from, Index batch, bool back, T* to) const {
  const Kernels<T>& k = kernels_of<T>(*device_);
  const Index directions = network_.shape().num_layers * network_.directions();
  for (Index s = 0; s < network_.num_states(); ++s) {
    const Index offset = network_.state_offset(s, batch);
    (back ? k.unsort_rows : k.sort_rows)(SortArgs<T>{{directions, batch, nullptr, false},
                                                     order_.there(),
                                                     network_.state_width(s),
                                                     from + offset,
                                                     to + offset},
                                         {0, directions});
  }
}

// The caller's states, or their gradients, in the network's row order, [S, L*D, B, R]: `given`
// itself, or in state_; null stays null.
template <class T>
const T* Model<T>::states_in(const SequenceInput<T>& in, const T* given) {
  if (direct(in) || !given) return given;
  const Index all = state_elements(in.batch);
  state_.reserve(all);
  T* to = state_.get();
  if (!device_->is_host) {
    if (in.offsets) {
      staged_.reserve(all);
      to = staged_.get();
    }
    device_->upload(given, all, to);
    given = to;
  }
  if (in.offsets) sort_states(given, in.batch, false, state_.get());
  return state_.get();
}

// The reverse; `states` may be the caller's own.
template <class T>
void Model<T>::states_out(const SequenceInput<T>& in, const T* states, T* given) {
  const Index all = state_elements(in.batch);
  if (in.offsets) {
    if (!device_->is_host) staged_.reserve(all);
    T* const to = device_->is_host ? given : staged_.get();
    sort_states(states, in.batch, true, to);
    states = to;
  }
  if (states != given) device_->download(states, all, given);
}

// Sets the tokens or x of the network's input: those of `batch` (checked copies), or a copy for a
// later call.
template <class T>
void Model<T>::gather(const Batch& batch, bool copy, SequenceInput<T>& in) {
  const Index rows = in.rows();
  if (!batch.tokens) {
    in.x = rows_in(in, batch.x, network_.shape().input_size, copy, x_);
  } else if (!in.offsets && !copy) {
    in.tokens = given_tokens_.upload(rows);
  } else {
    tokens_.reserve(std::max<Index>(1, rows));
    Token* const to = tokens_.get();
    if (in.offsets)
      each_row(in, [&](Index n, Index row) { to[n] = batch.tokens[row]; });
    else
      std::copy_n(batch.tokens, rows, to);
    in.tokens = tokens_.upload(rows);
  }
}

// targets: checked copies.
template <class T>
const Token* Model<T>::gather_targets(const SequenceInput<T>& in, const Token* targets) {
  if (!in.offsets) return given_targets_.upload(in.rows());
  targets_.reserve(std::max<Index>(1, in.rows()));
  Token* const to = targets_.get();
  each_row(in, [&](Index n, Index row) { to[n] = targets[row]; });
  return targets_.upload(in.rows());
}

template class Model<float>;
template class Model<double>;

}  // namespace charrnn_fast
