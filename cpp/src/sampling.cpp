#include "charrnn_fast/sampling.hpp"

#include <cmath>

#include "draws.hpp"
#include "errors.hpp"
#include "team.hpp"

namespace charrnn_fast {

std::array<std::uint32_t, 4> philox(std::uint64_t key, std::array<std::uint32_t, 4> c) {
  auto key0 = static_cast<std::uint32_t>(key), key1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53} * c[0],
                        p1 = std::uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ key0, static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ key1, static_cast<std::uint32_t>(p0)};
    key0 += 0x9E3779B9, key1 += 0xBB67AE85;
  }
  return c;
}

std::array<std::uint32_t, 4> philox(std::uint64_t seed, std::uint64_t position,
                                    std::uint32_t lane) {
  return philox(seed, {static_cast<std::uint32_t>(position),
                       static_cast<std::uint32_t>(position >> 32), lane, 0});
}

void check(const SamplingOptions& o) {
  require(std::isfinite(o.temperature) && o.temperature >= 0,
          "temperature must be finite, at least 0, got ", o.temperature);
  require(o.top_k >= 0, "top_k must be >= 1, or 0 for all, got ", o.top_k);
  require(o.top_p > 0 && o.top_p <= 1, "top_p must be above 0, at most 1, got ", o.top_p);
  require(std::isfinite(o.repetition_penalty) && o.repetition_penalty >= 1,
          "repetition_penalty must be finite, at least 1, got ", o.repetition_penalty);
  constexpr Index longest = Index(1) << 30;
  require(o.repetition_window >= 1 && o.repetition_window <= longest,
          "repetition_window must be in 1 to ", longest, ", got ", o.repetition_window);
}

template <class T>
void check_draw(const double* failure) {
  if (failure[0] < 0) return;
  require(failure[1] >= 0, "logits must be finite, got none that is: the weights are damaged");
  fail("logits must be finite, got ", static_cast<T>(failure[2]), " for token ",
       static_cast<Index>(failure[1]), ": the weights are damaged");
}

template <class T>
Index draw_elements(Index vocab_size) {
  return kernels_of<T>(cpu_device()).draw_scratch(vocab_size, 1);
}

template <class T>
void draw_tokens(const T* logits, Index batch, Index vocab_size, const std::uint64_t* seeds,
                 std::uint64_t position, const SamplingOptions& options, Token* tokens,
                 T* workspace, const Token* recent) {
  double failure[3] = {-1, -1, -1};
  for (Index row = 0; row < batch && failure[0] < 0; ++row) {
    const StreamSampling stream{seeds[row], position, options};
    DrawArgs<T> args{};
    args.logits = logits + row * vocab_size;
    args.vocab_size = vocab_size;
    args.streams = &stream;
    args.recent = recent ? recent + row : nullptr;
    args.recent_stride = batch;
    args.window = recent ? options.repetition_window : 0;
    args.tokens = tokens + row;
    args.scratch = workspace;
    args.failure = failure;
    kernels_of<T>(cpu_device()).draw(args, {0, 1});
  }
  check_draw<T>(failure);
}

#define CHARRNN_INSTANTIATE(T)                                                           \
  template void check_draw<T>(const double*);                                            \
  template Index draw_elements<T>(Index);                                                \
  template void draw_tokens(const T*, Index, Index, const std::uint64_t*, std::uint64_t, \
                            const SamplingOptions&, Token*, T*, const Token*);
CHARRNN_INSTANTIATE(float)
CHARRNN_INSTANTIATE(double)
#undef CHARRNN_INSTANTIATE

}  // namespace charrnn_fast
