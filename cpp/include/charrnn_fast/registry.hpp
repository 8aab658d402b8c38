// What a build has to choose from: its cells, its optimizers and its dropout rates.
//
// Each is declared where it is defined (cells.hpp, optimizers.hpp, Regularization in network.hpp).
// Whatever offers a choice of them, or has to know what a cell has, reads it here, Python too.
#pragma once

#include <string>
#include <vector>

#include "charrnn_fast/cell_info.hpp"

namespace charrnn_fast {

struct OptimizerOption {
  std::string name;
  double initial;  // what it is unless it is given
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
