// Memory of a Model's calls.
#include <algorithm>
#include <numeric>
#include <vector>

#include "charrnn_fast/model.hpp"
#include "errors.hpp"
#include "squares.hpp"
#include "team.hpp"

namespace charrnn_fast {

template <class T>
struct Model<T>::Needs {
  Index dropped, packed, tape, workspace, losses, state, gradients, dh, x, staged;
  Index numbers;  // of double
  Index tokens, targets;
  Index indices;  // lengths and what sort() computes from them
  Index bytes() const {
    const Index floats =
        dropped + packed + tape + workspace + losses + state + gradients + dh + x + staged;
    return floats * Index(sizeof(T)) + numbers * Index(sizeof(double)) +
           (tokens + targets) * Index(sizeof(Token)) + indices * Index(sizeof(Index));
  }
};

template <class T>
typename Model<T>::Needs Model<T>::needs(const SequenceInput<T>& in, bool training,
                                         int threads) const {
  const Index rows = in.rows(), states = state_elements(in.batch);
  const Index elements = network_.parameter_elements();
  const bool sorted = in.offsets;
  const auto some = [](bool needed, Index n) { return needed ? std::max<Index>(1, n) : 0; };
  const auto copy = [&](bool needed, Packing packing) {
    return some(needed, network_.packed_elements(packing));
  };
  Needs n{};
  n.dropped = some(in.mask_seed && network_.shape().regularization.weight_drop > 0, elements);
  n.packed =
      copy(true, Packing::forward) + copy(in.x, Packing::forward_dense) +
      copy(training && network_.packs_backward(parameters_.get(), in.batch), Packing::backward);
  n.tape = network_.tape_elements(in, training);
  n.workspace = std::max({network_.head_elements(rows, threads), network_.forward_elements(in),
                          training ? network_.backward_elements(in, threads) : 0});
  n.losses = some(true, rows);
  const bool copied = sorted || !device_->is_host;  // the caller's rows and states
  n.state = training ? 2 * states : some(copied, states);
  n.gradients = some(training, elements);
  n.dh = some(training, rows * network_.hidden_width());
  const Index all_rows = in.seq_len * in.batch;  // of the caller's
  const Index I = network_.shape().input_size;
  n.x = some(copied && in.x, rows * I);
  if (sorted && !device_->is_host) n.staged = std::max(states, in.x ? all_rows * I : 0);
  n.numbers = numbers(in.batch, training);
  const Index mirrors = device_->is_host ? 1 : 2;
  n.tokens = (some(!in.x, all_rows) + some(sorted && !in.x, rows)) * mirrors;
  n.targets = (some(true, all_rows) + some(sorted, rows)) * mirrors;
  n.indices = (sorted ? in.batch + (2 * in.batch + in.seq_len + 1) * mirrors : 0) +
              (in.streams ? in.batch * mirrors : 0);
  if (training && kernels_of<T>(*device_).control)
    n.indices += (2 * gradient_chunks() + static_cast<Index>(network_.parameters().size()) + 1 +
                  control_numbers) *
                 mirrors;
  return n;
}

// Chunks of all arrays of the gradients.
template <class T>
Index Model<T>::gradient_chunks() const {
  Index chunks = 0;
  for (const Parameter& p : network_.parameters()) chunks += square_chunks(p.elements());
  return chunks;
}

// Sums that the host reads. First the loss, or the sum of squares of all gradients. Then the losses
// of each stream; or, in training, the sums of squares of each parameter's gradient and of the
// chunks of one. With Kernels::control: the loss, the sum of squares, its workspace.
template <class T>
Index Model<T>::numbers(Index batch, bool training) const {
  if (!training) return 1 + batch;
  const auto arrays = static_cast<Index>(network_.parameters().size());
  if (kernels_of<T>(*device_).control) return 2 + gradient_chunks() + arrays;
  Index chunks = 0;
  for (const Parameter& p : network_.parameters())
    chunks = std::max(chunks, square_chunks(p.elements()));
  return 1 + arrays + chunks;
}

// Frees the packed copies that drawing a text has made, those of more than `bytes`. Training packs
// the decoder in blocks: a whole copy may take as much memory as the rest of the model.
template <class T>
void Model<T>::release_drawn_copies(Index bytes) {
  for (int packing = 0; packing < num_packings; ++packing)
    for (int storage = 0; storage < num_storages; ++storage) {
      PackedCopy& copy = packed_[packing][storage];
      const bool drawn_from = static_cast<Packing>(packing) == Packing::decoder ||
                              static_cast<Storage>(storage) != Storage::full;
      if (drawn_from && copy.weights.size() * Index(sizeof(T)) > bytes)
        copy = {AlignedBuffer<T>(*device_), 0};
    }
}

template <class T>
void Model<T>::end_drawing() {
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  // Packing less takes no longer than a few draws.
  if (gradients_.size() > 0) release_drawn_copies(32 << 20);
}

// The batch in the network's order; reserves memory for its losses and, if `training`, gradients.
template <class T>
SequenceInput<T> Model<T>::prepare(const Batch& batch, bool training, int threads,
                                   Index first_stream) {
  kept_id_ = 0;                           // its tape is overwritten
  if (training) release_drawn_copies(0);  // the update makes them stale
  SequenceInput<T> in = sort(batch, first_stream);
  gather(batch, false, in);
  const Needs n = needs(in, training, threads);
  tape_.reserve(n.tape);
  workspace_.reserve(n.workspace);
  losses_.reserve(n.losses);
  numbers_.reserve(n.numbers);
  state_.reserve(n.state);
  gradients_.reserve(n.gradients);
  dh_.reserve(n.dh);
  return in;
}

template <class T>
Index Model<T>::memory(const Batch& given, bool training) const {
  Batch batch = given;
  require(network_.shape().output_size > 0,
          "output_size of a network with a loss must be >= 1, got 0");
  require(batch.seq_len >= 0, "seq_len must be >= 0, got ", batch.seq_len);
  require(batch.batch >= 1, "batch must be >= 1, got ", batch.batch);
  std::vector<Index> lengths;
  if (given.lengths) {
    lengths.assign(given.lengths, given.lengths + given.batch);
    batch.lengths = lengths.data();
  }
  check_lengths(batch);
  SequenceInput<T> in{batch.seq_len, batch.batch, batch.tokens, batch.x};
  in.mask_seed = batch.mask_seed;
  in.streams = batch.streams;
  const double rows = std::max(1.0, double(batch.seq_len)) * double(batch.batch);
  if (rows > 1) {  // n rows need at most n times what one needs
    Batch one = batch;
    one.seq_len = one.batch = 1, one.lengths = nullptr;
    require(rows * double(memory(one, training)) < 0x1p62,
            "the batch must fit into memory, got seq_len ", batch.seq_len, ", batch ", batch.batch);
  }
  std::vector<Index> offsets;  // only the last is read
  if (batch.lengths) {
    offsets.resize(static_cast<std::size_t>(batch.seq_len) + 1);
    offsets.back() = std::accumulate(lengths.begin(), lengths.end(), Index(0));
    in.offsets = offsets.data();
  }
  return network_.parameter_elements() * Index(sizeof(T)) +
         needs(in, training, device_->most_parts()).bytes();
}

template <class T>
Index Model<T>::held_memory() {
  std::lock_guard<ForkSafeMutex> lock(mutex_);
  Index bytes = 0;
  const auto add = [&](const auto&... buffers) {
    ((bytes += buffers.size() * Index(sizeof *buffers.get())), ...);
  };
  add(parameters_, dropped_, tape_, workspace_, gradients_, dh_, state_, losses_, x_, dx_, y_,
      numbers_, staged_, given_gradients_, sampled_, drawn_, given_tokens_, given_targets_,
      given_lengths_, tokens_, targets_, order_, ranks_, offsets_, streams_, control_);
  for (const auto& storages : packed_)
    for (const PackedCopy& copy : storages) add(copy.weights);
  return bytes;
}

template class Model<float>;
template class Model<double>;

}  // namespace charrnn_fast
