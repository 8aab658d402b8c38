// Layers, their order, their memory and the sharing of their work among threads. Arithmetic on
// arrays is the kernels', but for adding up biases.
#include "charrnn_fast/network.hpp"

#include <algorithm>
#include <cstring>

#include "dispatch.hpp"
#include "errors.hpp"
#include "thread_pool.hpp"

namespace charrnn_fast {
namespace {

// Buffers are laid out in multiples of a cache line of doubles and floats alike.
constexpr Index alignment_elements = 16;
Index aligned(Index n) {
  return (n + alignment_elements - 1) / alignment_elements * alignment_elements;
}
Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

// Streams are shared out where each thread gets a tile's worth of rows, else units are.
constexpr Index rows_per_thread = 6;

int threads_for(double operations) {
  const int most = ThreadPool::instance().size();
  return static_cast<int>(
      std::clamp(operations / sharing_limits().operations_per_thread, 1.0, double(most)));
}

struct Sharing {
  int threads;
  bool by_rows;  // else by units, with a barrier per step
};

Sharing share_recurrence(double operations, Index seq_len, Index batch, Index panels) {
  int threads = threads_for(operations);
  if (batch >= rows_per_thread * threads) return {threads, true};
  const double per_step = operations / static_cast<double>(std::max<Index>(1, seq_len));
  threads = static_cast<int>(std::clamp(per_step / sharing_limits().operations_per_barrier, 1.0,
                                        double(std::min<Index>(threads, panels))));
  return {threads, threads == 1};
}

template <class T>
const CellKernels<T>& find_cell(const std::string& name) {
  const Kernels<T>& k = kernels<T>();
  std::string known;
  for (int i = 0; i < k.num_cells; ++i) {
    if (k.cells[i].name == name) return k.cells[i];
    known += (i ? ", " : "") + std::string(k.cells[i].name);
  }
  fail("cell is '", name, "', it takes one of ", known);
}

template <class T>
void zero(T* to, Index n) {
  if (n > 0) std::memset(to, 0, static_cast<std::size_t>(n) * sizeof(T));
}
template <class T>
void copy(const T* from, Index n, T* to) {
  if (n > 0) std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(T));
}
template <class T>
void add(const T* from, Range range, T* to) {
  for (Index i = range.begin; i < range.end; ++i) to[i] += from[i];
}
Range intersect(Range a, Range b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

}  // namespace

// ---- shape and parameters -----------------------------------------------------------------

template <class T>
Network<T>::Network(const NetworkShape& shape) : Network(shape, find_cell<T>(shape.cell)) {}

template <class T>
Network<T>::Network(const NetworkShape& shape, const CellKernels<T>& cell)
    : shape_(shape), cell_(&cell) {
  require(shape.input_size >= 1, "input_size is ", shape.input_size, ", it takes 1 or more");
  require(shape.hidden_size >= 1, "hidden_size is ", shape.hidden_size, ", it takes 1 or more");
  require(shape.num_layers >= 1, "num_layers is ", shape.num_layers, ", it takes 1 or more");
  require(cell.num_states <= max_states, "cell ", cell.name, " has ", cell.num_states,
          " states, a network takes up to ", max_states);
  // Far beyond any memory, and products of sizes stay far from overflow.
  constexpr double most_elements = 1e13;
  const double H = static_cast<double>(shape.hidden_size);
  const double gates = cell.num_gates + cell.num_split + cell.num_params;
  const double widest = H + static_cast<double>(std::max(shape.input_size, shape.output_size));
  require(gates * H * widest * static_cast<double>(shape.num_layers) < most_elements, "input_size ",
          shape.input_size, ", hidden_size ", shape.hidden_size, ", output_size ",
          shape.output_size, " and num_layers ", shape.num_layers,
          " make an impossibly large network");
  require(shape.output_size >= 0, "output_size is ", shape.output_size, ", it takes 0 or more");
  lay_out();
}

template <class T>
Index Network<T>::num_states() const {
  return cell_->num_states;
}

template <class T>
Index Network<T>::num_slots() const {
  return cell_->num_gates + cell_->num_split + cell_->num_params;
}

template <class T>
Index Network<T>::add_parameter(std::string name, Index rows, Index cols, bool transposed) {
  const Index offset = parameter_elements_;
  parameters_.push_back({std::move(name), rows, cols, offset, transposed});
  parameter_elements_ += aligned(parameters_.back().elements());
  return offset;
}

template <class T>
void Network<T>::lay_out() {
  const Index H = shape_.hidden_size, G = cell_->num_gates, split = cell_->num_split;
  const Index plain = kernels<T>().gemm_units, gates = cell_->forward_units;
  // Room for an even depth, so that the same offsets, halved, serve for bfloat16.
  const auto weights = [&](Packing packing, Index units, Index depth, Index panel_units,
                           Index groups = 1) {
    Index& elements = packed_[static_cast<int>(packing)].weights;
    const Index offset = elements, columns = ceil_div(units, panel_units) * panel_units * groups;
    elements += aligned(columns * (depth + depth % 2));
    return offset;
  };
  const auto biases = [&](Index n) {
    Index& elements = packed_[static_cast<int>(Packing::forward)].biases;
    const Index offset = elements;
    elements += aligned(n);
    return offset;
  };
  for (Index l = 0; l < shape_.num_layers; ++l) {
    const std::string suffix = "_l" + std::to_string(l);
    const Index I = layer_input_size(l);
    Layer p{};
    p.weight_ih = add_parameter("weight_ih" + suffix, G * H, I, l == 0);
    p.weight_hh = add_parameter("weight_hh" + suffix, G * H, H, false);
    p.bias_ih = shape_.bias == Bias::none ? -1 : add_parameter("bias_ih" + suffix, G * H, 0, false);
    p.bias_hh = shape_.bias == Bias::both ? add_parameter("bias_hh" + suffix, G * H, 0, false) : -1;
    if (cell_->num_params > 0)
      p.params = add_parameter("weight_" + std::string(cell_->params_name) + suffix,
                               cell_->num_params, H, false);

    p.input_bias = p.bias_ih < 0 ? -1 : biases(G * H);
    p.split_bias = p.bias_hh >= 0 && split > 0 ? biases(split * H) : -1;
    p.hh = weights(Packing::forward, H, H, gates, G);
    p.hh_t = weights(Packing::backward, H, G * H, plain);
    const Packing ih = l == 0 ? Packing::forward_dense : Packing::forward;
    const Packing ih_t = l == 0 ? Packing::backward_dense : Packing::backward;
    p.ih = weights(ih, G * H, I, plain);
    p.ih_t = weights(ih_t, I, (G - split) * H, plain);
    p.ih_t_split = split > 0 ? weights(ih_t, I, split * H, plain) : -1;
    layers_.push_back(p);
  }
  if (shape_.output_size > 0) {
    decoder_weight_ = add_parameter("decoder.weight", shape_.output_size, H, false);
    if (shape_.bias != Bias::none)
      decoder_bias_ = add_parameter("decoder.bias", shape_.output_size, 0, false);
    weights(Packing::decoder, shape_.output_size, H, plain);
  }
  parameter_elements_ += alignment_elements;  // for reading on past a row, see Weights
}

template <class T>
Index Network<T>::packed_elements(Packing packing, Storage storage) const {
  const PackedLayout& p = packed_[static_cast<int>(packing)];
  return p.biases + (storage == Storage::bfloat16 ? p.weights / 2 : p.weights);
}

template <class T>
Weights<T> Network<T>::packed_weights(Packing packing, const T* packed, Storage storage,
                                      Index offset, Index panel_columns, Index depth) const {
  const bool half = storage == Storage::bfloat16;
  const T* const weights = packed + packed_[static_cast<int>(packing)].biases;
  return {weights + (half ? offset / 2 : offset), panel_columns,
          panel_columns * (half ? ceil_div(depth, 2) : depth), half};
}

template <class T>
void Network<T>::pack(Packing packing, const T* parameters, T* packed, Storage storage) const {
  const Kernels<T>& k = kernels<T>();
  const Index H = shape_.hidden_size, G = cell_->num_gates, split = cell_->num_split;
  const Index summed = G - split;
  const bool half = storage == Storage::bfloat16;
  require(!half || sizeof(T) == 4, "weights of float64 networks are not stored as bfloat16");
  const PackedLayout& layout = packed_[static_cast<int>(packing)];
  T* const weights = packed + layout.biases;
  const double work = 4.0 * static_cast<double>(layout.weights);
  ThreadPool::instance().run(threads_for(work), [&](const Team& team) {
    // Row r, depth d of the matrix stands at r * row_stride + d * depth_stride.
    const auto run = [&](const T* from, Index row_stride, Index depth_stride, Index groups,
                         Index units, Index depth, Index to) {
      k.pack(PackArgs<T>{from, row_stride, depth_stride, groups, units, depth,
                         weights + (half ? to / 2 : to), half},
             team.share(ceil_div(units, groups > 1 ? cell_->forward_units : k.gemm_units)));
    };
    if (packing == Packing::decoder)
      return run(parameters + decoder_weight_, H, 1, 1, shape_.output_size, H, 0);
    const bool dense = packing == Packing::forward_dense || packing == Packing::backward_dense;
    const bool backward = packing == Packing::backward || packing == Packing::backward_dense;
    for (Index l = 0; l < (dense ? 1 : shape_.num_layers); ++l) {
      const Index I = layer_input_size(l);
      const Layer& p = layers_[static_cast<std::size_t>(l)];
      const T* const hh = parameters + p.weight_hh;
      const T* const ih = parameters + p.weight_ih;
      const Index ih_row = l == 0 ? 1 : I, ih_col = l == 0 ? G * H : 1;
      if (!dense) backward ? run(hh, 1, H, 1, H, G * H, p.hh_t) : run(hh, H, 1, G, H, H, p.hh);
      if (dense == (l == 0) && !backward) run(ih, ih_row, ih_col, 1, G * H, I, p.ih);
      if (dense == (l == 0) && backward) {
        run(ih, ih_col, ih_row, 1, I, summed * H, p.ih_t);
        if (split > 0) run(ih + summed * H * ih_row, ih_col, ih_row, 1, I, split * H, p.ih_t_split);
      }
      if (packing != Packing::forward || team.part > 0 || p.bias_ih < 0) continue;
      // A sum begins with b_ih + b_hh; the two parts of a split gate keep their own.
      copy(parameters + p.bias_ih, G * H, packed + p.input_bias);
      if (p.bias_hh >= 0) {
        const T* b_hh = parameters + p.bias_hh;
        add(b_hh, {0, summed * H}, packed + p.input_bias);
        if (split > 0) copy(b_hh + summed * H, split * H, packed + p.split_bias);
      }
    }
  });
}

template <class T>
void Network<T>::check_tokens(const char* name, const Token* tokens, Index seq_len,
                              Index batch) const {
  const auto limit = static_cast<std::uint64_t>(shape_.input_size);
  bool good = true;
  for (Index i = 0; i < seq_len * batch; ++i)
    good &= static_cast<std::uint64_t>(static_cast<std::int64_t>(tokens[i])) < limit;
  if (good) return;
  for (Index i = 0; i < seq_len * batch; ++i)
    if (tokens[i] < 0 || tokens[i] >= shape_.input_size)
      fail(name, "[", i / batch, ", ", i % batch, "] is ", tokens[i],
           ", it takes tokens from 0 to ", shape_.input_size - 1);
}

// ---- forward ------------------------------------------------------------------------------

template <class T>
typename Network<T>::TapeLayout Network<T>::tape_layout(const SequenceInput<T>& in,
                                                        bool keep) const {
  const Index BH = in.batch * shape_.hidden_size, S = cell_->num_states;
  TapeLayout t{};
  t.state = aligned((in.seq_len + 1) * BH);
  // Without keep, only h is needed of every step.
  t.states = t.state + (S - 1) * (keep ? t.state : aligned(BH));
  t.saved = keep ? aligned(in.seq_len * BH * cell_->num_saved) : 0;
  t.layer = t.states + t.saved;
  // One layer's gates at a time: their input part in forward, their gradients in backward. The
  // same memory for both keeps the whole step closer to the caches.
  const bool any_dense = in.x || shape_.num_layers > 1;
  const Index slots = keep ? num_slots() : any_dense ? cell_->num_gates : 0;
  t.total = shape_.num_layers * t.layer + aligned(in.seq_len * BH * slots);
  return t;
}

template <class T>
Index Network<T>::tape_elements(const SequenceInput<T>& in, bool keep) const {
  return tape_layout(in, keep).total;
}

template <class T>
const T* Network<T>::hidden(const SequenceInput<T>& in, bool keep, const T* tape) const {
  const TapeLayout layout = tape_layout(in, keep);
  return tape + (shape_.num_layers - 1) * layout.layer + in.batch * shape_.hidden_size;
}

template <class T>
void Network<T>::forward(const T* parameters, const PackedWeights<T>& packed,
                         const SequenceInput<T>& in, const T* state_0, bool keep, T* tape,
                         T* state_n) const {
  const Kernels<T>& k = kernels<T>();
  const Index H = shape_.hidden_size, G = cell_->num_gates, S = cell_->num_states;
  const Index L = shape_.num_layers, B = in.batch, BH = B * H, steps = in.seq_len;
  const Index panels = ceil_div(H, cell_->forward_units);
  const TapeLayout layout = tape_layout(in, keep);
  T* const gx = tape + L * layout.layer;
  const double operations = 2.0 * double(steps * BH) * double(G * H);
  const Sharing sharing = share_recurrence(operations, steps, B, panels);

  ThreadPool::instance().run(sharing.threads, [&](const Team& team) {
    for (Index l = 0; l < L; ++l) {
      const Layer& p = layers_[static_cast<std::size_t>(l)];
      T* const layer = tape + l * layout.layer;
      T* states[max_states];
      Index state_step[max_states];
      const Range my_rows = team.share(B);
      for (Index s = 0; s < S; ++s) {
        const bool sequence = keep || s == 0;
        states[s] = layer + (sequence ? s * layout.state : layout.state + (s - 1) * aligned(BH));
        state_step[s] = sequence ? BH : 0;
        T* const first = states[s] + my_rows.begin * H;
        const Index n = (my_rows.end - my_rows.begin) * H;
        if (state_0)
          copy(state_0 + (s * L + l) * BH + my_rows.begin * H, n, first);
        else
          zero(first, n);
      }
      const bool gather = l == 0 && in.tokens;
      const T* const input_bias = p.input_bias >= 0 ? packed.layers + p.input_bias : nullptr;
      if (!gather) {
        const Index I = layer_input_size(l);
        const T* const x = l == 0 ? in.x : layer - layout.layer + BH;
        const Packing ih = l == 0 ? Packing::forward_dense : Packing::forward;
        const Weights<T> weights = packed_weights(ih, l == 0 ? packed.dense : packed.layers,
                                                  packed.storage, p.ih, k.gemm_units, I);
        k.gemm(GemmArgs<T>{x, I, weights, input_bias, false, G * H, I, gx, G * H},
               team.share(steps * B), {0, ceil_div(G * H, k.gemm_units)});
      }
      team.wait();
      const RecurrentForwardArgs<T> args{
          steps,
          B,
          H,
          packed_weights(Packing::forward, packed.layers, packed.storage, p.hh,
                         cell_->forward_units * G, H),
          gather ? nullptr : gx,
          gather ? in.tokens : nullptr,
          gather ? parameters + parameters_[0].offset : nullptr,
          gather ? input_bias : nullptr,
          p.split_bias >= 0 ? packed.layers + p.split_bias : nullptr,
          parameters + p.params,
          states,
          state_step,
          keep ? layer + layout.states : nullptr,
          nullptr,
      };
      if (sharing.by_rows) {
        cell_->forward(args, {0, steps}, my_rows, {0, panels});
        team.wait();
      } else {
        for (Index t = 0; t < steps; ++t) {
          cell_->forward(args, {t, t + 1}, {0, B}, team.share(panels));
          team.wait();
        }
      }
      if (state_n)
        for (Index s = 0; s < S; ++s)
          copy(states[s] + steps * state_step[s] + my_rows.begin * H,
               (my_rows.end - my_rows.begin) * H, state_n + (s * L + l) * BH + my_rows.begin * H);
    }
  });
}

// ---- backward -----------------------------------------------------------------------------

template <class T>
Index Network<T>::backward_elements(int max_threads) const {
  return aligned(num_slots() * shape_.hidden_size) +
         max_threads * aligned(kernels<T>().gemm_tn_scratch());
}

template <class T>
void Network<T>::backward(const T* parameters, const PackedWeights<T>& packed,
                          const SequenceInput<T>& in, T* tape, T* dh, T* dstate, T* dx,
                          T* gradients, int max_threads, T* workspace) const {
  if (in.seq_len == 0) return;
  const Kernels<T>& k = kernels<T>();
  const Index H = shape_.hidden_size, G = cell_->num_gates, S = cell_->num_states;
  const Index split = cell_->num_split, P = cell_->num_params, summed = G - split;
  const Index L = shape_.num_layers, B = in.batch, BH = B * H, steps = in.seq_len, rows = steps * B;
  const Index panels = ceil_div(H, k.gemm_units), width = num_slots() * H;
  const TapeLayout layout = tape_layout(in, true);
  T* const dgates = tape + L * layout.layer;
  T* const sums = workspace;
  T* const scratch = sums + aligned(width);
  const double operations = 2.0 * double(steps * BH) * double(G * H);
  const Sharing sharing = share_recurrence(operations, steps, B, panels);

  ThreadPool::instance().run(std::min(sharing.threads, max_threads), [&](const Team& team) {
    T* const my_scratch = scratch + team.part * aligned(k.gemm_tn_scratch());
    for (Index l = L - 1; l >= 0; --l) {
      const Layer& p = layers_[static_cast<std::size_t>(l)];
      const T* const layer = tape + l * layout.layer;
      const T* states[max_states];
      T* dstates[max_states];
      for (Index s = 0; s < S; ++s) {
        states[s] = layer + s * layout.state;
        dstates[s] = dstate + (s * L + l) * BH;
      }
      // A few streams read a weight about as often as packing would: they read it as it stands.
      const Weights<T> hh = packed.layers
                                ? packed_weights(Packing::backward, packed.layers, packed.storage,
                                                 p.hh_t, k.gemm_units, G * H)
                                : Weights<T>{parameters + p.weight_hh, H, k.gemm_units};
      const RecurrentBackwardArgs<T> args{
          steps, B,       H,      hh,     parameters + p.params, states, layer + layout.states,
          dh,    dstates, dgates, nullptr};
      // The sums of the slots' columns, for the biases and the cell's own parameters.
      const Range my_sums = team.share(width, alignment_elements);
      zero(sums + my_sums.begin, my_sums.end - my_sums.begin);
      if (sharing.by_rows) {
        const Range my_rows = team.share(B);
        cell_->backward(args, {0, steps}, my_rows, {0, panels});
        cell_->backward_initial(args, my_rows, {0, panels});
      } else {
        for (Index t = steps - 1; t >= 0; --t) {
          cell_->backward(args, {t, t + 1}, {0, B}, team.share(panels));
          team.wait();
        }
        cell_->backward_initial(args, {0, B}, team.share(panels));
      }
      team.wait();

      // dgates holds the gradients of the gates' recurrent parts, then those of the split gates'
      // input parts; for the others both parts have the same gradient.
      const T* const dgx_split = dgates + G * H;
      const Index I = layer_input_size(l);
      const bool gather = l == 0 && in.tokens;
      if (T* const to = l > 0 ? dh : dx) {
        const Range all{0, ceil_div(I, k.gemm_units)}, mine = team.share(rows);
        const auto add_part = [&](const T* d, Index gate, Index offset, Index depth,
                                  bool accumulate) {
          const Weights<T> weights =
              l > 0 && !packed.layers
                  ? Weights<T>{parameters + p.weight_ih + gate * H * I, I, k.gemm_units}
                  : packed_weights(l > 0 ? Packing::backward : Packing::backward_dense,
                                   l > 0 ? packed.layers : packed.dense, packed.storage, offset,
                                   k.gemm_units, depth);
          k.gemm(GemmArgs<T>{d, width, weights, nullptr, accumulate, I, depth, to, I}, mine, all);
        };
        add_part(dgates, 0, p.ih_t, summed * H, false);
        if (split > 0) add_part(dgx_split, summed, p.ih_t_split, split * H, true);
      }
      // Weight gradients: rows of gates, depth time and batch, against the layer's input and
      // against h of the step before.
      T* const d_ih = gradients + p.weight_ih;
      T* const d_hh = gradients + p.weight_hh;
      const T* const x = l > 0 ? layer - layout.layer + BH : nullptr;
      const auto to_hh = [&](Index gate) {
        return GemmTnProduct<T>{layer, H, H, d_hh + gate * H * H, H};
      };
      const auto to_ih = [&](Index gate) {
        return GemmTnProduct<T>{x, I, I, d_ih + gate * H * I, I};
      };
      const auto products = [&](Index slot, Index n, GemmTnProduct<T> first,
                                GemmTnProduct<T> second, int count) {
        k.gemm_tn(
            GemmTnArgs<T>{dgates + slot * H, width, rows, {first, second}, count, sums + slot * H},
            team.share(n * H, alignment_elements), my_scratch);
      };
      // The gradient of layer 0's input weights, which are stored [I, G*H].
      const auto first_layer = [&](const T* dgx, Index gate, Index gates) {
        const Index n = gates * H;
        if (gather)
          k.scatter_add(dgx, width, in.tokens, rows, team.share(n, alignment_elements),
                        d_ih + gate * H, G * H);
        else
          k.gemm_tn(
              GemmTnArgs<T>{
                  in.x, I, rows, {{dgx, width, n, d_ih + gate * H, G * H}, {}}, 1, nullptr},
              team.share(I), my_scratch);
      };
      products(0, summed, to_hh(0), to_ih(0), l > 0 ? 2 : 1);
      if (l == 0) first_layer(dgates, 0, summed);
      if (split > 0) {
        products(summed, split, to_hh(summed), {}, 1);
        if (l > 0)
          products(G, split, to_ih(summed), {}, 1);
        else
          first_layer(dgx_split, summed, split);
      }
      // Those sums that no product has made on its way.
      const Index first_left = (l > 0 ? G + split : G) * H;
      const Range left = team.share(width - first_left, alignment_elements);
      k.column_sums(dgates + first_left, width, rows, left, sums + first_left);
      team.wait();
      if (p.bias_ih >= 0) {
        add(sums, intersect(my_sums, {0, summed * H}), gradients + p.bias_ih);
        add(sums, intersect(my_sums, {G * H, (G + split) * H}), gradients + p.bias_ih - split * H);
      }
      if (p.bias_hh >= 0) add(sums, intersect(my_sums, {0, G * H}), gradients + p.bias_hh);
      if (P > 0)
        add(sums, intersect(my_sums, {(G + split) * H, width}),
            gradients + p.params - (G + split) * H);
      team.wait();
    }
  });
}

// ---- decoder and loss ---------------------------------------------------------------------

template <class T>
void Network<T>::decode(const T* parameters, const T* packed, const T* h, Index rows, T* y,
                        Storage storage) const {
  const Kernels<T>& k = kernels<T>();
  const Index H = shape_.hidden_size, O = shape_.output_size;
  const T* const bias = decoder_bias_ >= 0 ? parameters + decoder_bias_ : nullptr;
  const Weights<T> weights = packed_weights(Packing::decoder, packed, storage, 0, k.gemm_units, H);
  const GemmArgs<T> args{h, H, weights, bias, false, O, H, y, O};
  const Index panels = ceil_div(O, k.gemm_units);
  ThreadPool::instance().run(threads_for(2.0 * double(rows) * double(H * O)),
                             [&](const Team& team) {
                               if (rows >= rows_per_thread * team.parts)
                                 k.gemm(args, team.share(rows), {0, panels});
                               else
                                 k.gemm(args, {0, rows}, team.share(panels));
                             });
}

namespace {

// Elements of the decoder's weights that a thread works on at a time: they stay in its
// second-level cache.
constexpr Index decoder_block = Index(1) << 16;

}  // namespace

// One thread's part of the logits. The decoder is packed as it goes: a whole copy would take as
// much memory as the weights, and for large vocabularies that is most of the model.
template <class T>
void Network<T>::decode_rows(const T* parameters, const T* h, Range rows, Range panels, T* y,
                             Index y_stride, T* scratch) const {
  if (rows.begin >= rows.end) return;
  const Kernels<T>& k = kernels<T>();
  const Index H = shape_.hidden_size, O = shape_.output_size, units = k.gemm_units;
  const Index most = std::max<Index>(1, decoder_block / (H * units));
  for (Index panel = panels.begin; panel < panels.end; panel += most) {
    const Index n = std::min(most, panels.end - panel), first = panel * units;
    const Index cols = std::min(n * units, O - first);
    k.pack(PackArgs<T>{parameters + decoder_weight_ + first * H, H, 1, 1, cols, H, scratch, false},
           {0, n});
    const T* const bias = decoder_bias_ >= 0 ? parameters + decoder_bias_ + first : nullptr;
    k.gemm(
        GemmArgs<T>{h, H, {scratch, units, units * H}, bias, false, cols, H, y + first, y_stride},
        rows, {0, n});
  }
}

// dh [rows, H] = dy [rows, O] @ decoder.weight, which is read as it stands.
template <class T>
void Network<T>::decode_rows_backward(const T* parameters, const T* dy, Index dy_stride, Range rows,
                                      T* dh) const {
  const Kernels<T>& k = kernels<T>();
  const Index H = shape_.hidden_size, O = shape_.output_size;
  const Index most = std::max<Index>(1, decoder_block / H);
  for (Index first = 0; first < O; first += most) {
    const Weights<T> weights{parameters + decoder_weight_ + first * H, H, k.gemm_units};
    k.gemm(GemmArgs<T>{dy + first, dy_stride, weights, nullptr, first > 0, H,
                       std::min(most, O - first), dh, H},
           rows, {0, ceil_div(H, k.gemm_units)});
  }
}

template <class T>
Index Network<T>::decode_backward_elements(int max_threads) const {
  return max_threads * aligned(kernels<T>().gemm_tn_scratch());
}

template <class T>
void Network<T>::decode_backward(const T* parameters, const T* h, const T* dy, Index rows, T* dh,
                                 T* gradients, int max_threads, T* workspace) const {
  const Kernels<T>& k = kernels<T>();
  const Index H = shape_.hidden_size, O = shape_.output_size;
  T* const bias_gradient = decoder_bias_ >= 0 ? gradients + decoder_bias_ : nullptr;
  ThreadPool::instance().run(
      std::min(max_threads, threads_for(4.0 * double(rows) * double(H * O))),
      [&](const Team& team) {
        decode_rows_backward(parameters, dy, O, team.share(rows), dh);
        k.gemm_tn(
            GemmTnArgs<T>{
                dy, O, rows, {{h, H, H, gradients + decoder_weight_, H}, {}}, 1, bias_gradient},
            team.share(O), workspace + team.part * aligned(k.gemm_tn_scratch()));
      });
}

// Logits of a block take at most 16 MB (float) and, for a small vocabulary, stay in cache.
template <class T>
Index Network<T>::head_block_rows() const {
  return std::clamp<Index>((Index(1) << 22) / shape_.output_size, 1, 512);
}

// One thread's: a packed block of the decoder, then the operands of its gradient.
template <class T>
Index Network<T>::head_scratch() const {
  const Kernels<T>& k = kernels<T>();
  return aligned(std::max({k.gemm_tn_scratch(), decoder_block, k.gemm_units * shape_.hidden_size}));
}

template <class T>
Index Network<T>::head_elements(Index rows, int max_threads) const {
  return std::min(rows, head_block_rows()) * aligned(shape_.output_size) +
         max_threads * head_scratch();
}

template <class T>
void Network<T>::head(const T* parameters, const T* h, const Token* targets, Index rows, T scale,
                      T* losses, T* dh, T* gradients, int max_threads, T* workspace) const {
  const Kernels<T>& k = kernels<T>();
  const Index H = shape_.hidden_size, O = shape_.output_size, stride = aligned(O);
  const Index block = head_block_rows(), panels = ceil_div(O, k.gemm_units);
  T* const logits = workspace;
  T* const bias_gradient = gradients && decoder_bias_ >= 0 ? gradients + decoder_bias_ : nullptr;
  const double operations = (dh ? 6.0 : 2.0) * double(rows) * double(H * O);
  ThreadPool::instance().run(std::min(max_threads, threads_for(operations)), [&](const Team& team) {
    T* const scratch = workspace + std::min(rows, block) * stride + team.part * head_scratch();
    // Each thread packs what it multiplies by: a large vocabulary is shared out, so that it is
    // packed once; of a small one each packs all, and runs on without waiting.
    const bool by_columns = panels >= 8 * team.parts && team.parts > 1;
    for (Index first = 0; first < rows; first += block) {
      const Index n = std::min(block, rows - first);
      const T* const h_block = h + first * H;
      const Range mine = team.share(n);
      if (by_columns) {
        decode_rows(parameters, h_block, {0, n}, team.share(panels), logits, stride, scratch);
        team.wait();
      } else {
        decode_rows(parameters, h_block, mine, {0, panels}, logits, stride, scratch);
      }
      k.cross_entropy(CrossEntropyArgs<T>{logits, stride, O, targets + first, scale,
                                          dh ? logits : nullptr, stride, losses + first},
                      mine);
      if (dh) decode_rows_backward(parameters, logits, stride, mine, dh + first * H);
      // The next block's logits take the place of these, and others may have other rows of it.
      team.wait();
      if (!dh) continue;
      k.gemm_tn(GemmTnArgs<T>{logits,
                              stride,
                              n,
                              {{h_block, H, H, gradients + decoder_weight_, H}, {}},
                              1,
                              bias_gradient},
                team.share(O), scratch);
      team.wait();
    }
  });
}

template class Network<float>;
template class Network<double>;

}  // namespace charrnn_fast
