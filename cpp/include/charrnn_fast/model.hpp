// Model: a network, its parameters and all memory for its use. Forward, backward, single steps,
// training and sampling are one call each. Memory grows at first use of a size and stays.
//
// A lock serializes a Model's calls. Shapes and letters as in network.hpp. Arrays that a call takes
// are the host's. On another device, which holds all of a Model's own memory, they are copied.
//
// Tokens, targets and lengths are copied; the copies are checked and used. If another thread
// changes an array during a call, the call gives an error or some result, but no access is out of
// bounds.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <mutex>
#include <optional>

#include "charrnn_fast/fork_safe_mutex.hpp"
#include "charrnn_fast/network.hpp"
#include "charrnn_fast/optimizer.hpp"
#include "charrnn_fast/sampling.hpp"

namespace charrnn_fast {

struct TrainOptions {
  double learning_rate = 1e-3;
  double clip_norm = std::numeric_limits<double>::infinity();
  double clip_value = std::numeric_limits<double>::infinity();
  bool mean = true;  // mean loss over the targets that are not -1; false: the sum
};

template <class T>
class Model {
 public:
  explicit Model(const NetworkShape& shape, Device& device = cpu_device());
  explicit Model(Network<T> network);

  const Network<T>& network() const { return network_; }
  // Memory of the device.
  const T* parameters() const { return parameters_.get(); }
  // Calls read(parameters), of the device, between other threads' calls.
  template <class F>
  void read_parameters(F&& read) const {
    std::lock_guard<ForkSafeMutex> lock(mutex_);
    read(static_cast<const T*>(parameters_.get()));
  }
  // Calls write(parameters), with memory of the host, and raises version().
  template <class F>
  void change_parameters(F&& write) {
    std::lock_guard<ForkSafeMutex> lock(mutex_);
    if (device_->is_host) {
      write(parameters_.get());
    } else {
      const Index n = network_.parameter_elements();
      AlignedBuffer<T> flat;
      flat.reserve(n);
      device_->download(parameters_.get(), n, flat.get());
      write(flat.get());
      device_->upload(flat.get(), n, parameters_.get());
    }
    ++version_;
  }
  // The same for one of network().parameters() alone: write(parameter, flat) must write all its
  // elements to flat + parameter.offset, and no others.
  template <class F>
  void change_parameter(const Parameter& parameter, F&& write) {
    std::lock_guard<ForkSafeMutex> lock(mutex_);
    if (device_->is_host) {
      write(parameter, parameters_.get());
    } else {
      AlignedBuffer<T> alone;
      alone.reserve(parameter.elements());
      Parameter first = parameter;
      first.offset = 0;
      write(first, alone.get());
      device_->upload(alone.get(), parameter.elements(), parameters_.get() + parameter.offset);
    }
    ++version_;
  }
  // Raised by every change of the parameters.
  Index version() const { return version_; }

  // Features of an output row: O, or D*R without a decoder.
  Index output_size() const;
  Index state_elements(Index batch) const;

  // A batch of sequences: tokens [T, B] or x [T, B, I]. lengths [B], each 0 to T, or null: all are
  // T steps long. Padding is never computed, though padded tokens must be valid ids.
  struct Batch {
    Index seq_len, batch;
    const Token* tokens;
    const T* x;
    const Index* lengths = nullptr;
    const std::uint64_t* mask_seed = nullptr;  // see SequenceInput
    // [B] stream numbers for the masks, 0 to 2^32 - 1, or null: 0 to B - 1 (see accumulate).
    const Index* streams = nullptr;
  };
  // y [T, B, O], 0 in the padding; state_0 or null: zeros; state_n: after each sequence's last
  // step. keep: for a backward to follow; then returns Kept::id, else 0.
  Index forward(const Batch& in, const T* state_0, bool keep, T* y, T* state_n);
  // The pass that backward() differentiates: the last forward with keep, unless invalidated since
  // by another pass over a sequence or a change of the parameters.
  struct Kept {
    Index id;  // 0: none
    Index seq_len, batch;
    bool tokens;
  };
  Kept kept();
  // dy [T, B, O] or null: zeros; dstate as in Network::backward; dx [T, B, I] or null; gradients
  // are overwritten. `expected` must be what kept() returns now, else std::invalid_argument is
  // thrown.
  void backward(const Kept& expected, const T* dy, T* dstate, T* dx, T* gradients);

  // Updates the state as forward does, without the decoder.
  void read(const Batch& in, T* state, Storage storage = Storage::full);

  // One step: in.seq_len must be 1; y [B, O]; state is updated in place.
  void step(const SequenceInput<T>& in, T* state, T* y);

  struct TrainResult {
    double loss, gradient_norm;  // the norm before clipping
    bool finite() const { return std::isfinite(loss) && std::isfinite(gradient_norm); }
  };
  // One update of the parameters. targets [T, B]: -1 and padding are ignored. state is updated in
  // place. If the result is not finite, parameters and state stay unchanged.
  TrainResult train_step(const Batch& in, const Token* targets, T* state, Optimizer<T>& optimizer,
                         const TrainOptions& options);

  struct Losses {
    double loss_sum;
    Index count;  // targets that are not ignored
  };
  // One update from a batch in micro-batches: accumulate() each, then update(). Equals one
  // train_step of all their streams, up to the order of the sums. The dropout masks are the same
  // too: streams are numbered across micro-batches (unless Batch::streams does), and all must have
  // the same mask_seed. The accumulated gradient belongs to the current parameters: any change of
  // them drops it, as do train_step and clear_gradients. state_n: after the micro-batch's last
  // step; may be state_0. The caller keeps it if the update is finite.
  Losses accumulate(const Batch& micro_batch, const Token* targets, const T* state_0, T* state_n);
  // Returns the same as train_step. Throws std::invalid_argument if nothing is accumulated.
  TrainResult update(Optimizer<T>& optimizer, const TrainOptions& options);
  void clear_gradients();

  // Training by several processes, each with some of the batch's streams: after accumulate() they
  // add up what each has accumulated, then all call update(). Batch::streams numbers the streams of
  // the whole batch, so that its masks are drawn.
  struct Accumulated {
    T* gradients;  // [parameter_elements()], of the device, of the sum of losses; added up in place
    Losses losses;
  };
  // Throws std::invalid_argument if nothing is accumulated. The memory stays where it is; no other
  // thread may train meanwhile.
  Accumulated accumulated();
  void set_accumulated(const Losses& losses);

  // Losses without training; state is updated in place. stream_losses [B] or null: the sum of each
  // sequence's losses, added in the order of its steps.
  Losses evaluate(const Batch& in, const Token* targets, T* state, double* stream_losses = nullptr);

  // Bytes that a new model holds after a train_step of such a batch (`training`), or after an
  // evaluate, with the current number of threads. Allocates nothing. Of tokens, x,
  // mask_seed and streams only whether they are null matters. The optimizer's memory is
  // Optimizer::memory.
  Index memory(const Batch& in, bool training) const;
  // Bytes that this model holds now.
  Index held_memory();

  // `length` times: feeds each stream its token (at first `first` [B]) and draws the next from the
  // output. drawn [length, B]. To continue as one longer call would have, pass the last tokens
  // drawn, the state, position + length and `recent`. recent: [repetition_window, B] the tokens
  // before the first draw that a repetition_penalty is for, the oldest first and -1 where there are
  // none; it is updated. Null: none.
  void sample(Index length, Index batch, const Token* first, T* state, const std::uint64_t* seeds,
              std::uint64_t position, const SamplingOptions& options, Token* drawn,
              Storage storage = Storage::full, Token* recent = nullptr);
  // The same for streams [B] that differ in options and position, as those of a server do: each
  // draws what it would draw alone. recent: [the largest repetition_window, B].
  void sample(Index length, Index batch, const Token* first, T* state,
              const StreamSampling* streams, Token* drawn, Storage storage = Storage::full,
              Token* recent = nullptr);

  // Feeds each stream its token: log_probabilities [B, V] of the next, log softmax(y) in nats.
  // Their negatives are the losses of evaluate, bit for bit (but for int8 weights). The state is
  // updated.
  void next(Index batch, const Token* tokens, T* state, T* log_probabilities,
            Storage storage = Storage::full);

  // The calls above keep their packed weights for the next one. After the last one, a model that
  // also trains gives large ones back; training frees the others.
  void end_drawing();

  // One update from gradients in one piece of memory, the host's or the device's.
  void update(Optimizer<T>& optimizer, const T* gradients, double learning_rate);

 private:
  // The weights that a call computes with: the parameters, or a copy with dropped weights.
  struct Source {
    const T* parameters;
    Index version;  // unique among sources
  };
  // What accumulate() has summed; the gradient is in gradients_.
  struct Sum {
    Index version = 0;  // of the parameters; 0: nothing is accumulated
    double loss = 0;
    Index count = 0, streams = 0;
    std::optional<std::uint64_t> mask_seed;
  };
  // Elements of each buffer that one call needs.
  struct Needs;

  Source source(const SequenceInput<T>& in);
  const T* packed(const Source& from, Packing packing, Storage storage = Storage::full);
  PackedWeights<T> packed_forward(const Source& from, const SequenceInput<T>& in,
                                  Storage storage = Storage::full);
  PackedWeights<T> packed_backward(const Source& from, const SequenceInput<T>& in, bool dense);
  void run_forward(const Source& from, const SequenceInput<T>& in, const T* state_0, bool keep,
                   T* state_n, Storage storage = Storage::full);
  void run_backward(const Source& from, const SequenceInput<T>& in, int threads, T* dstate, T* dx,
                    T* gradients);
  void check_samples() const;
  void drop_gradients(const std::uint64_t* mask_seed, T* gradients) const;

  Batch own(const char* name, const Batch& batch);
  void own_tokens(const char* name, const Token* tokens, Index rows, Index cols = 0);
  const Token* own_targets(const Batch& in, const Token* targets, Index* count);
  void check_lengths(const Batch& in) const;
  void check_streams(const Batch& in) const;

  SequenceInput<T> sort(const Batch& in, Index first_stream = 0);
  bool direct(const SequenceInput<T>& in) const { return device_->is_host && !in.offsets; }
  template <class F>
  void each_row(const SequenceInput<T>& in, F&& f) const;
  void gather(const Batch& batch, bool copy, SequenceInput<T>& in);
  const Token* gather_targets(const SequenceInput<T>& in, const Token* targets);
  const T* rows_in(const SequenceInput<T>& in, const T* given, Index cols, bool copy,
                   AlignedBuffer<T>& to);
  void rows_out(const SequenceInput<T>& in, const T* rows, Index cols, T* given);
  const T* states_in(const SequenceInput<T>& in, const T* given);
  void states_out(const SequenceInput<T>& in, const T* states, T* given);
  void sort_states(const T* from, Index batch, bool back, T* to) const;

  Needs needs(const SequenceInput<T>& in, bool training, int threads) const;
  void release_drawn_copies(Index bytes);
  SequenceInput<T> prepare(const Batch& batch, bool training, int threads, Index first_stream = 0);
  void add_gradients(const SequenceInput<T>& in, const Token* targets, const T* state_0,
                     double scale, int threads);
  TrainResult apply(const std::uint64_t* mask_seed, const double* loss_sum, double loss_scale,
                    double scale, Optimizer<T>& optimizer, const TrainOptions& options);
  TrainResult apply_there(const double* loss_sum, double loss_scale, double scale,
                          Optimizer<T>& optimizer, const TrainOptions& options);
  void add_up_losses(const SequenceInput<T>& in, double* stream_sums = nullptr) const;
  double first_number() const;
  void sample_streams(Index length, Index batch, const Token* first, T* state, Token* drawn,
                      Storage storage, Token* recent);
  Index gradient_chunks() const;
  double sum_of_gradient_squares() const;
  Index numbers(Index batch, bool training) const;
  void check_optimizer(const Optimizer<T>& optimizer) const;
  void check_accumulated(const char* name) const;
  Kept kept_now() const;

  Network<T> network_;
  Device* device_ = &network_.device();
  // A packed copy, and the version of the parameters it was made from.
  struct PackedCopy {
    AlignedBuffer<T> weights;
    Index version = 0;
  };
  PackedCopy packed_[num_packings][num_storages];
  // Memory of the device.
  AlignedBuffer<T> parameters_{*device_}, dropped_{*device_}, tape_{*device_}, workspace_{*device_},
      gradients_{*device_}, dh_{*device_}, state_{*device_}, losses_{*device_}, x_{*device_},
      dx_{*device_}, y_{*device_};
  AlignedBuffer<double> numbers_{*device_};  // sums that the host reads
  // Of devices with Kernels::control: its chunks and arrays, then its counter and its result.
  static constexpr Index control_numbers = 3;
  MirroredBuffer<Index> control_{*device_};
  // If the device is not the host: the caller's arrays in transit, and its gradients.
  AlignedBuffer<T> staged_{*device_}, given_gradients_{*device_};
  AlignedBuffer<Token> drawn_{*device_};
  // Checked copies of the caller's arrays. tokens_ and targets_: sorted, or kept for backward.
  MirroredBuffer<Token> given_tokens_{*device_}, given_targets_{*device_};
  AlignedBuffer<Index> given_lengths_;
  MirroredBuffer<Token> tokens_{*device_}, targets_{*device_};
  MirroredBuffer<StreamSampling> sampled_{*device_};
  // Of the last call with lengths: order_[r] is the index in the caller's batch of the network's
  // row r; ranks_ is the inverse; offsets_ as in SequenceInput. streams_: stream numbers for the
  // masks.
  MirroredBuffer<Index> order_{*device_}, ranks_{*device_}, offsets_{*device_}, streams_{*device_};
  Index version_ = 1, num_dropped_ = 0;
  Sum sum_;
  SequenceInput<T> kept_input_{};
  Source kept_source_{};
  std::uint64_t kept_mask_seed_ = 0;
  Index kept_id_ = 0, kept_version_ = 0, num_kept_ = 0;
  mutable ForkSafeMutex mutex_;
};

extern template class Model<float>;
extern template class Model<double>;

}  // namespace charrnn_fast
