// An LSTM with peepholes (Gers, Schraudolph and Schmidhuber 2002): what adding a cell takes.
#pragma once

#include "charrnn_fast/cells.hpp"

namespace charrnn_fast {

struct PeepholeLstm : CellDefaults {
  static constexpr const char* name = "peephole_lstm";
  static constexpr const char* params_name = "peephole";  // [3, H]: of i, f and o
  static constexpr int num_gates = 4, num_states = 2, num_saved = 5, num_params = 3;

  template <class V>
  CHARRNN_INLINE static void forward(const CellForward<V>& c) {
    const V c_prev = c.prev[1];
    const V i = math::sigmoid(fma(c.params[0], c_prev, c.gates[0]));
    const V f = math::sigmoid(fma(c.params[1], c_prev, c.gates[1]));
    const V g = math::tanh(c.gates[2]);
    const V c_next = fma(f, c_prev, i * g);
    const V o = math::sigmoid(fma(c.params[2], c_next, c.gates[3]));
    const V tanh_c = math::tanh(c_next);
    c.next[0] = o * tanh_c;
    c.next[1] = c_next;
    c.saved[0] = i, c.saved[1] = f, c.saved[2] = g, c.saved[3] = o, c.saved[4] = tanh_c;
  }

  template <class V>
  CHARRNN_INLINE static void backward(const CellBackward<V>& c) {
    const V i = c.saved[0], f = c.saved[1], g = c.saved[2], o = c.saved[3], tanh_c = c.saved[4];
    const V dh = c.dnext[0], c_prev = c.prev[1], c_next = c.next[1];
    const V d_o = dh * tanh_c * o * (V(1) - o);
    const V dc = fma(d_o, c.params[2], fma(dh * o, fma(-tanh_c, tanh_c, V(1)), c.dnext[1]));
    const V d_i = dc * g * i * (V(1) - i);
    const V d_f = dc * c_prev * f * (V(1) - f);
    c.dgates[0] = d_i;
    c.dgates[1] = d_f;
    c.dgates[2] = dc * i * fma(-g, g, V(1));
    c.dgates[3] = d_o;
    c.dparams[0] = d_i * c_prev;
    c.dparams[1] = d_f * c_prev;
    c.dparams[2] = d_o * c_next;
    c.dprev[1] = fma(d_i, c.params[0], fma(d_f, c.params[1], dc * f));
  }
};

}  // namespace charrnn_fast
