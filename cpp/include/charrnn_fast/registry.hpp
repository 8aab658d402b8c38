// The cells, optimizers and dropout rates of a build.
//
// Each is declared where it is defined (cells.hpp, optimizers.hpp, Regularization in network.hpp).
// All other code that lists them or asks for a cell's properties reads them here, Python too.
#pragma once

#include <string>
#include <vector>

#include "charrnn_fast/cell_info.hpp"

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

}  // namespace charrnn_fast
