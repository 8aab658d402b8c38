// How work runs on a device: its kernels, and teams whose parts share work. If a device has a
// single part, the team is {0, 1} and never waits.
#pragma once

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "charrnn_fast/device.hpp"
#include "errors.hpp"
#include "kernels/table.hpp"

namespace charrnn_fast {

// The device's kernels. Throws std::invalid_argument if it has none for the number type.
template <class T>
const Kernels<T>& kernels_of(const Device& device) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return *device.f32;
  } else {
    require(device.f64, "dtype on device '", device.name, "' must be float32, got float64");
    return *device.f64;
  }
}

class Barrier {
 public:
  // Before a team uses it. timed: waits also measure how long they slept until released, see
  // Oversubscription.
  void set_timed(bool timed) { timed_ = timed; }
  // All waits of a team give its size.
  void wait(int parties);

 private:
  bool timed_ = false;
  std::int64_t opened_at_ = 0;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> round_{0};
};

// One part of a team.
struct Team {
  int part, parts;
  Barrier* barrier;

  // Returns when all parts have called it; each then sees what the others wrote before.
  void wait() const {
    if (parts > 1) barrier->wait(parts);
  }
  // This part's share of n items, in multiples of `grain`.
  Range share(Index n, Index grain = 1) const {
    const Index units = (n + grain - 1) / grain;
    const Index begin = units * part / parts * grain, end = units * (part + 1) / parts * grain;
    return {begin < n ? begin : n, end < n ? end : n};
  }
};

// Calls f(team) on up to `parts` parts of the device at once. f must not throw.
template <class F>
void run_team(Device& device, int parts, F&& f) {
  using Function = std::remove_reference_t<F>;
  if (parts <= 1) return f(Team{0, 1, nullptr});
  device.run(
      parts, [](void* context, const Team& team) { (*static_cast<Function*>(context))(team); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace charrnn_fast
