#include "sharing.hpp"

#include <algorithm>

namespace charrnn_fast {

Sharing share_recurrence(const Device& device, double operations, Index seq_len, Index batch,
                         Index panels, bool whole_layers) {
  int threads = device.parts(operations);
  if (threads == 1) return {1, true};
  if (batch >= rows_per_thread * threads) return {threads, true};
  if (whole_layers)
    return {static_cast<int>(std::clamp<Index>(batch / rows_per_thread, 1, threads)), true};
  const double per_step = operations / static_cast<double>(std::max<Index>(1, seq_len));
  threads =
      static_cast<int>(std::min<Index>({threads, panels, device.parts_before_wait(per_step)}));
  return {threads, threads == 1};
}

namespace {

// Number of the sequence's rows in the first `end` rows of the batch.
Index rows_of_first(const Steps& steps, Index end) {
  Index n = 0;
  for (Index t = 0; t < steps.seq_len; ++t) n += std::min(end, rows_at(steps, t));
  return n;
}

}  // namespace

Range share_rows(const Team& team, const Steps& steps) {
  if (!steps.offsets || team.parts == 1) return team.share(steps.batch);
  const Index all = first_row(steps, steps.seq_len);
  const auto cut = [&](int part) {
    Index low = 0, high = steps.batch;  // find the fewest rows that hold the parts before
    while (low < high) {
      const Index middle = (low + high) / 2;
      if (rows_of_first(steps, middle) * team.parts < all * part)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  };
  return {team.part == 0 ? 0 : cut(team.part),
          team.part + 1 == team.parts ? steps.batch : cut(team.part + 1)};
}

}  // namespace charrnn_fast
