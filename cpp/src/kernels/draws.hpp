// Draws tokens from the rows of logits.

// A type of this file alone: the compiler's std::sort for it then stays in this object file.
struct Ranked {
  Token token;
};

template <class T>
Index probability_elements(Index vocab_size) {
  return ceil_div(vocab_size, 16) * 16;
}

// Scratch, shared by all rows: a row's probabilities, then the order of its tokens.
template <class T>
Index draw_scratch(Index vocab_size, Index /*rows*/) {
  return probability_elements<T>(vocab_size) +
         ceil_div(vocab_size * Index(sizeof(Ranked)), Index(sizeof(T)));
}

// Lowers the logits of the row's recent tokens, each once. Returns the likeliest token. seen:
// workspace.
template <class T>
Index penalize(const DrawArgs<T>& p, Index row, T* logits, Ranked* seen) {
  for (Index i = 0; i < p.vocab_size; ++i) seen[i].token = 0;
  const SamplingOptions& o = p.streams[row].options;
  const T penalty = static_cast<T>(o.repetition_penalty);
  for (Index j = std::max<Index>(0, p.window - o.repetition_window); j < p.window; ++j) {
    const Token token = p.recent[j * p.recent_stride + row];
    if (token < 0 || seen[token].token) continue;
    seen[token].token = 1;
    const T x = logits[token], lower = x > 0 ? x / penalty : x * penalty;
    if (lower > -T(__builtin_inf())) logits[token] = lower;
  }
  Index best = 0;
  for (Index i = 0; i < p.vocab_size; ++i)
    if (logits[i] > logits[best]) best = i;
  return best;
}

// Returns the token; or -1, with the bad logit in `failure`.
template <class T>
Token draw_row(const DrawArgs<T>& p, Index row, T* probabilities, Ranked* order, double* failure) {
  const Index n = p.vocab_size;
  const T* const logits = p.logits + row * n;
  const auto fails = [&](Index token, T logit) {
    failure[0] = static_cast<double>(row), failure[1] = static_cast<double>(token);
    failure[2] = static_cast<double>(logit);
    return Token(-1);
  };
  // Checks the copy that it draws from: another thread may change the caller's array.
  constexpr T infinity = T(__builtin_inf());
  Index best = 0;
  for (Index i = 0; i < n; ++i) {
    const T x = probabilities[i] = logits[i];
    if (!(x < infinity)) return fails(i, x);
    if (x > probabilities[best]) best = i;
  }
  if (probabilities[best] == -infinity) return fails(-1, -infinity);
  const StreamSampling& stream = p.streams[row];
  const SamplingOptions& o = stream.options;
  if (p.window > 0 && o.repetition_penalty > 1) best = penalize(p, row, probabilities, order);
  // A temperature so low that its inverse is infinite acts as 0.
  const T inverse_temperature = static_cast<T>(1 / o.temperature);
  if (!(inverse_temperature < infinity)) return static_cast<Token>(best);
  exp_shifted(probabilities, n, inverse_temperature, probabilities);
  const auto at = [&](Index i) { return static_cast<double>(probabilities[order[i].token]); };
  for (Index i = 0; i < n; ++i) order[i].token = static_cast<Token>(i);
  const auto likelier = [&](Ranked a, Ranked b) {
    const T x = probabilities[a.token], y = probabilities[b.token];
    return x != y ? x > y : a.token < b.token;
  };
  Index kept = n;
  if (o.top_k > 0 && o.top_k < n) {
    kept = o.top_k;
    std::partial_sort(order, order + kept, order + n, likelier);
  } else if (o.top_p < 1) {
    std::sort(order, order + n, likelier);
  }
  double total = 0;
  for (Index i = 0; i < kept; ++i) total += at(i);
  if (o.top_p < 1) {
    double sum = 0;
    Index i = 0;
    while (i < kept && sum < o.top_p * total) sum += at(i++);
    kept = i, total = sum;
  }
  const std::uint64_t position = stream.position + p.step;
  std::uint32_t words[4] = {static_cast<std::uint32_t>(position),
                            static_cast<std::uint32_t>(position >> 32), 0, 0};
  Philox(stream.seed).draw(words);
  const double u = (words[0] >> 8) * 0x1p-24;
  double sum = 0;
  Index last = 0;
  for (Index i = 0; i < kept; ++i) {
    if (at(i) > 0) last = i;
    sum += at(i);
    if (sum > u * total) return order[i].token;
  }
  return order[last].token;  // rounding left the sum just below u * total
}

template <class T>
void draw(const DrawArgs<T>& p, Range rows) {
  auto* const order = reinterpret_cast<Ranked*>(p.scratch + probability_elements<T>(p.vocab_size));
  for (Index row = rows.begin; row < rows.end && p.failure[0] < 0; ++row) {
    const Token token = draw_row(p, row, p.scratch, order, p.failure);
    if (token < 0) return;
    p.tokens[row] = token;
    if (p.drawn) p.drawn[row] = token;
  }
}
