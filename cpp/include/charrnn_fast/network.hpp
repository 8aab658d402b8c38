// Network: a stack of recurrent layers with an optional linear decoder. The C++ interface for
// programs that embed the kernels.
//
// A Network is immutable and owns no arrays: several threads may call it at once. The caller owns
// all memory and asks for sizes first; no call allocates. Arrays are memory of the network's device
// (device.hpp; by default the CPU), unless said to be of the host. A call uses at most max_threads
// threads; its workspace must have the size returned for the same number. Kernels access nothing
// outside an array of the size stated here: parameter_elements() and packed_elements() include what
// they read past a row of weights. Buffers aligned to 64 bytes are fastest (AlignedBuffer); the
// alignment of an element suffices, that of an Index for workspaces.
//
// Dimension letters: T seq_len, B batch, I input_size, H hidden_size, L num_layers, D directions, G
// gates of the cell, S its states, R width of h (P of a projection, else H), O output_size (V, the
// vocabulary, in a language model), N rows of a sequence (T*B if all lengths are equal). Arrays are
// row-major, time first. States are all h [L*D, B, R], then (lstm) all c [L*D, B, H].
//
// Gradients: those of parameters are added to (+=), all others are overwritten (=). Losses are in
// nats.
//
// Bitwise equality: no result depends on the number of threads, nor a row of the batch on other
// rows; tokens give what their one-hot vectors give.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "charrnn_fast/device.hpp"
#include "charrnn_fast/number_types.hpp"

namespace charrnn_fast {

template <class T>
struct CellKernels;
template <class T>
struct DrawArgs;
template <class T>
class Model;
template <class T>
class SequencePass;
template <class T>
class DecoderPass;
template <class T>
class Stream;

// Bias vectors per layer: PyTorch's two, one (added to the input term), or none.
enum class Bias { both, single, none };

// Rates in [0, 1) of dropout, weight drop and zoneout. Dropout and weight drop divide what they
// keep by 1 - rate (Srivastava et al. 2014). Masks are drawn only if SequenceInput::mask_seed is
// given.
struct Regularization {
  double input_dropout = 0;      // on layer 0's input
  double dropout = 0;            // between layers
  double output_dropout = 0;     // on the top layer's h
  double recurrent_dropout = 0;  // on h before W_hh
  bool variational = false;      // for those four, one mask for all steps (Gal and Ghahramani
                                 // 2016) instead of one per step
  double weight_drop = 0;        // on W_hh, one mask for all steps (Merity et al. 2018)
  double zoneout[2] = {0, 0};  // of h and c: keeps the previous step's value (Krueger et al. 2017);
                               // without masks, the expectation
};

// The rates' names, for code that reads or shows them. zoneout has one rate per state.
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
  Index input_size = 0;   // I: features of a dense input, or the number of tokens
  Index hidden_size = 0;  // H
  Index output_size = 0;  // O of the decoder; 0: no decoder
  Index num_layers = 1;   // L
  Bias bias = Bias::both;
  bool bidirectional = false;
  Index proj_size = 0;      // P of h = W_hr (the cell's h) in LSTMs (Sak et al. 2014); 0: none
  bool layer_norm = false;  // on the gates' input and recurrent terms (Ba et al. 2016)
  Regularization regularization = {};
  std::string nonlinearity = "tanh";  // or "relu", for the cell "rnn"
  Compute compute = Compute::float32;
};

// One array in the flat parameters: `name` and [rows, cols] as in PyTorch (cols 0: a vector).
// Element (r, c) is at offset + r * cols + c, or transposed at offset + c * rows + r. Layer 0's
// input weights are stored [I, G*H], so that a token's weights are contiguous.
struct Parameter {
  std::string name;
  Index rows, cols, offset;
  bool transposed;
  Index elements() const { return rows * (cols > 0 ? cols : 1); }
};

// Where the arrays of parameters(), or of their gradients, are. Either in flat memory, each as its
// Parameter says. Or separate, one pointer for each entry of parameters(): then all are [rows,
// cols] as in PyTorch, none is transposed, and nothing past their last elements is accessed.
template <class T>
struct ParameterArrays {
  T* flat = nullptr;
  T* const* separate = nullptr;  // of the host: pointers to memory of the device

  ParameterArrays(T* flat_memory) : flat(flat_memory) {}
  ParameterArrays(T* const* pointers) : separate(pointers) {}
  ParameterArrays(std::nullptr_t) {}
  explicit operator bool() const { return flat || separate; }
};

// Input of a sequence: tokens [N] or x [N, I]; the other must be null.
//
// Sequences of different lengths must be sorted, longest first, and have no padding. Step t has
// rows [offsets[t], offsets[t + 1]): one for each sequence longer than t.
template <class T>
struct SequenceInput {
  Index seq_len, batch;
  const Token* tokens;
  const T* x;
  const Index* offsets = nullptr;  // [T + 1], of the host; null: B rows per step
  // Seed of all dropout masks of this call, of the host; null: no masks.
  const std::uint64_t* mask_seed = nullptr;
  const Index* streams = nullptr;  // [B] stream numbers for the masks; null: 0 to B - 1
  // The offsets in the device's memory; null if the device is the host.
  const Index* device_offsets = nullptr;
  Index rows() const { return offsets ? offsets[seq_len] : seq_len * batch; }
};

// Copies of the weights in the kernels' layout. Make those that the calls need, again after each
// change of the parameters.
enum class Packing {
  forward,         // forward
  forward_dense,   // forward from x, in addition
  forward_tokens,  // forward from tokens, in addition, if the parameters are separate: layer 0's
                   // input weights [I, G*H], which flat parameters hold so
  backward,        // backward
  backward_dense,  // backward with dx, in addition
  decoder,         // decode
};
constexpr int num_packings = 6;

// Packed weights for forward (or backward): `layers` of Packing::forward (backward);
// `first_layer` of Packing::forward_dense or forward_tokens (backward_dense), or null. For
// backward, `layers` may be null where Network::packs_backward is false.
template <class T>
struct PackedWeights {
  const T* layers;
  const T* first_layer;
  Storage storage = Storage::full;
};

// Elements of a tape: per_row * N + per_stream * B + constant.
struct TapeSize {
  Index per_row, per_stream, constant;
};

// Whether networks of float32 on the device can compute so.
bool can_compute(const Device& device, Compute compute);

template <class T>
class Network {
 public:
  using Parameters = ParameterArrays<const T>;
  using Gradients = ParameterArrays<T>;

  // Throws std::invalid_argument for an unknown cell, an impossible size, and for float64 or a
  // Compute on a device without it.
  explicit Network(const NetworkShape& shape, Device& device = cpu_device());

  const NetworkShape& shape() const { return shape_; }
  Device& device() const { return *device_; }
  Index num_states() const;
  Index directions() const { return shape_.bidirectional ? 2 : 1; }
  // width: R; hidden_width: D*R, of a row of hidden(); state_width: R or H, of state s.
  Index width() const { return shape_.proj_size > 0 ? shape_.proj_size : shape_.hidden_size; }
  Index hidden_width() const { return directions() * width(); }
  Index state_width(Index s) const { return s == 0 ? width() : shape_.hidden_size; }
  // Elements of all states; and of those before state s.
  Index state_elements(Index batch) const { return state_offset(num_states(), batch); }
  Index state_offset(Index s, Index batch) const;

  // Flat parameters and gradients have parameter_elements() elements. The gaps between arrays
  // (which are aligned) must be 0.
  const std::vector<Parameter>& parameters() const { return parameters_; }
  Index parameter_elements() const { return parameter_elements_; }

  // Throws std::invalid_argument unless weights can be stored so: those of products with numbers of
  // the network's own, and, with `vectors`, with vectors that it is given.
  void check_storage(Storage storage, bool vectors = false) const;
  Index packed_elements(Packing packing, Storage storage = Storage::full) const;
  void pack(Packing packing, const Parameters& parameters, T* packed,
            Storage storage = Storage::full) const;

  // Whether backward needs packed layers, or takes less time with them than reading the parameters
  // as they are.
  bool packs_backward(const Parameters& parameters, Index batch) const;

  // Tokens [rows, cols], or [rows] if cols is 0, of the host. They must be in [0, input_size), else
  // std::invalid_argument names the first that is not.
  void check_tokens(const char* name, const Token* tokens, Index rows, Index cols = 0) const;

  // Weight drop: `dropped` receives the parameters with dropped weights, for one forward and
  // backward; if it is separate, only W_hh of all layers, the weights that are dropped. The second
  // turns gradients by these into gradients by the parameters, in place; they must have been 0
  // before backward.
  void drop_weights(std::uint64_t mask_seed, const Parameters& parameters,
                    const Gradients& dropped) const;
  void drop_weights_backward(std::uint64_t mask_seed, const Gradients& gradients) const;

  // tape: what the layers compute, and with keep what backward needs; equal calls with keep write
  // equal bytes to all of it. state_0 or null: zeros; state_n or null; they may be the same.
  // Of `in`, tape_size uses only whether its pointers are null.
  TapeSize tape_size(const SequenceInput<T>& in, bool keep) const;
  Index tape_elements(const SequenceInput<T>& in, bool keep) const;
  Index forward_elements(const SequenceInput<T>& in) const;
  void forward(const Parameters& parameters, const PackedWeights<T>& packed,
               const SequenceInput<T>& in, const T* state_0, bool keep, T* tape, T* state_n,
               T* workspace) const;
  // The top layer's h, [N, D*R], on the tape.
  const T* hidden(const SequenceInput<T>& in, bool keep, const T* tape) const;

  // After forward with keep, on its tape, any number of times. A workspace that forward has used
  // may still be in the caches.
  // dh [N, D*R]: gradient of hidden(), is overwritten. dstate: on entry the gradient of the last
  // state, on return that of the initial state. dx [N, I] or null. gradients: added to.
  Index backward_elements(const SequenceInput<T>& in, int max_threads) const;
  void backward(const Parameters& parameters, const PackedWeights<T>& packed,
                const SequenceInput<T>& in, const T* tape, T* dh, T* dstate, T* dx,
                const Gradients& gradients, int max_threads, T* workspace) const;

  // y [N, O] = h [N, D*R] @ decoder.weight^T + decoder.bias; packed: Packing::decoder, which has
  // both.
  void decode(const T* packed, const T* h, Index rows, T* y, Storage storage = Storage::full) const;
  // dh [N, D*R] = dy [N, O] @ decoder.weight; gradients: the decoder's are added to.
  Index decode_backward_elements(int max_threads) const;
  void decode_backward(const Parameters& parameters, const T* h, const T* dy, Index rows, T* dh,
                       const Gradients& gradients, int max_threads, T* workspace) const;

  // Decoder, softmax cross-entropy and their backward, in blocks of rows: neither all logits nor a
  // packed decoder are ever in memory. targets [N], -1 ignored; losses [N] in nats; dh and
  // gradients null: losses only. scale: of the gradients, 1 for the sum, 1 / count for the mean.
  Index head_elements(Index rows, int max_threads) const;
  void head(const Parameters& parameters, const T* h, const Token* targets, Index rows, T scale,
            T* losses, T* dh, const Gradients& gradients, int max_threads, T* workspace) const;

 private:
  // One layer and direction; -1: absent.
  struct Layer {
    // Numbers of the entries of parameters(). Without parameters of the cell's own, which are then
    // not read, params is 0.
    Index weight_ih, weight_hh, bias_ih, bias_hh, params, gain_ih, gain_hh, weight_hr;
    // Offsets in packed weights.
    Index input_bias, split_bias;  // first in Packing::forward: sums of the biases
    Index hh, ih, hr;              // after them; ih of layer 0 in forward_dense
    Index table;                   // in forward_tokens, of layer 0
    // in backward; ih_t and ih_t_split of layer 0 in backward_dense
    Index hh_t, ih_t, ih_t_split, hr_t;
  };
  // Sizes within a packing.
  struct PackedLayout {
    Index biases, weights;
  };
  struct TapeLayout;
  struct BackwardLayout;
  friend class Model<T>;
  friend class SequencePass<T>;
  friend class DecoderPass<T>;
  friend class Stream<T>;
  // For cells outside of cells.hpp.
  template <class U>
  friend Network<U> network_of_cell(const NetworkShape&, const CellKernels<U>&, Device&);

  Network(const NetworkShape& shape, const CellKernels<T>& cell, Device& device);
  void lay_out();
  Index flag_elements() const;  // of the workspace, for the kernels of a GPU
  Index rounded_elements(const SequenceInput<T>& in) const;
  bool rounds_rows() const;  // for bfloat16 products
  Index num_slots() const;   // of a row of gradients of the gates, see RecurrentBackwardArgs
  Index add_parameter(std::string name, Index rows, Index cols, bool transposed);
  Index layer_input_size(Index layer) const {
    return layer == 0 ? shape_.input_size : hidden_width();
  }
  const Layer& layer(Index l, Index d) const {
    return layers_[static_cast<std::size_t>(l * directions() + d)];
  }
  TapeLayout tape_layout(const SequenceInput<T>& in, bool keep, Index rows) const;
  BackwardLayout backward_layout(const SequenceInput<T>& in) const;
  void multiply_by_weight_masks(std::uint64_t mask_seed, const Parameters& weights,
                                const Gradients& products) const;
  // All steps of Model::sample in one kernel. False, with nothing done, if the device has none that
  // fits. state is updated in place; tape: of one step.
  bool sample(const Parameters& parameters, const PackedWeights<T>& packed, const T* decoder,
              Index length, Index batch, T* state, const DrawArgs<T>& draw, T* tape) const;
  bool has_head_kernel() const;
  Index head_block_rows() const;
  Index decoder_scratch() const;
  Index head_errors(Index rows) const;
  // The array of an entry of parameters(); null if it is absent.
  template <class U>
  U* array(const ParameterArrays<U>& arrays, Index entry) const {
    if (entry < 0) return nullptr;
    if (arrays.separate) return arrays.separate[entry];
    return arrays.flat + parameters_[static_cast<std::size_t>(entry)].offset;
  }
  // Whether kernels may read whole vectors at the end of arrays whose rows have `cols` elements.
  bool reads_whole_vectors(const Parameters& parameters, Index cols) const;
  // Start of a packing's weights.
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
  Index decoder_weight_ = -1, decoder_bias_ = -1;  // entries of parameters()
  Index parameter_elements_ = 0;
};

extern template class Network<float>;
extern template class Network<double>;

}  // namespace charrnn_fast
