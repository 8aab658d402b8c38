// The library of the CUDA kernels, opened when it is asked for: a program that links the C
// interface needs none of it.
#pragma once

#include <cstddef>
#include <stdexcept>

#include "charrnn_fast/device.hpp"

namespace charrnn_fast {

// A function of the library. interface: device_capsule, of whoever calls. Returns null, with the
// reason in why_not [size], if the card cannot be used.
constexpr const char* open_cuda_name = "charrnn_cuda_open";
using OpenCuda = Device* (*)(const char* interface, int ordinal, char* why_not, std::size_t size);

// "cpu", "cuda" (the same as "cuda:0") or "cuda:N". Throws std::invalid_argument for another name,
// NoDevice with the reason if there is no such device.
class NoDevice : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};
Device& device_named(const char* name);

}  // namespace charrnn_fast
