// Internal. The kernels as the layers above see them: plain argument structs and one table of
// function pointers per instruction set and number type, or for another device. No SIMD type,
// template code or inline function with arithmetic crosses this boundary, so that code compiled for
// a wide instruction set cannot leak into callers.
//
// Argument structs hold values. Arrays are memory of the device; only kernels read or write it.
//
// Dimension letters: T seq_len, B batch, N rows of a sequence (T*B if all lengths are equal), H
// hidden_size, R width of h, G gates, S states, K depth of a product. Matrices are row-major;
// strides are in elements. The "rows" and "panels" given to a kernel are half-open ranges of the
// work, to share it among threads: results do not depend on them.
//
// The order of a sum depends only on the terms' places in it. So results do not depend on tiles,
// threads or the other rows of a batch:
// - A product's output is a sum over the depth. To the bias, or the value accumulated to, it adds
//   chains of chain_depth fused multiply-adds each, k ascending. With int8 weights, the other
//   operand becomes integers, too (int8.hpp): the sum of a part of the depth is exact, rounded once
//   to float, and added to those before times its row's scale, fused.
// - A parameter's gradient is a sum over the rows of a sequence. Blocks of sum_block rows, one
//   chain each, are added to it in order. Beyond most_plain_rows rows, the rounding errors of these
//   additions are summed separately and added at the end: so a sum's error does not grow with its
//   length. Sums of columns take sum_rows rows at a time within a block.
// Short chains keep rounding errors small: these grow with the root of a chain's length.
//
// Products with Compute::bfloat16 (T is float). Both operands are rounded, subnormal ones to zero.
// Of two neighbouring k (2i and 2i + 1, from the first of a chain), the odd one's product is added
// first, then the even one's: each by a fused multiply-add whose result, if subnormal, becomes zero
// of its sign. These are the order and rounding of the instruction vdpbf16ps. An odd depth has a
// last k of zeros. So that it makes no difference which of the two computes a sum, the kernels that
// multiply treat all subnormal numbers as zeros: also in the gates' functions and in the sums of
// columns.
#pragma once

#include "charrnn_fast/cell_info.hpp"
#include "charrnn_fast/config.hpp"
#include "charrnn_fast/number_types.hpp"
#include "charrnn_fast/sampling.hpp"

namespace charrnn_fast {

constexpr Index chain_depth = 128;
constexpr Index sum_rows = 8, sum_block = 256, most_plain_rows = 16 * sum_block;

struct Range {
  Index begin, end;
};

// ---- matrix products ----------------------------------------------------------------------

// A weight matrix [groups * units, depth] is packed into panels, zero past the last unit. With
// groups = G gates a panel is [k][group][lane], so that one tile has all gates of its units. With
// one group it is [k][some vectors of units][lane]. A panel has `gemm_units` units in a plain
// product (one group), the cell's `forward_units` in a recurrent one. As bfloat16, a 32-bit word
// holds the weights of an even k (low half) and of the next k (high half, 0 past the end). As int8,
// a panel begins with its rows' scales, as k = 0 would have its weights; then a 32-bit word holds
// the weights of four k, each plus 128, in an order of the instruction set. A weight w of a row is
// w / scale, rounded to nearest, ties to even; the scale is the row's absolute maximum / 127, cut
// to 16 significant bits. So weight * scale is a float, and rounding it again changes nothing.
template <class T>
struct PackArgs {
  const T* weights;    // element (group * units + unit, k)
  Index row_stride;    //   at (group * units + unit) * row_stride
  Index depth_stride;  //   + k * depth_stride
  Index groups, units, depth;
  T* packed;  // panels * (units of a panel) * groups * depth elements
  // bfloat16: panels * ... * ceil(depth / 2) words; int8: * (1 + ceil(depth / 4)); T is float
  Storage storage = Storage::full;
  Compute compute = Compute::float32;  // bfloat16: for such products, stored as bfloat16
};

// Weights of a product: at depth k, the vectors of panel p are at data + p * panel_stride + k *
// depth_stride. This covers packed weights and an unpacked row-major matrix [K, N], whose rows must
// be readable up to the next multiple of a vector.
template <class T>
struct Weights {
  const T* data;
  // As bfloat16 and int8 in words, and depth_stride of two and of four k.
  Index depth_stride, panel_stride;
  Storage storage = Storage::full;
  Compute compute = Compute::float32;  // of the product, for both operands
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

// C [M, N] += A [K, M]^T @ B [K, N]: the gradient of a weight matrix. Takes several B for one A (a
// layer's input and its h), so that A is packed once.
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
  T* sums;                  // [M] or null: receives += the sums of A's columns
  Index block = sum_block;  // rows of a block, at most
  // For a sum of `whole` rows in several calls: `done` rows are done, in whole blocks. Beyond
  // most_plain_rows, the caller owns the errors and passes them from call to call.
  Index done = 0, whole = 0;  // whole 0: this call does all, with errors of its own
  T* sums_errors = nullptr;   // [M]
  Compute compute = Compute::float32;
};
template <class T>
CHARRNN_INLINE Index whole_depth(const GemmTnArgs<T>& g) {
  return g.whole > 0 ? g.whole : g.depth;
}

// ---- sequences ----------------------------------------------------------------------------

// The rows of a sequence, N in all, ordered by step. A batch with sequences of different lengths is
// sorted, longest first: so a step's rows are the first of the batch, and padding has no rows.
struct Steps {
  Index seq_len, batch;
  const Index* offsets;  // [T + 1]: step t has rows [offsets[t], offsets[t + 1]); null: `batch`
  bool reverse;          // walk from the last step to the first
};

// t must be in 0 to T, the range of offsets.
CHARRNN_INLINE Index first_row(const Steps& s, Index t) {
  return s.offsets ? s.offsets[t] : t * s.batch;
}
CHARRNN_INLINE Index rows_at(const Steps& s, Index t) {
  if (t < 0 || t >= s.seq_len) return 0;
  return s.offsets ? s.offsets[t + 1] - s.offsets[t] : s.batch;
}
// The step before t and after t in the walk; step_number: the i-th step of the walk.
CHARRNN_INLINE Index step_before(const Steps& s, Index t) { return s.reverse ? t + 1 : t - 1; }
CHARRNN_INLINE Index step_after(const Steps& s, Index t) { return s.reverse ? t - 1 : t + 1; }
// The first row of the step after t; 0 if t is the last of the walk.
CHARRNN_INLINE Index first_row_after(const Steps& s, Index t) {
  const Index after = step_after(s, t);
  return after < 0 ? 0 : first_row(s, after);
}
CHARRNN_INLINE Index step_number(const Steps& s, Index i) {
  return s.reverse ? s.seq_len - 1 - i : i;
}
// The first rows_from_before rows of step t continue from the step before; the others begin here.
// The first rows_going_on rows continue to the step after; the others end here.
CHARRNN_INLINE Index rows_from_before(const Steps& s, Index t) {
  const Index before = rows_at(s, step_before(s, t)), here = rows_at(s, t);
  return before < here ? before : here;
}
CHARRNN_INLINE Index rows_going_on(const Steps& s, Index t) {
  const Index after = rows_at(s, step_after(s, t)), here = rows_at(s, t);
  return after < here ? after : here;
}

// ---- recurrence ---------------------------------------------------------------------------

// Multipliers: for row r of step t (row n of the sequence), at data + n * by_step + r * by_row.
template <class T>
struct Mask {
  const T* data = nullptr;  // null: all 1
  Index by_step = 0, by_row = 0;
};

// One state of a layer, with `stride` elements from row to row. Without memory for every row of the
// sequence, a state is updated in place and backward is impossible.
template <class T>
struct StateRows {
  T* initial;  // [B]
  T* rows;     // [N]; in_place: same as initial
  Index stride;
  bool in_place;
};
template <class T>
struct States {
  StateRows<T> of[max_states];
  CHARRNN_INLINE const StateRows<T>& operator[](Index s) const { return of[s]; }
};

// Of each state: [B, R] for h, [B, H] for others.
template <class T>
struct StateGradients {
  T* of[max_states];
  CHARRNN_INLINE T* operator[](Index s) const { return of[s]; }
};

// A sequence's initial or last states: state s [B, widths[s]] at at[s].
template <class T>
struct StatesArgs {
  Steps steps;
  Index num_states;
  States<T> states;
  Index widths[max_states];
  T* at[max_states];  // begin_states: null for zeros
};

// s' = m s + (1 - m) s'', of the previous state s and the cell's s'' (Krueger et al. 2017).
template <class T>
struct Zoneout {
  Mask<T> mask;      // m
  T* raw = nullptr;  // [N, H] receives s'' for backward; or null
};
template <class T>
struct Zoneouts {
  bool any = false;
  Zoneout<T> of[2] = {};  // of h and c
  CHARRNN_INLINE Zoneout<T> operator[](Index s) const { return s < 2 ? of[s] : Zoneout<T>{}; }
};

// Layer normalization of the gates' recurrent term (Ba, Kiros and Hinton 2016), which then starts
// from 0: gh = gain * normalized(W_hh h). Split gates are normalized separately.
template <class T>
struct RecurrentNorm {
  const T* gain;  // [G*H], or null: no normalization
  T* inverse;     // [N, 2] 1 / deviation of the summed and the split gates, or null
};

// h = the cell's h @ W_hr^T (Sak, Senior and Beaufays 2014).
template <class T>
struct Projection {
  Weights<T> weights;  // forward: [H, P]; backward: [P, H]
  T* hidden;           // [N, H] the cell's h; null: no projection
};

// One layer over time, in one direction. R: width of h: P with a projection, else H.
template <class T>
struct RecurrentForwardArgs {
  Steps steps;
  Index hidden_size, width;  // H, R
  Weights<T> hh;             // packed: G groups, H units, depth R
  const T* gx;               // [N, G*H] input term with its bias; null: from
  const Token* tokens;       // [N] the rows of
  const T* table;            // [V, G*H] (weight_ih transposed), plus
  const T* input_bias;       // [G*H] or null
  const T* split_bias;       // [num_split*H] recurrent bias of split gates, or null
  const T* params;           // [P, H]
  States<T> states;
  T* saved;  // [N, num_saved*H] or null: saves nothing
  // [N, R] input of the recurrent product, if not h itself: mask * the previous h. begin() writes
  // the rows that begin here.
  T* recurrent = nullptr;
  Mask<T> recurrent_mask = {};
  Zoneouts<T> zoneout = {};
  RecurrentNorm<T> norm = {};
  Projection<T> projection = {};
  // For bfloat16 products, if Kernels::rounds_rows: [2, B, R, rounded up to even] input of the
  // recurrent product, of the steps at even and odd places of the walk. begin() writes the rows
  // that begin.
  Bfloat16* rounded = nullptr;
  // Staged epilogue: the gates' sums, or normalized sums: [N, G*H] or, updated in place, [B, G*H].
  T* staged = nullptr;
  bool staged_in_place = false;
  std::uint32_t* flags = nullptr;  // [Kernels::flag_words] of the kernel's own
};

// A row of dgates holds: G*H gradients of the gates' recurrent terms; num_split*H of the split
// gates' input terms; P*H contributions to the gradients of the cell's own parameters. With
// normalization all gates are split: G*H gradients of W_hh h; G*H of the input terms; num_split*H
// of the recurrent terms of the cell's split gates; P*H as before.
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
  StateGradients<T> dstates;  // on entry of each row's last state, then of each step's, at the end
                              // of the initial state
  T* dgates;                  // [N, num_slots*H]
  Mask<T> recurrent_mask = {};
  Zoneouts<T> zoneout = {};
  RecurrentNorm<T> norm = {};
  const T* normalized = nullptr;  // [N, G*H]
  Projection<T> projection = {};
  T* dprojected = nullptr;  // [N, R] gradients of h, with a projection
  // As in RecurrentForwardArgs: [2, B, G*H, rounded up to even]
  // gradients of the gates' recurrent terms; and [B, R, rounded up to even] of h, with a
  // projection.
  Bfloat16 *rounded = nullptr, *rounded_projected = nullptr;
  std::uint32_t* flags = nullptr;
};

// One layer of one stream, without masks, normalization, projection or zoneout. Rows of h and the
// states are padded to whole vectors, in which lanes past H receive any numbers. The other arrays
// must be readable up to the next multiple of a vector.
constexpr Index stream_block = 16;  // steps of a call, at most: a multiple of every vector's lanes
template <class T>
struct StreamArgs {
  Index num_gates, hidden_size;  // G, H
  Weights<T> hh;                 // as in RecurrentForwardArgs
  const T* gx;                   // [steps, G*H] input term with its bias; null: that of
  Index input_size;              // I
  const T* x;                    // [steps, I], with
  const T* ih;                   // [I, G*H] and
  const T* input_bias;           // [G*H]
  const T* split_bias;           // [num_split*H]
  const T* params;               // [P, H]
  T* states[max_states];         // [H] of each state but h, updated in place
  Index stride;                  // of a row of h
};

// y [rows] = h [rows, K] @ weights [K] + bias
template <class T>
struct StreamDecodeArgs {
  Index depth, stride;  // K; of a row of h, whose rows are padded to whole vectors
  const T* weights;
  T bias;
};

template <class T>
struct SampleArgs;

template <class T>
struct CellKernels : CellInfo {
  int forward_units;  // units of a panel in forward; backward: Kernels::gemm_units
  // Writes args.recurrent of the rows that begin anywhere; call before forward.
  void (*begin)(const RecurrentForwardArgs<T>&, Range rows);
  // Runs steps `walk` of the walk for the given rows of the batch and panels of units. If panels is
  // not the whole layer, the caller must synchronize after each step. Normalization and projection
  // need the whole layer.
  void (*forward)(const RecurrentForwardArgs<T>&, Range walk, Range rows, Range panels);
  // The same, from walk.end - 1 down to walk.begin. Panels are of H and, without projection, of R.
  void (*backward)(const RecurrentBackwardArgs<T>&, Range walk, Range rows, Range panels);
  // dstates[0] = gradient of the initial h, after backward. Panels are of R.
  void (*backward_initial)(const RecurrentBackwardArgs<T>&, Range rows, Range panels);
  // Of the CPU only: h of the given number of steps from h before them.
  // Null: there is none.
  void (*stream)(const StreamArgs<T>&, const T* h, Index steps, T* rows);
  // Of other devices than the CPU: all steps of sampling in one call. False, with nothing done, if
  // the sizes do not fit. Null: there is none.
  bool (*sample)(const SampleArgs<T>&);
};

// ---- losses, elementwise work -------------------------------------------------------------

// Softmax cross-entropy of each row, in nats: losses[row] = log sum exp(logits) - logits[target];
// dlogits = scale * (softmax - onehot(target)). A target of -1 gives zeros.
template <class T>
struct CrossEntropyArgs {
  const T* logits;
  Index stride;
  Index vocab_size;
  const Token* targets;
  T scale;
  T* dlogits;  // may be the logits; or null: losses only
  Index dstride;
  T* losses;  // [rows]
  // [rows], each replaces scale; or null. A weight that is not above 0 gives zeros.
  const T* weights = nullptr;
};

// Log-probabilities in nats, log softmax(logits), of each row.
template <class T>
struct LogSoftmaxArgs {
  const T* logits;  // [N, V]
  Index vocab_size;
  T* out;  // [N, V], may be the logits
};

// The decoder, its loss and its backward, row by row: logits = h @ weight^T + bias; then
// cross_entropy of them, with loss.logits ignored; then dh = dlogits @ weight.
template <class T>
struct HeadArgs {
  const T* h;  // [N, depth]
  Index depth;
  const T* weight;           // [V, depth]
  const T* bias;             // [V] or null
  CrossEntropyArgs<T> loss;  // dlogits null: losses only
  T* dh;                     // [N, depth]
  // Rows of the weight whose products are one sum of dh; the sums are added up in order.
  Index dh_block;
};

// Losses of elements against targets, summed per block of elements. A weight multiplies an
// element's loss and gradient; a weight that is not above 0 gives zeros.
constexpr Index loss_block = 512;
template <class T>
struct ElementLossArgs {
  const T* x;
  const T* targets;
  const T* weights;  // one per element; null: `scale` multiplies the gradients
  T scale;
  Index elements;
  T* dx;
  double* sums;  // one per block
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
  Compute compute = Compute::float32;  // scales and table are a product's operands
};

// table (tokens[row], j) += scales[row] * a[row, j], row ascending; scales null: 1
template <class T>
struct ScatterArgs {
  const T* a;
  Index stride, rows;
  const Token* tokens;
  const Index* order;  // from Kernels::sort_by_token
  const T* scales;
  T* table;  // element (token, j) at token * token_stride + j * col_stride
  Index token_stride, col_stride;
  Compute compute = Compute::float32;  // scales and a are a product's operands
};

// y = gain * normalized(x) + bias, with normalized(x) = (x - mean) / sqrt(variance + 1e-5), of each
// of two groups of columns separately (Ba, Kiros and Hinton 2016, equation 4).
template <class T>
struct LayerNormArgs {
  Index widths[2];
  const T* gain;
  const T* bias;  // null: 0
  T* x;           // [rows, sum of widths], becomes y
  T* normalized;  // same shape, or null
  T* inverse;     // [rows, 2] 1 / deviation, or null
};

// Turns d, the gradient of y, into that of x.
template <class T>
struct LayerNormBackwardArgs {
  Index widths[2];
  const T* gain;
  const T* normalized;
  const T* inverse;
  T* d;
  Index stride;
};

// Masks whose random numbers depend on their place alone (Philox4x32-10, Salmon et al. 2011): the
// same for all instruction sets and number types. Element `unit` of a row has word unit % 64 / 16
// of the counter (unit / 64 * 16 + unit % 16, stream of the row, time, site). It is dropped if that
// word is less than `threshold`. Masks multiply: an infinite or NaN x dropped by 0 gives NaN.
//
// Rows are of a sequence: row r of step t is stream r at time t (or all steps share one time). Or
// rows are of one step.
template <class T>
struct MaskArgs {
  std::uint64_t key;
  std::uint32_t time, site, threshold;
  T dropped, kept;       // the multipliers: 0 and 1 / (1 - rate); for zoneout 1 and 0
  const Index* streams;  // [rows], of which the low 32 bits are used; null: row r is stream r
  const T* x;            // out = x * mask; null: out = mask
  Index x_stride;
  T* out;  // may be x
  Index out_stride, cols;
  Steps steps = {};       // no steps: rows are of one step, at `time`
  bool one_time = false;  // all steps are at `time`
};

// Sorts rows of sequences of different lengths: the network's, sorted and without padding, from the
// caller's [T, B, cols]. In each step, the network's row r is the caller's row order[r].
template <class T>
struct SortArgs {
  Steps steps;
  const Index* order;  // [B]
  Index cols;
  const T* from;
  T* to;
};

// Sums the losses of the network's rows in the caller's order: in each step row ranks[0], if that
// sequence is long enough, then ranks[1] and so on.
template <class T>
struct LossSumArgs {
  Steps steps;
  const Index* ranks;  // [B]; null: the network's order
  const T* losses;     // [N]
  double* sum;
  double* stream_sums;  // [B] or null: one per sequence, in the caller's order
};

constexpr Index square_chunk = 16384;

// Draws a token for each row of logits [B, V]: see draw_tokens in sampling.hpp.
template <class T>
struct DrawArgs {
  const T* logits;
  Index vocab_size;
  const StreamSampling* streams;  // [B]
  std::uint64_t step;             // added to each stream's position
  // [window, B], rows of recent_stride: each stream's last tokens, the oldest first, -1 for none.
  // Its repetition_penalty is for the last repetition_window of them. A window of 0: none.
  const Token* recent;
  Index window, recent_stride;
  Token* tokens;  // [B]
  Token* drawn;   // [B] a second copy, or null
  T* scratch;     // draw_scratch() elements
  // [3] the first row with bad logits: the row, -1 if there is none; the token, -1 if no logit is
  // finite; its logit. Must be -1 on entry. Rows before it are drawn.
  double* failure;
};

// Sampling by a network of one direction without projection or normalization: `length` times, feeds
// each stream its token and draws the next from the output.
constexpr int most_sample_layers = 8;
template <class T>
struct SampleLayer {
  Weights<T> hh;        // as in RecurrentForwardArgs
  Weights<T> ih;        // packed: 1 group, G*H units, depth H; not of the first layer
  const T* input_bias;  // [G*H] or null
  const T* split_bias;  // [num_split*H] or null
  const T* params;      // [P, H]
};
template <class T>
struct SampleArgs {
  Index length, batch, hidden_size, num_layers;
  SampleLayer<T> layers[most_sample_layers];
  const T* table;         // [V, G*H] the first layer's input weights, by token
  Weights<T> decoder;     // packed: 1 group, V units, depth H
  const T* decoder_bias;  // [V] or null
  const T* zoneout[2];    // [H] masks of h and c; null: none
  T* states;              // [S, L, B, H] updated in place
  // Of the first step. tokens: those fed, and at the end the last drawn; drawn: [length, B];
  // failure: of the earliest step. logits is ignored.
  DrawArgs<T> draw;
};

// What an update multiplies the gradients by; and 1, or 0 if it must not happen.
template <class T>
struct UpdateControl {
  T scale, go;
};

template <class T>
struct UpdateArgs {
  T* params;
  const T* gradients;
  T* slots[3];
  T gradient_scale;    // from clipping by norm
  T gradient_limit;    // clipping by value; infinity: none
  T hyper[max_hyper];  // the rule's own numbers, see optimizers.hpp
  // With a norm that Kernels::control computes: replaces gradient_scale. Else null.
  const UpdateControl<T>* control = nullptr;
};

// The norm of gradients that are in several arrays, each summed in chunks, and what follows for the
// update: by norm_factor, unless the norm or the loss is not finite.
template <class T>
struct ControlArgs {
  const T* gradients;
  Index num_arrays, num_chunks;
  const Index* chunks;      // [num_chunks, 2] elements [begin, end) of the gradients
  const Index* arrays;      // [num_arrays + 1] first chunk of each
  double* sums;             // [num_chunks + num_arrays] workspace
  double* sum_of_squares;   // receives it
  std::uint32_t* finished;  // 0 before and after
  const double* loss_sum;   // null: `loss`
  double loss, loss_scale;  // the loss is loss_scale * the sum
  double scale, clip_norm;  // of the gradients, before clipping
  UpdateControl<T>* control;
};

template <class T>
struct Kernels {
  int lanes;
  int gemm_units;    // columns of a panel of a plain product
  int flag_words;    // 32-bit words by which blocks of a recurrent kernel wait for each other; or 0
  bool rounds_rows;  // recurrent kernels take RecurrentForwardArgs::rounded for bfloat16 products
  Index int8_depth;  // the most depth of products with Storage::int8; 0: none
  void (*pack)(const PackArgs<T>&, Range panels);
  // to [cols, rows] = the transpose of from [rows, cols], of the given rows of `from`.
  void (*transpose)(const T* from, Index rows, Index cols, Range given, T* to);
  void (*gemm)(const GemmArgs<T>&, Range rows, Range panels);
  // scratch: gemm_tn_scratch() elements per thread.
  void (*gemm_tn)(const GemmTnArgs<T>&, Range rows_of_c, T* scratch);
  Index (*gemm_tn_scratch)();
  // to[i] = value; to[i] += from[i]
  void (*fill)(T* to, T value, Range elements);
  void (*add)(const T* from, Range elements, T* to);
  // sort_rows: the network's rows of the given steps from the caller's. unsort_rows: the caller's
  // from the network's, zeros in the padding.
  void (*sort_rows)(const SortArgs<T>&, Range steps);
  void (*unsort_rows)(const SortArgs<T>&, Range steps);
  // For the given rows of the batch: begin_states copies initial states to the layer's, end_states
  // copies each row's last state from there.
  void (*begin_states)(const StatesArgs<T>&, Range rows);
  void (*end_states)(const StatesArgs<T>&, Range rows);
  // out[row, unit] = mask * x[row, unit]
  void (*mask)(const MaskArgs<T>&, Range rows);
  // out[row] = the mask at (row, units[row]); x, cols and strides are ignored
  void (*mask_elements)(const MaskArgs<T>&, const Token* units, Range rows);
  // sums[j] += sum over rows of a[row, j]
  void (*column_sums)(const T* a, Index stride, Index rows, Range cols, T* sums);
  // sums[j] += sum over rows of a[row, j] * b[row, j]
  void (*column_products)(const T* a, Index a_stride, const T* b, Index b_stride, Index rows,
                          Range cols, T* sums);
  // out[row, j] = bias[j] + scales[row] * table[tokens[row], j]; scales null: 1, bias null: 0
  void (*gather)(const GatherArgs<T>&, Range rows);
  // order[0, rows): the rows sorted by token, rows of equal tokens ascending. counts: workspace of
  // vocab_size elements.
  void (*sort_by_token)(const Token* tokens, Index rows, Index vocab_size, Index* counts,
                        Index* order);
  void (*scatter_add)(const ScatterArgs<T>&, Range cols);
  void (*layer_norm)(const LayerNormArgs<T>&, Range rows);
  void (*layer_norm_backward)(const LayerNormBackwardArgs<T>&, Range rows);
  void (*cross_entropy)(const CrossEntropyArgs<T>&, Range rows);
  // out[row, token] = -the loss that cross_entropy gives for this target
  void (*log_softmax)(const LogSoftmaxArgs<T>&, Range rows);
  // For vocabularies of at most head_columns. Of other devices than the CPU; null: there is none.
  void (*head)(const HeadArgs<T>&, Range rows);
  Index head_columns;
  // softplus(x) - x z, of logits x; and (x - z)^2
  void (*binary_cross_entropy)(const ElementLossArgs<T>&, Range blocks);
  void (*mean_square)(const ElementLossArgs<T>&, Range blocks);
  void (*sum_losses)(const LossSumArgs<T>&);
  void (*draw)(const DrawArgs<T>&, Range rows);
  Index (*draw_scratch)(Index vocab_size, Index rows);
  // sums[i] = sum of squares of x[i * square_chunk, min((i + 1) * square_chunk, n))
  void (*sums_of_squares)(const T* x, Index n, Range chunks, double* sums);
  // *sum = sums[0] + sums[1] + ..., from left to right
  void (*add_up)(const double* sums, Index n, double* sum);
  void (*scale)(T* x, Index n, T factor);
  void (*clip_value)(T* x, Index n, T limit);
  void (*const* update)(const UpdateArgs<T>&, Range elements);  // by the rule's number
  // Of other devices than the CPU, for which the host would wait. Null: there is none.
  void (*control)(const ControlArgs<T>&);
  // Of the CPU only.
  void (*stream_decode)(const StreamDecodeArgs<T>&, const T* h, Index rows, T* y);
  const CellKernels<T>* cells;  // num_cells of them, in the order of Cells
  int num_cells;
  // For measurements: the kernels' exp, sigmoid, tanh and softplus of each element; independent
  // FMAs for the peak; a sum for the read bandwidth.
  void (*exp)(const T* x, T* out, Index n);
  void (*sigmoid)(const T* x, T* out, Index n);
  void (*tanh)(const T* x, T* out, Index n);
  void (*softplus)(const T* x, T* out, Index n);
  T (*fma_loop)(Index iterations);
  double fma_loop_flops;  // of one iteration
  T (*read_loop)(const T* x, Index n);
};

}  // namespace charrnn_fast
