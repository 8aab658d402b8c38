// Moves rows of sequences: states, and batches sorted by length. Also sums the rows' losses.

// Copies n elements; from null: zeros.
template <class T>
CHARRNN_INLINE void place_row(const T* from, Index n, T* to) {
  const auto bytes = static_cast<std::size_t>(n) * sizeof(T);
  from ? __builtin_memcpy(to, from, bytes) : __builtin_memset(to, 0, bytes);
}

template <class T>
void begin_states(const StatesArgs<T>& p, Range rows) {
  for (Index s = 0; s < p.num_states; ++s) {
    const StateRows<T>& to = p.states[s];
    const Index n = p.widths[s];
    for (Index r = rows.begin; r < rows.end; ++r)
      place_row(p.at[s] ? p.at[s] + r * n : nullptr, n, to.initial + r * to.stride);
  }
}

template <class T>
void end_states(const StatesArgs<T>& p, Range rows) {
  for (Index s = 0; s < p.num_states; ++s) {
    const StateRows<T>& from = p.states[s];
    const Index n = p.widths[s];
    // first: row 0 of a step, for the rows that end there. Rows without a step keep their initial
    // state.
    const auto end = [&](const T* first, Range ending) {
      ending = intersect(rows, ending);
      for (Index r = ending.begin; r < ending.end; ++r)
        place_row(first + r * from.stride, n, p.at[s] + r * n);
    };
    end(from.initial, {p.steps.seq_len > 0 ? rows_at(p.steps, 0) : 0, p.steps.batch});
    for (Index t = 0; t < p.steps.seq_len; ++t)
      end(from.in_place ? from.initial : from.rows + first_row(p.steps, t) * from.stride,
          {rows_going_on(p.steps, t), rows_at(p.steps, t)});
  }
}

template <class T>
void sort_rows(const SortArgs<T>& p, Range steps) {
  for (Index t = steps.begin; t < steps.end; ++t)
    for (Index r = 0; r < rows_at(p.steps, t); ++r)
      place_row(p.from + (t * p.steps.batch + p.order[r]) * p.cols, p.cols,
                p.to + (first_row(p.steps, t) + r) * p.cols);
}

template <class T>
void unsort_rows(const SortArgs<T>& p, Range steps) {
  for (Index t = steps.begin; t < steps.end; ++t)
    for (Index r = 0; r < p.steps.batch; ++r)
      place_row(r < rows_at(p.steps, t) ? p.from + (first_row(p.steps, t) + r) * p.cols : nullptr,
                p.cols, p.to + (t * p.steps.batch + p.order[r]) * p.cols);
}

template <class T>
void sum_losses(const LossSumArgs<T>& p) {
  double sum = 0;
  for (Index b = 0; p.stream_sums && b < p.steps.batch; ++b) p.stream_sums[b] = 0;
  for (Index t = 0; t < p.steps.seq_len; ++t) {
    const T* const losses = p.losses + first_row(p.steps, t);
    const Index rows = rows_at(p.steps, t);
    for (Index b = 0; b < p.steps.batch; ++b) {
      const Index r = p.ranks ? p.ranks[b] : b;
      if (r >= rows) continue;
      const double loss = static_cast<double>(losses[r]);
      sum += loss;
      if (p.stream_sums) p.stream_sums[b] += loss;
    }
  }
  *p.sum = sum;
}
