// How the parts of a device share out a layer's recurrence.
#pragma once

#include "team.hpp"

namespace charrnn_fast {

// Streams are shared out where each part gets a tile's worth of rows, else units are.
constexpr Index rows_per_thread = 6;

struct Sharing {
  int threads;
  bool by_rows;  // else by units, with a barrier per step
};

// operations: of the whole sequence. whole_layers: units cannot be shared out.
Sharing share_recurrence(const Device& device, double operations, Index seq_len, Index batch,
                         Index panels, bool whole_layers);

// One part's rows of the batch: about as many rows of the sequence for each. The steps' offsets are
// memory of the host.
Range share_rows(const Team& team, const Steps& steps);

}  // namespace charrnn_fast
