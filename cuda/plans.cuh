// How the layers of a network run, by the choice that the launchers make.
#pragma once

#include <stdexcept>

#include "kernels/tiers.cuh"
#include "numbers.hpp"

namespace charrnn_fast {
namespace cuda {

template <class Pass>
CudaPassPlan plan_of(const TierQuestion& q, bool normalized, bool projected) {
  const TierAnswer a = choose<Pass>(q);
  if (a.tier != Tier::t4)
    return {name_of(a.tier), a.reason,     1, a.grid.blocks.x, a.grid.threads.x,
            a.grid.cluster,  a.grid.shared};
  const Index each = 1 + (normalized ? (Pass::backward ? 1 : 2) : 0) + (projected ? 1 : 0);
  const auto panels = static_cast<unsigned>(ceil_div(q.hidden_size, panel_units));
  return {
      name_of(a.tier), a.reason, q.steps * each, row_tiles(q.batch) * panels, gemm_threads, 1, 0};
}

template <class T, class... C>
std::vector<CudaLayerPlan> plan_cells(CellList<C...>, const NetworkShape& shape, Index batch,
                                      Index seq_len) {
  const bool normalized = shape.layer_norm, projected = shape.proj_size > 0;
  const TierQuestion q{shape.hidden_size, batch, seq_len,
                       only_by_steps(projected, normalized, shape.compute)};
  CudaLayerPlan layer{};
  const auto is = [&](const char* name, const char* nonlinearity) {
    return shape.cell == name && (shape.cell != "rnn" || shape.nonlinearity == nonlinearity);
  };
  const auto fill = [&](auto forward, auto backward) {
    layer.forward = plan_of<decltype(forward)>(q, normalized, projected);
    layer.backward = plan_of<decltype(backward)>(q, normalized, projected);
    return true;
  };
  const bool found =
      ((is(C::name, C::nonlinearity) && fill(ForwardPass<C, T>(), BackwardPass<C, T>())) || ...);
  if (!found) throw std::invalid_argument("cell must be one of the package's, got " + shape.cell);
  return std::vector<CudaLayerPlan>(static_cast<std::size_t>(shape.num_layers), layer);
}

template <class T>
std::vector<CudaLayerPlan> plan_layers(const NetworkShape& shape, Index batch, Index seq_len) {
  return plan_cells<T>(Cells(), shape, batch, seq_len);
}

}  // namespace cuda
}  // namespace charrnn_fast
