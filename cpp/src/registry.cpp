#include "charrnn_fast/registry.hpp"

#include "charrnn_fast/cells.hpp"

namespace charrnn_fast {

const std::vector<CellInfo>& cells() {
  static const std::vector<CellInfo> all(std::begin(Cells::info), std::end(Cells::info));
  return all;
}

}  // namespace charrnn_fast
