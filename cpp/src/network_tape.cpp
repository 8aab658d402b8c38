#include "network_tape.hpp"

namespace charrnn_fast {

template <class T>
typename Network<T>::TapeLayout Network<T>::tape_layout(const SequenceInput<T>& in,
                                                        bool keep) const {
  const Regularization& r = shape_.regularization;
  const Index H = shape_.hidden_size, R = width(), D = directions(), B = in.batch, N = in.rows();
  const Index G = cell_->num_gates, S = cell_->num_states;
  const bool masked = in.mask_seed, norm = shape_.layer_norm, ragged = in.offsets;
  TapeLayout t{};
  Index used = 0;
  const auto take = [&](bool needed, Index elements) {
    const Index at = used;
    if (needed) used += aligned(elements);
    return at;
  };
  t.h = take(true, (N + B * D) * D * R);
  t.input = take(masked && r.dropout > 0, N * D * R);
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
  t.inverse_ih = take(norm && keep, N * 2);
  t.normalized_hh = take(norm, (keep ? N : B) * G * H);
  t.inverse_hh = take(norm && keep, N * 2);
  t.direction = used - shared;
  t.layer = shared + D * t.direction;

  used = shape_.num_layers * t.layer;
  t.first_input = take(masked && r.input_dropout > 0, in.x ? N * shape_.input_size : N);
  t.output = take(masked && r.output_dropout > 0, N * D * R);
  const bool input_part = in.x || shape_.num_layers > 1 || norm || (masked && r.input_dropout > 0);
  t.gates = take(true, N * H * (keep ? num_slots() : input_part ? G : 0));
  t.dprojected = take(keep && shape_.proj_size > 0, N * R);
  t.dh = take(keep && D > 1 && shape_.num_layers > 1, N * D * R);
  t.order = take(keep && !in.x, ceil_div((N + shape_.input_size) * sizeof(Index), sizeof(T)));
  t.total = used;
  return t;
}

template <class T>
Index Network<T>::tape_elements(const SequenceInput<T>& in, bool keep) const {
  return tape_layout(in, keep).total;
}

template <class T>
const T* Network<T>::hidden(const SequenceInput<T>& in, bool keep, const T* tape) const {
  const TapeLayout layout = tape_layout(in, keep);
  if (in.mask_seed && shape_.regularization.output_dropout > 0) return tape + layout.output;
  return tape + (shape_.num_layers - 1) * layout.layer + in.batch * hidden_width();
}

template class Network<float>;
template class Network<double>;

}  // namespace charrnn_fast
