#include "charrnn_fast/losses.hpp"

#include <algorithm>
#include <vector>

#include "dispatch.hpp"
#include "errors.hpp"
#include "thread_pool.hpp"

namespace charrnn_fast {

template <class T>
double cross_entropy(const T* logits, const Token* targets, Index rows, Index classes, bool mean,
                     T* dlogits) {
  Index count = 0;
  for (Index i = 0; i < rows; ++i) {
    require(targets[i] >= -1 && targets[i] < classes, "targets[", i, "] is ", targets[i],
            ", it takes classes from 0 to ", classes - 1, ", or -1 to ignore");
    count += targets[i] >= 0;
  }
  const double factor = mean ? (count > 0 ? 1.0 / static_cast<double>(count) : 0.0) : 1.0;
  std::vector<T> losses(static_cast<std::size_t>(rows));
  const CrossEntropyArgs<T> args{logits,  classes, classes,      targets, static_cast<T>(factor),
                                 dlogits, classes, losses.data()};
  // A row costs a few nanoseconds per class.
  constexpr Index classes_per_thread = 1 << 14;
  const int threads = static_cast<int>(
      std::min<Index>(ThreadPool::instance().size(), 1 + rows * classes / classes_per_thread));
  const Kernels<T>& k = kernels<T>();
  ThreadPool::instance().run(threads,
                             [&](const Team& team) { k.cross_entropy(args, team.share(rows)); });
  double sum = 0;
  for (const T loss : losses) sum += static_cast<double>(loss);
  return sum * factor;
}

template <class T>
void scale(T* x, Index n, T factor) {
  kernels<T>().scale(x, n, factor);
}

template <class T>
void clip_value(T* x, Index n, T limit) {
  kernels<T>().clip_value(x, n, limit);
}

template double cross_entropy(const float*, const Token*, Index, Index, bool, float*);
template double cross_entropy(const double*, const Token*, Index, Index, bool, double*);
template void scale(float*, Index, float);
template void scale(double*, Index, double);
template void clip_value(float*, Index, float);
template void clip_value(double*, Index, double);

}  // namespace charrnn_fast
