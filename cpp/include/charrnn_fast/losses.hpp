// Losses and clipping on the caller's arrays; Network::head and Model::train_step fuse the same.
#pragma once

#include "charrnn_fast/config.hpp"

namespace charrnn_fast {

// Each gives the mean or the sum of single losses, and the gradient of that. With weights, a loss
// counts as often as its weight says: the mean is sum w l / sum w over what counts (0 where nothing
// does), and what has a weight of 0 is left out, whatever it holds. Throws std::invalid_argument
// for a weight that is negative or not finite.

// Softmax cross-entropy of logits [N, V] against targets [N] (-1: ignored), in nats: the mean
// over the targets that count (0 where there are none), or the sum. dlogits [N, V]: its gradient.
// weights: [N] or null. Throws std::invalid_argument for a target outside [-1, V).
template <class T>
double cross_entropy(const T* logits, const Token* targets, Index rows, Index classes, bool mean,
                     T* dlogits, const T* weights = nullptr);

// Cross-entropy of the probabilities sigmoid(logits) against targets in [0, 1], element by element
// of n: log(1 + e^x) - x z, in nats. Throws std::invalid_argument for other targets.
template <class T>
double binary_cross_entropy(const T* logits, const T* targets, Index n, bool mean, T* dlogits,
                            const T* weights = nullptr);

// (y - z)^2, element by element of n.
template <class T>
double mean_square(const T* y, const T* targets, Index n, bool mean, T* dy,
                   const T* weights = nullptr);

// x *= factor
template <class T>
void scale(T* x, Index n, T factor);

// Each element to [-limit, limit].
template <class T>
void clip_value(T* x, Index n, T limit);

}  // namespace charrnn_fast
