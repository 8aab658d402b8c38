// The cells, optimizers, dropout rates and ways to compute of a build.
//
// Each is declared where it is defined (cells.hpp, optimizers.hpp, Regularization in network.hpp,
// Compute in number_types.hpp).
// All other code that lists them or asks for a cell's properties reads them here, Python too.
#pragma once

#include <string>
#include <vector>

#include "charrnn_fast/cell_info.hpp"
#include "charrnn_fast/number_types.hpp"

namespace charrnn_fast {

struct OptimizerOption {
  std::string name;
  double initial;  // default
  bool is_flag;    // 0 or 1
};
struct OptimizerInfo {
  std::string name;
  std::vector<OptimizerOption> options;
};

// In the order of Cells.
const std::vector<CellInfo>& cells();
// In the order of UpdateRules.
const std::vector<OptimizerInfo>& optimizers();

// The values of compute_dtype, by which all interfaces and files name them.
struct ComputeInfo {
  const char* name;
  Compute compute;
};
inline constexpr ComputeInfo compute_dtypes[] = {
    {"float32", Compute::float32}, {"tf32", Compute::tf32}, {"bfloat16", Compute::bfloat16}};
// Throws std::invalid_argument for a name that is none of these.
Compute compute_named(const std::string& name);
const char* name_of(Compute compute);

}  // namespace charrnn_fast
