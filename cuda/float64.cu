// The kernels of float64 with their launchers: see numbers.hpp.
#include "kernels/table.cuh"
#include "plans.cuh"

namespace charrnn_fast {
namespace cuda {

template const Kernels<double>& kernels<double>();
template std::vector<CudaLayerPlan> plan_layers<double>(const NetworkShape&, Index, Index);
template std::string why_not_run_kernels<double>();

}  // namespace cuda
}  // namespace charrnn_fast
