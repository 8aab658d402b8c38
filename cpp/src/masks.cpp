#include "masks.hpp"

#include "errors.hpp"

namespace charrnn_fast {

template <class T>
MaskArgs<T> mask_args(MaskKind kind, double rate, std::uint64_t seed, std::uint32_t site) {
  require(rate >= 0 && rate < 1, "rate must be at least 0, below 1, got ", rate);
  MaskArgs<T> p{};
  p.key = seed;
  p.site = site;
  p.threshold = static_cast<std::uint32_t>(rate * 0x1p32);  // towards 0; the product is exact
  p.dropped = T(kind == MaskKind::zoneout);
  p.kept = kind == MaskKind::zoneout ? T(0) : static_cast<T>(1 / (1 - rate));
  return p;
}

template MaskArgs<float> mask_args(MaskKind, double, std::uint64_t, std::uint32_t);
template MaskArgs<double> mask_args(MaskKind, double, std::uint64_t, std::uint32_t);

}  // namespace charrnn_fast
