#include "cpu/gathering.hpp"

#include <algorithm>

#include "cpu/waiting.hpp"

namespace charrnn_fast {
namespace {

// One word, so that a task which comes between two teams never mixes them.
constexpr std::uint32_t closed = 1u << 31;
constexpr int bits = 15;
constexpr std::uint32_t mask = (1u << bits) - 1;
std::uint32_t come(std::uint32_t door) { return door & mask; }
std::uint32_t most(std::uint32_t door) { return door >> bits & mask; }

// Nanoseconds. Waking a sleeping thread takes about 50 microseconds, the smallest run 10. Threads
// that do not come cost a tenth of the time at most.
constexpr std::int64_t shortest_pause = 10 * spin_time, longest_pause = 800'000'000;

}  // namespace

Gathering::Gathering() : door_(closed) {}

void Gathering::open(int parts) {
  left_.store(0, std::memory_order_relaxed);
  door_.store(static_cast<std::uint32_t>(parts) << bits, std::memory_order_release);
}

bool Gathering::enter(int& part, int& parts) {
  std::uint32_t door = door_.load(std::memory_order_acquire), with_me;
  do {
    if (door & closed) return false;
    with_me = door + 1;
    if (come(with_me) == most(door)) with_me |= closed;
  } while (!door_.compare_exchange_weak(door, with_me, std::memory_order_acq_rel,
                                        std::memory_order_acquire));
  part = static_cast<int>(come(door));
  if (!spin_until([&] { return (door_.load(std::memory_order_acquire) & closed) != 0; }))
    door_.fetch_or(closed, std::memory_order_acq_rel);
  parts = static_cast<int>(come(door_.load(std::memory_order_acquire)));
  return true;
}

void Gathering::leave() {
  left_.fetch_add(1, std::memory_order_release);
  left_.notify_one();
}

int Gathering::close() {
  const std::uint32_t parts = come(door_.fetch_or(closed, std::memory_order_acq_rel));
  for (;;) {
    const std::uint32_t left = left_.load(std::memory_order_acquire);
    if (left == parts) return static_cast<int>(parts);
    wait_for_change(left_, left);
  }
}

int Attendance::limit(int parts, std::int64_t now) {
  if (limit_ > 0 && now >= retry_) limit_ = 0;
  return limit_ > 0 ? std::min(parts, limit_) : parts;
}

void Attendance::add(int called, int came, std::int64_t now) {
  if (came < called) {
    limit_ = std::max(1, came);
    pause_ = std::clamp(2 * pause_, shortest_pause, longest_pause);
    retry_ = now + pause_;
  } else if (limit_ == 0) {
    pause_ /= 2;
  }
}

}  // namespace charrnn_fast
