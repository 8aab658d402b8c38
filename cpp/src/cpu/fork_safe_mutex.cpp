#include "charrnn_fast/fork_safe_mutex.hpp"

#include "cpu/thread_pool.hpp"

namespace charrnn_fast {

namespace {
std::uint32_t unlocked_word() { return 2 * static_cast<std::uint32_t>(fork_generation()); }
}  // namespace

void ForkSafeMutex::lock() {
  const std::uint32_t unlocked = unlocked_word(), locked = unlocked + 1;
  std::uint32_t word = unlocked;
  // Any value other than `locked` is free, until exchanged.
  while (!word_.compare_exchange_weak(word, locked, std::memory_order_acquire,
                                      std::memory_order_relaxed))
    if (word == locked) {
      word_.wait(locked, std::memory_order_relaxed);
      word = unlocked;
    }
}

void ForkSafeMutex::unlock() {
  word_.store(unlocked_word(), std::memory_order_release);
  word_.notify_one();
}

}  // namespace charrnn_fast
