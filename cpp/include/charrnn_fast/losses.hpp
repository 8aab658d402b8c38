// Losses and clipping on the caller's arrays. Network::head and Model::train_step fuse the same.
#pragma once

#include "charrnn_fast/config.hpp"

namespace charrnn_fast {

// Each loss returns the mean or the sum over the elements, and writes its gradient. With weights,
// the mean over the elements that are not ignored is sum w l / sum w, or 0 if sum w is 0. An
// element of weight 0 is ignored, whatever it holds. Weights must be finite and not negative, else
// std::invalid_argument is thrown.

// Softmax cross-entropy in nats of logits [N, V] against targets [N] (-1: ignored): the sum, or the
// mean over the targets that are not ignored (0 if there are none). dlogits [N, V]: its gradient.
// weights: [N] or null. Throws std::invalid_argument for a target outside [-1, V).
template <class T>
double cross_entropy(const T* logits, const Token* targets, Index rows, Index classes, bool mean,
                     T* dlogits, const T* weights = nullptr);

// Cross-entropy in nats of the probabilities sigmoid(logits) against targets, elementwise over n:
// log(1 + e^x) - x z. Targets must be in [0, 1], else std::invalid_argument is thrown.
template <class T>
double binary_cross_entropy(const T* logits, const T* targets, Index n, bool mean, T* dlogits,
                            const T* weights = nullptr);

// (y - z)^2, elementwise over n.
template <class T>
double mean_square(const T* y, const T* targets, Index n, bool mean, T* dy,
                   const T* weights = nullptr);

// x *= factor
template <class T>
void scale(T* x, Index n, T factor);

// Clips each element to [-limit, limit].
template <class T>
void clip_value(T* x, Index n, T limit);

}  // namespace charrnn_fast
