#include "charrnn_fast/losses.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/dispatch.hpp"
#include "cpu/thread_pool.hpp"
#include "errors.hpp"

namespace charrnn_fast {
namespace {

// Each number takes a few nanoseconds.
int threads_for(Index numbers) {
  constexpr Index numbers_per_thread = 1 << 14;
  return static_cast<int>(
      std::min<Index>(ThreadPool::instance().size(), 1 + numbers / numbers_per_thread));
}

// Throws for the first of n numbers outside [0, most].
template <class T>
void check_range(const char* name, const T* x, Index n, T most, const char* takes) {
  int good = 1;
  for (Index i = 0; i < n; ++i) good &= (x[i] >= T(0)) & (x[i] <= most);
  if (good) return;
  for (Index i = 0; i < n; ++i)
    require(x[i] >= T(0) && x[i] <= most, name, "[", i, "] must be ", takes, ", got ", x[i]);
}

// The factor of each of n losses: its weight; for the mean, divided by the sum of the weights of
// those that `counts`, and 0 for the others. In double, the sum and the quotient of floats stay in
// range.
template <class T, class F>
std::vector<T> checked_shares(const T* weights, Index n, bool mean, F&& counts) {
  std::vector<T> shares(weights, weights + n);  // a copy, as in cross_entropy
  weights = shares.data();
  check_range("weights", weights, n, std::numeric_limits<T>::max(), "finite numbers >= 0");
  if (!mean) return shares;
  constexpr Index width = 8;  // interleaved sums hide an addition's latency
  double sums[width] = {};
  for (Index i = 0; i < n; i += width)
    for (Index j = 0; j < std::min(width, n - i); ++j)
      sums[j] += counts(i + j) ? static_cast<double>(weights[i + j]) : 0.0;
  double total = 0;
  for (const double sum : sums) total += sum;
  require(total <= std::numeric_limits<double>::max(),
          "the sum of weights must be finite in float64; divide them by their largest");
  for (Index i = 0; i < n; ++i)
    shares[static_cast<std::size_t>(i)] =
        counts(i) && total > 0 ? static_cast<T>(static_cast<double>(weights[i]) / total) : T(0);
  return shares;
}

template <class T>
double element_loss(void (*kernel)(const ElementLossArgs<T>&, Range), const T* x, const T* targets,
                    Index n, bool mean, T* dx, const T* weights) {
  std::vector<T> shares;
  if (weights) shares = checked_shares(weights, n, mean, [](Index) { return true; });
  const double factor = mean && !weights && n > 0 ? 1.0 / static_cast<double>(n) : 1.0;
  const Index blocks = (n + loss_block - 1) / loss_block;
  std::vector<double> sums(static_cast<std::size_t>(blocks));
  const ElementLossArgs<T> args{
      x, targets, weights ? shares.data() : nullptr, static_cast<T>(factor), n, dx, sums.data()};
  ThreadPool::instance().run(threads_for(n),
                             [&](const Team& team) { kernel(args, team.share(blocks)); });
  double sum = 0;
  for (const double block : sums) sum += block;
  return sum * factor;
}

}  // namespace

template <class T>
double cross_entropy(const T* logits, const Token* targets, Index rows, Index classes, bool mean,
                     T* dlogits, const T* weights) {
  // Checks the copy that it uses: another thread may change the caller's array.
  const std::vector<Token> own_targets(targets, targets + rows);
  targets = own_targets.data();
  Index count = 0;
  for (Index i = 0; i < rows; ++i) {
    if (targets[i] < -1 || targets[i] >= classes)
      throw BadElement("targets", i,
                       " must be in -1 to " + std::to_string(classes - 1) + ", got " +
                           std::to_string(targets[i]));
    count += targets[i] >= 0;
  }
  std::vector<T> shares;
  if (weights)
    shares = checked_shares(weights, rows, mean, [&](Index i) { return targets[i] >= 0; });
  const double factor = mean ? (count > 0 ? 1.0 / static_cast<double>(count) : 0.0) : 1.0;
  std::vector<T> losses(static_cast<std::size_t>(rows));
  const CrossEntropyArgs<T> args{logits,
                                 classes,
                                 classes,
                                 targets,
                                 static_cast<T>(factor),
                                 dlogits,
                                 classes,
                                 losses.data(),
                                 weights ? shares.data() : nullptr};
  const Kernels<T>& k = kernels<T>();
  ThreadPool::instance().run(threads_for(rows * classes),
                             [&](const Team& team) { k.cross_entropy(args, team.share(rows)); });
  double sum = 0;
  for (std::size_t i = 0; i < losses.size(); ++i)
    sum += (weights ? static_cast<double>(shares[i]) : 1.0) * static_cast<double>(losses[i]);
  return weights ? sum : sum * factor;
}

template <class T>
double binary_cross_entropy(const T* logits, const T* targets, Index n, bool mean, T* dlogits,
                            const T* weights) {
  check_range("targets", targets, n, T(1), "in 0 to 1");
  return element_loss(kernels<T>().binary_cross_entropy, logits, targets, n, mean, dlogits,
                      weights);
}

template <class T>
double mean_square(const T* y, const T* targets, Index n, bool mean, T* dy, const T* weights) {
  return element_loss(kernels<T>().mean_square, y, targets, n, mean, dy, weights);
}

template <class T>
void scale(T* x, Index n, T factor) {
  kernels<T>().scale(x, n, factor);
}

template <class T>
void clip_value(T* x, Index n, T limit) {
  kernels<T>().clip_value(x, n, limit);
}

#define CHARRNN_INSTANTIATE(T)                                                             \
  template double cross_entropy(const T*, const Token*, Index, Index, bool, T*, const T*); \
  template double binary_cross_entropy(const T*, const T*, Index, bool, T*, const T*);     \
  template double mean_square(const T*, const T*, Index, bool, T*, const T*);              \
  template void scale(T*, Index, T);                                                       \
  template void clip_value(T*, Index, T);
CHARRNN_INSTANTIATE(float)
CHARRNN_INSTANTIATE(double)
#undef CHARRNN_INSTANTIATE

}  // namespace charrnn_fast
