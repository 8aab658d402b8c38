// Memory that calls borrow and give back: blocks that were large enough to be mapped afresh, whose
// pages would fault one by one, are kept for the next call.
#pragma once

#include <atomic>
#include <cstddef>

#include "charrnn_fast/config.hpp"

namespace charrnn_fast {

// A bounded list of free blocks. Threads may use it at once. It has no lock: after a fork it is as
// usable in the child as in the parent, and loses at most what other threads were just moving.
class FreeList {
 public:
  explicit FreeList(std::size_t limit) : limit_(limit) {}
  ~FreeList() { clear(); }
  FreeList(const FreeList&) = delete;
  FreeList& operator=(const FreeList&) = delete;
  // That of the process, which is never destroyed.
  static FreeList& instance();

  // Aligned to 64 bytes. Throws OutOfMemory.
  void* take(std::size_t bytes);
  void give_back(void* memory) noexcept;

  // Bytes of the free blocks, and the most that they may have.
  std::size_t held() const { return held_; }
  std::size_t limit() const { return limit_; }
  void set_limit(std::size_t bytes);
  void clear() noexcept;

  // Blocks of fewer bytes are not kept: the allocator is as fast.
  static constexpr std::size_t least_bytes = std::size_t(1) << 16;
  static constexpr int most_blocks = 32;

 private:
  struct Block;
  struct Slot {
    std::atomic<Block*> block{nullptr};
    std::atomic<std::size_t> bytes{0};  // of the block last put here: only a hint
  };

  Block* remove(Slot& slot) noexcept;
  void evict() noexcept;
  static void release(Block* block) noexcept;

  Slot slots_[most_blocks];
  std::atomic<std::size_t> held_{0}, limit_;
  std::atomic<unsigned> next_{0};  // the slot to evict next
};

// n elements of memory from the process's list, given back at the end.
template <class T>
class Borrowed {
 public:
  explicit Borrowed(Index n)
      : data_(static_cast<T*>(FreeList::instance().take(static_cast<std::size_t>(n) * sizeof(T)))) {
  }
  ~Borrowed() { FreeList::instance().give_back(data_); }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

}  // namespace charrnn_fast
