// The emulator's memory: the device's, and blocks' shared memory.
#pragma once

#include <cstddef>
#include <string>

namespace cuda_emulator {

// Opens the device's memory while it lives; nests. Under a sanitizer it is always open.
class OpenMemory {
 public:
  OpenMemory();
  ~OpenMemory();
  OpenMemory(const OpenMemory&) = delete;
  OpenMemory& operator=(const OpenMemory&) = delete;
};

void* allocate_memory(std::size_t bytes);  // see allocate() of emulator.hpp
void release_memory(void* memory);
std::size_t memory_in_use();
// Whether an address is the device's; not under a sanitizer, where the memory is from malloc.
bool is_device_memory(const void* address);
// The same in all builds, but slower.
bool is_allocated(const void* address);
// Throws Finding if an allocation's surroundings were written.
void check_device_memory();

// An array of a block's shared memory. It begins as unwritten words.
class SharedArray {
 public:
  // closable: can be made inaccessible.
  SharedArray(std::size_t bytes, std::size_t alignment, bool closable);
  ~SharedArray();
  SharedArray(const SharedArray&) = delete;
  SharedArray& operator=(const SharedArray&) = delete;

  char* get() const { return data_; }
  std::size_t size() const { return bytes_; }
  bool holds(const void* address) const;  // in the array or the pages that close with it
  void close();
  void open();
  // Bytes behind the end that were written: the first one's distance, or -1.
  long overrun() const;

 private:
  char* memory_;
  char* data_;
  std::size_t bytes_, mapped_ = 0;  // mapped_: 0 where malloc gave it
};

}  // namespace cuda_emulator
