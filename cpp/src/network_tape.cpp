#include "network_tape.hpp"

namespace charrnn_fast {

template <class T>
typename Network<T>::TapeLayout Network<T>::tape_layout(const SequenceInput<T>& in, bool keep,
                                                        Index rows) const {
  const Regularization& r = shape_.regularization;
  const Index H = shape_.hidden_size, R = width(), D = directions(), B = in.batch, N = rows;
  const Index G = cell_->num_gates, S = cell_->num_states;
  const bool masked = in.mask_seed, norm = shape_.layer_norm, ragged = in.offsets;
  TapeLayout t{};
  Index used = 0;
  const auto take = [&](bool needed, Index elements) {
    const Index at = used;
    if (needed) used += elements;
    return at;
  };
  t.h = take(true, (N + B * D) * D * R);
  const Index shared = used;
  // Without keep, only h is needed of every step.
  for (Index s = 1; s < S; ++s) t.states[s] = take(true, (keep ? N + B : B) * H);
  t.saved = take(keep, N * H * cell_->num_saved);
  const bool recurrent = masked && r.recurrent_dropout > 0;
  t.recurrent = take(recurrent || (ragged && keep), N * R);
  t.recurrent_mask = take(recurrent, (r.variational ? B : N) * R);
  for (int s = 0; s < 2; ++s) {
    const bool zoneout = r.zoneout[s] > 0;
    t.zoneout_mask[s] = take(zoneout, masked ? N * H : H);
    t.zoneout_raw[s] = take(zoneout && keep && (cell_->reads_next >> s & 1), N * H);
  }
  t.hidden = take(shape_.proj_size > 0, N * H);
  t.normalized_ih = take(norm && keep, N * G * H);
  t.normalized_hh = take(norm, (keep ? N : B) * G * H);
  t.direction = used - shared;
  t.layer = shared + D * t.direction;

  used = shape_.num_layers * t.layer;
  t.input = take(masked && r.dropout > 0, (shape_.num_layers - 1) * N * D * R);
  t.output = take(masked && r.output_dropout > 0, N * D * R);
  t.inverse = take(norm && keep, shape_.num_layers * D * 2 * N * 2);
  t.first_input = take(masked && r.input_dropout > 0, in.x ? N * shape_.input_size : N);
  t.total = used;
  return t;
}

template <class T>
TapeSize Network<T>::tape_size(const SequenceInput<T>& in, bool keep) const {
  SequenceInput<T> part = in;
  const auto elements = [&](Index rows, Index batch) {
    part.batch = batch;
    return tape_layout(part, keep, rows).total;
  };
  const Index constant = elements(0, 0);
  return {elements(1, 0) - constant, elements(0, 1) - constant, constant};
}

template <class T>
Index Network<T>::tape_elements(const SequenceInput<T>& in, bool keep) const {
  return tape_layout(in, keep, in.rows()).total;
}

template <class T>
const T* Network<T>::hidden(const SequenceInput<T>& in, bool keep, const T* tape) const {
  const TapeLayout layout = tape_layout(in, keep, in.rows());
  if (in.mask_seed && shape_.regularization.output_dropout > 0) return tape + layout.output;
  return tape + (shape_.num_layers - 1) * layout.layer + in.batch * hidden_width();
}

// The flags of the recurrent kernels, then the input terms of one layer's gates at a time, [N,
// G*H].
template <class T>
Index Network<T>::flag_elements() const {
  return aligned(ceil_div(kernels_->flag_words * Index(sizeof(std::uint32_t)), sizeof(T)));
}
// Of RecurrentForwardArgs::rounded.
template <class T>
Index Network<T>::rounded_elements(const SequenceInput<T>& in) const {
  return rounds_rows() ? aligned(in.batch * (width() + 1)) : 0;
}
template <class T>
bool Network<T>::rounds_rows() const {
  return shape_.compute == Compute::bfloat16 && kernels_->rounds_rows;
}
template <class T>
Index Network<T>::forward_elements(const SequenceInput<T>& in) const {
  const bool input_part = in.x || shape_.num_layers > 1 || shape_.layer_norm ||
                          (in.mask_seed && shape_.regularization.input_dropout > 0);
  return flag_elements() + rounded_elements(in) +
         (input_part ? aligned(in.rows() * cell_->num_gates * shape_.hidden_size) : 0);
}

template <class T>
typename Network<T>::BackwardLayout Network<T>::backward_layout(const SequenceInput<T>& in) const {
  const Index N = in.rows(), R = width(), D = directions(),
              slots = num_slots() * shape_.hidden_size;
  BackwardLayout w{};
  Index used = 0;
  const auto take = [&](bool needed, Index elements) {
    const Index at = used;
    if (needed) used += aligned(elements);
    return at;
  };
  take(true, flag_elements());
  w.gates = take(true, N * slots);
  w.dprojected = take(shape_.proj_size > 0, N * R);
  w.dh = take(D > 1 && shape_.num_layers > 1, N * D * R);
  w.order = take(!in.x, ceil_div((N + shape_.input_size) * sizeof(Index), sizeof(T)));
  w.sums = take(true, slots);
  w.has_rounded = rounds_rows();
  w.rounded = take(w.has_rounded, in.batch * (cell_->num_gates * shape_.hidden_size + 1));
  w.rounded_projected = take(w.has_rounded && shape_.proj_size > 0, in.batch * (R + 1));
  w.scratch = used;
  w.thread = aligned(kernels_->gemm_tn_scratch());
  return w;
}

template <class T>
Index Network<T>::backward_elements(const SequenceInput<T>& in, int max_threads) const {
  const BackwardLayout w = backward_layout(in);
  return w.scratch + max_threads * w.thread;
}

template class Network<float>;
template class Network<double>;

}  // namespace charrnn_fast
