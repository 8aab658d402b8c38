#include "charrnn_fast/device.hpp"

#include <cstdio>

namespace charrnn_fast {

OutOfMemory::OutOfMemory(double bytes) {
  const bool large = bytes >= 1e9;
  std::snprintf(message_, sizeof message_, "out of memory: %.3g %s more were asked for",
                large ? bytes / 1e9 : bytes / 1e6, large ? "GB" : "MB");
}

}  // namespace charrnn_fast
