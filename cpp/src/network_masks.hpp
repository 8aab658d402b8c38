// The masks of one pass over a sequence.
#pragma once

#include "masks.hpp"
#include "network_common.hpp"

namespace charrnn_fast {

// What a mask applies to. A mask's site is a layer, a direction and one of these.
enum class MaskSite { input, recurrent, zoneout_h, zoneout_c, weights, output };
inline std::uint32_t mask_site(Index layer, Index direction, MaskSite site) {
  return static_cast<std::uint32_t>((layer * 2 + direction) * 8 + static_cast<int>(site));
}

// Rows are of the sequence, N in all. out receives the mask, or x * mask.
template <class T>
class SequenceMasks {
 public:
  SequenceMasks(const Kernels<T>& kernels, const Regularization& rates, const SequenceInput<T>& in,
                const Steps& steps)
      : k_(kernels), rates_(rates), in_(in), steps_(steps) {}

  bool drawn(double rate) const { return in_.mask_seed && rate > 0; }

  // out [N, cols] = mask * x
  void multiply(Index l, MaskSite site, double rate, Range rows, const T* x, T* out,
                Index cols) const {
    k_.mask(args(l, 0, site, rate, x, out, cols), rows);
  }
  // out [N]: multipliers of the tokens' weights in the first layer
  void tokens(Range rows, T* out) const {
    const T* const nothing = nullptr;
    k_.mask_elements(args(0, 0, MaskSite::input, rates_.input_dropout, nothing, out, 1), in_.tokens,
                     rows);
  }
  // out [N, cols], `rows` of it; or [B, cols], `batch_rows` of it, if all steps share one mask
  void recurrent(Index l, Index d, Range rows, Range batch_rows, T* out, Index cols) const {
    MaskArgs<T> p = args(l, d, MaskSite::recurrent, rates_.recurrent_dropout, nullptr, out, cols);
    if (rates_.variational) p.steps = {};
    k_.mask(p, rates_.variational ? batch_rows : rows);
  }
  // out [N, cols], of state s
  void zoneout(Index l, Index d, int s, Range rows, T* out, Index cols) const {
    const MaskSite site = s == 0 ? MaskSite::zoneout_h : MaskSite::zoneout_c;
    MaskArgs<T> p = args(l, d, site, rates_.zoneout[s], nullptr, out, cols);
    p.one_time = false;
    k_.mask(p, rows);
  }

 private:
  MaskArgs<T> args(Index l, Index d, MaskSite site, double rate, const T* x, T* out,
                   Index cols) const {
    const bool zoneout = site == MaskSite::zoneout_h || site == MaskSite::zoneout_c;
    MaskArgs<T> p = mask_args<T>(zoneout ? MaskKind::zoneout : MaskKind::dropout, rate,
                                 *in_.mask_seed, mask_site(l, d, site));
    p.streams = in_.streams;
    p.x = x;
    p.out = out;
    p.x_stride = p.out_stride = p.cols = cols;
    p.steps = steps_;
    p.one_time = rates_.variational;
    return p;
  }

  const Kernels<T>& k_;
  const Regularization& rates_;
  const SequenceInput<T>& in_;
  Steps steps_;
};

}  // namespace charrnn_fast
