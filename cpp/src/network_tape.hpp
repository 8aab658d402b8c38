// The layouts of the tape, with the arrays that the layers compute, and of backward's workspace.
#pragma once

#include "network_common.hpp"

namespace charrnn_fast {

// Offsets on the tape; those of a layer's arrays are relative to the layer. Arrays that a call does
// not need have no elements. There are no gaps: a tape's size is linear in N and B. Arrays whose
// rows do not fill vectors come last, so that the others stay aligned.
template <class T>
struct Network<T>::TapeLayout {
  Index h;  // [B + N (+ B), D*R]: initial rows, steps, initial rows of reverse
  // Of the first direction; the second's are this much further:
  Index direction;
  Index states[max_states];            // except h: [B + N, H], or [B, H] updated in place
  Index saved;                         // [N, num_saved*H]
  Index recurrent;                     // [N, R]
  Index recurrent_mask;                // [N, R], or [B, R] for all steps
  Index zoneout_mask[2];               // [N, H], or [H] for the expectation
  Index zoneout_raw[2];                // [N, H]
  Index hidden;                        // [N, H] before a projection
  Index normalized_ih, normalized_hh;  // [N, G*H]
  Index layer;                         // distance from layer to layer
  // After the layers:
  Index input;        // [N, D*R] masked, of each layer above the first
  Index output;       // [N, D*R] masked
  Index inverse;      // [N, 2] of the input terms, then of the recurrent terms, of each direction
  Index first_input;  // [N, I] masked x, or [N] multipliers of the tokens' weights
  Index total;
};

// Offsets in the workspace of backward.
template <class T>
struct Network<T>::BackwardLayout {
  Index gates;       // [N, num_slots*H] gradients of the gates, of one layer at a time
  Index dprojected;  // [N, R]
  Index dh;          // [N, D*R] of the layer below, if bidirectional
  Index order;       // [N] row numbers sorted by token, then [I] counts
  Index sums;        // [num_slots*H] of the gates' gradients
  bool has_rounded;
  Index rounded, rounded_projected;  // as in RecurrentBackwardArgs
  Index scratch;                     // of each thread
  Index thread;                      // distance from thread to thread
};

}  // namespace charrnn_fast
