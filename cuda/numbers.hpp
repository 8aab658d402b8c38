// What device.cu takes of the kernels of a number type. float32.cu and float64.cu compile them:
// they take most of the time, and so they take it at once.
#pragma once

#include <string>
#include <vector>

#include "charrnn_fast/cuda.hpp"
#include "charrnn_fast/network.hpp"
#include "kernels/table.hpp"

namespace charrnn_fast {
namespace cuda {

template <class T>
const Kernels<T>& kernels();
template <class T>
std::vector<CudaLayerPlan> plan_layers(const NetworkShape& shape, Index batch, Index seq_len);
// Why the card cannot run the kernels, or an empty string.
template <class T>
std::string why_not_run_kernels();

}  // namespace cuda
}  // namespace charrnn_fast
