// The layout of the tape: offsets of the arrays that the layers compute.
#pragma once

#include "network_common.hpp"

namespace charrnn_fast {

// Offsets on the tape; those of a layer's arrays are relative to the layer. Arrays that a call does
// not need have no elements.
template <class T>
struct Network<T>::TapeLayout {
  Index h;      // [B + N (+ B), D*R]: initial rows, steps, initial rows of reverse
  Index input;  // [N, D*R] masked input of the layers above the first
  // Of the first direction; the second's are this much further:
  Index direction;
  Index states[max_states];  // except h: [B + N, H], or [B, H] updated in place
  Index saved;               // [N, num_saved*H]
  Index recurrent;           // [N, R]
  Index recurrent_mask;      // [N, R], or [B, R] for all steps
  Index zoneout_mask[2];     // [N, H], or [H] for the expectation
  Index zoneout_raw[2];      // [N, H]
  Index hidden;              // [N, H] before a projection
  Index normalized_ih, inverse_ih, normalized_hh, inverse_hh;  // [N, G*H], [N, 2]
  Index layer;                                                 // distance from layer to layer
  // After the layers:
  Index first_input;  // [N, I] masked x, or [N] multipliers of the tokens' weights
  Index output;       // [N, D*R] masked
  // One layer's gates at a time: their input term in forward, their gradients in backward. Both
  // share the memory, which keeps the training step closer to the caches.
  Index gates;
  Index dprojected;  // [N, R]
  Index dh;          // [N, D*R] of the layer below, if bidirectional
  Index order;       // [N] row numbers sorted by token, then [I] counts
  Index total;
};

}  // namespace charrnn_fast
