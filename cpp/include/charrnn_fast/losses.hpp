// Losses and clipping on the caller's arrays; Network::head and Model::train_step fuse the same.
#pragma once

#include "charrnn_fast/config.hpp"

namespace charrnn_fast {

// Softmax cross-entropy of logits [N, V] against targets [N] (-1: ignored), in nats: the mean
// over the targets that count (0 where there are none), or the sum. dlogits [N, V]: its gradient.
// Throws std::invalid_argument for a target outside [-1, V).
template <class T>
double cross_entropy(const T* logits, const Token* targets, Index rows, Index classes, bool mean,
                     T* dlogits);

// x *= factor
template <class T>
void scale(T* x, Index n, T factor);

// Each element to [-limit, limit].
template <class T>
void clip_value(T* x, Index n, T limit);

}  // namespace charrnn_fast
