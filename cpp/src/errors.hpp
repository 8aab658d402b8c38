// The one place where C++ code of this library throws for bad arguments.
#pragma once

#include <sstream>
#include <stdexcept>

namespace charrnn_fast {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (!holds) fail(parts...);
}

}  // namespace charrnn_fast
