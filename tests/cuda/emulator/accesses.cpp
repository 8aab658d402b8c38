// Copies that asynchronous instructions make, as code that the sanitizers see. Weak: each library
// of a program that links the emulator has them.
#include "accesses.hpp"

namespace cuda_emulator {

[[gnu::weak]] void access_copy(void* to, const void* from, std::size_t bytes) {
  auto* const target = static_cast<std::uint32_t*>(to);
  const auto* const source = static_cast<const std::uint32_t*>(from);
  for (std::size_t i = 0; i < bytes / 4; ++i) target[i] = source[i];
}

[[gnu::weak]] void access_fill(void* to, std::uint32_t word, std::size_t bytes) {
  auto* const target = static_cast<std::uint32_t*>(to);
  for (std::size_t i = 0; i < bytes / 4; ++i) target[i] = word;
}

}  // namespace cuda_emulator

// A finding leaves the stacks of all threads, and what they own, behind.
extern "C" [[gnu::weak]] const char* __asan_default_options() { return "detect_leaks=0"; }
