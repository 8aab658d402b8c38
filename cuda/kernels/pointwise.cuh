// One step of any cell for a whole batch, one thread per unit: the staged epilogue on the GPU,
// whose gates a matrix product has laid out before. The math is cells.hpp, as on the CPU.
#pragma once

#include "charrnn_fast/cells.hpp"

namespace charrnn_fast {
namespace cuda {

// Shapes as in cpp/src/kernels/table.hpp; unit and row of a thread from a grid of (units, rows).
template <class Cell, class T>
struct PointwiseForward {
  Index batch, hidden_size;
  const T* gates;             // [B, G*H]
  const T* gx;                // [B, G*H] input part (of split gates only the last are read)
  const T* params;            // [P, H]
  T* prev[Cell::num_states];  // [B, H] each
  T* next[Cell::num_states];
  T* saved;  // [B, num_saved*H] or null
};

template <class Cell, class T>
struct PointwiseBackward {
  Index batch, hidden_size;
  const T* saved;                   // [B, num_saved*H]
  const T* params;                  // [P, H]
  const T* prev[Cell::num_states];  // [B, H] each
  const T* next[Cell::num_states];
  T* dstates[Cell::num_states];  // gradients of next on entry, of prev on return
  T* dgates;                     // [B, (G + num_split + P)*H]
};

template <int N, class T>
struct ThreadValues {
  T v[N > 0 ? N : 1];
};

template <class Cell, class T>
__global__ void pointwise_forward(PointwiseForward<Cell, T> p) {
  constexpr int G = Cell::num_gates, split = Cell::num_split, summed = G - split;
  const Index H = p.hidden_size, unit = Index(blockIdx.x) * blockDim.x + threadIdx.x,
              row = blockIdx.y;
  if (unit >= H) return;
  ThreadValues<G, T> gates;
  ThreadValues<split, T> gx;
  ThreadValues<Cell::num_params, T> params;
  ThreadValues<Cell::num_states, T> prev, next;
  ThreadValues<Cell::num_saved, T> saved;
  for (int g = 0; g < G; ++g) gates.v[g] = p.gates[(row * G + g) * H + unit];
  for (int g = 0; g < split; ++g) gx.v[g] = p.gx[(row * G + summed + g) * H + unit];
  for (int i = 0; i < Cell::num_params; ++i) params.v[i] = p.params[i * H + unit];
  for (int s = 0; s < Cell::num_states; ++s) prev.v[s] = p.prev[s][row * H + unit];
  Cell::forward(CellForward<T>{gates.v, gx.v, params.v, prev.v, next.v, saved.v});
  for (int s = 0; s < Cell::num_states; ++s) p.next[s][row * H + unit] = next.v[s];
  if (p.saved)
    for (int i = 0; i < Cell::num_saved; ++i)
      p.saved[(row * Cell::num_saved + i) * H + unit] = saved.v[i];
}

template <class Cell, class T>
__global__ void pointwise_backward(PointwiseBackward<Cell, T> p) {
  constexpr int G = Cell::num_gates, split = Cell::num_split, P = Cell::num_params;
  const Index H = p.hidden_size, unit = Index(blockIdx.x) * blockDim.x + threadIdx.x,
              row = blockIdx.y;
  if (unit >= H) return;
  ThreadValues<Cell::num_saved, T> saved;
  ThreadValues<P, T> params, dparams;
  ThreadValues<Cell::num_states, T> prev, next, dnext, dprev;
  ThreadValues<G, T> dgates;
  ThreadValues<split, T> dgx;
  for (int i = 0; i < Cell::num_saved; ++i)
    saved.v[i] = p.saved[(row * Cell::num_saved + i) * H + unit];
  for (int i = 0; i < P; ++i) params.v[i] = p.params[i * H + unit];
  for (int s = 0; s < Cell::num_states; ++s) {
    prev.v[s] = p.prev[s][row * H + unit];
    next.v[s] = p.next[s][row * H + unit];
    dnext.v[s] = p.dstates[s][row * H + unit];
  }
  Cell::backward(CellBackward<T>{saved.v, params.v, prev.v, next.v, dnext.v, dgates.v, dgx.v,
                                 dparams.v, dprev.v});
  T* out = p.dgates + row * (G + split + P) * H + unit;
  for (int g = 0; g < G; ++g, out += H) *out = dgates.v[g];
  for (int g = 0; g < split; ++g, out += H) *out = dgx.v[g];
  for (int i = 0; i < P; ++i, out += H) *out = dparams.v[i];
  for (int s = 0; s < Cell::num_states; ++s)
    if (s > 0 || Cell::h_bypass) p.dstates[s][row * H + unit] = dprev.v[s];
}

}  // namespace cuda
}  // namespace charrnn_fast
