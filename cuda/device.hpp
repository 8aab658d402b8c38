// The GPU as a device of the package: see charrnn_fast/device.hpp.
#pragma once

#include "charrnn_fast/device.hpp"

namespace charrnn_fast {

// The current card, with a stream of its own. There is one; it is never destroyed. Throws
// std::runtime_error if there is no card, or no driver for it.
Device& cuda_device();

}  // namespace charrnn_fast
