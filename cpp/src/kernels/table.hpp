// The kernels as the layers above see them: plain argument structs and one table of function
// pointers for each instruction set and number type. No SIMD type, no template code and no
// inline function with arithmetic crosses this line, so that code compiled for a wide
// instruction set cannot leak into callers.
//
// Dimension letters: T seq_len, B batch, H hidden_size, G gates, S states, K depth of a product.
// All matrices are row-major; strides are in elements. "Rows" and "panels" given to a kernel are
// half-open ranges of the work, for sharing it out among threads: results do not depend on them.
//
// Every output of a product is one chain of fused multiply-adds, depth ascending, that begins
// with the bias or the value to be added to. This makes results independent of tiles, of
// blocks, of threads and of the other rows of a batch.
#pragma once

#include "charrnn_fast/config.hpp"

namespace charrnn_fast {

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
};

template <class T>
struct GemmTnArgs {
  const T* a;
  Index a_stride, depth;
  GemmTnProduct<T> products[2];
  int num_products;
  T* sums;  // [M] or null: the sums of A's columns are added to it, k ascending
};

// ---- recurrence ---------------------------------------------------------------------------

// One layer over time. State sequences hold T + 1 steps: [0] is the initial state, step t reads
// [t] and writes [t + 1]. A state past the first may have state_step 0: it is then updated in
// place, and backward cannot follow.
template <class T>
struct RecurrentForwardArgs {
  Index seq_len, batch, hidden_size;
  Weights<T> hh;            // packed: G groups, H units, depth H
  const T* gx;              // [T, B, G*H] input part with its bias; or null, then:
  const Token* tokens;      // [T, B] rows of
  const T* table;           // [V, G*H] (weight_ih transposed), and
  const T* input_bias;      // [G*H] or null
  const T* split_bias;      // [num_split*H] bias of the recurrent part of split gates, or null
  const T* params;          // [P, H]
  T* const* states;         // [S] pointers to [T+1, B, H]
  const Index* state_step;  // [S] elements from step to step: B*H, or 0 (not for states[0])
  T* saved;                 // [T, B, num_saved*H] or null: keep nothing
  T* scratch;  // staged epilogue: [rows, panels * G * lanes] of this call's rows; or null: fused
};

// dgates rows hold G*H gradients of the gates, then num_split*H of the input parts of split
// gates, then P*H contributions to the gradients of the cell's own parameters.
template <class T>
struct RecurrentBackwardArgs {
  Index seq_len, batch, hidden_size;
  Weights<T> hh;           // [G*H, H]: 1 group, H units, depth G*H
  const T* params;         // [P, H]
  const T* const* states;  // [S] pointers to [T+1, B, H]
  const T* saved;          // [T, B, num_saved*H]
  const T* dy;             // [T, B, H] gradients of h from above, or null: zeros
  T* const* dstates;       // [S] pointers to [B, H]: gradients of the last state on entry
                           // (kept from step to step), of the initial state at the end
  T* dgates;               // [T, B, (G + num_split + P)*H]
  T* scratch;              // staged epilogue: [rows, panels * gemm_units], or null: fused
};

template <class T>
struct CellKernels {
  const char* name;
  const char* params_name;
  int num_gates, num_split, num_states, num_saved, num_params, num_masks;
  int forward_units;  // of a panel in forward; in backward it is Kernels::gemm_units
  // Steps [steps.begin, steps.end) of the given rows and panels of units. Where panels is not
  // the whole layer, the caller synchronises after each step.
  void (*forward)(const RecurrentForwardArgs<T>&, Range steps, Range rows, Range panels);
  // The same, from steps.end - 1 down to steps.begin.
  void (*backward)(const RecurrentBackwardArgs<T>&, Range steps, Range rows, Range panels);
  // dstates[0] = gradient of the initial h, after step 0 of backward.
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
};

template <class T>
struct UpdateArgs {
  T* params;
  const T* gradients;
  T* slots[3];
  T gradient_scale;  // from clipping by norm
  T gradient_limit;  // clipping by value; infinity: none
  const T* hyper;    // the rule's own numbers, see optimizers.hpp
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
  // sums[j] += sum over rows of a[row, j]
  void (*column_sums)(const T* a, Index stride, Index rows, Range cols, T* sums);
  // table[tokens[row], j] += a[row, j]
  void (*scatter_add)(const T* a, Index stride, const Token* tokens, Index rows, Range cols,
                      T* table, Index table_stride);
  void (*cross_entropy)(const CrossEntropyArgs<T>&, Range rows);
  // out = exp((x - max(x)) * inverse_temperature), for sampling
  void (*exp_shifted)(const T* x, Index n, T inverse_temperature, T* out);
  double (*sum_of_squares)(const T* x, Index n);
  void (*scale)(T* x, Index n, T factor);
  void (*clip_value)(T* x, Index n, T limit);
  void (*const* update)(const UpdateArgs<T>&, Range elements);  // by the rule's number
  const CellKernels<T>* cells;  // num_cells of them, in the order of Cells
  int num_cells;
  // Each element by the kernels' exp, sigmoid, tanh; FMAs without dependences for the peak,
  // a sum for the bandwidth of reading.
  void (*exp)(const T* x, T* out, Index n);
  void (*sigmoid)(const T* x, T* out, Index n);
  void (*tanh)(const T* x, T* out, Index n);
  T (*fma_loop)(Index iterations);
  double fma_loop_flops;  // of one iteration
  T (*read_loop)(const T* x, Index n);
};

}  // namespace charrnn_fast
