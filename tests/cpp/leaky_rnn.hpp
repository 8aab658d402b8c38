// A network of leaky units, each with a rate of its own that is learnt: what adding a cell takes.
#pragma once

#include "charrnn_fast/cells.hpp"

namespace charrnn_fast {

// h' = h + σ(p) (tanh(a) - h), p one weight a unit.
struct LeakyRnn : CellDefaults {
  static constexpr const char *name = "leaky_rnn", *gates = "n";
  static constexpr const char* params_name = "rate";  // [1, H]
  static constexpr int num_gates = 1, num_states = 1, num_saved = 1, num_params = 1;
  static constexpr bool h_bypass = true;

  template <class V>
  CHARRNN_INLINE static void forward(const CellForward<V>& c) {
    const V rate = math::sigmoid(c.params[0]), h = c.prev[0];
    const V n = math::tanh(c.gates[0]);
    c.next[0] = fma(rate, n - h, h);
    c.saved[0] = n;
  }

  template <class V>
  CHARRNN_INLINE static void backward(const CellBackward<V>& c) {
    const V rate = math::sigmoid(c.params[0]), n = c.saved[0], dh = c.dnext[0];
    c.dgates[0] = dh * rate * fma(-n, n, V(1));
    c.dparams[0] = dh * (n - c.prev[0]) * rate * (V(1) - rate);
    c.dprev[0] = dh * (V(1) - rate);
  }
};

}  // namespace charrnn_fast
