// How a thread waits for others: it spins for a bounded time (work comes in bursts, and waking a
// sleeper costs more than a kernel), then sleeps. What it waited is added to its Waits.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "cpu/oversubscription.hpp"

namespace charrnn_fast {

// Longer than the gaps between a call's kernels and between calls in a loop, and too short for a
// person or a scheduler to notice. Waking a sleeper takes about half of it. Nanoseconds.
constexpr std::int64_t spin_time = 100'000;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

// Spins until done() or until spin_time is over; returns whether it is done.
template <class Done>
bool spin_until(const Done& done) {
  const auto soon = [&] {
    constexpr int spins_per_look = 64;  // at the clock
    for (int i = 0; i < spins_per_look; ++i) {
      if (done()) return true;
      relax();
    }
    return false;
  };
  if (soon()) return true;
  const std::int64_t start = wall_clock();
  bool is_done = false;
  std::int64_t now = start;
  while (!is_done && now - start < spin_time) is_done = soon(), now = wall_clock();
  waits_of_this_thread().spinning += std::min(now - start, spin_time);
  return is_done;
}

// Returns when value != old. changed_at: the wall-clock time stored by the thread that changes it,
// or null.
void wait_for_change(const std::atomic<std::uint32_t>& value, std::uint32_t old,
                     const std::int64_t* changed_at = nullptr);

}  // namespace charrnn_fast
