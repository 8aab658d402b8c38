#include "charrnn_fast/registry.hpp"

#include "charrnn_fast/cells.hpp"
#include "errors.hpp"

namespace charrnn_fast {

const std::vector<CellInfo>& cells() {
  static const std::vector<CellInfo> all(std::begin(Cells::info), std::end(Cells::info));
  return all;
}

Compute compute_named(const std::string& name) {
  std::string known;
  for (const ComputeInfo& info : compute_dtypes) {
    if (info.name == name) return info.compute;
    known += (known.empty() ? "" : ", ") + quoted(info.name);
  }
  fail("compute_dtype must be one of ", known, ", got ", quoted(name));
}

const char* name_of(Compute compute) {
  for (const ComputeInfo& info : compute_dtypes)
    if (info.compute == compute) return info.name;
  fail("compute must be a value of Compute, got ", static_cast<int>(compute));
}

}  // namespace charrnn_fast
