#include "charrnn_fast/sampling.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/dispatch.hpp"
#include "errors.hpp"

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
  require(std::isfinite(o.temperature) && o.temperature >= 0, "temperature is ", o.temperature,
          ", it takes a finite number, 0 or more");
  require(o.top_k >= 0, "top_k is ", o.top_k, ", it takes 1 or more");
  require(o.top_p > 0 && o.top_p <= 1, "top_p is ", o.top_p,
          ", it takes more than 0 and at most 1");
}

namespace {

// Room for one row's probabilities and for the order of its tokens.
template <class T>
Index probability_elements(Index vocab_size) {
  return (vocab_size + 15) / 16 * 16;
}

template <class T>
Token draw(const T* logits, Index n, double u, const SamplingOptions& o, T* p, Token* order) {
  // What is checked is what is sorted, even where another thread changes the caller's array.
  std::copy_n(logits, n, p);
  for (Index i = 0; i < n; ++i)
    require(!std::isnan(p[i]) && p[i] < std::numeric_limits<T>::infinity(), "logits hold ", p[i],
            " for token ", i, ", they take finite numbers: the weights are damaged");
  const T* const most = std::max_element(p, p + n);
  require(std::isfinite(*most), "logits hold no finite number: the weights are damaged");
  // So cold that its inverse is no number is as good as frozen.
  const T inverse_temperature = static_cast<T>(1 / o.temperature);
  if (!std::isfinite(inverse_temperature)) return static_cast<Token>(most - p);
  kernels<T>().exp_shifted(p, n, inverse_temperature, p);
  const bool truncated = (o.top_k > 0 && o.top_k < n) || o.top_p < 1;
  Index kept = n;
  std::iota(order, order + n, Token(0));
  if (truncated) {
    const auto likelier = [p](Token a, Token b) { return p[a] != p[b] ? p[a] > p[b] : a < b; };
    if (o.top_k > 0 && o.top_k < n) {
      kept = o.top_k;
      std::partial_sort(order, order + kept, order + n, likelier);
    } else {
      std::sort(order, order + n, likelier);
    }
  }
  double total = 0;
  for (Index i = 0; i < kept; ++i) total += static_cast<double>(p[order[i]]);
  if (o.top_p < 1) {
    double sum = 0;
    Index i = 0;
    while (i < kept && sum < o.top_p * total) sum += static_cast<double>(p[order[i++]]);
    kept = i, total = sum;
  }
  double sum = 0;
  Index last = 0;
  for (Index i = 0; i < kept; ++i) {
    const double probability = static_cast<double>(p[order[i]]);
    if (probability > 0) last = i;
    sum += probability;
    if (sum > u * total) return order[i];
  }
  return order[last];  // rounding left the sum a hair below u * total
}

}  // namespace

template <class T>
Index draw_elements(Index vocab_size) {
  // The order of the tokens stands behind the probabilities, in the same memory.
  const Index tokens =
      (vocab_size * Index(sizeof(Token)) + Index(sizeof(T)) - 1) / Index(sizeof(T));
  return probability_elements<T>(vocab_size) + tokens;
}

template <class T>
void draw_tokens(const T* logits, Index batch, Index vocab_size, const std::uint64_t* seeds,
                 std::uint64_t position, const SamplingOptions& options, Token* tokens,
                 T* workspace) {
  Token* const order = reinterpret_cast<Token*>(workspace + probability_elements<T>(vocab_size));
  for (Index b = 0; b < batch; ++b) {
    const double u = (philox(seeds[b], position, 0)[0] >> 8) * 0x1p-24;
    tokens[b] = draw(logits + b * vocab_size, vocab_size, u, options, workspace, order);
  }
}

template Index draw_elements<float>(Index);
template Index draw_elements<double>(Index);
template void draw_tokens(const float*, Index, Index, const std::uint64_t*, std::uint64_t,
                          const SamplingOptions&, Token*, float*);
template void draw_tokens(const double*, Index, Index, const std::uint64_t*, std::uint64_t,
                          const SamplingOptions&, Token*, double*);

}  // namespace charrnn_fast
