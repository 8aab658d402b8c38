#include "charrnn_fast/device.hpp"

#include <cstdio>

namespace charrnn_fast {

OutOfMemory::OutOfMemory(double bytes, const Device* device) {
  const bool large = bytes >= 1e9, elsewhere = device && !device->is_host;
  std::snprintf(message_, sizeof message_, "out of memory%s%.40s: %.3g %s more were asked for",
                elsewhere ? " on " : "", elsewhere ? device->name : "",
                large ? bytes / 1e9 : bytes / 1e6, large ? "GB" : "MB");
}

}  // namespace charrnn_fast
