// Texts in one kernel: all steps of sampling, with everything of a step (the tokens' weights, the
// layers, the decoder, the draw). A block has one or a few streams; their states, sums and
// probabilities stay in its shared memory, and it reads the packed weights in every step. Sums are
// those of step_forward, gemm and draw.
#pragma once

#include "kernels/cell_steps.cuh"
#include "kernels/draws.cuh"

namespace charrnn_fast {
namespace cuda {

constexpr int sample_streams = 4;           // of a block, where there are many
constexpr Index many_sample_streams = 256;  // more than two for each multiprocessor
constexpr unsigned most_sample_warps = 16;  // of a block
constexpr int weights_at_once = 8;          // that a thread loads before it multiplies by them
constexpr std::size_t most_sample_shared = std::size_t(96) << 10;  // every card since sm_80 has it
// One multiprocessor reads the weights in each step. Beyond this, all of them step by step would
// be faster (a guess, until a card has shown it).
constexpr Index most_sample_weights = Index(4) << 20;  // bytes

// total[m] += x's row m @ a column of weights. x [streams][depth] lies in shared memory, `stride`
// from row to row; the column's elements (bfloat16: words of two) are depth_stride apart.
template <class T, int streams>
__device__ void add_column(const T* x, Index stride, const Weights<T>& weights, const T* column,
                           Index depth, T (&total)[streams]) {
  const Index step = weights.depth_stride;
  const bool half = sizeof(T) == 4 && weights.storage == Storage::bfloat16;
  for (Index k = 0; k < depth;) {
    T acc[streams] = {};
    const Index end = min_of(depth, k + chain_depth);
    const auto multiply = [&](T factor) {
      for (int m = 0; m < streams; ++m) acc[m] = fma(x[m * stride + k], factor, acc[m]);
      ++k;
    };
    while (k < end) {
      const int n = static_cast<int>(min_of(weights_at_once, end - k));
      T factors[weights_at_once];
      if constexpr (sizeof(T) == 4) {
        if (half) {  // k is even: chains are of an even depth, and so are these groups
          CHARRNN_UNROLL
          for (int i = 0; i < weights_at_once; i += 2) {
            std::uint32_t word = 0;
            if (i < n) memcpy(&word, column + (k + i) / 2 * step, sizeof word);
            factors[i] = float_of_bits(word << 16);
            factors[i + 1] = float_of_bits(word & 0xffff0000u);
          }
        }
      }
      if (!half) {
        CHARRNN_UNROLL
        for (int i = 0; i < weights_at_once; ++i)
          factors[i] = i < n ? column[(k + i) * step] : T(0);
      }
      CHARRNN_UNROLL
      for (int i = 0; i < weights_at_once; ++i)
        if (i < n) multiply(factors[i]);
    }
    for (int m = 0; m < streams; ++m) total[m] = total[m] + acc[m];
  }
}

// A block's arrays in shared memory. Rows of streams that it lacks are computed and never read.
template <class Cell, class T>
struct SampleMemory {
  static constexpr Index G = Cell::num_gates, S = Cell::num_states;
  Index layers, hidden_size, vocab_size, streams;

  CHARRNN_INLINE Index states() const { return layers * S * streams * hidden_size; }
  CHARRNN_INLINE Index gates() const { return streams * G * hidden_size; }
  // The input terms, of which only those of split gates are used.
  CHARRNN_INLINE Index inputs() const { return Cell::num_split > 0 && layers > 1 ? gates() : 0; }
  CHARRNN_INLINE Index probabilities() const { return streams * vocab_size; }
  CHARRNN_INLINE std::size_t bytes() const {
    const Index elements = states() + gates() + inputs() + probabilities();
    const Index tokens = streams * vocab_size + streams;
    return static_cast<std::size_t>(elements) * sizeof(T) +
           static_cast<std::size_t>(tokens) * sizeof(Token);
  }
};

// What a stream's first bad logits were: the step, or -1; the token, or -1 if no logit was finite;
// its logit.
template <class T>
CHARRNN_INLINE double* sample_failure(const DrawArgs<T>& p, Index row) {
  return reinterpret_cast<double*>(p.scratch + row * row_scratch<T>(p.vocab_size));
}

// Draws from a row of logits by one warp, into its probabilities and order. Returns the token, or
// -1 for bad logits, of which `bad` receives the token (V: none is finite).
template <class T>
__device__ Token draw_by_warp(const DrawArgs<T>& p, Index row, std::uint64_t step, T* x,
                              Token* order, Index* bad) {
  const Index n = p.vocab_size, lane = threadIdx.x % 32;
  const T infinity = T(INFINITY);
  Index best = n, wrong = n;
  T most = -infinity;
  for (Index j = lane; j < n; j += 32) {
    const T here = x[j];
    if (!(here < infinity)) wrong = min_of(wrong, j);
    if (here > most || (here == most && j < best)) most = here, best = j;
  }
  for (unsigned half = 16; half > 0; half /= 2) {
    const T other = shuffle_xor(most, half);
    const Index other_best = shuffle_xor(best, half);
    wrong = min_of(wrong, shuffle_xor(wrong, half));
    if (other > most || (other == most && other_best < best)) most = other, best = other_best;
  }
  *bad = wrong;
  if (wrong < n || most == -infinity) return Token(-1);
  const T factor = inverse_temperature(p, row);
  if (!(factor < infinity)) return static_cast<Token>(best);
  for (Index j = lane; j < n; j += 32) {
    x[j] = math::exp((x[j] - most) * factor);
    order[j] = static_cast<Token>(j);
  }
  sync_warp();
  if (sorts(p, row)) {
    const Likelier<T> likelier{x};
    for (Index j = lane; j < n; j += 32) {
      Index before = 0;
      for (Index i = 0; i < n; ++i)
        before += likelier(static_cast<Token>(i), static_cast<Token>(j));
      order[before] = static_cast<Token>(j);
    }
    sync_warp();
  }
  return lane == 0 ? pick(p, row, step, x, order) : Token(0);
}

template <class Cell, class T, int streams>
__global__ void sample_kernel(SampleArgs<T> p) {
  constexpr int G = Cell::num_gates, S = Cell::num_states, summed = G - Cell::num_split;
  const SampleMemory<Cell, T> sizes{p.num_layers, p.hidden_size, p.draw.vocab_size, streams};
  const Index H = p.hidden_size, V = p.draw.vocab_size, B = p.batch, L = p.num_layers;
  const Index first = Index(blockIdx.x) * streams, rows = min_of(streams, B - first);
  const Index thread = threadIdx.x, threads = blockDim.x;
  const Index warp = thread / 32, lane = thread % 32, warps = threads / 32;
  const Index panels = ceil_div(H, panel_units), decoder_panels = ceil_div(V, panel_units);
  T* const states = shared_memory<T>();  // [L][S][streams][H]
  T* const gates = states + sizes.states();
  T* const inputs = gates + sizes.gates();
  T* const probabilities = inputs + sizes.inputs();
  Token* const order = reinterpret_cast<Token*>(probabilities + sizes.probabilities());
  Token* const tokens = order + streams * V;

  const auto state = [&](Index l, Index s) { return states + (l * S + s) * streams * H; };
  const auto given_state = [&](Index l, Index s, Index row) {
    return p.states + ((s * L + l) * B + first + row) * H;
  };
  for (Index l = 0; l < L; ++l)
    for (Index s = 0; s < S; ++s)
      for (Index i = thread; i < streams * H; i += threads)
        state(l, s)[i] = i / H < rows ? given_state(l, s, i / H)[i % H] : T(0);
  if (thread < streams) tokens[thread] = thread < rows ? p.draw.tokens[first + thread] : Token(0);
  if (thread < rows) sample_failure(p.draw, first + thread)[0] = -1;
  bool failed = false;  // the warp's stream
  sync_block();

  for (Index i = 0; i < p.length; ++i) {
    for (Index l = 0; l < L; ++l) {
      const SampleLayer<T>& layer = p.layers[l];
      RecurrentForwardArgs<T> args{};
      args.steps = {1, streams, nullptr, false};
      args.hidden_size = args.width = H;
      args.split_bias = layer.split_bias;
      args.params = layer.params;
      if (l == 0) {
        args.tokens = tokens, args.table = p.table;
        args.input_bias = layer.input_bias;
      } else {
        args.gx = inputs;
      }
      for (int s = 0; s < S; ++s) {
        args.states.of[s] = {state(l, s), state(l, s), H, true};
        if (s >= 2 || !p.zoneout[s]) continue;
        args.zoneout.any = true;
        args.zoneout.of[s].mask.data = p.zoneout[s];
      }
      // A warp adds up one gate of a panel's units.
      for (Index task = warp; task < panels * G; task += warps) {
        const Index panel = task / G, g = task % G, unit = panel * panel_units + lane;
        if (unit >= H) continue;
        const Index column = g * H + unit;
        T sums[streams];
        if (l > 0) {
          for (int m = 0; m < streams; ++m)
            sums[m] = layer.input_bias ? layer.input_bias[column] : T(0);
          const T* const from =
              layer.ih.data + column / panel_units * layer.ih.panel_stride + column % panel_units;
          add_column<T, streams>(state(l - 1, 0), H, layer.ih, from, H, sums);
          if (g >= summed)
            for (int m = 0; m < streams; ++m) inputs[m * G * H + column] = sums[m];
        }
        if (l == 0 || g >= summed)
          for (int m = 0; m < streams; ++m) sums[m] = gate_start<Cell>(args, m, g, unit);
        const T* const from =
            layer.hh.data + panel * layer.hh.panel_stride + g * panel_units + lane;
        add_column<T, streams>(state(l, 0), H, layer.hh, from, H, sums);
        for (int m = 0; m < streams; ++m) gates[m * G * H + column] = sums[m];
      }
      sync_block();
      for (Index j = thread; j < rows * H; j += threads) {
        const Index row = j / H, unit = j % H;
        T of_unit[G];
        for (int g = 0; g < G; ++g) of_unit[g] = gates[(row * G + g) * H + unit];
        run_cell_forward<Cell>(args, 0, row, unit, of_unit,
                               forward_inputs<Cell>(args, 0, row, unit));
      }
      sync_block();
    }
    for (Index panel = warp; panel < decoder_panels; panel += warps) {
      const Index column = panel * panel_units + lane;
      if (column >= V) continue;
      T sums[streams];
      for (int m = 0; m < streams; ++m) sums[m] = p.decoder_bias ? p.decoder_bias[column] : T(0);
      add_column<T, streams>(state(L - 1, 0), H, p.decoder,
                             p.decoder.data + panel * p.decoder.panel_stride + lane, H, sums);
      for (int m = 0; m < streams; ++m) probabilities[m * V + column] = sums[m];
    }
    sync_block();
    if (warp < rows && !failed) {
      T* const x = probabilities + warp * V;
      Index bad;
      const Token drawn = draw_by_warp(p.draw, first + warp, static_cast<std::uint64_t>(i), x,
                                       order + warp * V, &bad);
      failed = shuffle(drawn, 0) < 0;
      if (lane == 0 && failed) {
        double* const failure = sample_failure(p.draw, first + warp);
        failure[0] = static_cast<double>(i);
        failure[1] = bad < V ? static_cast<double>(bad) : -1.0;
        failure[2] = bad < V ? static_cast<double>(x[bad]) : -static_cast<double>(INFINITY);
      } else if (lane == 0) {
        tokens[warp] = drawn;
        p.draw.drawn[i * B + first + warp] = drawn;
      }
    }
    sync_block();
  }
  for (Index l = 0; l < L; ++l)
    for (Index s = 0; s < S; ++s)
      for (Index i = thread; i < rows * H; i += threads)
        given_state(l, s, i / H)[i % H] = state(l, s)[i];
  if (thread < rows) p.draw.tokens[first + thread] = tokens[thread];
}

// Of all streams' bad logits, those of the earliest step, and in it of the first row.
template <class T>
struct FirstSampleFailure {
  DrawArgs<T> p;
  Index batch;

  CHARRNN_INLINE void operator()(Index) const {
    const double* earliest = nullptr;
    for (Index row = 0; row < batch; ++row) {
      const double* const failure = sample_failure(p, row);
      if (failure[0] < 0 || (earliest && !(failure[0] < earliest[0]))) continue;
      earliest = failure;
      p.failure[0] = static_cast<double>(row);
      p.failure[1] = failure[1], p.failure[2] = failure[2];
    }
  }
};

template <class Cell, class T, int streams>
void launch_sample(const SampleArgs<T>& p, std::size_t shared) {
  const Index panels = ceil_div(p.hidden_size, panel_units) * Cell::num_gates;
  const Index tasks = max_of(max_of(panels, ceil_div(p.draw.vocab_size, panel_units)), streams);
  const auto warps = static_cast<unsigned>(min_of(tasks, most_sample_warps));
  Grid grid{dim3(static_cast<unsigned>(ceil_div(p.batch, streams))), dim3(32 * warps)};
  grid.shared = shared;
  launch(grid, table_stream(), sample_kernel<Cell, T, streams>, p);
}
// See CellKernels::sample.
template <class Cell, class T>
bool sample(const SampleArgs<T>& p) {
  const Index H = p.hidden_size, L = p.num_layers, V = p.draw.vocab_size;
  const Index weights = (2 * L - 1) * Cell::num_gates * H * H + V * H;
  if (weights * Index(p.decoder.storage == Storage::bfloat16 ? 2 : sizeof(T)) > most_sample_weights)
    return false;
  const auto shared = [&](Index streams) {
    return SampleMemory<Cell, T>{L, H, V, streams}.bytes();
  };
  if (shared(1) > most_sample_shared) return false;
  if (p.batch > many_sample_streams && shared(sample_streams) <= most_sample_shared)
    launch_sample<Cell, T, sample_streams>(p, shared(sample_streams));
  else
    launch_sample<Cell, T, 1>(p, shared(1));
  each(1, FirstSampleFailure<T>{p.draw, p.batch});
  return true;
}

}  // namespace cuda
}  // namespace charrnn_fast
