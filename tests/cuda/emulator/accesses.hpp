#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_emulator {

// Whole words; compiled with the kernels' sanitizer, unlike the scheduler.
void access_copy(void* to, const void* from, std::size_t bytes);
void access_fill(void* to, std::uint32_t word, std::size_t bytes);

}  // namespace cuda_emulator
