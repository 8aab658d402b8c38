// The recurrent layers over a sequence: forward and backward of the whole stack. Layers, directions
// and threads are the matter here; arithmetic on arrays is the kernels'.
#include "charrnn_fast/network.hpp"

#include "masks.hpp"
#include "network_parts.hpp"

namespace charrnn_fast {

// Places on the tape, of a layer's arrays in its part. Those that a call does not need have no
// elements.
template <class T>
struct Network<T>::TapeLayout {
  Index h;      // [B + N (+ B), D*R]: initial rows, steps, initial rows of reverse
  Index input;  // [N, D*R] of layers above the first: their masked input
  // Of the first direction; those of the second stand this much behind:
  Index direction;
  Index states[max_states];  // but h: [B + N, H], or [B, H] updated in place
  Index saved;               // [N, num_saved*H]
  Index recurrent;           // [N, R]
  Index recurrent_mask;      // [N, R] or, for all steps, [B, R]
  Index zoneout_mask[2];     // [N, H], or [H] for the expectation
  Index zoneout_raw[2];      // [N, H]
  Index hidden;              // [N, H] before a projection
  Index normalised_ih, inverse_ih, normalised_hh, inverse_hh;  // [N, G*H], [N, 2]
  Index layer;                                                 // from each layer to the next
  // Behind the layers:
  Index first_input;  // [N, I] masked x, or [N] what tokens' weights are multiplied by
  Index output;       // [N, D*R] masked
  // One layer's gates at a time: their input part in forward, their gradients in backward. The
  // same memory for both keeps the whole step closer to the caches.
  Index gates;
  Index dprojected;  // [N, R]
  Index dh;          // [N, D*R] of the layer below, with two directions
  Index order;       // [N] numbers of rows, by token, and [I] to count them
  Index total;
};

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
  t.normalised_ih = take(norm && keep, N * G * H);
  t.inverse_ih = take(norm && keep, N * 2);
  t.normalised_hh = take(norm, (keep ? N : B) * G * H);
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

// ---- sharing ------------------------------------------------------------------------------

namespace {

struct Sharing {
  int threads;
  bool by_rows;  // else by units, with a barrier per step
};

Sharing share_recurrence(const Device& device, double operations, Index seq_len, Index batch,
                         Index panels, bool whole_layers) {
  int threads = device.parts(operations);
  if (batch >= rows_per_thread * threads) return {threads, true};
  if (whole_layers)
    return {static_cast<int>(std::clamp<Index>(batch / rows_per_thread, 1, threads)), true};
  const double per_step = operations / static_cast<double>(std::max<Index>(1, seq_len));
  threads =
      static_cast<int>(std::min<Index>({threads, panels, device.parts_before_wait(per_step)}));
  return {threads, threads == 1};
}

// How many rows of the sequence the first `end` rows of the batch have.
Index rows_of_first(const Steps& steps, Index end) {
  Index n = 0;
  for (Index t = 0; t < steps.seq_len; ++t) n += std::min(end, rows_at(steps, t));
  return n;
}

// One thread's rows of the batch: about as many rows of the sequence for each.
Range share_rows(const Team& team, const Steps& steps) {
  if (!steps.offsets || team.parts == 1) return team.share(steps.batch);
  const Index all = first_row(steps, steps.seq_len);
  const auto cut = [&](int part) {
    Index low = 0, high = steps.batch;  // the fewest rows that have the parts before
    while (low < high) {
      const Index middle = (low + high) / 2;
      if (rows_of_first(steps, middle) * team.parts < all * part)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  };
  return {team.part == 0 ? 0 : cut(team.part),
          team.part + 1 == team.parts ? steps.batch : cut(team.part + 1)};
}

}  // namespace

// ---- one pass over a sequence -------------------------------------------------------------

// What forward and backward of one call have in common: where everything is.
template <class T>
class SequencePass {
 public:
  using Layer = typename Network<T>::Layer;

  SequencePass(const Network<T>& network, const T* parameters, const PackedWeights<T>& packed,
               const SequenceInput<T>& in, bool keep, T* tape)
      : network_(network),
        k_(*network.kernels_),
        cell_(*network.cell_),
        shape_(network.shape_),
        rates_(network.shape_.regularization),
        parameters_(parameters),
        packed_(packed),
        in_(in),
        keep_(keep),
        tape_(tape),
        layout_(network.tape_layout(in, keep)),
        T_(in.seq_len),
        B_(in.batch),
        N_(in.rows()),
        H_(shape_.hidden_size),
        R_(network.width()),
        D_(network.directions()),
        L_(shape_.num_layers),
        G_(cell_.num_gates),
        S_(cell_.num_states),
        panels_(ceil_div(H_, cell_.forward_units)),
        backward_panels_(ceil_div(H_, k_.gemm_units)) {}

  Sharing sharing(Index panels) const {
    const double operations = 2.0 * double(N_ * D_) * double(G_ * H_) * double(R_);
    return share_recurrence(*network_.device_, operations / double(D_), T_, B_, panels,
                            shape_.layer_norm || shape_.proj_size > 0);
  }

  void forward(const T* state_0, T* state_n) const {
    const Sharing how = sharing(panels_);
    run_team(*network_.device_, how.threads, [&](const Team& team) {
      for (Index l = 0; l < L_; ++l)
        for (Index d = 0; d < D_; ++d) forward_layer(team, how.by_rows, l, d, state_0, state_n);
      if (masks(rates_.output_dropout)) {
        const T* const h = steps_of_h(L_ - 1);
        multiply_by_mask(L_, MaskSite::output, rates_.output_dropout, team.share(N_), h,
                         tape_ + layout_.output, D_ * R_);
      }
    });
  }

  void backward(T* dh, T* dstate, T* dx, T* gradients, int max_threads, T* workspace) const {
    const Sharing how = sharing(backward_panels_);
    run_team(*network_.device_, std::min(how.threads, max_threads), [&](const Team& team) {
      T* const scratch = workspace + sums_elements() + team.part * tn_scratch();
      if (masks(rates_.output_dropout)) {
        multiply_by_mask(L_, MaskSite::output, rates_.output_dropout, team.share(N_), dh, dh,
                         D_ * R_);
        team.wait();
      }
      // The gradient of a layer's output, and where that of its input goes: with two directions
      // the second still reads the one when the first writes the other.
      if (in_.tokens && team.part == 0)  // layer 0, which reads it, comes behind barriers
        k_.sort_by_token(in_.tokens, N_, shape_.input_size, order() + N_, order());
      T *above = dh, *below = D_ > 1 ? tape_ + layout_.dh : dh;
      for (Index l = L_ - 1; l >= 0; --l) {
        T* const to = l > 0 ? below : dx;
        for (Index d = D_ - 1; d >= 0; --d)
          backward_layer(team, how.by_rows, l, d, above, dstate, to, d == D_ - 1, gradients,
                         workspace, scratch);
        std::swap(above, below);
      }
    });
  }

  Index sums_elements() const { return aligned(network_.num_slots() * H_); }
  Index tn_scratch() const { return aligned(k_.gemm_tn_scratch()); }

 private:
  // ---- where things are ----

  Weights<T> packed(Packing packing, Index offset, Index panel_columns, Index depth) const {
    const bool dense = packing == Packing::forward_dense || packing == Packing::backward_dense;
    return weights_at(network_.packed_weights(packing, dense ? packed_.dense : packed_.layers),
                      packed_.storage, offset, panel_columns, depth);
  }
  Steps steps(Index d) const { return {T_, B_, in_.offsets, d > 0}; }
  bool masks(double rate) const { return in_.mask_seed && rate > 0; }
  T* layer(Index l) const { return tape_ + l * layout_.layer; }
  T* direction(Index l, Index d) const { return layer(l) + d * layout_.direction; }
  T* steps_of_h(Index l) const { return layer(l) + layout_.h + B_ * D_ * R_; }
  double input_rate(Index l) const { return l == 0 ? rates_.input_dropout : rates_.dropout; }
  bool input_is_masked(Index l) const { return masks(input_rate(l)); }

  // What layer l reads, [N, I], before its mask and behind it; null for tokens.
  const T* unmasked_input(Index l) const { return l == 0 ? in_.x : steps_of_h(l - 1); }
  T* masked_input(Index l) const {
    return l == 0 ? tape_ + layout_.first_input : layer(l) + layout_.input;
  }
  const T* input(Index l) const {
    return input_is_masked(l) && unmasked_input(l) ? masked_input(l) : unmasked_input(l);
  }
  Index* order() const { return reinterpret_cast<Index*>(tape_ + layout_.order); }
  const T* token_scales() const { return input_is_masked(0) ? masked_input(0) : nullptr; }

  struct States {
    StateRows<T> rows[max_states];
  };
  States states(Index l, Index d) const {
    States result{};
    T* const h = layer(l) + layout_.h + d * R_;
    const Index stride = D_ * R_;
    T* const steps = h + B_ * stride;
    result.rows[0] = {d == 0 ? h : steps + N_ * stride, steps, stride, false};
    for (Index s = 1; s < S_; ++s) {
      T* const first = direction(l, d) + layout_.states[s];
      result.rows[s] = {first, keep_ ? first + B_ * H_ : first, H_, !keep_};
    }
    return result;
  }

  bool has_recurrent() const { return masks(rates_.recurrent_dropout) || (in_.offsets && keep_); }
  Mask<T> recurrent_mask(Index l, Index d) const {
    if (!masks(rates_.recurrent_dropout)) return {};
    const T* const data = direction(l, d) + layout_.recurrent_mask;
    return rates_.variational ? Mask<T>{data, 0, R_} : Mask<T>{data, R_, 0};
  }
  struct Zoneouts {
    Zoneout<T> of[max_states];
    const Zoneout<T>* get(const Regularization& r) const {
      return r.zoneout[0] > 0 || r.zoneout[1] > 0 ? of : nullptr;
    }
  };
  Zoneouts zoneouts(Index l, Index d) const {
    Zoneouts result{};
    for (int s = 0; s < 2; ++s) {
      if (rates_.zoneout[s] == 0) continue;
      const bool raw = keep_ && (cell_.reads_next >> s & 1);
      result.of[s] = {{direction(l, d) + layout_.zoneout_mask[s], in_.mask_seed ? H_ : 0, 0},
                      raw ? direction(l, d) + layout_.zoneout_raw[s] : nullptr};
    }
    return result;
  }
  RecurrentNorm<T> norm(const Layer& p, Index l, Index d) const {
    if (!shape_.layer_norm) return {};
    return {parameters_ + p.gain_hh, keep_ ? direction(l, d) + layout_.inverse_hh : nullptr};
  }

  // ---- masks ----

  // out [N, cols] = x * mask, or the mask itself where x is null, of the given rows of the
  // sequence.
  void draw(Index l, Index d, MaskSite site, double rate, Range rows, const T* x, T* out,
            Index cols) const {
    const bool zoneout = site == MaskSite::zoneout_h || site == MaskSite::zoneout_c;
    MaskArgs<T> args = mask_args<T>(zoneout ? MaskKind::zoneout : MaskKind::dropout, rate,
                                    *in_.mask_seed, mask_site(l, d, site));
    const bool per_call = rates_.variational && !zoneout;
    const Steps all = steps(0);
    args.streams = in_.streams;
    args.x_stride = args.out_stride = args.cols = cols;
    for (Index t = 0; t < T_; ++t) {
      const Index first = first_row(all, t);
      const Range here = intersect(rows, {first, first + rows_at(all, t)});
      if (here.begin >= here.end) continue;
      args.time = per_call ? 0 : static_cast<std::uint32_t>(t);
      args.x = x ? x + first * cols : nullptr;
      args.out = out + first * cols;
      k_.mask(args, {here.begin - first, here.end - first});
    }
  }
  void multiply_by_mask(Index l, MaskSite site, double rate, Range rows, const T* x, T* out,
                        Index cols) const {
    draw(l, 0, site, rate, rows, x, out, cols);
  }
  void draw_token_scales(Range rows) const {
    MaskArgs<T> args = mask_args<T>(MaskKind::dropout, rates_.input_dropout, *in_.mask_seed,
                                    mask_site(0, 0, MaskSite::input));
    const Steps all = steps(0);
    args.streams = in_.streams;
    for (Index t = 0; t < T_; ++t) {
      const Index first = first_row(all, t);
      const Range here = intersect(rows, {first, first + rows_at(all, t)});
      if (here.begin >= here.end) continue;
      args.time = rates_.variational ? 0 : static_cast<std::uint32_t>(t);
      args.out = masked_input(0) + first;
      k_.mask_elements(args, in_.tokens + first, {here.begin - first, here.end - first});
    }
  }
  // The masks of a layer's recurrence; rows of the sequence and of the batch.
  void draw_recurrence_masks(Index l, Index d, Range rows, Range batch_rows) const {
    T* const part = direction(l, d);
    if (masks(rates_.recurrent_dropout)) {
      T* const mask = part + layout_.recurrent_mask;
      if (rates_.variational) {
        MaskArgs<T> args = mask_args<T>(MaskKind::dropout, rates_.recurrent_dropout, *in_.mask_seed,
                                        mask_site(l, d, MaskSite::recurrent));
        args.streams = in_.streams;
        args.out = mask, args.out_stride = args.cols = R_;
        k_.mask(args, batch_rows);
      } else {
        draw(l, d, MaskSite::recurrent, rates_.recurrent_dropout, rows, nullptr, mask, R_);
      }
    }
    for (int s = 0; s < 2; ++s) {
      if (rates_.zoneout[s] == 0) continue;
      T* const mask = part + layout_.zoneout_mask[s];
      if (in_.mask_seed)
        draw(l, d, s == 0 ? MaskSite::zoneout_h : MaskSite::zoneout_c, rates_.zoneout[s], rows,
             nullptr, mask, H_);
      else if (batch_rows.begin == 0)
        std::fill_n(mask, H_, static_cast<T>(rates_.zoneout[s]));
    }
  }

  // ---- forward ----

  void begin_states(const States& states, Index l, Index d, const T* state_0, Range rows) const {
    for (Index s = 0; s < S_; ++s) {
      const StateRows<T>& to = states.rows[s];
      const Index width = network_.state_width(s);
      const T* const from =
          state_0 ? state_0 + network_.state_offset(s, B_) + (l * D_ + d) * B_ * width : nullptr;
      for (Index r = rows.begin; r < rows.end; ++r)
        if (from)
          copy(from + r * width, width, to.initial + r * to.stride);
        else
          zero(to.initial + r * to.stride, width);
    }
  }
  void end_states(const States& states, Index l, Index d, T* state_n, Range rows) const {
    const Steps all = steps(d);
    for (Index s = 0; s < S_; ++s) {
      const StateRows<T>& from = states.rows[s];
      const Index width = network_.state_width(s);
      T* const to = state_n + network_.state_offset(s, B_) + (l * D_ + d) * B_ * width;
      const auto end = [&](Index t, Range ending) {
        ending = intersect(rows, ending);
        for (Index r = ending.begin; r < ending.end; ++r)
          copy(from.in_place || t < 0 ? from.initial + r * from.stride
                                      : from.rows + (first_row(all, t) + r) * from.stride,
               width, to + r * width);
      };
      // Rows without any step keep their initial state.
      end(-1, {T_ > 0 ? rows_at(all, 0) : 0, B_});
      for (Index t = 0; t < T_; ++t) end(t, {rows_going_on(all, t), rows_at(all, t)});
    }
  }

  // The masked input and, where there is one, gx of the given rows of the sequence.
  void run_input(const Layer& p, Index l, Index d, Range rows) const {
    const Index I = network_.layer_input_size(l);
    const bool tokens = l == 0 && in_.tokens;
    if (input_is_masked(l) && d == 0) {
      if (tokens)
        draw_token_scales(rows);
      else
        multiply_by_mask(l, MaskSite::input, input_rate(l), rows, unmasked_input(l),
                         masked_input(l), I);
    }
    if (gathers(l)) return;
    T* const gx = tape_ + layout_.gates;
    const T* const bias = p.input_bias >= 0 ? packed_.layers + p.input_bias : nullptr;
    const T* const bias_now = shape_.layer_norm ? nullptr : bias;  // else behind the norm
    if (tokens) {
      k_.gather(GatherArgs<T>{in_.tokens, token_scales(), parameters_ + p.weight_ih, bias_now,
                              G_ * H_, gx, G_ * H_},
                rows);
    } else {
      const Weights<T> weights =
          packed(l == 0 ? Packing::forward_dense : Packing::forward, p.ih, k_.gemm_units, I);
      k_.gemm(GemmArgs<T>{input(l), I, weights, bias_now, false, G_ * H_, I, gx, G_ * H_}, rows,
              {0, ceil_div(G_ * H_, k_.gemm_units)});
    }
    if (shape_.layer_norm) {
      T* const part = direction(l, d);
      k_.layer_norm(LayerNormArgs<T>{{(G_ - cell_.num_split) * H_, cell_.num_split * H_},
                                     parameters_ + p.gain_ih,
                                     bias,
                                     gx,
                                     keep_ ? part + layout_.normalised_ih : nullptr,
                                     keep_ ? part + layout_.inverse_ih : nullptr},
                    rows);
    }
  }
  // Tokens' weights are read where the recurrence needs them.
  bool gathers(Index l) const {
    return l == 0 && in_.tokens && !shape_.layer_norm && !input_is_masked(0);
  }

  void forward_layer(const Team& team, bool by_rows, Index l, Index d, const T* state_0,
                     T* state_n) const {
    const Layer& p = network_.layer(l, d);
    const States where = states(l, d);
    const Zoneouts zoneout = zoneouts(l, d);
    const Steps all = steps(d);
    const Range rows = team.share(N_), batch_rows = share_rows(team, all);
    T* const part = direction(l, d);
    begin_states(where, l, d, state_0, batch_rows);
    draw_recurrence_masks(l, d, rows, batch_rows);
    run_input(p, l, d, rows);
    team.wait();
    const bool gather = gathers(l);
    const RecurrentForwardArgs<T> args{
        .steps = all,
        .hidden_size = H_,
        .width = R_,
        .hh = packed(Packing::forward, p.hh, cell_.forward_units * G_, R_),
        .gx = gather ? nullptr : tape_ + layout_.gates,
        .tokens = gather ? in_.tokens : nullptr,
        .table = gather ? parameters_ + p.weight_ih : nullptr,
        .input_bias = gather && p.input_bias >= 0 ? packed_.layers + p.input_bias : nullptr,
        .split_bias = p.split_bias >= 0 ? packed_.layers + p.split_bias : nullptr,
        .params = parameters_ + p.params,
        .states = where.rows,
        .saved = keep_ ? part + layout_.saved : nullptr,
        .recurrent = has_recurrent() ? part + layout_.recurrent : nullptr,
        .recurrent_mask = recurrent_mask(l, d),
        .zoneout = zoneout.get(rates_),
        .norm = norm(p, l, d),
        .projection = shape_.proj_size > 0
                          ? Projection<T>{packed(Packing::forward, p.hr, k_.gemm_units, H_),
                                          part + layout_.hidden}
                          : Projection<T>{},
        .staged = shape_.layer_norm ? part + layout_.normalised_hh : nullptr,
        .staged_in_place = !keep_,
    };
    cell_.begin(args, batch_rows);
    if (by_rows) {
      cell_.forward(args, {0, T_}, batch_rows, {0, panels_});
    } else {
      if (args.recurrent) team.wait();
      for (Index i = 0; i < T_; ++i) {
        cell_.forward(args, {i, i + 1}, {0, B_}, team.share(panels_));
        team.wait();
      }
    }
    if (state_n) end_states(where, l, d, state_n, batch_rows);
    if (by_rows) team.wait();
  }

  // ---- backward ----

  // dh [N, D*R]: gradient of the layer's output; to [N, I]: of its input, or null.
  void backward_layer(const Team& team, bool by_rows, Index l, Index d, const T* dh, T* dstate,
                      T* to, bool first, T* gradients, T* sums, T* scratch) const {
    const Layer& p = network_.layer(l, d);
    const States where = states(l, d);
    const Zoneouts zoneout = zoneouts(l, d);
    const Steps all = steps(d);
    const Index width = network_.num_slots() * H_;
    T* const part = direction(l, d);
    T* const dgates = tape_ + layout_.gates;
    T* dstates[max_states];
    for (Index s = 0; s < S_; ++s)
      dstates[s] =
          dstate + network_.state_offset(s, B_) + (l * D_ + d) * B_ * network_.state_width(s);
    // A few streams read a weight about as often as packing would: they read it as it stands.
    const Weights<T> hh = packed_.layers ? packed(Packing::backward, p.hh_t, k_.gemm_units, G_ * H_)
                                         : Weights<T>{parameters_ + p.weight_hh, R_, k_.gemm_units};
    const RecurrentBackwardArgs<T> args{
        .steps = all,
        .hidden_size = H_,
        .width = R_,
        .hh = hh,
        .params = parameters_ + p.params,
        .states = where.rows,
        .saved = part + layout_.saved,
        .dy = dh + d * R_,
        .dy_stride = D_ * R_,
        .dstates = dstates,
        .dgates = dgates,
        .recurrent_mask = recurrent_mask(l, d),
        .zoneout = zoneout.get(rates_),
        .norm = norm(p, l, d),
        .normalised = part + layout_.normalised_hh,
        .projection = shape_.proj_size > 0
                          ? Projection<T>{{parameters_ + p.weight_hr, H_, k_.gemm_units},
                                          part + layout_.hidden}
                          : Projection<T>{},
        .dprojected = tape_ + layout_.dprojected,
    };
    // The sums of the slots' columns, for the biases and the cell's own parameters.
    const Range my_sums = team.share(width, alignment_elements);
    zero(sums + my_sums.begin, my_sums.end - my_sums.begin);
    const Index initial_panels = ceil_div(R_, k_.gemm_units);
    if (by_rows) {
      const Range batch_rows = share_rows(team, all);
      cell_.backward(args, {0, T_}, batch_rows, {0, backward_panels_});
      cell_.backward_initial(args, batch_rows, {0, initial_panels});
    } else {
      for (Index i = T_ - 1; i >= 0; --i) {
        cell_.backward(args, {i, i + 1}, {0, B_}, team.share(backward_panels_));
        team.wait();
      }
      cell_.backward_initial(args, {0, B_}, team.share(initial_panels));
    }
    team.wait();
    if (shape_.layer_norm) norm_backward(team, p, l, d, gradients);
    if (to) input_backward(p, l, to, !first, d == 0, team.share(N_));
    weights_backward(team, p, l, d, gradients, sums, scratch);
    team.wait();
    if (!shape_.layer_norm) add_sums(p, sums, my_sums, gradients);
    team.wait();
  }

  // Of the gates: those whose input and recurrent part have one gradient come first.
  Index split_gates() const { return shape_.layer_norm ? G_ : cell_.num_split; }

  // Gradients of all biases, gains and parameters of the cell; then those of the input part's
  // normalisation take the place of the input part's.
  void norm_backward(const Team& team, const Layer& p, Index l, Index d, T* gradients) const {
    const Index split = cell_.num_split * H_, GH = G_ * H_, summed = GH - split;
    const Index width = network_.num_slots() * H_;
    T* const part = direction(l, d);
    T* const dgx = tape_ + layout_.gates + GH;  // of the input part
    const T* const dsplit = dgx + GH;           // of the recurrent part of split gates
    const T* const dparams = dsplit + split;
    const T *const hat_ih = part + layout_.normalised_ih, *const hat_hh =
                                                              part + layout_.normalised_hh;
    const Range mine = team.share(GH, alignment_elements);
    const Range first = intersect(mine, {0, summed});
    const Range second{std::max(mine.begin, summed) - summed, std::max(mine.end, summed) - summed};
    k_.column_products(dgx, width, hat_ih, GH, N_, mine, gradients + p.gain_ih);
    k_.column_products(dgx, width, hat_hh, GH, N_, first, gradients + p.gain_hh);
    k_.column_products(dsplit, width, hat_hh + summed, GH, N_, second,
                       gradients + p.gain_hh + summed);
    if (p.bias_ih >= 0) k_.column_sums(dgx, width, N_, mine, gradients + p.bias_ih);
    if (p.bias_hh >= 0) {
      k_.column_sums(dgx, width, N_, first, gradients + p.bias_hh);
      k_.column_sums(dsplit, width, N_, second, gradients + p.bias_hh + summed);
    }
    if (cell_.num_params > 0)
      k_.column_sums(dparams, width, N_, team.share(cell_.num_params * H_, alignment_elements),
                     gradients + p.params);
    team.wait();
    k_.layer_norm_backward(LayerNormBackwardArgs<T>{{summed, split},
                                                    parameters_ + p.gain_ih,
                                                    hat_ih,
                                                    part + layout_.inverse_ih,
                                                    dgx,
                                                    width},
                           team.share(N_));
    team.wait();
  }

  // to = (or +=) the gradient of the layer's input, of the given rows.
  void input_backward(const Layer& p, Index l, T* to, bool accumulate, bool last,
                      Range rows) const {
    const Index I = network_.layer_input_size(l), split = split_gates(), summed = G_ - split;
    const Index width = network_.num_slots() * H_;
    const T* const dgates = tape_ + layout_.gates;
    const auto add_part = [&](const T* d, Index gate, Index offset, Index depth, bool add) {
      const Weights<T> weights =
          l > 0 && !packed_.layers
              ? Weights<T>{parameters_ + p.weight_ih + gate * H_ * I, I, k_.gemm_units}
              : packed(l > 0 ? Packing::backward : Packing::backward_dense, offset, k_.gemm_units,
                       depth);
      k_.gemm(GemmArgs<T>{d, width, weights, nullptr, add, I, depth, to, I}, rows,
              {0, ceil_div(I, k_.gemm_units)});
    };
    if (summed > 0) add_part(dgates, 0, p.ih_t, summed * H_, accumulate);
    if (split > 0)
      add_part(dgates + G_ * H_, summed, p.ih_t_split, split * H_, accumulate || summed > 0);
    if (last && input_is_masked(l))
      multiply_by_mask(l, MaskSite::input, input_rate(l), rows, to, to, I);
  }

  // Weight gradients: rows of gates, depth time and batch, against the layer's input and against
  // what the recurrent product took.
  void weights_backward(const Team& team, const Layer& p, Index l, Index d, T* gradients, T* sums,
                        T* scratch) const {
    const Index I = network_.layer_input_size(l), split = split_gates(), summed = G_ - split;
    const Index width = network_.num_slots() * H_;
    const T* const dgates = tape_ + layout_.gates;
    const T* const dgx_split = dgates + G_ * H_;
    const bool gather = l == 0 && in_.tokens;
    const bool norm = shape_.layer_norm;
    T* const d_ih = gradients + p.weight_ih;
    T* const d_hh = gradients + p.weight_hh;
    const T* const x = input(l);
    // h of the step before stands a step's rows away from h.
    const StateRows<T> h = states(l, d).rows[0];
    const bool recurrent = has_recurrent();
    const T* const before =
        recurrent ? direction(l, d) + layout_.recurrent : h.rows + (d == 0 ? -B_ : B_) * h.stride;
    const Index before_stride = recurrent ? R_ : h.stride;
    const auto to_hh = [&](Index gate) {
      return GemmTnProduct<T>{before, before_stride, R_, d_hh + gate * H_ * R_, R_};
    };
    const auto to_ih = [&](Index gate) {
      return GemmTnProduct<T>{x, I, I, d_ih + gate * H_ * I, I};
    };
    const auto products = [&](Index slot, Index n, GemmTnProduct<T> first, GemmTnProduct<T> second,
                              int count) {
      k_.gemm_tn(GemmTnArgs<T>{dgates + slot * H_,
                               width,
                               N_,
                               {first, second},
                               count,
                               norm ? nullptr : sums + slot * H_},
                 team.share(n * H_, alignment_elements), scratch);
    };
    // The gradient of layer 0's input weights, which are stored [I, G*H].
    const auto first_layer = [&](const T* dgx, Index gate, Index gates) {
      const Index n = gates * H_;
      if (gather)
        k_.scatter_add(ScatterArgs<T>{dgx, width, N_, in_.tokens, order(), token_scales(),
                                      d_ih + gate * H_, G_ * H_},
                       team.share(n, alignment_elements));
      else
        k_.gemm_tn(
            GemmTnArgs<T>{x, I, N_, {{dgx, width, n, d_ih + gate * H_, G_ * H_}, {}}, 1, nullptr},
            team.share(I), scratch);
    };
    if (summed > 0) {
      products(0, summed, to_hh(0), to_ih(0), l > 0 ? 2 : 1);
      if (l == 0) first_layer(dgates, 0, summed);
    }
    if (split > 0) {
      products(summed, split, to_hh(summed), {}, 1);
      if (l > 0)
        products(G_, split, to_ih(summed), {}, 1);
      else
        first_layer(dgx_split, summed, split);
    }
    if (p.weight_hr >= 0)
      k_.gemm_tn(
          GemmTnArgs<T>{
              tape_ + layout_.dprojected,
              R_,
              N_,
              {{direction(l, d) + layout_.hidden, H_, H_, gradients + p.weight_hr, H_}, {}},
              1,
              nullptr},
          team.share(R_), scratch);
    if (norm) return;
    // Those sums that no product has made on its way.
    const Index first_left = (l > 0 ? G_ + split : G_) * H_;
    const Range left = team.share(width - first_left, alignment_elements);
    k_.column_sums(dgates + first_left, width, N_, left, sums + first_left);
  }

  void add_sums(const Layer& p, const T* sums, Range mine, T* gradients) const {
    const Index split = cell_.num_split * H_, GH = G_ * H_, summed = GH - split;
    if (p.bias_ih >= 0) {
      add(sums, intersect(mine, {0, summed}), gradients + p.bias_ih);
      add(sums, intersect(mine, {GH, GH + split}), gradients + p.bias_ih - split);
    }
    if (p.bias_hh >= 0) add(sums, intersect(mine, {0, GH}), gradients + p.bias_hh);
    if (cell_.num_params > 0)
      add(sums, intersect(mine, {GH + split, GH + split + cell_.num_params * H_}),
          gradients + p.params - (GH + split));
  }

  const Network<T>& network_;
  const Kernels<T>& k_;
  const CellKernels<T>& cell_;
  const NetworkShape& shape_;
  const Regularization& rates_;
  const T* parameters_;
  const PackedWeights<T>& packed_;
  const SequenceInput<T>& in_;
  bool keep_;
  T* tape_;
  typename Network<T>::TapeLayout layout_;
  Index T_, B_, N_, H_, R_, D_, L_, G_, S_, panels_, backward_panels_;
};

template <class T>
void Network<T>::forward(const T* parameters, const PackedWeights<T>& packed,
                         const SequenceInput<T>& in, const T* state_0, bool keep, T* tape,
                         T* state_n) const {
  SequencePass<T>(*this, parameters, packed, in, keep, tape).forward(state_0, state_n);
}

template <class T>
Index Network<T>::backward_elements(int max_threads) const {
  return aligned(num_slots() * shape_.hidden_size) +
         max_threads * aligned(kernels_->gemm_tn_scratch());
}

template <class T>
void Network<T>::backward(const T* parameters, const PackedWeights<T>& packed,
                          const SequenceInput<T>& in, T* tape, T* dh, T* dstate, T* dx,
                          T* gradients, int max_threads, T* workspace) const {
  if (in.rows() == 0) return;
  SequencePass<T>(*this, parameters, packed, in, true, tape)
      .backward(dh, dstate, dx, gradients, max_threads, workspace);
}

// ---- weights that are left out ------------------------------------------------------------

template <class T>
void Network<T>::multiply_by_weight_masks(std::uint64_t mask_seed, T* weights) const {
  const Kernels<T>& k = *kernels_;
  const Index R = width(), rows = cell_->num_gates * shape_.hidden_size, D = directions();
  const double work = 20.0 * double(rows * R) * double(shape_.num_layers * D);
  run_team(*device_, device_->parts(work), [&](const Team& team) {
    for (Index l = 0; l < shape_.num_layers; ++l)
      for (Index d = 0; d < D; ++d) {
        MaskArgs<T> args = mask_args<T>(MaskKind::dropout, shape_.regularization.weight_drop,
                                        mask_seed, mask_site(l, d, MaskSite::weights));
        args.x = args.out = weights + layer(l, d).weight_hh;
        args.x_stride = args.out_stride = args.cols = R;
        k.mask(args, team.share(rows));
      }
  });
}

template <class T>
void Network<T>::drop_weights(std::uint64_t mask_seed, const T* parameters, T* dropped) const {
  copy(parameters, parameter_elements_, dropped);
  multiply_by_weight_masks(mask_seed, dropped);
}

template <class T>
void Network<T>::drop_weights_backward(std::uint64_t mask_seed, T* gradients) const {
  multiply_by_weight_masks(mask_seed, gradients);
}

template class Network<float>;
template class Network<double>;

}  // namespace charrnn_fast
