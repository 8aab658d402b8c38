// What all launchers share: the stream of the table, and kernels with a thread for each element.
#pragma once

#include "kernels/device.cuh"
#include "kernels/table.hpp"

namespace charrnn_fast {
namespace cuda {

inline Stream& own_stream() {
  static Stream stream{};
  return stream;
}
// A stream that the caller has given for the calls of this thread.
struct GivenStream {
  bool given = false;
  Stream stream{};
};
inline GivenStream& given_stream() {
  static thread_local GivenStream given;
  return given;
}
// Entries of the table launch there and return.
inline Stream table_stream() {
  const GivenStream& of_caller = given_stream();
  return of_caller.given ? of_caller.stream : own_stream();
}

CHARRNN_INLINE Index min_of(Index a, Index b) { return a < b ? a : b; }
CHARRNN_INLINE Index max_of(Index a, Index b) { return a > b ? a : b; }
CHARRNN_INLINE Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }
CHARRNN_INLINE Index size_of(Range r) { return r.end - r.begin; }

// Sums along a row run in as many chains as the CPU's 32-byte vectors have lanes, so that they
// round like them.
template <class T>
constexpr int sum_lanes = 32 / static_cast<int>(sizeof(T));

constexpr unsigned each_threads = 128;

// op(i) for each i < n.
template <class Op>
__global__ void each_element(Op op, Index n) {
  const Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) op(i);
}
template <class Op>
void each(Index n, const Op& op) {
  if (n <= 0) return;
  const auto blocks = static_cast<unsigned>(ceil_div(n, each_threads));
  launch({dim3(blocks), dim3(each_threads)}, table_stream(), each_element<Op>, op, n);
}

}  // namespace cuda
}  // namespace charrnn_fast
