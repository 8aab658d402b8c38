// One instruction set's table for one number type. Compiled once for each pair; see isa.hpp.
#include "kernels/isa.hpp"

namespace charrnn_fast {
namespace CHARRNN_ISA {
namespace {

using T = CHARRNN_SCALAR;

template <class... C>
struct CellTable {
  CellKernels<T> cells[sizeof...(C)] = {cell_kernels<C, T>()...};
};
template <class... C>
constexpr CellTable<C...> table_of(CellList<C...>) {
  return {};
}
template <class... R>
struct RuleTable {
  void (*update[sizeof...(R)])(const UpdateArgs<T>&,
                               Range) = {&charrnn_fast::CHARRNN_ISA::update<R, T>...};
};
template <class... R>
constexpr RuleTable<R...> table_of(RuleList<R...>) {
  return {};
}

constexpr auto cells = table_of(Cells());
constexpr auto rules = table_of(UpdateRules());

constexpr Kernels<T> table = {
    .lanes = Native<T>::lanes,
    .gemm_units = Panel<1>::unit_vectors * Native<T>::lanes,
    .flag_words = 0,
    .rounds_rows = true,
    .int8_depth = sizeof(T) == 4 ? Int8Rows<T>::widest : 0,
    .pack = &pack<T>,
    .transpose = &transpose<T>,
    .gemm = &gemm<T>,
    .gemm_tn = &gemm_tn<T>,
    .gemm_tn_scratch = &gemm_tn_scratch<T>,
    .fill = &fill<T>,
    .add = &add<T>,
    .sort_rows = &sort_rows<T>,
    .unsort_rows = &unsort_rows<T>,
    .begin_states = &begin_states<T>,
    .end_states = &end_states<T>,
    .mask = &mask<T>,
    .mask_elements = &mask_elements<T>,
    .column_sums = &column_sums<T>,
    .column_products = &column_products<T>,
    .gather = &gather<T>,
    .sort_by_token = &sort_by_token,
    .scatter_add = &scatter_add<T>,
    .layer_norm = &layer_norm<T>,
    .layer_norm_backward = &layer_norm_backward<T>,
    .cross_entropy = &cross_entropy<T>,
    .log_softmax = &log_softmax<T>,
    .head = nullptr,
    .head_columns = 0,
    .binary_cross_entropy = &binary_cross_entropy<T>,
    .mean_square = &mean_square<T>,
    .sum_losses = &sum_losses<T>,
    .draw = &draw<T>,
    .draw_scratch = &draw_scratch<T>,
    .sums_of_squares = &sums_of_squares<T>,
    .add_up = &add_up,
    .scale = &scale<T>,
    .clip_value = &clip_value<T>,
    .update = rules.update,
    .control = nullptr,
    .stream_decode = &stream_decode<T>,
    .cells = cells.cells,
    .num_cells = sizeof(cells.cells) / sizeof(cells.cells[0]),
    .exp = &map_exp<T>,
    .sigmoid = &map_sigmoid<T>,
    .tanh = &map_tanh<T>,
    .softplus = &map_softplus<T>,
    .fma_loop = &fma_loop<T>,
    .fma_loop_flops = 2.0 * peak_chains * Native<T>::lanes,
    .read_loop = &read_loop<T>,
};

}  // namespace

const Kernels<T>& kernels(T) { return table; }

}  // namespace CHARRNN_ISA
}  // namespace charrnn_fast
