// Which tier runs a call of a recurrent layer: see tiers.hpp. The launchers of the table.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>

#include "kernels/clusters.cuh"
#include "kernels/recurrent.cuh"
#include "tiers.hpp"

namespace charrnn_fast {
namespace cuda {

// ---- what fits ----------------------------------------------------------------------------

// What a choice depends on. unfit: an option that only T4 takes, in words; or null.
struct TierQuestion {
  Index hidden_size, batch, steps;
  const char* unfit;
};
struct TierAnswer {
  Tier tier;
  const char* reason;
  Tiling tiling;
  Grid grid;
};

// What of a layer only T4 takes, in words; or null.
inline const char* only_by_steps(bool projected, bool normalized, Compute compute) {
  return projected                     ? "it has a projection"
         : normalized                  ? "it has layer normalization"
         : compute != Compute::float32 ? "the operands of its products are rounded"
                                       : nullptr;
}

inline int rounded_up(Index n, int to) { return static_cast<int>(ceil_div(n, to)) * to; }

// Of one launch, with `units` units and `rows` rows of the batch for a group.
template <class Pass, class Exchange>
struct Shares {
  using T = typename Pass::Number;
  Tiling s;
  int threads;
  std::size_t shared;

  Shares(Index hidden_size, Index units, Index rows) {
    const Index depth = Pass::depth(hidden_size);
    s.units = static_cast<int>(units);
    s.blocks = static_cast<int>(ceil_div(hidden_size, units));
    s.rows = static_cast<int>(rows);
    s.columns = Pass::outputs * s.units;
    s.chains = static_cast<int>(ceil_div(depth, chain_depth));
    s.near = static_cast<int>(max_of(0, rounded_up(min_of(depth, chain_depth), 4) - held_depth<T>));
    s.stride = rounded_up(depth, 4);
    s.operand_rows = !Exchange::in_place ? persistent_rows
                     : rows <= 2         ? s.rows
                                         : rounded_up(rows, persistent_rows);
    s.barrier = tier_limits().barrier;
    const int pairs = s.columns * s.chains;
    threads = rounded_up(pairs, 32);
    shared = (std::size_t(s.near) * std::size_t(pairs) +
              std::size_t(Exchange::buffers * s.operand_rows) * std::size_t(s.stride) +
              std::size_t(pairs) * persistent_rows) *
                 sizeof(T) +
             Exchange::more_shared;
  }
  bool fits(const CardFacts& card) const {
    return threads <= persistent_threads && shared <= card.shared_per_block;
  }
  Grid grid(Index batch) const {
    Grid g{dim3(static_cast<unsigned>(ceil_div(batch, s.rows) * s.blocks)),
           dim3(static_cast<unsigned>(threads))};
    g.shared = shared;
    return g;
  }
};
// Units of a block, at most.
template <class Pass>
Index most_units(Index hidden_size) {
  const Index chains = ceil_div(Pass::depth(hidden_size), chain_depth);
  return min_of(hidden_size, persistent_threads / (Pass::outputs * chains));
}
// Rows of a group, if `fit` would be right.
inline Index limited_rows(Index fit) { return tier_limits().rows > 0 ? tier_limits().rows : fit; }

// T1: rows for every multiprocessor to have a block, as far as they fit.
template <class Pass>
std::optional<TierAnswer> fit_block(const TierQuestion& q) {
  const CardFacts& card = card_facts();
  if (most_units<Pass>(q.hidden_size) < q.hidden_size) return std::nullopt;
  constexpr Index most_rows = 8;
  for (Index rows = limited_rows(min_of(most_rows, ceil_div(q.batch, card.multiprocessors)));
       rows > 0; --rows) {
    const Shares<Pass, InBlock> shares(q.hidden_size, q.hidden_size, rows);
    if (shares.fits(card)) return TierAnswer{Tier::t1, "", shares.s, shares.grid(q.batch)};
  }
  return std::nullopt;
}

// T2: the smallest cluster that holds the weights.
template <class Pass>
std::optional<TierAnswer> fit_cluster(const TierQuestion& q) {
  const CardFacts& card = card_facts();
  constexpr Index most_rows = 8;
  std::optional<TierAnswer> found;
  for (unsigned blocks = 2; blocks <= card.cluster; blocks *= 2) {
    const Index units = ceil_div(q.hidden_size, blocks);
    if (units * (blocks - 1) >= q.hidden_size) break;  // a block without units
    if (units > most_units<Pass>(q.hidden_size)) continue;
    for (Index rows =
             limited_rows(min_of(most_rows, ceil_div(q.batch * blocks, card.multiprocessors)));
         rows > 0; --rows) {
      const Shares<Pass, InCluster> shares(q.hidden_size, units, rows);
      if (!shares.fits(card)) continue;
      Grid grid = shares.grid(q.batch);
      grid.cluster = blocks;
      if (resident_clusters(grid, persistent_cluster<Pass>) > 0)
        found = TierAnswer{Tier::t2, "", shares.s, grid};
      break;
    }
    if (found && (tier_limits().units == 0 || units <= tier_limits().units)) break;
  }
  return found;
}

// T3: the fewest blocks that hold the weights, and as many groups of them as the card has at once.
template <class Pass>
std::optional<TierAnswer> fit_grid(const TierQuestion& q) {
  const CardFacts& card = card_facts();
  if (!card.cooperative) return std::nullopt;
  Index most = most_units<Pass>(q.hidden_size);
  if (tier_limits().units > 0) most = min_of(most, tier_limits().units);
  for (Index units = most; units > 0; --units) {
    const Shares<Pass, InGrid> one(q.hidden_size, units, q.batch);
    if (!one.fits(card)) continue;
    Grid grid = one.grid(q.batch);
    grid.cooperative = true;
    const Index resident = min_of(resident_blocks(grid, persistent<Pass, InGrid>), flag_words);
    if (one.s.blocks > resident) return std::nullopt;  // fewer units take more blocks
    const Index least = ceil_div(q.batch, min_of(q.batch, resident / one.s.blocks));
    const Index rows = max_of(least, limited_rows(least));
    const Shares<Pass, InGrid> shares(q.hidden_size, units, rows);
    grid.blocks = shares.grid(q.batch).blocks;
    return TierAnswer{Tier::t3, "", shares.s, grid};
  }
  return std::nullopt;
}

// ---- the choice ---------------------------------------------------------------------------

template <class Pass>
TierAnswer choose(const TierQuestion& q) {
  const std::optional<Tier> want = forced().get();
  const auto by_steps = [](const char* reason) { return TierAnswer{Tier::t4, reason, {}, {}}; };
  if (want == Tier::t4) return by_steps("it is forced");
  std::optional<TierAnswer> found;
  if (!want) {
    if (q.unfit) return by_steps(q.unfit);
    if (q.steps <= 1) return by_steps("there is one step");
    found = fit_block<Pass>(q);
    if (!found)
      return by_steps(
          "the weights do not fit a block; T2 and T3 have to be forced until a card has "
          "run them");
    found->reason = "a block holds the weights";
    return *found;
  }
  const char* why = q.unfit;
  if (!why) {
    switch (*want) {
      case Tier::t1:
        found = fit_block<Pass>(q);
        why = "the weights do not fit a block";
        break;
      case Tier::t2:
        found = fit_cluster<Pass>(q);
        why = card_facts().cluster > 1 ? "no cluster holds the weights"
                                       : "the card has no clusters (sm_90 and later do)";
        break;
      default:
        found = fit_grid<Pass>(q);
        why = "the weights do not fit the blocks that run at once";
    }
  }
  if (!found)
    throw std::invalid_argument(
        std::string("the tier is forced to be ") + name_of(*want) + ", which cannot run the " +
        (Pass::backward ? "backward" : "forward") + " pass of a layer of hidden_size " +
        std::to_string(q.hidden_size) + ": " + why + "; force T4 or none");
  found->reason = "it is forced";
  return *found;
}

template <class Args>
TierQuestion question(const Args& p, Range walk, Range rows, Range panels) {
  const char* unfit = only_by_steps(p.projection.hidden, p.norm.gain, p.hh.compute);
  if (!unfit && size_of(panels) < ceil_div(p.hidden_size, panel_units))
    unfit = "the call is for some units";
  return {p.hidden_size, size_of(rows), size_of(walk), unfit};
}

// Whether a persistent kernel runs the call, which is launched then.
template <class Pass>
bool launch_persistent(const typename Pass::Args& p, Range walk, Range rows, Range panels) {
  if (size_of(rows) <= 0 || size_of(walk) <= 0) return false;
  const TierAnswer a = choose<Pass>(question(p, walk, rows, panels));
  switch (a.tier) {
    case Tier::t1:
      launch(a.grid, table_stream(), persistent<Pass, InBlock>, p, walk, rows, a.tiling);
      return true;
    case Tier::t2:
      launch(a.grid, table_stream(), persistent_cluster<Pass>, p, walk, rows, a.tiling);
      return true;
    case Tier::t3:
      set_zero(table_stream(), p.flags, flag_words * sizeof(*p.flags));
      launch(a.grid, table_stream(), persistent<Pass, InGrid>, p, walk, rows, a.tiling);
      return true;
    default:
      return false;
  }
}

template <class Cell, class T>
void forward_by_tier(const RecurrentForwardArgs<T>& p, Range walk, Range rows, Range panels) {
  if (!launch_persistent<ForwardPass<Cell, T>>(p, walk, rows, panels))
    recurrent_forward<Cell, T>(p, walk, rows, panels);
}
template <class Cell, class T>
void backward_by_tier(const RecurrentBackwardArgs<T>& p, Range walk, Range rows, Range panels) {
  if (!launch_persistent<BackwardPass<Cell, T>>(p, walk, rows, panels))
    recurrent_backward<Cell, T>(p, walk, rows, panels);
}

}  // namespace cuda
}  // namespace charrnn_fast
