// A stack of recurrent layers with an optional linear decoder: the C++ interface for programs
// that embed the kernels.
//
// A Network is an immutable description: it owns no arrays, and its functions may be called from
// several threads at once. The caller owns all memory and asks for sizes first; no call allocates.
// Arrays are memory of the network's device (see device.hpp; of the CPU, where none is named), but
// for those that are said to be of the host.
// Where a call takes max_threads, it uses no more, and its workspace is of the size asked for with
// the same number. Nothing outside an array is read or written where it has the elements that are
// told here: what the kernels read past a row of weights is part of parameter_elements() and
// packed_elements(). Buffers aligned to 64 bytes are fastest (AlignedBuffer does that); the
// alignment of an element is enough.
//
// Dimension letters: T seq_len, B batch, I input_size, H hidden_size, L num_layers, D directions, G
// gates of the cell, S its states, R width of h (P of a projection, else H), O output_size (V, the
// vocabulary, in a language model). Arrays are row-major, time first. States are all h [L*D, B, R],
// then (lstm) all c [L*D, B, H]. N: rows of a sequence, T*B where all are of one length.
//
// Gradients: those of parameters are added to what the caller passes (+=), all others are
// overwritten (=). Losses are in nats.
//
// Same bits: no result depends on the number of threads; a row of the batch does not depend on
// the other rows; tokens give what their one-hot vectors give.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "charrnn_fast/device.hpp"

namespace charrnn_fast {

template <class T>
struct CellKernels;
template <class T>
class SequencePass;
template <class T>
class DecoderPass;

// PyTorch's two bias vectors per layer, one (added to the input term), or none.
enum class Bias { both, single, none };

// Rates, in [0, 1), of what training leaves out at random; what is kept is divided by 1 - rate
// (Srivastava et al. 2014). Masks are drawn from SequenceInput::mask_seed, and only where it is
// given.
struct Regularization {
  double input_dropout = 0;      // of the elements of layer 0's input
  double dropout = 0;            // of those of the layers' inputs above
  double output_dropout = 0;     // of the top layer's h
  double recurrent_dropout = 0;  // of h on its way into W_hh
  bool variational = false;      // those four: one mask for all steps (Gal and Ghahramani 2016), or
                                 // each step its own
  double weight_drop = 0;  // of the elements of W_hh, one mask for all steps (Merity et al. 2018)
  double zoneout[2] = {0, 0};  // of h and of c: keeps the value of the step before (Krueger et al.
                               // 2017); without masks its expectation
};

// Their names, for what reads or shows them; zoneout has a rate for each state.
struct DropoutRate {
  const char* name;
  double Regularization::* value;
};
inline constexpr DropoutRate dropout_rates[] = {
    {"dropout", &Regularization::dropout},
    {"input_dropout", &Regularization::input_dropout},
    {"output_dropout", &Regularization::output_dropout},
    {"recurrent_dropout", &Regularization::recurrent_dropout},
    {"weight_drop", &Regularization::weight_drop}};
inline constexpr const char* zoneout_rates[] = {"zoneout_h", "zoneout_c"};

struct NetworkShape {
  std::string cell;       // a name of cells() in registry.hpp: "rnn", "gru", "lstm" and others
  Index input_size = 0;   // I: features of a dense input, or the number of different tokens
  Index hidden_size = 0;  // H
  Index output_size = 0;  // O of the decoder; 0: no decoder
  Index num_layers = 1;   // L
  Bias bias = Bias::both;
  bool bidirectional = false;
  Index proj_size = 0;      // P of h = W_hr (the cell's h), of LSTMs (Sak et al. 2014); 0: none
  bool layer_norm = false;  // of the gates' input and recurrent terms (Ba et al. 2016)
  Regularization regularization = {};
  std::string nonlinearity = "tanh";  // or "relu", of the cell "rnn"
};

// One array among the flat parameters: `name` and [rows, cols] as in PyTorch (cols 0: a vector).
// Element (r, c) lies at offset + r * cols + c, or transposed at offset + c * rows + r: the input
// weights of layer 0 are stored [I, G*H], so that a token's weights are one contiguous row.
struct Parameter {
  std::string name;
  Index rows, cols, offset;
  bool transposed;
  Index elements() const { return rows * (cols > 0 ? cols : 1); }
};

// What a sequence is fed with: tokens [N], or x [N, I] (the other one is null).
//
// Sequences of different lengths stand sorted, the longest first, and without their padding: the
// rows of step t, of the sequences longer than t, are [offsets[t], offsets[t + 1]).
template <class T>
struct SequenceInput {
  Index seq_len, batch;
  const Token* tokens;
  const T* x;
  const Index* offsets = nullptr;  // [T + 1] of the host, or null: B rows each step
  // Of the host, the seed of all masks of this call; null: none are drawn.
  const std::uint64_t* mask_seed = nullptr;
  const Index* streams = nullptr;  // [B] the numbers that the rows' masks go by; null: 0 to B - 1
  // The offsets in the device's memory; null where the device is the host.
  const Index* device_offsets = nullptr;
  Index rows() const { return offsets ? offsets[seq_len] : seq_len * batch; }
};

// Copies of the weights in the kernels' order, to be renewed when the parameters change. Each kind
// serves some calls; a caller makes those that its calls take.
enum class Packing {
  forward,         // forward
  forward_dense,   // forward from x, besides (tokens read layer 0's input weights as they are)
  backward,        // backward
  backward_dense,  // backward with dx, besides
  decoder,         // decode
};
constexpr int num_packings = 5;

// What weights are packed as: their own type; or, for T float and without backward, rounded to
// bfloat16, at half the memory. Arithmetic is the same: rounded parameters give the same bits.
enum class Storage { full, bfloat16 };

// The copies that forward or backward takes: of Packing::forward or ::backward; and, or null, of
// Packing::forward_dense or ::backward_dense. For backward of a few streams `layers` may be null:
// it then reads the parameters as they stand, which takes less time than packing them.
template <class T>
struct PackedWeights {
  const T* layers;
  const T* dense;
  Storage storage = Storage::full;
};

template <class T>
class Network {
 public:
  // Throws std::invalid_argument for an unknown cell or an impossible size, and for float64 on a
  // device without it.
  explicit Network(const NetworkShape& shape, Device& device = cpu_device());

  const NetworkShape& shape() const { return shape_; }
  Device& device() const { return *device_; }
  Index num_states() const;
  Index directions() const { return shape_.bidirectional ? 2 : 1; }
  // R; D*R, of the rows of hidden(); R or H, of state s.
  Index width() const { return shape_.proj_size > 0 ? shape_.proj_size : shape_.hidden_size; }
  Index hidden_width() const { return directions() * width(); }
  Index state_width(Index s) const { return s == 0 ? width() : shape_.hidden_size; }
  // Elements of all states, and of those before state s.
  Index state_elements(Index batch) const { return state_offset(num_states(), batch); }
  Index state_offset(Index s, Index batch) const;

  // Flat parameters and flat gradients have parameter_elements() elements; those between arrays
  // (which are aligned) must be 0.
  const std::vector<Parameter>& parameters() const { return parameters_; }
  Index parameter_elements() const { return parameter_elements_; }

  Index packed_elements(Packing packing, Storage storage = Storage::full) const;
  void pack(Packing packing, const T* parameters, T* packed, Storage storage = Storage::full) const;

  // Tokens [rows, cols] of the host, or, cols 0, [rows]; throws std::invalid_argument that names
  // the first outside [0, input_size).
  void check_tokens(const char* name, const Token* tokens, Index rows, Index cols = 0) const;

  // Parameters with the weights that one call of forward and backward leaves out; and, of gradients
  // by them (that begin at zero), those by the parameters.
  void drop_weights(std::uint64_t mask_seed, const T* parameters, T* dropped) const;
  void drop_weights_backward(std::uint64_t mask_seed, T* gradients) const;

  // `tape` receives what the layers compute; keep: also what backward needs.
  // state_0 or null: zeros; state_n or null; they may be the same.
  Index tape_elements(const SequenceInput<T>& in, bool keep) const;
  void forward(const T* parameters, const PackedWeights<T>& packed, const SequenceInput<T>& in,
               const T* state_0, bool keep, T* tape, T* state_n) const;
  // The top layer's h, [N, D*R], on the tape.
  const T* hidden(const SequenceInput<T>& in, bool keep, const T* tape) const;

  // After forward with keep, on its tape. dh [N, D*R]: gradient of hidden(), is overwritten.
  // dstate: gradient of the last state on entry, of the initial state on return.
  // dx [N, I] or null. gradients: flat, added to.
  // Part of the tape is written over; forward's results on it stay.
  Index backward_elements(int max_threads) const;
  void backward(const T* parameters, const PackedWeights<T>& packed, const SequenceInput<T>& in,
                T* tape, T* dh, T* dstate, T* dx, T* gradients, int max_threads,
                T* workspace) const;

  // y [N, O] = h [N, D*R] @ decoder.weight^T + decoder.bias; packed: Packing::decoder
  void decode(const T* parameters, const T* packed, const T* h, Index rows, T* y,
              Storage storage = Storage::full) const;
  // dh [N, D*R] = dy [N, O] @ decoder.weight; gradients of the decoder are added to.
  Index decode_backward_elements(int max_threads) const;
  void decode_backward(const T* parameters, const T* h, const T* dy, Index rows, T* dh,
                       T* gradients, int max_threads, T* workspace) const;

  // Decoder, softmax cross-entropy and their backward, in blocks of rows, so that logits never
  // stand in memory at once; nor does a packed copy of the decoder. targets [N], -1 ignored; losses
  // [N] nats; dh and gradients null: the losses alone. scale: of the gradients, 1 for the sum, 1 /
  // count for the mean.
  Index head_elements(Index rows, int max_threads) const;
  void head(const T* parameters, const T* h, const Token* targets, Index rows, T scale, T* losses,
            T* dh, T* gradients, int max_threads, T* workspace) const;

 private:
  // Where the arrays of one layer and direction lie; -1: it has no such one.
  struct Layer {
    // in the parameters and gradients
    Index weight_ih, weight_hh, bias_ih, bias_hh, params, gain_ih, gain_hh, weight_hr;
    Index input_bias, split_bias;  // first in Packing::forward: sums of the biases
    Index hh, ih, hr;              // behind them; ih of layer 0 in forward_dense
    Index hh_t, ih_t, ih_t_split;  // in backward; ih_t and ih_t_split of layer 0 in backward_dense
  };
  // How much a packing holds.
  struct PackedLayout {
    Index biases, weights;
  };
  struct TapeLayout;
  friend class SequencePass<T>;
  friend class DecoderPass<T>;
  // For cells that are not in cells.hpp's list, see internal/network_of_cell.hpp.
  template <class U>
  friend Network<U> network_of_cell(const NetworkShape&, const CellKernels<U>&, Device&);

  Network(const NetworkShape& shape, const CellKernels<T>& cell, Device& device);
  void lay_out();
  Index num_slots() const;  // of a row of gradients of the gates, see RecurrentBackwardArgs
  Index add_parameter(std::string name, Index rows, Index cols, bool transposed);
  Index layer_input_size(Index layer) const {
    return layer == 0 ? shape_.input_size : hidden_width();
  }
  const Layer& layer(Index l, Index d) const {
    return layers_[static_cast<std::size_t>(l * directions() + d)];
  }
  TapeLayout tape_layout(const SequenceInput<T>& in, bool keep) const;
  void multiply_by_weight_masks(std::uint64_t mask_seed, T* weights) const;
  Index head_block_rows() const;
  Index head_scratch() const;
  Index head_errors(Index rows) const;
  // Where the weights of a packing begin.
  const T* packed_weights(Packing packing, const T* packed) const {
    return packed + packed_[static_cast<int>(packing)].biases;
  }

  NetworkShape shape_;
  Device* device_;
  const Kernels<T>* kernels_;
  const CellKernels<T>* cell_;
  std::vector<Parameter> parameters_;
  std::vector<Layer> layers_;
  PackedLayout packed_[num_packings] = {};
  Index decoder_weight_ = -1, decoder_bias_ = -1;  // in the parameters and gradients
  Index parameter_elements_ = 0;
};

extern template class Network<float>;
extern template class Network<double>;

}  // namespace charrnn_fast
