// Shared by the sources of Model.
#pragma once

#include "charrnn_fast/model.hpp"
#include "team.hpp"

namespace charrnn_fast {

// The steps as kernels take them.
template <class T>
Steps steps_of(const SequenceInput<T>& in) {
  return {in.seq_len, in.batch, in.device_offsets, false};
}

}  // namespace charrnn_fast
