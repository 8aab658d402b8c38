// What cuda.hpp says of tiers, for device.cu alone.
#pragma once

#include "charrnn_fast/cuda.hpp"
#include "charrnn_fast/network.hpp"
#include "kernels/tiers.cuh"

namespace charrnn_fast {
namespace cuda {

const char* name_of(Tier tier) {
  constexpr const char* names[] = {"T1", "T2", "T3", "T4"};
  return names[static_cast<int>(tier) - 1];
}

TierLimits& tier_limits() {
  static TierLimits limits;
  return limits;
}

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
std::vector<CudaLayerPlan> plan_layers(CellList<C...>, const NetworkShape& shape, Index batch,
                                       Index seq_len) {
  const bool normalized = shape.layer_norm, projected = shape.proj_size > 0;
  const TierQuestion q{shape.hidden_size, batch, seq_len,
                       projected    ? "it has a projection"
                       : normalized ? "it has layer normalization"
                                    : nullptr};
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

}  // namespace cuda

void set_cuda_tier(const char* name) { cuda::forced().set(name); }
const char* cuda_tier() {
  const std::optional<cuda::Tier> tier = cuda::forced().get();
  return tier ? name_of(*tier) : nullptr;
}

std::vector<CudaLayerPlan> cuda_plan(const NetworkShape& shape, Index batch, Index seq_len,
                                     bool float64) {
  const auto at_least_one = [](const char* what, Index n) {
    if (n < 1)
      throw std::invalid_argument(std::string(what) + " must be at least 1, got " +
                                  std::to_string(n));
  };
  at_least_one("hidden_size", shape.hidden_size);
  at_least_one("num_layers", shape.num_layers);
  at_least_one("batch", batch);
  at_least_one("seq_len", seq_len);
  return float64 ? cuda::plan_layers<double>(Cells(), shape, batch, seq_len)
                 : cuda::plan_layers<float>(Cells(), shape, batch, seq_len);
}

std::string describe(const std::vector<CudaLayerPlan>& plan) {
  std::string text;
  const auto number = [](auto n) { return std::to_string(n); };
  const auto add = [&](std::size_t layer, const char* pass, const CudaPassPlan& p) {
    text += "layer " + number(layer) + ", " + pass + ": " + p.tier + " (" + p.reason + "), " +
            number(p.launches) + (p.launches == 1 ? " launch of " : " launches of ") +
            number(p.blocks) + " x " + number(p.threads) + " threads";
    if (p.cluster > 1) text += " in clusters of " + number(p.cluster);
    if (p.shared > 0) text += ", " + number(p.shared) + " bytes of shared memory a block";
    text += "\n";
  };
  for (std::size_t l = 0; l < plan.size(); ++l) {
    add(l, "forward", plan[l].forward);
    add(l, "backward", plan[l].backward);
  }
  return text;
}

}  // namespace charrnn_fast
