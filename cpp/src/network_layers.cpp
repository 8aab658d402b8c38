// The recurrent layers over a sequence: forward and backward of the whole stack. This file handles
// layers, directions and threads; the kernels do the arithmetic.
#include "errors.hpp"
#include "network_masks.hpp"
#include "network_tape.hpp"

namespace charrnn_fast {

// Shared by forward and backward of one call: the arrays' places.
template <class T>
class SequencePass {
 public:
  using Layer = typename Network<T>::Layer;

  using Gradients = typename Network<T>::Gradients;

  SequencePass(const Network<T>& network, const typename Network<T>::Parameters& parameters,
               const PackedWeights<T>& packed, const SequenceInput<T>& in, bool keep, T* tape,
               T* workspace)
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
        layout_(network.tape_layout(in, keep, in.rows())),
        flags_(k_.flag_words > 0 ? reinterpret_cast<std::uint32_t*>(workspace) : nullptr),
        workspace_(workspace),
        input_terms_(workspace + network.flag_elements() + network.rounded_elements(in)),
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
        backward_panels_(ceil_div(H_, k_.gemm_units)),
        masks_(k_, rates_, in, steps(0)) {}

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
        masks_.multiply(L_, MaskSite::output, rates_.output_dropout, team.share(N_), h,
                        tape_ + layout_.output, D_ * R_);
      }
    });
  }

  void backward(T* dh, T* dstate, T* dx, const Gradients& gradients, int max_threads) const {
    const Sharing how = sharing(backward_panels_);
    const auto places = network_.backward_layout(in_);
    const Workspace w{
        workspace_ + places.gates,
        workspace_ + places.dprojected,
        reinterpret_cast<Index*>(workspace_ + places.order),
        workspace_ + places.sums,
        rounded(places.has_rounded, places.rounded),
        rounded(places.has_rounded && shape_.proj_size > 0, places.rounded_projected)};
    run_team(*network_.device_, std::min(how.threads, max_threads), [&](const Team& team) {
      T* const scratch = workspace_ + places.scratch + team.part * places.thread;
      if (masks(rates_.output_dropout)) {
        masks_.multiply(L_, MaskSite::output, rates_.output_dropout, team.share(N_), dh, dh,
                        D_ * R_);
        team.wait();
      }
      // above: gradient of a layer's output; below: of its input. With two directions they differ:
      // the second still reads `above` when the first writes `below`.
      if (in_.tokens && team.part == 0)  // layer 0, which reads this, comes after barriers
        k_.sort_by_token(in_.tokens, N_, shape_.input_size, w.order + N_, w.order);
      T *above = dh, *below = D_ > 1 ? workspace_ + places.dh : dh;
      for (Index l = L_ - 1; l >= 0; --l) {
        T* const to = l > 0 ? below : dx;
        for (Index d = D_ - 1; d >= 0; --d)
          backward_layer(team, how.by_rows, l, d, above, dstate, to, d == D_ - 1, gradients, w,
                         scratch);
        std::swap(above, below);
      }
    });
  }

 private:
  // Arrays in backward's workspace, see BackwardLayout.
  struct Workspace {
    T *gates, *dprojected;
    Index* order;
    T* sums;
    Bfloat16 *rounded, *rounded_projected;
  };

  // ---- layout ----

  // The array of an entry of parameters(); null if it is absent.
  const T* parameter(Index entry) const { return network_.array(parameters_, entry); }
  T* gradient(const Gradients& gradients, Index entry) const {
    return network_.array(gradients, entry);
  }
  // Layer 0's input weights [I, G*H], by tokens.
  const T* table(const Layer& p) const {
    return parameters_.separate ? packed_.first_layer + p.table : parameter(p.weight_ih);
  }
  // A weight [depth, cols] for products with its rows. A few streams read it about as often as
  // packing would: they read it unpacked.
  Weights<T> rows_of(Index entry, Index packed_offset, Index cols, Index depth) const {
    if (!packed_.layers)
      return {parameter(entry), cols, k_.gemm_units, Storage::full, shape_.compute};
    return packed(Packing::backward, packed_offset, k_.gemm_units, depth);
  }
  Weights<T> packed(Packing packing, Index offset, Index panel_columns, Index depth) const {
    const bool dense = packing == Packing::forward_dense || packing == Packing::backward_dense;
    return weights_at(
        network_.packed_weights(packing, dense ? packed_.first_layer : packed_.layers),
        packed_.storage, shape_.compute, offset, panel_columns, depth);
  }
  Steps steps(Index d) const {
    return {T_, B_, in_.device_offsets ? in_.device_offsets : in_.offsets, d > 0};
  }
  Range my_rows(const Team& team) const { return share_rows(team, {T_, B_, in_.offsets, false}); }
  bool masks(double rate) const { return masks_.drawn(rate); }
  T* layer(Index l) const { return tape_ + l * layout_.layer; }
  T* direction(Index l, Index d) const { return layer(l) + d * layout_.direction; }
  T* steps_of_h(Index l) const { return layer(l) + layout_.h + B_ * D_ * R_; }
  double input_rate(Index l) const { return l == 0 ? rates_.input_dropout : rates_.dropout; }
  bool input_is_masked(Index l) const { return masks(input_rate(l)); }

  // Input of layer l, [N, I], before and after its mask; null for tokens.
  const T* unmasked_input(Index l) const { return l == 0 ? in_.x : steps_of_h(l - 1); }
  T* masked_input(Index l) const {
    return tape_ + (l == 0 ? layout_.first_input : layout_.input + (l - 1) * N_ * D_ * R_);
  }
  const T* input(Index l) const {
    return input_is_masked(l) && unmasked_input(l) ? masked_input(l) : unmasked_input(l);
  }
  const T* token_scales() const { return input_is_masked(0) ? masked_input(0) : nullptr; }

  States<T> states(Index l, Index d) const {
    States<T> result{};
    T* const h = layer(l) + layout_.h + d * R_;
    const Index stride = D_ * R_;
    T* const steps = h + B_ * stride;
    result.of[0] = {d == 0 ? h : steps + N_ * stride, steps, stride, false};
    for (Index s = 1; s < S_; ++s) {
      T* const first = direction(l, d) + layout_.states[s];
      result.of[s] = {first, keep_ ? first + B_ * H_ : first, H_, !keep_};
    }
    return result;
  }
  // This layer's place in a call's initial or last states, or in their gradients.
  T* state_part(T* states, Index s, Index l, Index d) const {
    return states + network_.state_offset(s, B_) + (l * D_ + d) * B_ * network_.state_width(s);
  }
  // Copies from a call's initial states (null: zeros); end_states copies to its last.
  void begin_states(const States<T>& where, Index l, Index d, const T* state_0, Range rows) const {
    // Kernels only read the initial states.
    k_.begin_states(states_args(where, l, d, const_cast<T*>(state_0)), rows);
  }
  void end_states(const States<T>& where, Index l, Index d, T* state_n, Range rows) const {
    k_.end_states(states_args(where, l, d, state_n), rows);
  }
  StatesArgs<T> states_args(const States<T>& where, Index l, Index d, T* given) const {
    StatesArgs<T> args{steps(d), S_, where, {}, {}};
    for (Index s = 0; s < S_; ++s) {
      args.widths[s] = network_.state_width(s);
      args.at[s] = given ? state_part(given, s, l, d) : nullptr;
    }
    return args;
  }

  // Rows of bfloat16 at an offset of the workspace.
  Bfloat16* rounded(bool there, Index offset) const {
    return there ? reinterpret_cast<Bfloat16*>(workspace_ + offset) : nullptr;
  }

  bool has_recurrent() const { return masks(rates_.recurrent_dropout) || (in_.offsets && keep_); }
  Mask<T> recurrent_mask(Index l, Index d) const {
    if (!masks(rates_.recurrent_dropout)) return {};
    const T* const data = direction(l, d) + layout_.recurrent_mask;
    return rates_.variational ? Mask<T>{data, 0, R_} : Mask<T>{data, R_, 0};
  }
  Zoneouts<T> zoneouts(Index l, Index d) const {
    Zoneouts<T> result;
    for (int s = 0; s < 2; ++s) {
      if (rates_.zoneout[s] == 0) continue;
      const bool raw = keep_ && (cell_.reads_next >> s & 1);
      result.any = true;
      result.of[s] = {{direction(l, d) + layout_.zoneout_mask[s], in_.mask_seed ? H_ : 0, 0},
                      raw ? direction(l, d) + layout_.zoneout_raw[s] : nullptr};
    }
    return result;
  }
  RecurrentNorm<T> norm(const Layer& p, Index l, Index d) const {
    if (!shape_.layer_norm) return {};
    return {parameter(p.gain_hh), keep_ ? inverse_hh(l, d) : nullptr};
  }

  // [N, 2] each, of a layer's normalized terms
  T* inverse_ih(Index l, Index d) const {
    return tape_ + layout_.inverse + (l * D_ + d) * 2 * N_ * 2;
  }
  T* inverse_hh(Index l, Index d) const { return inverse_ih(l, d) + N_ * 2; }

  // The masks of a layer's recurrence; rows of the sequence and of the batch.
  void draw_recurrence_masks(Index l, Index d, Range rows, Range batch_rows) const {
    T* const tape = direction(l, d);
    if (masks(rates_.recurrent_dropout))
      masks_.recurrent(l, d, rows, batch_rows, tape + layout_.recurrent_mask, R_);
    for (int s = 0; s < 2; ++s) {
      if (rates_.zoneout[s] == 0) continue;
      T* const mask = tape + layout_.zoneout_mask[s];
      if (in_.mask_seed)
        masks_.zoneout(l, d, s, rows, mask, H_);
      else if (batch_rows.begin == 0)
        k_.fill(mask, static_cast<T>(rates_.zoneout[s]), {0, H_});
    }
  }

  // ---- forward ----

  // The masked input and, if there is one, gx of the given rows of the sequence.
  void run_input(const Layer& p, Index l, Index d, Range rows) const {
    const Index I = network_.layer_input_size(l);
    const bool tokens = l == 0 && in_.tokens;
    if (input_is_masked(l) && d == 0) {
      if (tokens)
        masks_.tokens(rows, masked_input(0));
      else
        masks_.multiply(l, MaskSite::input, input_rate(l), rows, unmasked_input(l), masked_input(l),
                        I);
    }
    if (gathers(l)) return;
    T* const gx = input_terms_;
    const T* const bias = p.input_bias >= 0 ? packed_.layers + p.input_bias : nullptr;
    const T* const bias_now = shape_.layer_norm ? nullptr : bias;  // else after the norm
    if (tokens) {
      k_.gather(GatherArgs<T>{in_.tokens, token_scales(), table(p), bias_now, G_ * H_, gx, G_ * H_,
                              shape_.compute},
                rows);
    } else {
      const Weights<T> weights =
          packed(l == 0 ? Packing::forward_dense : Packing::forward, p.ih, k_.gemm_units, I);
      k_.gemm(GemmArgs<T>{input(l), I, weights, bias_now, false, G_ * H_, I, gx, G_ * H_}, rows,
              {0, ceil_div(G_ * H_, k_.gemm_units)});
    }
    if (shape_.layer_norm) {
      T* const tape = direction(l, d);
      k_.layer_norm(LayerNormArgs<T>{{(G_ - cell_.num_split) * H_, cell_.num_split * H_},
                                     parameter(p.gain_ih),
                                     bias,
                                     gx,
                                     keep_ ? tape + layout_.normalized_ih : nullptr,
                                     keep_ ? inverse_ih(l, d) : nullptr},
                    rows);
    }
  }
  // Whether the recurrence gathers the tokens' weights itself.
  bool gathers(Index l) const {
    return l == 0 && in_.tokens && !shape_.layer_norm && !input_is_masked(0);
  }

  void forward_layer(const Team& team, bool by_rows, Index l, Index d, const T* state_0,
                     T* state_n) const {
    const Layer& p = network_.layer(l, d);
    const Steps all = steps(d);
    const States<T> where = states(l, d);
    const Range rows = team.share(N_), batch_rows = my_rows(team);
    T* const tape = direction(l, d);
    if (keep_ && D_ > 1 && d == 0) {
      // The other direction's part of the initial rows, and this one's of its, which nothing reads.
      const Range rows_of_h{batch_rows.begin * D_ * R_, batch_rows.end * D_ * R_};
      k_.fill(layer(l) + layout_.h, T(0), rows_of_h);
      k_.fill(steps_of_h(l) + N_ * D_ * R_, T(0), rows_of_h);
    }
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
        .gx = gather ? nullptr : input_terms_,
        .tokens = gather ? in_.tokens : nullptr,
        .table = gather ? table(p) : nullptr,
        .input_bias = gather && p.input_bias >= 0 ? packed_.layers + p.input_bias : nullptr,
        .split_bias = p.split_bias >= 0 ? packed_.layers + p.split_bias : nullptr,
        .params = parameter(p.params),
        .states = where,
        .saved = keep_ ? tape + layout_.saved : nullptr,
        .recurrent = has_recurrent() ? tape + layout_.recurrent : nullptr,
        .recurrent_mask = recurrent_mask(l, d),
        .zoneout = zoneouts(l, d),
        .norm = norm(p, l, d),
        .projection = shape_.proj_size > 0
                          ? Projection<T>{packed(Packing::forward, p.hr, k_.gemm_units, H_),
                                          tape + layout_.hidden}
                          : Projection<T>{},
        .rounded = rounded(network_.rounded_elements(in_), network_.flag_elements()),
        .staged = shape_.layer_norm ? tape + layout_.normalized_hh : nullptr,
        .staged_in_place = !keep_,
        .flags = flags_,
    };
    cell_.begin(args, batch_rows);
    if (by_rows) {
      cell_.forward(args, {0, T_}, batch_rows, {0, panels_});
    } else {
      if (args.recurrent || args.rounded) team.wait();
      for (Index i = 0; i < T_; ++i) {
        cell_.forward(args, {i, i + 1}, {0, B_}, team.share(panels_));
        team.wait();
      }
    }
    if (state_n) end_states(where, l, d, state_n, batch_rows);
    if (by_rows) team.wait();
  }

  // ---- backward ----

  // dh [N, D*R]: gradient of the layer's output. to [N, I]: that of its input, or null.
  void backward_layer(const Team& team, bool by_rows, Index l, Index d, const T* dh, T* dstate,
                      T* to, bool first, const Gradients& gradients, const Workspace& w,
                      T* scratch) const {
    const Layer& p = network_.layer(l, d);
    const Steps all = steps(d);
    const Index width = network_.num_slots() * H_;
    T* const tape = direction(l, d);
    StateGradients<T> dstates{};
    for (Index s = 0; s < S_; ++s) dstates.of[s] = state_part(dstate, s, l, d);
    const RecurrentBackwardArgs<T> args{
        .steps = all,
        .hidden_size = H_,
        .width = R_,
        .hh = rows_of(p.weight_hh, p.hh_t, R_, G_ * H_),
        .params = parameter(p.params),
        .states = states(l, d),
        .saved = tape + layout_.saved,
        .dy = dh + d * R_,
        .dy_stride = D_ * R_,
        .dstates = dstates,
        .dgates = w.gates,
        .recurrent_mask = recurrent_mask(l, d),
        .zoneout = zoneouts(l, d),
        .norm = norm(p, l, d),
        .normalized = tape + layout_.normalized_hh,
        .projection = shape_.proj_size > 0 ? Projection<T>{rows_of(p.weight_hr, p.hr_t, H_, R_),
                                                           tape + layout_.hidden}
                                           : Projection<T>{},
        .dprojected = w.dprojected,
        .rounded = w.rounded,
        .rounded_projected = w.rounded_projected,
        .flags = flags_,
    };
    // Sums of the slots' columns, for the biases and the cell's own parameters.
    const Range my_sums = team.share(width, alignment_elements);
    k_.fill(w.sums, T(0), my_sums);
    const Index initial_panels = ceil_div(R_, k_.gemm_units);
    if (by_rows) {
      const Range batch_rows = my_rows(team);
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
    if (shape_.layer_norm) norm_backward(team, p, l, d, gradients, w.gates);
    if (to) input_backward(p, l, w.gates, to, !first, d == 0, team.share(N_));
    weights_backward(team, p, l, d, gradients, w, scratch);
    team.wait();
    if (!shape_.layer_norm) add_sums(p, w.sums, my_sums, gradients);
    team.wait();
  }

  // Number of split gates. Gates whose two terms share a gradient come first.
  Index split_gates() const { return shape_.layer_norm ? G_ : cell_.num_split; }

  // Gradients of all biases, gains and the cell's parameters. Then gradients by the normalized
  // input term become gradients by the input term, in place.
  void norm_backward(const Team& team, const Layer& p, Index l, Index d, const Gradients& gradients,
                     T* dgates) const {
    const Index split = cell_.num_split * H_, GH = G_ * H_, summed = GH - split;
    const Index width = network_.num_slots() * H_;
    T* const tape = direction(l, d);
    T* const dgx = dgates + GH;        // of the input term
    const T* const dsplit = dgx + GH;  // of the recurrent term of split gates
    const T* const dparams = dsplit + split;
    const T *const hat_ih = tape + layout_.normalized_ih, *const hat_hh =
                                                              tape + layout_.normalized_hh;
    const Range mine = team.share(GH, alignment_elements);
    const Range first = intersect(mine, {0, summed});
    const Range second{std::max(mine.begin, summed) - summed, std::max(mine.end, summed) - summed};
    T* const gain_hh = gradient(gradients, p.gain_hh);
    k_.column_products(dgx, width, hat_ih, GH, N_, mine, gradient(gradients, p.gain_ih));
    k_.column_products(dgx, width, hat_hh, GH, N_, first, gain_hh);
    k_.column_products(dsplit, width, hat_hh + summed, GH, N_, second, gain_hh + summed);
    if (T* const bias_ih = gradient(gradients, p.bias_ih))
      k_.column_sums(dgx, width, N_, mine, bias_ih);
    if (T* const bias_hh = gradient(gradients, p.bias_hh)) {
      k_.column_sums(dgx, width, N_, first, bias_hh);
      k_.column_sums(dsplit, width, N_, second, bias_hh + summed);
    }
    if (cell_.num_params > 0)
      k_.column_sums(dparams, width, N_, team.share(cell_.num_params * H_, alignment_elements),
                     gradient(gradients, p.params));
    team.wait();
    k_.layer_norm_backward(
        LayerNormBackwardArgs<T>{
            {summed, split}, parameter(p.gain_ih), hat_ih, inverse_ih(l, d), dgx, width},
        team.share(N_));
    team.wait();
  }

  // to = (or +=) the gradient of the layer's input, for the given rows.
  void input_backward(const Layer& p, Index l, const T* dgates, T* to, bool accumulate, bool last,
                      Range rows) const {
    const Index I = network_.layer_input_size(l), split = split_gates(), summed = G_ - split;
    const Index width = network_.num_slots() * H_;
    const auto add_part = [&](const T* d, Index gate, Index offset, Index depth, bool add) {
      const Weights<T> weights =
          l > 0 && !packed_.layers
              ? Weights<T>{parameter(p.weight_ih) + gate * H_ * I, I, k_.gemm_units}
              : packed(l > 0 ? Packing::backward : Packing::backward_dense, offset, k_.gemm_units,
                       depth);
      k_.gemm(GemmArgs<T>{d, width, weights, nullptr, add, I, depth, to, I}, rows,
              {0, ceil_div(I, k_.gemm_units)});
    };
    if (summed > 0) add_part(dgates, 0, p.ih_t, summed * H_, accumulate);
    if (split > 0)
      add_part(dgates + G_ * H_, summed, p.ih_t_split, split * H_, accumulate || summed > 0);
    if (last && input_is_masked(l))
      masks_.multiply(l, MaskSite::input, input_rate(l), rows, to, to, I);
  }

  GemmTnArgs<T> gradient_args(GemmTnArgs<T> args) const {
    args.compute = shape_.compute;
    return args;
  }

  // Weight gradients: rows of gates, depth time and batch, against the layer's input and the
  // recurrent product's input.
  void weights_backward(const Team& team, const Layer& p, Index l, Index d,
                        const Gradients& gradients, const Workspace& w, T* scratch) const {
    const Index I = network_.layer_input_size(l), split = split_gates(), summed = G_ - split;
    const Index width = network_.num_slots() * H_;
    const T* const dgates = w.gates;
    const T* const dgx_split = dgates + G_ * H_;
    const bool gather = l == 0 && in_.tokens, transposed = l == 0 && gradients.flat;
    const bool as_rows = !gather && !transposed;  // d_ih is a product with dgates, as d_hh
    const bool norm = shape_.layer_norm;
    T* const d_ih = gradient(gradients, p.weight_ih);
    T* const d_hh = gradient(gradients, p.weight_hh);
    const T* const x = input(l);
    // The previous step's h is one step's rows away from h.
    const StateRows<T> h = states(l, d)[0];
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
      k_.gemm_tn(gradient_args({dgates + slot * H_,
                                width,
                                N_,
                                {first, second},
                                count,
                                norm ? nullptr : w.sums + slot * H_}),
                 team.share(n * H_, alignment_elements), scratch);
    };
    // The gradient of layer 0's input weights, by tokens or, in flat memory, [I, G*H].
    const auto first_layer = [&](const T* dgx, Index gate, Index gates) {
      const Index n = gates * H_;
      if (gather)
        k_.scatter_add(ScatterArgs<T>{dgx, width, N_, in_.tokens, w.order, token_scales(),
                                      d_ih + gate * H_ * (transposed ? 1 : I),
                                      transposed ? G_ * H_ : 1, transposed ? 1 : I, shape_.compute},
                       team.share(n, alignment_elements));
      else
        k_.gemm_tn(
            gradient_args({x, I, N_, {{dgx, width, n, d_ih + gate * H_, G_ * H_}, {}}, 1, nullptr}),
            team.share(I), scratch);
    };
    if (summed > 0) {
      products(0, summed, to_hh(0), to_ih(0), as_rows ? 2 : 1);
      if (!as_rows) first_layer(dgates, 0, summed);
    }
    if (split > 0) {
      products(summed, split, to_hh(summed), {}, 1);
      if (as_rows)
        products(G_, split, to_ih(summed), {}, 1);
      else
        first_layer(dgx_split, summed, split);
    }
    if (T* const d_hr = gradient(gradients, p.weight_hr))
      k_.gemm_tn(gradient_args({w.dprojected,
                                R_,
                                N_,
                                {{direction(l, d) + layout_.hidden, H_, H_, d_hr, H_}, {}},
                                1,
                                nullptr}),
                 team.share(R_), scratch);
    if (norm) return;
    // The sums that no product has computed.
    const Index first_left = (as_rows ? G_ + split : G_) * H_;
    const Range left = team.share(width - first_left, alignment_elements);
    k_.column_sums(dgates + first_left, width, N_, left, w.sums + first_left);
  }

  void add_sums(const Layer& p, const T* sums, Range mine, const Gradients& gradients) const {
    const Index split = cell_.num_split * H_, GH = G_ * H_, summed = GH - split;
    // to [n] += sums [first, first + n), of those that are mine
    const auto add = [&](Index first, Index n, T* to) {
      const Range part = intersect(mine, {first, first + n});
      k_.add(sums + first, {part.begin - first, part.end - first}, to);
    };
    if (T* const bias_ih = gradient(gradients, p.bias_ih)) {
      add(0, summed, bias_ih);
      add(GH, split, bias_ih + summed);
    }
    if (T* const bias_hh = gradient(gradients, p.bias_hh)) add(0, GH, bias_hh);
    if (cell_.num_params > 0) add(GH + split, cell_.num_params * H_, gradient(gradients, p.params));
  }

  const Network<T>& network_;
  const Kernels<T>& k_;
  const CellKernels<T>& cell_;
  const NetworkShape& shape_;
  const Regularization& rates_;
  const typename Network<T>::Parameters& parameters_;
  const PackedWeights<T>& packed_;
  const SequenceInput<T>& in_;
  bool keep_;
  T* tape_;
  typename Network<T>::TapeLayout layout_;
  std::uint32_t* flags_;  // at the workspace's begin
  T* workspace_;
  T* input_terms_;  // of forward
  Index T_, B_, N_, H_, R_, D_, L_, G_, S_, panels_, backward_panels_;
  SequenceMasks<T> masks_;
};

template <class T>
void Network<T>::forward(const Parameters& parameters, const PackedWeights<T>& packed,
                         const SequenceInput<T>& in, const T* state_0, bool keep, T* tape,
                         T* state_n, T* workspace) const {
  SequencePass<T>(*this, parameters, packed, in, keep, tape, workspace).forward(state_0, state_n);
}

template <class T>
void Network<T>::backward(const Parameters& parameters, const PackedWeights<T>& packed,
                          const SequenceInput<T>& in, const T* tape, T* dh, T* dstate, T* dx,
                          const Gradients& gradients, int max_threads, T* workspace) const {
  if (in.rows() == 0) return;
  require(packed.layers || !parameters.separate || !packs_backward(parameters, 1),
          "packed layers must be given for separate parameters whose rows end within a vector");
  // Backward's kernels only read the tape, though their arguments have no const arrays.
  SequencePass<T>(*this, parameters, packed, in, true, const_cast<T*>(tape), workspace)
      .backward(dh, dstate, dx, gradients, max_threads);
}

template <class T>
bool Network<T>::sample(const Parameters& parameters, const PackedWeights<T>& packed,
                        const T* decoder, Index length, Index batch, T* state,
                        const DrawArgs<T>& draw, T* tape) const {
  const Index H = shape_.hidden_size, G = cell_->num_gates, L = shape_.num_layers;
  if (!cell_->sample || shape_.compute != Compute::float32 || L > most_sample_layers ||
      directions() > 1 || shape_.proj_size > 0 || shape_.layer_norm)
    return false;
  const auto weights = [&](const T* at, Packing packing, Index offset, Index columns) {
    return weights_at(packed_weights(packing, at), packed.storage, shape_.compute, offset, columns,
                      H);
  };
  const auto bias = [&](Index offset) { return offset >= 0 ? packed.layers + offset : nullptr; };
  SampleArgs<T> args{};
  args.length = length, args.batch = batch;
  args.hidden_size = H, args.num_layers = L;
  for (Index l = 0; l < L; ++l) {
    const Layer& p = layer(l, 0);
    args.layers[l] = {
        weights(packed.layers, Packing::forward, p.hh, cell_->forward_units * G),
        l > 0 ? weights(packed.layers, Packing::forward, p.ih, kernels_->gemm_units) : Weights<T>{},
        bias(p.input_bias), bias(p.split_bias), array(parameters, p.params)};
  }
  args.table = array(parameters, layer(0, 0).weight_ih);
  args.decoder = weights(decoder, Packing::decoder, 0, kernels_->gemm_units);
  args.decoder_bias = decoder_bias_ >= 0 ? decoder : nullptr;
  for (Index s = 0; s < 2; ++s) {
    const double rate = shape_.regularization.zoneout[s];
    if (rate == 0) continue;
    kernels_->fill(tape + s * H, static_cast<T>(rate), {0, H});
    args.zoneout[s] = tape + s * H;
  }
  args.states = state;
  args.draw = draw;
  return cell_->sample(args);
}

template class Network<float>;
template class Network<double>;

}  // namespace charrnn_fast
