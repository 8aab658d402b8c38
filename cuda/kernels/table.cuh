// The device's table of kernels for one number type.
#pragma once

#include "kernels/draws.cuh"
#include "kernels/head.cuh"
#include "kernels/sample.cuh"
#include "kernels/tiers.cuh"
#include "numbers.hpp"

namespace charrnn_fast {
namespace cuda {

template <class Cell, class T>
CellKernels<T> cell_kernels() {
  CellKernels<T> k{};
  static_cast<CellInfo&>(k) = cell_info<Cell>();
  k.forward_units = panel_units;
  k.begin = &recurrent_begin<T>;
  k.forward = &forward_by_tier<Cell, T>;
  k.backward = &backward_by_tier<Cell, T>;
  k.backward_initial = &recurrent_backward_initial<Cell, T>;
  k.sample = &sample<Cell, T>;
  return k;
}

template <class T, class... C>
const CellKernels<T>* cell_table(CellList<C...>) {
  static const CellKernels<T> cells[] = {cell_kernels<C, T>()...};
  return cells;
}
template <class... C>
constexpr int length(CellList<C...>) {
  return sizeof...(C);
}
template <class T, class... R>
auto update_table(RuleList<R...>) {
  using Entry = void (*)(const UpdateArgs<T>&, Range);
  static const Entry rules[] = {&update<R, T>...};
  return &rules[0];
}

// What only measurements of the CPU call is null.
template <class T>
const Kernels<T>& kernels() {
  static const Kernels<T> table = [] {
    Kernels<T> k{};
    k.lanes = 1;
    k.gemm_units = panel_units;
    k.flag_words = flag_words;
    k.pack = &pack<T>;
    k.transpose = &transpose<T>;
    k.gemm = &gemm<T>;
    k.gemm_tn = &gemm_tn<T>;
    k.gemm_tn_scratch = &gemm_tn_scratch;
    k.fill = &fill<T>;
    k.add = &add<T>;
    k.sort_rows = &sort_rows<T>;
    k.unsort_rows = &unsort_rows<T>;
    k.begin_states = &begin_states<T>;
    k.end_states = &end_states<T>;
    k.mask = &mask<T>;
    k.mask_elements = &mask_elements<T>;
    k.column_sums = &column_sums<T>;
    k.column_products = &column_products<T>;
    k.gather = &gather<T>;
    k.sort_by_token = &sort_by_token;
    k.scatter_add = &scatter_add<T>;
    k.layer_norm = &layer_norm<T>;
    k.layer_norm_backward = &layer_norm_backward<T>;
    k.cross_entropy = &cross_entropy<T>;
    k.log_softmax = &log_softmax<T>;
    k.head = &head<T>;
    k.head_columns = head_columns;
    k.binary_cross_entropy = &element_losses<BinaryCrossEntropy, T>;
    k.mean_square = &element_losses<MeanSquare, T>;
    k.sum_losses = &sum_losses<T>;
    k.draw = &draw<T>;
    k.draw_scratch = &draw_scratch<T>;
    k.sums_of_squares = &sums_of_squares<T>;
    k.add_up = &add_up;
    k.scale = &scale<T>;
    k.clip_value = &clip_value<T>;
    k.update = update_table<T>(UpdateRules());
    k.control = &control<T>;
    k.cells = cell_table<T>(Cells());
    k.num_cells = length(Cells());
    k.exp = &map_exp<T>;
    k.sigmoid = &map_sigmoid<T>;
    k.tanh = &map_tanh<T>;
    k.softplus = &map_softplus<T>;
    return k;
  }();
  return table;
}

template <class T>
std::string why_not_run_kernels() {
  return why_not_run(&gemm_kernel<PlainProducts<T>, TileShape<few_rows, 1>, T>);
}

}  // namespace cuda
}  // namespace charrnn_fast
