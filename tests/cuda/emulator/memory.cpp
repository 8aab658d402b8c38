#include "memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

#include "emulator.hpp"
#include "fiber.hpp"  // which sanitizer it is

#if defined(CUDA_EMULATOR_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#endif

namespace cuda_emulator {
namespace {

#if defined(CUDA_EMULATOR_ADDRESS_SANITIZER) || defined(CUDA_EMULATOR_THREAD_SANITIZER)
constexpr bool sanitized = true;  // which sees what is beside an allocation, and has its own malloc
#else
constexpr bool sanitized = false;
#endif

constexpr std::size_t alignment = 256, margin = 256;
constexpr unsigned char margin_byte = 0xC5;
constexpr std::size_t arena_bytes = all_memory;  // of addresses
const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));

std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

void fill_unwritten(void* to, std::size_t bytes) {
  auto* const target = static_cast<unsigned char*>(to);
  for (std::size_t i = 0; i < bytes; i += 4)
    std::memcpy(target + i, &unwritten_word, std::min<std::size_t>(4, bytes - i));
}

long first_written(const unsigned char* from, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i)
    if (from[i] != margin_byte) return static_cast<long>(i);
  return -1;
}

// One range of addresses, closed as a whole: each allocation [bytes][margin], in order.
struct Arena {
  char* base = nullptr;
  std::map<std::size_t, std::size_t> allocations;  // offset to bytes
  std::map<void*, std::size_t> from_malloc;        // under a sanitizer
  int open = 0;
  std::recursive_mutex mutex;
};
Arena& arena() {
  static Arena& it = *new Arena;  // outlives every static object that releases memory
  return it;
}

void protect(int how) {
  if (arena().base) mprotect(arena().base, arena_bytes, how);
}

}  // namespace

OpenMemory::OpenMemory() {
  const std::lock_guard lock(arena().mutex);
  if (arena().open++ == 0) protect(PROT_READ | PROT_WRITE);
}

OpenMemory::~OpenMemory() {
  const std::lock_guard lock(arena().mutex);
  if (--arena().open == 0) protect(PROT_NONE);
}

bool is_device_memory(const void* address) {
  const auto* const place = static_cast<const char*>(address);
  return arena().base && place >= arena().base && place < arena().base + arena_bytes;
}

bool is_allocated(const void* address) {
  if (!sanitized) return is_device_memory(address);
  const std::lock_guard lock(arena().mutex);
  const auto* const place = static_cast<const char*>(address);
  for (const auto& [start, bytes] : arena().from_malloc)
    if (place >= start && place < static_cast<char*>(start) + bytes) return true;
  return false;
}

void check_device_memory() {
  if (sanitized) return;
  const std::lock_guard lock(arena().mutex);
  const OpenMemory open;
  for (const auto& [offset, bytes] : arena().allocations) {
    const auto* const end = reinterpret_cast<unsigned char*>(arena().base + offset + bytes);
    const long written = first_written(end, margin);
    if (written < 0) continue;
    std::memset(arena().base + offset + bytes, margin_byte, margin);
    throw Finding(Kind::overrun, "an allocation of " + std::to_string(bytes) +
                                     " bytes of device memory was written " +
                                     std::to_string(written + 1) + " bytes past its end");
  }
}

void* allocate_memory(std::size_t bytes) {
  const std::lock_guard lock(arena().mutex);
  if (sanitized) {
    void* memory = nullptr;
    if (posix_memalign(&memory, alignment, std::max<std::size_t>(bytes, 1)) != 0) return nullptr;
    fill_unwritten(memory, bytes);
    arena().from_malloc[memory] = bytes;
    return memory;
  }
  if (!arena().base) {
    void* const memory =
        mmap(nullptr, arena_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    arena().base = static_cast<char*>(memory);
    if (arena().open) protect(PROT_READ | PROT_WRITE);
  }
  std::size_t offset = 0;  // the first gap that is large enough
  for (const auto& [taken, size] : arena().allocations) {
    if (taken - offset >= bytes + margin && taken >= offset) break;
    offset = round_up(taken + size + margin, alignment);
  }
  if (offset + bytes + margin > arena_bytes) return nullptr;
  const OpenMemory open;
  arena().allocations[offset] = bytes;
  fill_unwritten(arena().base + offset, bytes);
  std::memset(arena().base + offset + bytes, margin_byte, margin);
  return arena().base + offset;
}

void release_memory(void* memory) {
  if (!memory) return;
  const std::lock_guard lock(arena().mutex);
  if (sanitized) {
    if (arena().from_malloc.erase(memory) == 0)
      throw Finding(Kind::misuse, "release() of an address that allocate() did not give");
    std::free(memory);
    return;
  }
  const auto offset = static_cast<std::size_t>(static_cast<char*>(memory) - arena().base);
  const auto found =
      is_device_memory(memory) ? arena().allocations.find(offset) : arena().allocations.end();
  if (found == arena().allocations.end())
    throw Finding(Kind::misuse, "release() of an address that allocate() did not give");
  const std::size_t bytes = found->second;
  const OpenMemory open;
  arena().allocations.erase(found);
  fill_unwritten(memory, bytes);  // whoever still reads it
  if (bytes >= 64 * page) {
    const std::size_t from = round_up(offset, page), to = (offset + bytes) / page * page;
    madvise(arena().base + from, to - from, MADV_DONTNEED);
  }
}

std::size_t memory_in_use() {
  const std::lock_guard lock(arena().mutex);
  std::size_t bytes = 0;
  for (const auto& [offset, size] : arena().allocations) bytes += size;
  for (const auto& [address, size] : arena().from_malloc) bytes += size;
  return bytes;
}

SharedArray::SharedArray(std::size_t bytes, std::size_t align, bool closable) : bytes_(bytes) {
  align = std::max<std::size_t>(align, 16);
  const std::size_t behind = sanitized ? 0 : margin;
  if (closable && !sanitized) {
    mapped_ = round_up(std::max<std::size_t>(bytes + behind, 1), page);
    void* const memory =
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
  } else {
    void* memory;
    if (posix_memalign(&memory, std::max<std::size_t>(align, 128),
                       std::max<std::size_t>(bytes + behind, 1)) != 0)
      throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
  }
  data_ = memory_;
  fill_unwritten(data_, bytes);
  std::memset(data_ + bytes, margin_byte, behind);
}

SharedArray::~SharedArray() {
  open();
  if (mapped_)
    munmap(memory_, mapped_);
  else
    std::free(memory_);
}

bool SharedArray::holds(const void* address) const {
  const auto* const place = static_cast<const char*>(address);
  return place >= data_ && place < data_ + std::max(bytes_, mapped_);
}

void SharedArray::close() {
  if (mapped_) mprotect(memory_, mapped_, PROT_NONE);
#if defined(CUDA_EMULATOR_ADDRESS_SANITIZER)
  ASAN_POISON_MEMORY_REGION(data_, bytes_);
#endif
}

void SharedArray::open() {
  if (mapped_) mprotect(memory_, mapped_, PROT_READ | PROT_WRITE);
#if defined(CUDA_EMULATOR_ADDRESS_SANITIZER)
  ASAN_UNPOISON_MEMORY_REGION(data_, bytes_);
#endif
}

long SharedArray::overrun() const {
  return sanitized ? -1 : first_written(reinterpret_cast<unsigned char*>(data_ + bytes_), margin);
}

}  // namespace cuda_emulator
