// A lock for objects that a forked child goes on using.
#pragma once

#include <atomic>
#include <cstdint>

namespace charrnn_fast {

// A mutex that a forked child finds unlocked, whatever the parent's other threads were doing. One
// word says who has it and in which process: what is left of the parent counts as free, so that of
// several threads of the child that are the first ones there one gets it, as ever. The code that
// holds it must not fork.
class ForkSafeMutex {
 public:
  ForkSafeMutex() = default;
  // A copy of what holds one has a mutex of its own.
  ForkSafeMutex(const ForkSafeMutex&) {}
  ForkSafeMutex& operator=(const ForkSafeMutex&) { return *this; }
  void lock();
  void unlock();

 private:
  std::atomic<std::uint32_t> word_{0};  // 2 * the process's generation + whether it is locked
};

}  // namespace charrnn_fast
