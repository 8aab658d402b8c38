// Draws tokens from the rows of logits, a thread for each row.
#pragma once

#include "kernels/elementwise.cuh"
#include "kernels/masks.cuh"

namespace charrnn_fast {
namespace cuda {

// Scratch of each row: its probabilities, the order of its tokens, and which logit is bad.
CHARRNN_INLINE Index probability_elements(Index vocab_size) {
  return ceil_div(vocab_size, 16) * 16;
}
template <class T>
CHARRNN_INLINE Index token_elements(Index vocab_size) {
  return ceil_div(ceil_div(vocab_size * Index(sizeof(Token)), Index(sizeof(T))), 16) * 16;
}
constexpr Index verdict_elements = 16;
template <class T>
CHARRNN_INLINE Index row_scratch(Index vocab_size) {
  return probability_elements(vocab_size) + token_elements<T>(vocab_size) + verdict_elements;
}
template <class T>
Index draw_scratch(Index vocab_size, Index rows) {
  return rows * row_scratch<T>(vocab_size);
}

constexpr Token good_row = -2, no_finite_logit = -1;  // else: the bad logit's token

template <class T>
struct DrawRow {
  DrawArgs<T> p;

  CHARRNN_INLINE T* probabilities(Index row) const {
    return p.scratch + row * row_scratch<T>(p.vocab_size);
  }
  CHARRNN_INLINE Token* order(Index row) const {
    return reinterpret_cast<Token*>(probabilities(row) + probability_elements(p.vocab_size));
  }
  CHARRNN_INLINE Token* verdict(Index row) const {
    return reinterpret_cast<Token*>(probabilities(row) + probability_elements(p.vocab_size) +
                                    token_elements<T>(p.vocab_size));
  }
};

// Copies the logits; finds the likeliest, or a bad one.
template <class T>
struct CheckLogits : DrawRow<T> {
  Index first;

  CHARRNN_INLINE void operator()(Index i) const {
    const DrawArgs<T>& p = this->p;
    const Index row = first + i, n = p.vocab_size;
    const T infinity = T(INFINITY);
    T* const x = this->probabilities(row);
    Token* const verdict = this->verdict(row);
    verdict[0] = good_row;
    Index best = 0;
    for (Index j = 0; j < n; ++j) {
      x[j] = p.logits[row * n + j];
      if (!(x[j] < infinity)) {
        verdict[0] = static_cast<Token>(j);
        return;
      }
      if (x[j] > x[best]) best = j;
    }
    if (x[best] == -infinity) verdict[0] = no_finite_logit;
    if (p.window > 0 && p.streams[row].options.repetition_penalty > 1 && verdict[0] == good_row)
      best = penalized(row, x);
    verdict[1] = static_cast<Token>(best);
  }

  // Lowers the logits of the row's recent tokens, each once. Returns the likeliest token.
  CHARRNN_INLINE Index penalized(Index row, T* x) const {
    const DrawArgs<T>& p = this->p;
    Token* const seen = this->order(row);
    for (Index j = 0; j < p.vocab_size; ++j) seen[j] = 0;
    const SamplingOptions& o = p.streams[row].options;
    const T penalty = static_cast<T>(o.repetition_penalty);
    for (Index j = max_of(Index(0), p.window - o.repetition_window); j < p.window; ++j) {
      const Token token = p.recent[j * p.recent_stride + row];
      if (token < 0 || seen[token]) continue;
      seen[token] = 1;
      const T lower = x[token] > T(0) ? x[token] / penalty : x[token] * penalty;
      if (lower > -T(INFINITY)) x[token] = lower;
    }
    Index best = 0;
    for (Index j = 0; j < p.vocab_size; ++j)
      if (x[j] > x[best]) best = j;
    return best;
  }
};

// The first row with bad logits, in order.
template <class T>
struct FirstFailure : DrawRow<T> {
  Range rows;

  CHARRNN_INLINE void operator()(Index) const {
    if (!(this->p.failure[0] < 0)) return;
    for (Index row = rows.begin; row < rows.end; ++row) {
      const Token token = this->verdict(row)[0];
      if (token == good_row) continue;
      this->p.failure[0] = static_cast<double>(row);
      this->p.failure[1] = static_cast<double>(token);
      this->p.failure[2] = token < 0 ? -static_cast<double>(INFINITY)
                                     : static_cast<double>(this->probabilities(row)[token]);
      return;
    }
  }
};

// Likelier tokens first; of equal ones, the smaller.
template <class T>
struct Likelier {
  const T* probabilities;
  CHARRNN_INLINE bool operator()(Token a, Token b) const {
    const T x = probabilities[a], y = probabilities[b];
    return x != y ? x > y : a < b;
  }
};
// Heapsort; the order is total, so every way to sort gives the same.
template <class Before>
CHARRNN_INLINE void sift(Token* heap, Index from, Index n, const Before& before) {
  while (2 * from + 1 < n) {
    Index child = 2 * from + 1;
    if (child + 1 < n && before(heap[child], heap[child + 1])) ++child;
    if (!before(heap[from], heap[child])) return;
    const Token moved = heap[from];
    heap[from] = heap[child], heap[child] = moved;
    from = child;
  }
}
template <class Before>
CHARRNN_INLINE void sort_tokens(Token* tokens, Index n, const Before& before) {
  for (Index i = n / 2; i-- > 0;) sift(tokens, i, n, before);
  for (Index last = n - 1; last > 0; --last) {
    const Token moved = tokens[0];
    tokens[0] = tokens[last], tokens[last] = moved;
    sift(tokens, 0, last, before);
  }
}

// How many of the likeliest tokens top_k keeps; and whether a draw needs them sorted.
template <class T>
CHARRNN_INLINE Index top_tokens(const DrawArgs<T>& p, Index row) {
  const Index top_k = p.streams[row].options.top_k;
  return top_k > 0 && top_k < p.vocab_size ? top_k : p.vocab_size;
}
template <class T>
CHARRNN_INLINE bool sorts(const DrawArgs<T>& p, Index row) {
  return top_tokens(p, row) < p.vocab_size || p.streams[row].options.top_p < 1;
}
// A temperature so low that its inverse is infinite acts as 0: the likeliest token.
template <class T>
CHARRNN_INLINE T inverse_temperature(const DrawArgs<T>& p, Index row) {
  return static_cast<T>(1 / p.streams[row].options.temperature);
}

// Draws for a row by the probabilities (of any sum) of the tokens, in their order.
template <class T>
CHARRNN_INLINE Token pick(const DrawArgs<T>& p, Index row, std::uint64_t step,
                          const T* probabilities, const Token* order) {
  const double top_p = p.streams[row].options.top_p;
  Index kept = top_tokens(p, row);
  double total = 0;
  for (Index j = 0; j < kept; ++j) total += static_cast<double>(probabilities[order[j]]);
  if (top_p < 1) {
    double sum = 0;
    Index j = 0;
    while (j < kept && sum < top_p * total) sum += static_cast<double>(probabilities[order[j++]]);
    kept = j, total = sum;
  }
  const std::uint64_t position = p.streams[row].position + step;
  std::uint32_t words[4] = {static_cast<std::uint32_t>(position),
                            static_cast<std::uint32_t>(position >> 32), 0, 0};
  Philox(p.streams[row].seed).draw(words);
  const double u = (words[0] >> 8) * 0x1p-24;
  double sum = 0;
  Index last = 0;
  for (Index j = 0; j < kept; ++j) {
    const double here = static_cast<double>(probabilities[order[j]]);
    if (here > 0) last = j;
    sum += here;
    if (sum > u * total) return order[j];
  }
  return order[last];  // rounding left the sum just below u * total
}

template <class T>
struct DrawToken : DrawRow<T> {
  Index first;

  CHARRNN_INLINE void operator()(Index i) const {
    const DrawArgs<T>& p = this->p;
    const Index row = first + i;
    if (!(p.failure[0] < 0) && static_cast<double>(row) >= p.failure[0]) return;
    const Token token = drawn(row);
    p.tokens[row] = token;
    if (p.drawn) p.drawn[row] = token;
  }

  CHARRNN_INLINE Token drawn(Index row) const {
    const DrawArgs<T>& p = this->p;
    const Index n = p.vocab_size;
    T* const probabilities = this->probabilities(row);
    Token* const order = this->order(row);
    const Token best = this->verdict(row)[1];
    const T factor = inverse_temperature(p, row);
    if (!(factor < T(INFINITY))) return best;
    const T most = probabilities[best];
    for (Index j = 0; j < n; ++j) {
      probabilities[j] = math::exp((probabilities[j] - most) * factor);
      order[j] = static_cast<Token>(j);
    }
    if (sorts(p, row)) sort_tokens(order, n, Likelier<T>{probabilities});
    return pick(p, row, p.step, probabilities, order);
  }
};

template <class T>
void draw(const DrawArgs<T>& p, Range rows) {
  each(size_of(rows), CheckLogits<T>{{p}, rows.begin});
  each(1, FirstFailure<T>{{p}, rows});
  each(size_of(rows), DrawToken<T>{{p}, rows.begin});
}

}  // namespace cuda
}  // namespace charrnn_fast
