// The table of a cell's kernels.

template <class Cell, class T>
constexpr CellKernels<T> cell_kernels() {
  return {cell_info<Cell>(),
          Panel<Cell::num_gates>::unit_vectors * Native<T>::lanes,
          &recurrent_begin<T>,
          &recurrent_forward<Cell, T>,
          &recurrent_backward<Cell, T>,
          &recurrent_backward_initial<Cell, T>,
          &stream_forward<Cell, T>};
}
