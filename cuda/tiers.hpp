// The ways to run a recurrent layer over a sequence, and which of them a call takes.
//
//   T1   a block has all weights of the layer, for its rows of the batch
//   T2   a cluster of blocks shares them (sm_90 and later)
//   T3   all blocks of a grid share them
//   T4   a kernel for each step: every option and size
//
// In T1 to T3 the weights stay on the chip for all steps. Results are the same bits. cuda.hpp has
// what callers see of them.
#pragma once

#include <cstdlib>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>

#include "charrnn_fast/config.hpp"
#include "charrnn_fast/cuda.hpp"

namespace charrnn_fast {
namespace cuda {

enum class Tier { t1 = 1, t2, t3, t4 };
const char* name_of(Tier tier);  // "T1" to "T4"

// For tests: more blocks than the choice would take, so that small layers have several, or fewer.
// Must not change while a call runs. Seen outside of the library, for its tests on a card.
struct TierLimits {
  Index units = 0, rows = 0;  // of a block; of a group of blocks. 0: as many as fit
  bool barrier = false;  // T3 waits at a barrier of the group, in place of a flag of each block
};
CHARRNN_CUDA_API TierLimits& tier_limits();

// ---- the forced tier ----------------------------------------------------------------------

inline std::optional<Tier> tier_called(const char* name, const char* from) {
  if (!name || !*name) return std::nullopt;
  for (const Tier tier : {Tier::t1, Tier::t2, Tier::t3, Tier::t4})
    if (std::string(name) == name_of(tier)) return tier;
  throw std::invalid_argument(std::string(from) + " must be T1, T2, T3 or T4, got " + name);
}

struct ForcedTier {
  std::mutex mutex;
  bool asked = false;  // the environment
  std::optional<Tier> tier;

  std::optional<Tier> get() {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!asked) tier = tier_called(std::getenv("CHARRNN_CUDA_TIER"), "CHARRNN_CUDA_TIER");
    asked = true;
    return tier;
  }
  void set(const char* name) {
    const std::optional<Tier> to = tier_called(name, "tier");
    const std::lock_guard<std::mutex> lock(mutex);
    tier = to, asked = true;
  }
};
inline ForcedTier& forced() {
  static ForcedTier* const tier = new ForcedTier;
  return *tier;
}

// ---- what both sides of a launch know ------------------------------------------------------

// How a persistent kernel shares out a layer: see kernels/persistent.cuh.
struct Tiling {
  int units;         // of a block
  int blocks;        // of a group
  int rows;          // of the batch, of a group
  int columns;       // outputs of a block
  int chains;        // of an output
  int near;          // weights of a chain in shared memory
  int stride;        // of a row of operands there
  int operand_rows;  // there, where they stay
  bool barrier;      // see TierLimits
};
// Rows of a tile, threads of a block, words of flags of a launch.
constexpr int persistent_rows = 4, persistent_threads = 512, flag_words = 1024;

}  // namespace cuda
}  // namespace charrnn_fast
