// How a device's parts share a layer's recurrence.
#pragma once

#include "team.hpp"

namespace charrnn_fast {

// Parts share streams if each gets a tile's worth of rows, else units.
constexpr Index rows_per_thread = 6;

struct Sharing {
  int threads;
  bool by_rows;  // else by units, with a barrier per step
};

// operations: of the whole sequence. whole_layers: units cannot be shared.
Sharing share_recurrence(const Device& device, double operations, Index seq_len, Index batch,
                         Index panels, bool whole_layers);

// One part's rows of the batch: each part gets about as many rows of the sequence. The steps'
// offsets must be memory of the host.
Range share_rows(const Team& team, const Steps& steps);

}  // namespace charrnn_fast
