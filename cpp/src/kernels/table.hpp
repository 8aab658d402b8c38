// Internal. The kernels as the layers above see them: plain argument structs and one table of
// function pointers for each instruction set and number type, or for another device. No SIMD type,
// no template code and no inline function with arithmetic crosses this line, so that code compiled
// for a wide instruction set cannot leak into callers.
//
// Argument structs hold values; what is an array lies in the device's memory, where nothing but a
// kernel reads or writes it.
//
// Dimension letters: T seq_len, B batch, N rows of a sequence (T*B where all are of one length), H
// hidden_size, R width of h, G gates, S states, K depth of a product.
// All matrices are row-major; strides are in elements. "Rows" and "panels" given to a kernel are
// half-open ranges of the work, for sharing it out among threads: results do not depend on them.
//
// Sums go in an order that depends on nothing but the place of a term in the sum, so that results
// are independent of tiles, of threads and of the other rows of a batch:
// - A product's output is a sum over the depth: to the bias, or the value to be added to, come
// chains
//   of fused multiply-adds of chain_depth products each, k ascending.
// - A parameter's gradient is a sum over the rows of a sequence: blocks of sum_block rows, one
// chain
//   each, are added to the gradient in order; of more than most_plain_rows rows with the rounding
//   errors of these additions summed beside and added at the end, so that the error of a sum does
//   not grow with its length. Sums of columns take sum_rows rows at a time within a block.
// Short chains keep rounding errors small: they grow with the root of a chain's length.
#pragma once

#include "charrnn_fast/cell_info.hpp"
#include "charrnn_fast/config.hpp"

namespace charrnn_fast {

constexpr Index chain_depth = 128;
constexpr Index sum_rows = 8, sum_block = 256, most_plain_rows = 16 * sum_block;

struct Range {
  Index begin, end;
};

// ---- matrix products ----------------------------------------------------------------------

// A weight matrix [groups * units, depth] is packed into panels, zero past the last unit. With
// groups = G gates a panel is [k][group][lane], so that one tile holds all gates of its units; with
// one group it is [k][some vectors of units][lane]. Panels have `gemm_units` units in a plain
// product (one group), `forward_units` of the cell in a recurrent one. As bfloat16, a 32-bit word
// holds the weights of an even k (low half) and of the next one (high half, 0 past the end).
template <class T>
struct PackArgs {
  const T* weights;    // element (group * units + unit, k)
  Index row_stride;    //   at (group * units + unit) * row_stride
  Index depth_stride;  //   + k * depth_stride
  Index groups, units, depth;
  T* packed;      // panels * (units of a panel) * groups * depth elements
  bool bfloat16;  // ... * (depth + 1) / 2 words; T is float
};

// Where a product finds its weights: at depth k, the vectors of panel p stand side by side at
// data + p * panel_stride + k * depth_stride. Packed weights are such, and so is a row-major
// matrix [K, N] as it is, whose rows may be read on to the next multiple of a vector.
template <class T>
struct Weights {
  const T* data;
  Index depth_stride, panel_stride;  // as bfloat16: in words, and depth_stride of two k
  bool bfloat16 = false;
};

// C [M, N] = A [M, K] @ weights [K, N] + (accumulate ? C : bias)
template <class T>
struct GemmArgs {
  const T* a;
  Index a_stride;
  Weights<T> weights;
  const T* bias;  // [N] or null: zeros
  bool accumulate;
  Index cols, depth;
  T* c;
  Index c_stride;
};

// C [M, N] += A [K, M]^T @ B [K, N]: the gradient of a weight matrix; for several B of the same A
// (a layer's input and its h), so that A is packed once for them.
template <class T>
struct GemmTnProduct {
  const T* b;
  Index b_stride, cols;
  T* c;
  Index c_stride;
  T* errors = nullptr;  // [M, N], see GemmTnArgs::whole
  Index errors_stride = 0;
};

template <class T>
struct GemmTnArgs {
  const T* a;
  Index a_stride, depth;
  GemmTnProduct<T> products[2];
  int num_products;
  T* sums;                  // [M] or null: the sums of A's columns are added to it
  Index block = sum_block;  // rows of a block, at most so many
  // Of a sum of `whole` rows that takes several calls: rows that are done, in whole blocks. Of more
  // than most_plain_rows, the errors are the caller's, who passes them from call to call.
  Index done = 0, whole = 0;  // 0: this call is the whole, and has room for its errors
  T* sums_errors = nullptr;   // [M]
};
template <class T>
CHARRNN_INLINE Index whole_depth(const GemmTnArgs<T>& g) {
  return g.whole > 0 ? g.whole : g.depth;
}

// ---- sequences ----------------------------------------------------------------------------

// The rows of a sequence, N in all: those of step t stand together, behind those of the steps
// before. A batch whose sequences differ in length is sorted, the longest first: then the rows of a
// step are the first ones of the batch, and padding has no rows at all.
struct Steps {
  Index seq_len, batch;
  const Index* offsets;  // [T + 1]: step t has rows [offsets[t], offsets[t + 1]); or null: `batch`
  bool reverse;          // walked from the last step to the first
};

// t: 0 to T, and nothing else, since offsets has no more.
CHARRNN_INLINE Index first_row(const Steps& s, Index t) {
  return s.offsets ? s.offsets[t] : t * s.batch;
}
CHARRNN_INLINE Index rows_at(const Steps& s, Index t) {
  if (t < 0 || t >= s.seq_len) return 0;
  return s.offsets ? s.offsets[t + 1] - s.offsets[t] : s.batch;
}
// The step before and after t in the walk, the i-th of the walk.
CHARRNN_INLINE Index step_before(const Steps& s, Index t) { return s.reverse ? t + 1 : t - 1; }
CHARRNN_INLINE Index step_after(const Steps& s, Index t) { return s.reverse ? t - 1 : t + 1; }
// The first row of the step after t; 0 where t is the last one of the walk.
CHARRNN_INLINE Index first_row_after(const Steps& s, Index t) {
  const Index after = step_after(s, t);
  return after < 0 ? 0 : first_row(s, after);
}
CHARRNN_INLINE Index step_number(const Steps& s, Index i) {
  return s.reverse ? s.seq_len - 1 - i : i;
}
// Of the rows of step t the first ones come from the step before, the others begin here; and the
// first ones go on to the step after, the others end here.
CHARRNN_INLINE Index rows_from_before(const Steps& s, Index t) {
  const Index before = rows_at(s, step_before(s, t)), here = rows_at(s, t);
  return before < here ? before : here;
}
CHARRNN_INLINE Index rows_going_on(const Steps& s, Index t) {
  const Index after = rows_at(s, step_after(s, t)), here = rows_at(s, t);
  return after < here ? after : here;
}

// ---- recurrence ---------------------------------------------------------------------------

// Multipliers, for row r of step t (row n of the sequence) at data + n * by_step + r * by_row.
template <class T>
struct Mask {
  const T* data = nullptr;  // null: all 1
  Index by_step = 0, by_row = 0;
};

// One state of a layer, `stride` elements from row to row. Without a place for every row of the
// sequence a state is updated in place, and backward cannot follow.
template <class T>
struct StateRows {
  T* initial;  // [B]
  T* rows;     // [N]; in_place: the initial ones
  Index stride;
  bool in_place;
};
template <class T>
struct States {
  StateRows<T> of[max_states];
  CHARRNN_INLINE const StateRows<T>& operator[](Index s) const { return of[s]; }
};

// [B, R], [B, H] of each state
template <class T>
struct StateGradients {
  T* of[max_states];
  CHARRNN_INLINE T* operator[](Index s) const { return of[s]; }
};

// The states that a sequence begins or ends with, state s [B, widths[s]] at at[s].
template <class T>
struct StatesArgs {
  Steps steps;
  Index num_states;
  States<T> states;
  Index widths[max_states];
  T* at[max_states];  // begin_states: nulls for zeros
};

// s' = m s + (1 - m) s'', of the state s before and the cell's s'' (Krueger et al. 2017).
template <class T>
struct Zoneout {
  Mask<T> mask;      // m
  T* raw = nullptr;  // [N, H] keeps s'' for backward, or null
};
template <class T>
struct Zoneouts {
  bool any = false;
  Zoneout<T> of[2] = {};  // of h and c
  CHARRNN_INLINE Zoneout<T> operator[](Index s) const { return s < 2 ? of[s] : Zoneout<T>{}; }
};

// Layer normalisation of the recurrent term of the gates (Ba, Kiros and Hinton 2016), where it
// begins with 0: gh = gain * normalised(W_hh h), those of split gates by themselves.
template <class T>
struct RecurrentNorm {
  const T* gain;  // [G*H], or null: no normalisation
  T* inverse;     // [N, 2] 1 / deviation of the summed and of the split gates, or null
};

// h = the cell's h @ W_hr^T (Sak, Senior and Beaufays 2014).
template <class T>
struct Projection {
  Weights<T> weights;  // forward: [H, P]; backward: [P, H]
  T* hidden;           // [N, H] the cell's h; null: no projection
};

// One layer over time, in one direction. R: width of h, that of the projection or else H.
template <class T>
struct RecurrentForwardArgs {
  Steps steps;
  Index hidden_size, width;  // H, R
  Weights<T> hh;             // packed: G groups, H units, depth R
  const T* gx;               // [N, G*H] input term with its bias; or null, then:
  const Token* tokens;       // [N] rows of
  const T* table;            // [V, G*H] (weight_ih transposed), and
  const T* input_bias;       // [G*H] or null
  const T* split_bias;       // [num_split*H] bias of the recurrent term of split gates, or null
  const T* params;           // [P, H]
  States<T> states;
  T* saved;  // [N, num_saved*H] or null: keep nothing
  // What the recurrent product reads, [N, R], where it is not h as it stands: mask * h before.
  // Rows that begin here come from begin().
  T* recurrent = nullptr;
  Mask<T> recurrent_mask = {};
  Zoneouts<T> zoneout = {};
  RecurrentNorm<T> norm = {};
  Projection<T> projection = {};
  // Staged epilogue: [N, G*H] or, updated in place, [B, G*H]: sums of the gates, or normalised.
  T* staged = nullptr;
  bool staged_in_place = false;
};

// dgates rows hold G*H gradients of the gates' recurrent terms, then num_split*H of the input terms
// of split gates, then P*H contributions to the gradients of the cell's own parameters. With
// normalisation all gates are split: G*H gradients of W_hh h, G*H of the input terms, then
// num_split*H of the recurrent terms of the cell's split gates, P*H as before.
template <class T>
struct RecurrentBackwardArgs {
  Steps steps;
  Index hidden_size, width;  // H, R
  Weights<T> hh;             // [G*H, R]: 1 group, R units, depth G*H
  const T* params;           // [P, H]
  States<T> states;
  const T* saved;  // [N, num_saved*H]
  const T* dy;     // [N, R] gradients of h from above, or null: zeros
  Index dy_stride;
  StateGradients<T> dstates;  // of each row's last state on entry (kept from step to step), of its
                              // first at the end
  T* dgates;                  // [N, num_slots*H]
  Mask<T> recurrent_mask = {};
  Zoneouts<T> zoneout = {};
  RecurrentNorm<T> norm = {};
  const T* normalised = nullptr;  // [N, G*H]
  Projection<T> projection = {};
  T* dprojected = nullptr;  // [N, R] gradients of h, with a projection
};

template <class T>
struct CellKernels : CellInfo {
  int forward_units;  // of a panel in forward; in backward it is Kernels::gemm_units
  // args.recurrent of the rows that begin somewhere; before forward.
  void (*begin)(const RecurrentForwardArgs<T>&, Range rows);
  // Steps `walk` of the walk for the given rows of the batch and panels of units. Where panels is
  // not the whole layer, the caller synchronises after each step; normalisation and projection take
  // the whole layer.
  void (*forward)(const RecurrentForwardArgs<T>&, Range walk, Range rows, Range panels);
  // The same, from walk.end - 1 down to walk.begin. Panels are of H, and without projection also
  // of R.
  void (*backward)(const RecurrentBackwardArgs<T>&, Range walk, Range rows, Range panels);
  // dstates[0] = gradient of the initial h, after backward. Panels are of R.
  void (*backward_initial)(const RecurrentBackwardArgs<T>&, Range rows, Range panels);
};

// ---- losses, elementwise work -------------------------------------------------------------

// Softmax cross-entropy of each row: losses[row] = log sum exp(logits) - logits[target], in
// nats; logits become scale * (softmax - onehot(target)). A target of -1 gives zeros.
template <class T>
struct CrossEntropyArgs {
  const T* logits;
  Index stride;
  Index vocab_size;
  const Token* targets;
  T scale;
  T* dlogits;  // may be the logits themselves; or null: losses alone
  Index dstride;
  T* losses;  // [rows]
  // [rows], each in the place of scale, or null. One that is not above 0 gives zeros.
  const T* weights = nullptr;
};

// Losses of single elements against targets, summed for each block of elements. An element's loss
// and gradient count `weight` times; one whose weight is not above 0 gives zeros.
constexpr Index loss_block = 512;
template <class T>
struct ElementLossArgs {
  const T* x;
  const T* targets;
  const T* weights;  // one for each element, or null: the gradients count `scale` times
  T scale;
  Index elements;
  T* dx;
  double* sums;  // one for each block
};

template <class T>
struct GatherArgs {
  const Token* tokens;
  const T* scales;
  const T* table;
  const T* bias;
  Index cols;
  T* out;
  Index out_stride;
};

// table[tokens[row], j] += scales[row] * a[row, j], row ascending; scales null: 1
template <class T>
struct ScatterArgs {
  const T* a;
  Index stride, rows;
  const Token* tokens;
  const Index* order;  // of Kernels::sort_by_token
  const T* scales;
  T* table;
  Index table_stride;
};

// y = gain * normalised(x) + bias, each of two groups of columns by itself (Ba, Kiros and Hinton
// 2016, equation 4): (x - mean) / sqrt(variance + 1e-5).
template <class T>
struct LayerNormArgs {
  Index widths[2];
  const T* gain;
  const T* bias;  // or null: 0
  T* x;           // [rows, sum of widths], becomes y
  T* normalised;  // likewise, or null
  T* inverse;     // [rows, 2] 1 / deviation, or null
};

// d, the gradient of y, becomes that of x.
template <class T>
struct LayerNormBackwardArgs {
  Index widths[2];
  const T* gain;
  const T* normalised;
  const T* inverse;
  T* d;
  Index stride;
};

// Masks of random numbers that depend on their place alone (Philox4x32-10, Salmon et al. 2011):
// the element `unit` of a row has word unit % 64 / 16 of the counter (unit / 64 * 16 + unit % 16,
// stream of the row, time, site), and is dropped where that word is less than `threshold`. These
// are the same for all instruction sets and number types. Masks are multiplied by: what is infinite
// or NaN in x is NaN where it is dropped by 0.
//
// The rows are those of a sequence, where row r of step t has the time t (or one for all steps) and
// is stream r; or those of one step.
template <class T>
struct MaskArgs {
  std::uint64_t key;
  std::uint32_t time, site, threshold;
  T dropped, kept;       // the multipliers: 0 and 1 / (1 - rate); for zoneout 1 and 0
  const Index* streams;  // [rows], their low 32 bits count; or null: row r is stream r
  const T* x;            // multiplied by the mask; or null: the mask itself
  Index x_stride;
  T* out;  // may be x
  Index out_stride, cols;
  Steps steps = {};       // of no steps: the rows are those of one step, at `time`
  bool one_time = false;  // all steps are at `time`
};

// Rows of sequences of different lengths: the network's, sorted and without padding, against the
// caller's [T, B, cols]. The network's row r of a step is the caller's row order[r] of it.
template <class T>
struct SortArgs {
  Steps steps;
  const Index* order;  // [B]
  Index cols;
  const T* from;
  T* to;
};

// The losses of the network's rows, added up in the caller's order: of each step row ranks[0], if
// the sequence goes on till there, then ranks[1].
template <class T>
struct LossSumArgs {
  Steps steps;
  const Index* ranks;  // [B] or null: in the network's order
  const T* losses;     // [N]
  double* sum;
  double* stream_sums;  // [B] or null: of each sequence, in the caller's order
};

constexpr Index square_chunk = 16384;

// A token for each row of the logits [B, V]: see draw_tokens of sampling.hpp.
template <class T>
struct DrawArgs {
  const T* logits;
  Index vocab_size;
  const std::uint64_t* seeds;  // [B]
  std::uint64_t position;
  T inverse_temperature;  // not finite: the likeliest token
  Index top_k;            // 0: all
  double top_p;
  Token* tokens;  // [B]
  Token* drawn;   // [B] the same once more, or null
  T* scratch;     // draw_scratch() elements
  // [3] of the first row whose logits are damaged: the row, or -1 where there is none; the token,
  // or -1 where no number is finite; its logit. Rows are drawn until then. -1 on entry.
  double* failure;
};

template <class T>
struct UpdateArgs {
  T* params;
  const T* gradients;
  T* slots[3];
  T gradient_scale;    // from clipping by norm
  T gradient_limit;    // clipping by value; infinity: none
  T hyper[max_hyper];  // the rule's own numbers, see optimizers.hpp
};

template <class T>
struct Kernels {
  int lanes;
  int gemm_units;  // columns of a panel of a plain product
  void (*pack)(const PackArgs<T>&, Range panels);
  void (*gemm)(const GemmArgs<T>&, Range rows, Range panels);
  // scratch: gemm_tn_scratch() elements, one for each thread.
  void (*gemm_tn)(const GemmTnArgs<T>&, Range rows_of_c, T* scratch);
  Index (*gemm_tn_scratch)();
  // to[i] = value; to[i] += from[i]
  void (*fill)(T* to, T value, Range elements);
  void (*add)(const T* from, Range elements, T* to);
  // The network's rows of the given steps from the caller's; and the caller's from the network's,
  // zeros past a sequence's end.
  void (*sort_rows)(const SortArgs<T>&, Range steps);
  void (*unsort_rows)(const SortArgs<T>&, Range steps);
  // Of the given rows of the batch: each one's initial state to where the layer keeps it, and its
  // last state from there.
  void (*begin_states)(const StatesArgs<T>&, Range rows);
  void (*end_states)(const StatesArgs<T>&, Range rows);
  // out[row, unit] = mask * x[row, unit]
  void (*mask)(const MaskArgs<T>&, Range rows);
  // out[row] = the mask at (row, units[row]); x, cols and strides are not looked at
  void (*mask_elements)(const MaskArgs<T>&, const Token* units, Range rows);
  // sums[j] += sum over rows of a[row, j]
  void (*column_sums)(const T* a, Index stride, Index rows, Range cols, T* sums);
  // sums[j] += sum over rows of a[row, j] * b[row, j]
  void (*column_products)(const T* a, Index a_stride, const T* b, Index b_stride, Index rows,
                          Range cols, T* sums);
  // out[row, j] = bias[j] + scales[row] * table[tokens[row], j]; scales null: 1, bias null: 0
  void (*gather)(const GatherArgs<T>&, Range rows);
  // order[0, rows): the rows, those of the smallest token first, those of one ascending.
  // counts: vocab_size elements to work with.
  void (*sort_by_token)(const Token* tokens, Index rows, Index vocab_size, Index* counts,
                        Index* order);
  void (*scatter_add)(const ScatterArgs<T>&, Range cols);
  void (*layer_norm)(const LayerNormArgs<T>&, Range rows);
  void (*layer_norm_backward)(const LayerNormBackwardArgs<T>&, Range rows);
  void (*cross_entropy)(const CrossEntropyArgs<T>&, Range rows);
  // softplus(x) - x z, of logits x; (x - z)^2
  void (*binary_cross_entropy)(const ElementLossArgs<T>&, Range blocks);
  void (*mean_square)(const ElementLossArgs<T>&, Range blocks);
  void (*sum_losses)(const LossSumArgs<T>&);
  void (*draw)(const DrawArgs<T>&, Range rows);
  Index (*draw_scratch)(Index vocab_size, Index rows);
  // sums[i] = the sum of the squares of x's elements from i * square_chunk on, square_chunk or what
  // is left of n
  void (*sums_of_squares)(const T* x, Index n, Range chunks, double* sums);
  // *sum = sums[0] + sums[1] + ..., from left to right
  void (*add_up)(const double* sums, Index n, double* sum);
  void (*scale)(T* x, Index n, T factor);
  void (*clip_value)(T* x, Index n, T limit);
  void (*const* update)(const UpdateArgs<T>&, Range elements);  // by the rule's number
  const CellKernels<T>* cells;  // num_cells of them, in the order of Cells
  int num_cells;
  // Each element by the kernels' exp, sigmoid, tanh, softplus; FMAs without dependences for the
  // peak, a sum for the bandwidth of reading.
  void (*exp)(const T* x, T* out, Index n);
  void (*sigmoid)(const T* x, T* out, Index n);
  void (*tanh)(const T* x, T* out, Index n);
  void (*softplus)(const T* x, T* out, Index n);
  T (*fma_loop)(Index iterations);
  double fma_loop_flops;  // of one iteration
  T (*read_loop)(const T* x, Index n);
};

}  // namespace charrnn_fast
