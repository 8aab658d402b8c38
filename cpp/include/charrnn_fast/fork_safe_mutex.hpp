// A mutex for objects that a forked child keeps using.
#pragma once

#include <atomic>
#include <cstdint>

namespace charrnn_fast {

// A mutex that is unlocked in a forked child, whatever the parent's threads were doing. One atomic
// word holds the owner's process and whether it is locked. A lock of the parent counts as free, and
// only one of the child's threads gets it. The code that holds the mutex must not fork.
class ForkSafeMutex {
 public:
  ForkSafeMutex() = default;
  // Copying the owner gives the copy a mutex of its own.
  ForkSafeMutex(const ForkSafeMutex&) {}
  ForkSafeMutex& operator=(const ForkSafeMutex&) { return *this; }
  void lock();
  void unlock();

 private:
  std::atomic<std::uint32_t> word_{0};  // 2 * the process's generation + whether it is locked
};

}  // namespace charrnn_fast
