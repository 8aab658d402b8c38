// Where the arrays that the layers compute lie on the tape.
#pragma once

#include "network_common.hpp"

namespace charrnn_fast {

// Places on the tape; those of a layer's arrays count from the layer's own. Those that a call does
// not need have no elements.
template <class T>
struct Network<T>::TapeLayout {
  Index h;      // [B + N (+ B), D*R]: initial rows, steps, initial rows of reverse
  Index input;  // [N, D*R] of layers above the first: their masked input
  // Of the first direction; those of the second stand this much behind:
  Index direction;
  Index states[max_states];  // but h: [B + N, H], or [B, H] updated in place
  Index saved;               // [N, num_saved*H]
  Index recurrent;           // [N, R]
  Index recurrent_mask;      // [N, R] or, for all steps, [B, R]
  Index zoneout_mask[2];     // [N, H], or [H] for the expectation
  Index zoneout_raw[2];      // [N, H]
  Index hidden;              // [N, H] before a projection
  Index normalised_ih, inverse_ih, normalised_hh, inverse_hh;  // [N, G*H], [N, 2]
  Index layer;                                                 // from each layer to the next
  // Behind the layers:
  Index first_input;  // [N, I] masked x, or [N] what tokens' weights are multiplied by
  Index output;       // [N, D*R] masked
  // One layer's gates at a time: their input term in forward, their gradients in backward. The
  // same memory for both keeps the whole step closer to the caches.
  Index gates;
  Index dprojected;  // [N, R]
  Index dh;          // [N, D*R] of the layer below, with two directions
  Index order;       // [N] numbers of rows, by token, and [I] to count them
  Index total;
};

}  // namespace charrnn_fast
