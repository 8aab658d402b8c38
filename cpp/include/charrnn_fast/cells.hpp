// The cells: the math of one recurrent unit, each once, for every device and number type.
//
// A cell is a stateless struct of two static functions over a value type V (see math.hpp):
// `forward` computes one step of one unit; `backward`, under it, is the exact gradient. Loops,
// memory, threads and matrix products belong to the kernels. To add a cell, write one struct like
// these and its entry in `Cells`.
//
//   name          the cell's name
//   nonlinearity  tells apart cells of one name
//   gates         a letter for each gate
//   num_gates     G, gates of a unit; weight_ih and weight_hh have G*H rows, in gate order
//   forget_gate   index of the forget gate, whose bias training may start at 1
//   num_split     the last num_split gates receive their two terms separately: `gates` holds the
//                 recurrent term gh = W_hh h + b_hh, `gx` the input term W_ih x + b_ih. For all
//                 other gates, `gates` holds the sum
//   num_states    S, values carried from step to step; states[0] is h, the unit's output
//   num_saved     values that forward saves for backward besides the states
//   num_params    P, the unit's own parameters (peepholes), an array [P, H]
//   params_name   that array's name after "weight_"
//   bounded       whether h lies in [-1, 1]
//   h_bypass      whether the previous h enters other than through the gates: forward reads
//                 prev[0], backward writes dprev[0]
//   reads_next    bit s: backward reads next[s], which forward wrote
//
// `backward` computes from dnext (gradients of the S new states) the gradients of the gates, of
// their split input terms, of the parameters and of the S previous states. dprev[0] excludes what
// comes through the gates: the recurrence adds dgates @ W_hh.
#pragma once

#include "charrnn_fast/cell_info.hpp"
#include "charrnn_fast/config.hpp"
#include "charrnn_fast/math.hpp"

namespace charrnn_fast {

template <class V>
struct CellForward {
  const V* gates;   // [G]
  const V* gx;      // [num_split]
  const V* params;  // [P]
  const V* prev;    // [S]
  V* next;          // [S]
  V* saved;         // [num_saved]
};

template <class V>
struct CellBackward {
  const V* saved;   // [num_saved]
  const V* params;  // [P]
  const V* prev;    // [S]
  const V* next;    // [S]
  const V* dnext;   // [S]
  V* dgates;        // [G]
  V* dgx;           // [num_split]
  V* dparams;       // [P]
  V* dprev;         // [S]
};

// Defaults of the cells.
struct CellDefaults {
  static constexpr const char* nonlinearity = "tanh";
  static constexpr int num_split = 0, num_saved = 0, num_params = 0, forget_gate = -1;
  static constexpr bool h_bypass = false;
  static constexpr unsigned reads_next = 0;
  static constexpr const char* params_name = "";
  static constexpr bool bounded = true;
};

// h' = tanh(a): the vanilla recurrent network (Elman 1990).
struct RnnTanh : CellDefaults {
  static constexpr const char *name = "rnn", *gates = "h";
  static constexpr int num_gates = 1, num_states = 1;
  static constexpr unsigned reads_next = 1;

  template <class V>
  CHARRNN_INLINE static void forward(const CellForward<V>& c) {
    c.next[0] = math::tanh(c.gates[0]);
  }

  template <class V>
  CHARRNN_INLINE static void backward(const CellBackward<V>& c) {
    const V h = c.next[0];
    c.dgates[0] = c.dnext[0] * fma(-h, h, V(1));
  }
};

// h' = max(0, a): the same with ReLU.
struct RnnRelu : CellDefaults {
  static constexpr const char *name = "rnn", *nonlinearity = "relu", *gates = "h";
  static constexpr int num_gates = 1, num_states = 1;
  static constexpr bool bounded = false;
  static constexpr unsigned reads_next = 1;

  template <class V>
  CHARRNN_INLINE static void forward(const CellForward<V>& c) {
    c.next[0] = max(V(0), c.gates[0]);
  }

  template <class V>
  CHARRNN_INLINE static void backward(const CellBackward<V>& c) {
    // The slope at 0 is 0, as in PyTorch.
    c.dgates[0] = select_positive(c.next[0], c.dnext[0], V(0));
  }
};

// The gated recurrent unit (Cho et al. 2014), reset gate after the matrix product as in cuDNN and
// PyTorch:
//   r = σ(a_r)   z = σ(a_z)   n = tanh(gx_n + r gh_n)   h' = (1 - z) n + z h
struct Gru : CellDefaults {
  static constexpr const char *name = "gru", *gates = "rzn";
  static constexpr int num_gates = 3, num_split = 1, num_states = 1, num_saved = 4;
  static constexpr bool h_bypass = true;

  template <class V>
  CHARRNN_INLINE static void forward(const CellForward<V>& c) {
    const V gh_n = c.gates[2];
    const V r = math::sigmoid(c.gates[0]);
    const V z = math::sigmoid(c.gates[1]);
    const V n = math::tanh(fma(r, gh_n, c.gx[0]));
    c.next[0] = fma(z, c.prev[0] - n, n);
    c.saved[0] = r, c.saved[1] = z, c.saved[2] = n, c.saved[3] = gh_n;
  }

  template <class V>
  CHARRNN_INLINE static void backward(const CellBackward<V>& c) {
    const V r = c.saved[0], z = c.saved[1], n = c.saved[2], gh_n = c.saved[3];
    const V dh = c.dnext[0];
    const V dn = dh * (V(1) - z) * fma(-n, n, V(1));  // at the argument of tanh
    c.dgates[0] = dn * gh_n * r * (V(1) - r);
    c.dgates[1] = dh * (c.prev[0] - n) * z * (V(1) - z);
    c.dgates[2] = dn * r;
    c.dgx[0] = dn;
    c.dprev[0] = dh * z;
  }
};

// Long short-term memory (Hochreiter and Schmidhuber 1997) with the forget gate of Gers et al.
// (2000):
//   i = σ(a_i)   f = σ(a_f)   g = tanh(a_g)   o = σ(a_o)   c' = f c + i g   h' = o tanh(c')
struct Lstm : CellDefaults {
  static constexpr const char *name = "lstm", *gates = "ifgo";
  static constexpr int num_gates = 4, num_states = 2, num_saved = 5, forget_gate = 1;

  template <class V>
  CHARRNN_INLINE static void forward(const CellForward<V>& c) {
    const V i = math::sigmoid(c.gates[0]);
    const V f = math::sigmoid(c.gates[1]);
    const V g = math::tanh(c.gates[2]);
    const V o = math::sigmoid(c.gates[3]);
    const V c_next = fma(f, c.prev[1], i * g);
    const V tanh_c = math::tanh(c_next);
    c.next[0] = o * tanh_c;
    c.next[1] = c_next;
    c.saved[0] = i, c.saved[1] = f, c.saved[2] = g, c.saved[3] = o, c.saved[4] = tanh_c;
  }

  template <class V>
  CHARRNN_INLINE static void backward(const CellBackward<V>& c) {
    const V i = c.saved[0], f = c.saved[1], g = c.saved[2], o = c.saved[3], tanh_c = c.saved[4];
    const V dh = c.dnext[0];
    const V dc = fma(dh * o, fma(-tanh_c, tanh_c, V(1)), c.dnext[1]);
    c.dgates[0] = dc * g * i * (V(1) - i);
    c.dgates[1] = dc * c.prev[1] * f * (V(1) - f);
    c.dgates[2] = dc * i * fma(-g, g, V(1));
    c.dgates[3] = dh * tanh_c * o * (V(1) - o);
    c.dprev[1] = dc * f;
  }
};

// An LSTM whose gates read c through peepholes p, one weight per unit (Gers, Schraudolph and
// Schmidhuber 2002; backward is the "full gradient" of Greff et al. 2017):
//   i = σ(a_i + p_i c)   f = σ(a_f + p_f c)   g, c' as above   o = σ(a_o + p_o c')
struct PeepholeLstm : CellDefaults {
  static constexpr const char *name = "peephole_lstm", *gates = "ifgo";
  static constexpr const char* params_name = "peephole";  // [3, H]: of i, f and o
  static constexpr int num_gates = 4, num_states = 2, num_saved = 5, num_params = 3;
  static constexpr int forget_gate = 1;
  static constexpr unsigned reads_next = 2;

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

// An LSTM with coupled input and forget gates, the CIFG of Greff et al. (2017); gates f, g, o:
//   f = σ(a_f)   g = tanh(a_g)   o = σ(a_o)   c' = f c + (1 - f) g   h' = o tanh(c')
struct CoupledLstm : CellDefaults {
  static constexpr const char *name = "coupled_lstm", *gates = "fgo";
  static constexpr int num_gates = 3, num_states = 2, num_saved = 4, forget_gate = 0;

  template <class V>
  CHARRNN_INLINE static void forward(const CellForward<V>& c) {
    const V f = math::sigmoid(c.gates[0]);
    const V g = math::tanh(c.gates[1]);
    const V o = math::sigmoid(c.gates[2]);
    const V c_next = fma(f, c.prev[1] - g, g);
    const V tanh_c = math::tanh(c_next);
    c.next[0] = o * tanh_c;
    c.next[1] = c_next;
    c.saved[0] = f, c.saved[1] = g, c.saved[2] = o, c.saved[3] = tanh_c;
  }

  template <class V>
  CHARRNN_INLINE static void backward(const CellBackward<V>& c) {
    const V f = c.saved[0], g = c.saved[1], o = c.saved[2], tanh_c = c.saved[3];
    const V dh = c.dnext[0];
    const V dc = fma(dh * o, fma(-tanh_c, tanh_c, V(1)), c.dnext[1]);
    c.dgates[0] = dc * (c.prev[1] - g) * f * (V(1) - f);
    c.dgates[1] = dc * (V(1) - f) * fma(-g, g, V(1));
    c.dgates[2] = dh * tanh_c * o * (V(1) - o);
    c.dprev[1] = dc * f;
  }
};

template <class C>
constexpr CellInfo cell_info() {
  return {C::name,      C::nonlinearity, C::gates,     C::params_name, C::num_gates,
          C::num_split, C::num_states,   C::num_saved, C::num_params,  C::forget_gate,
          C::h_bypass,  C::bounded,      C::reads_next};
}

template <class... C>
struct CellList {
  static constexpr CellInfo info[] = {cell_info<C>()...};
};

// Every cell of the package; its index here is its number.
using Cells = CellList<RnnTanh, RnnRelu, Gru, Lstm, PeepholeLstm, CoupledLstm>;

}  // namespace charrnn_fast
