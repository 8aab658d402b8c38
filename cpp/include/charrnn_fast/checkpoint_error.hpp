// The error of a damaged or foreign checkpoint.
#pragma once

#include <stdexcept>

namespace charrnn_fast {

// A file is not a checkpoint of this package, is damaged, or is of a newer version.
class CheckpointError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace charrnn_fast
