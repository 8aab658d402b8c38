// The table of a cell's kernels.

// Sanitizers check each access of this kernel's long unrolled loops, which takes many minutes to
// compile: their builds go without, and streams run the cell's ordinary forward.
template <class Cell, class T>
constexpr auto stream_kernel() -> decltype(&stream_forward<Cell, T>) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return nullptr;
#else
  return &stream_forward<Cell, T>;
#endif
}

template <class Cell, class T>
constexpr CellKernels<T> cell_kernels() {
  return {cell_info<Cell>(),
          Panel<Cell::num_gates>::unit_vectors * Native<T>::lanes,
          &recurrent_begin<T>,
          &recurrent_forward<Cell, T>,
          &recurrent_backward<Cell, T>,
          &recurrent_backward_initial<Cell, T>,
          stream_kernel<Cell, T>(),
          nullptr};
}
