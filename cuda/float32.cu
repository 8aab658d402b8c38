// The kernels of float32 with their launchers: see numbers.hpp.
#include "kernels/table.cuh"
#include "plans.cuh"

namespace charrnn_fast {
namespace cuda {

template const Kernels<float>& kernels<float>();
template std::vector<CudaLayerPlan> plan_layers<float>(const NetworkShape&, Index, Index);
template std::string why_not_run_kernels<float>();

}  // namespace cuda
}  // namespace charrnn_fast
