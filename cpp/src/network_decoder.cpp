// The linear decoder on the top layer, with or without the loss.
#include "charrnn_fast/network.hpp"

#include "network_common.hpp"

namespace charrnn_fast {

template <class T>
void Network<T>::decode(const T* packed, const T* h, Index rows, T* y, Storage storage) const {
  const Kernels<T>& k = *kernels_;
  const Index H = hidden_width(), O = shape_.output_size;
  const T* const bias = decoder_bias_ >= 0 ? packed : nullptr;
  const Weights<T> weights = weights_at(packed_weights(Packing::decoder, packed), storage,
                                        shape_.compute, 0, k.gemm_units, H);
  const GemmArgs<T> args{h, H, weights, bias, false, O, H, y, O};
  const Index panels = ceil_div(O, k.gemm_units);
  run_team(*device_, device_->parts(2.0 * double(rows) * double(H * O)), [&](const Team& team) {
    if (rows >= rows_per_thread * team.parts)
      k.gemm(args, team.share(rows), {0, panels});
    else
      k.gemm(args, {0, rows}, team.share(panels));
  });
}

namespace {

// Elements of the decoder's weights per block of a thread: they stay in its second-level cache.
constexpr Index decoder_block = Index(1) << 16;

// Rows of the weights [O, H] that rows_backward multiplies by at a time. For bfloat16 products they
// are packed by two, with columns rounded up to whole vectors, whatever the instruction set's.
Index backward_block(Index H, Compute compute) {
  if (compute != Compute::bfloat16) return std::max<Index>(1, decoder_block / H);
  constexpr Index widest = 64;
  const Index pairs = decoder_block / (ceil_div(H, widest) * widest);
  return 2 * std::max<Index>(1, pairs);
}

}  // namespace

// Scratch of one thread: a packed block of the decoder, then a block as it is, then the operands of
// its gradient.
template <class T>
Index Network<T>::decoder_scratch() const {
  const Kernels<T>& k = *kernels_;
  const Index H = hidden_width(), as_it_is = std::max(decoder_block, H) + k.gemm_units;
  return aligned(std::max({k.gemm_tn_scratch(), decoder_block, k.gemm_units * H, as_it_is}));
}

// Shared by the losses and the backward pass of one call.
template <class T>
class DecoderPass {
 public:
  // bias [O], readable up to the next multiple of a vector, or null; rows() alone reads it.
  DecoderPass(const Network<T>& network, const ParameterArrays<const T>& parameters, const T* bias)
      : device_(*network.device_),
        k_(*network.kernels_),
        weight_(network.array(parameters, network.decoder_weight_)),
        bias_(bias),
        H_(network.hidden_width()),
        O_(network.shape_.output_size),
        compute_(network.shape_.compute),
        whole_vectors_(network.reads_whole_vectors(parameters, H_)) {}

  // One part's logits. Packs the decoder in blocks: a whole packed copy would take as much memory
  // as the weights, for large vocabularies most of the model.
  void rows(const T* h, Range rows, Range panels, T* y, Index y_stride, T* scratch) const {
    if (rows.begin >= rows.end) return;
    const Index units = k_.gemm_units;
    const Index most = std::max<Index>(1, decoder_block / (H_ * units));
    for (Index panel = panels.begin; panel < panels.end; panel += most) {
      const Index n = std::min(most, panels.end - panel), first = panel * units;
      const Index cols = std::min(n * units, O_ - first);
      k_.pack(PackArgs<T>{weight_ + first * H_, H_, 1, 1, cols, H_, scratch,
                          stored(Storage::full, compute_), compute_},
              {0, n});
      k_.gemm(GemmArgs<T>{h, H_, weights_at(scratch, Storage::full, compute_, 0, units, H_),
                          bias_ ? bias_ + first : nullptr, false, cols, H_, y + first, y_stride},
              rows, {0, n});
    }
  }

  // dh [rows, H] = dy [rows, O] @ decoder.weight, unpacked but for bfloat16 products.
  void rows_backward(const T* dy, Index dy_stride, Range rows, T* dh, T* scratch) const {
    if (rows.begin >= rows.end) return;
    const Index most = backward_block(H_, compute_), panels = ceil_div(H_, k_.gemm_units);
    for (Index first = 0; first < O_; first += most) {
      const Index depth = std::min(most, O_ - first);
      const T* block = weight_ + first * H_;
      Weights<T> weights{block, H_, k_.gemm_units, Storage::full, compute_};
      if (compute_ == Compute::bfloat16) {
        k_.pack(PackArgs<T>{block, 1, H_, 1, H_, depth, scratch, Storage::bfloat16, compute_},
                {0, panels});
        weights = weights_at(scratch, Storage::full, compute_, 0, k_.gemm_units, depth);
      } else if (first + depth == O_ && !whole_vectors_) {
        // Vectors past the last row would be read.
        device_.copy(block, depth * H_, scratch);
        device_.zero(scratch + depth * H_, k_.gemm_units);
        weights.data = scratch;
      }
      k_.gemm(GemmArgs<T>{dy + first, dy_stride, weights, nullptr, first > 0, H_, depth, dh, H_},
              rows, {0, panels});
    }
  }

 private:
  Device& device_;
  const Kernels<T>& k_;
  const T *weight_, *bias_;
  Index H_, O_;
  Compute compute_;
  bool whole_vectors_;
};

template <class T>
Index Network<T>::decode_backward_elements(int max_threads) const {
  return max_threads * decoder_scratch();
}

template <class T>
void Network<T>::decode_backward(const Parameters& parameters, const T* h, const T* dy, Index rows,
                                 T* dh, const Gradients& gradients, int max_threads,
                                 T* workspace) const {
  const Kernels<T>& k = *kernels_;
  const Index H = hidden_width(), O = shape_.output_size;
  T* const weight_gradient = array(gradients, decoder_weight_);
  T* const bias_gradient = array(gradients, decoder_bias_);
  const DecoderPass<T> pass(*this, parameters, nullptr);
  const int parts = device_->parts(4.0 * double(rows) * double(H * O));
  run_team(*device_, std::min(max_threads, parts), [&](const Team& team) {
    T* const scratch = workspace + team.part * decoder_scratch();
    pass.rows_backward(dy, O, team.share(rows), dh, scratch);
    k.gemm_tn(GemmTnArgs<T>{dy,
                            O,
                            rows,
                            {{h, H, H, weight_gradient, H}, {}},
                            1,
                            bias_gradient,
                            std::min(sum_block, head_block_rows()),
                            0,
                            0,
                            nullptr,
                            shape_.compute},
              team.share(O), scratch);
  });
}

// Whether one kernel does all but the weights' gradients.
template <class T>
bool Network<T>::has_head_kernel() const {
  return kernels_->head && shape_.compute == Compute::float32 &&
         shape_.output_size <= kernels_->head_columns;
}

// A block's logits take some 32 MB (float), at most 45, and, for a small vocabulary, stay in a
// CPU's cache. A block has one or two blocks of the gradient's sums, or for a large vocabulary less
// than one. One kernel takes as many rows as it can: the gradients' sums do not depend on it.
template <class T>
Index Network<T>::head_block_rows() const {
  constexpr Index elements = Index(1) << 23;
  const Index most = has_head_kernel() ? elements : 2 * sum_block;
  const Index rows = std::clamp<Index>(elements / shape_.output_size, 1, most);
  return rows > sum_block ? (rows + sum_block / 2) / sum_block * sum_block : rows;
}

template <class T>
Index Network<T>::head_elements(Index rows, int max_threads) const {
  const Index O = shape_.output_size;
  return std::min(rows, head_block_rows()) * aligned(O) + aligned(O) + head_errors(rows) +
         max_threads * decoder_scratch();
}

// Elements of the errors of the gradients' sums, bias and weight, which continue from block to
// block.
template <class T>
Index Network<T>::head_errors(Index rows) const {
  const Index O = shape_.output_size;
  return rows > most_plain_rows ? aligned(O) + aligned(O * hidden_width()) : 0;
}

template <class T>
void Network<T>::head(const Parameters& parameters, const T* h, const Token* targets, Index rows,
                      T scale, T* losses, T* dh, const Gradients& gradients, int max_threads,
                      T* workspace) const {
  const Kernels<T>& k = *kernels_;
  const Index H = hidden_width(), O = shape_.output_size, stride = aligned(O);
  const Index block = head_block_rows(), panels = ceil_div(O, k.gemm_units);
  T* const logits = workspace;
  T* const bias = logits + std::min(rows, block) * stride;
  T* const errors = bias + stride;
  T* const scratches = errors + head_errors(rows);
  T* const weight_gradient = gradients ? array(gradients, decoder_weight_) : nullptr;
  T* const bias_gradient = gradients ? array(gradients, decoder_bias_) : nullptr;
  const auto weight_gradients = [&](Index first, Index n, Range rows_of_c, T* scratch) {
    k.gemm_tn(
        GemmTnArgs<T>{
            .a = logits,
            .a_stride = stride,
            .depth = n,
            .products = {{h + first * H, H, H, weight_gradient, H, errors + aligned(O), H}, {}},
            .num_products = 1,
            .sums = bias_gradient,
            .block = std::min(sum_block, block),
            .done = first,
            .whole = rows,
            .sums_errors = errors,
            .compute = shape_.compute},
        rows_of_c, scratch);
  };
  const auto loss_args = [&](Index first) {
    return CrossEntropyArgs<T>{
        logits, stride, O, targets + first, scale, dh ? logits : nullptr, stride, losses + first};
  };
  if (has_head_kernel()) {
    const T* const weight = array(parameters, decoder_weight_);
    for (Index first = 0; first < rows; first += block) {
      const Index n = std::min(block, rows - first);
      k.head(
          HeadArgs<T>{h + first * H, H, weight, array(parameters, decoder_bias_), loss_args(first),
                      dh ? dh + first * H : nullptr, backward_block(H, shape_.compute)},
          {0, n});
      if (dh) weight_gradients(first, n, {0, O}, scratches);
    }
    return;
  }
  const double operations = (dh ? 6.0 : 2.0) * double(rows) * double(H * O);
  if (decoder_bias_ >= 0) device_->copy(array(parameters, decoder_bias_), O, bias);
  const DecoderPass<T> pass(*this, parameters, decoder_bias_ >= 0 ? bias : nullptr);
  const int parts = std::min(max_threads, device_->parts(operations));
  run_team(*device_, parts, [&](const Team& team) {
    T* const scratch = scratches + team.part * decoder_scratch();
    // Each thread packs the weights it multiplies by. A large vocabulary is shared among threads,
    // so that it is packed once. For a small one each thread packs all and never waits.
    const bool by_columns = panels >= 8 * team.parts && team.parts > 1;
    for (Index first = 0; first < rows; first += block) {
      const Index n = std::min(block, rows - first);
      const T* const h_block = h + first * H;
      const Range mine = team.share(n);
      if (by_columns) {
        pass.rows(h_block, {0, n}, team.share(panels), logits, stride, scratch);
        team.wait();
      } else {
        pass.rows(h_block, mine, {0, panels}, logits, stride, scratch);
      }
      k.cross_entropy(loss_args(first), mine);
      if (dh) pass.rows_backward(logits, stride, mine, dh + first * H, scratch);
      // The next block's logits overwrite these, and other threads may compute other rows of them.
      team.wait();
      if (!dh) continue;
      weight_gradients(first, n, team.share(O), scratch);
      team.wait();
    }
  });
}

template class Network<float>;
template class Network<double>;

}  // namespace charrnn_fast
