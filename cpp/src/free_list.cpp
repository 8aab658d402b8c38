#include "free_list.hpp"

#include <new>

#include "charrnn_fast/device.hpp"

namespace charrnn_fast {
namespace {

constexpr std::size_t page = 4096, process_limit = std::size_t(1) << 28;

}  // namespace

// In front of a block's memory, which stays aligned.
struct alignas(64) FreeList::Block {
  std::size_t bytes;
  void* memory() { return this + 1; }
};

FreeList& FreeList::instance() {
  static FreeList* const list = new FreeList(process_limit);
  return *list;
}

void* FreeList::take(std::size_t bytes) {
  if (bytes >= least_bytes) {
    const auto fits = [&](std::size_t size) { return size >= bytes && size / 2 <= bytes; };
    for (Slot& slot : slots_) {
      if (!fits(slot.bytes.load(std::memory_order_relaxed))) continue;
      Block* const block = remove(slot);
      if (!block) continue;
      if (fits(block->bytes)) return block->memory();
      give_back(block->memory());
    }
    if (bytes < std::size_t(1) << 62) bytes = (bytes + page - 1) / page * page;
  }
  void* const whole =
      bytes < std::size_t(1) << 62 ? cpu_device().allocate(sizeof(Block) + bytes) : nullptr;
  if (!whole) throw OutOfMemory(static_cast<double>(bytes));
  return (new (whole) Block{bytes})->memory();
}

void FreeList::give_back(void* memory) noexcept {
  Block* const block = static_cast<Block*>(memory) - 1;
  const std::size_t bytes = block->bytes;
  if (bytes < least_bytes || bytes > limit_) return release(block);
  held_ += bytes;
  for (int i = 0; i < most_blocks && held_ > limit_; ++i) evict();
  // Other threads may have filled the list meanwhile.
  for (int attempt = 0; attempt < 2 && held_ <= limit_; ++attempt) {
    for (Slot& slot : slots_) {
      Block* nothing = nullptr;
      if (!slot.block.compare_exchange_strong(nothing, block)) continue;
      slot.bytes.store(bytes, std::memory_order_relaxed);
      return;
    }
    evict();
  }
  held_ -= bytes;
  release(block);
}

// Takes a block out of its slot; null if there is none.
FreeList::Block* FreeList::remove(Slot& slot) noexcept {
  Block* const block = slot.block.exchange(nullptr);
  if (block) held_ -= block->bytes;
  return block;
}

// Releases one block, in turn: sizes that are no longer asked for do not stay.
void FreeList::evict() noexcept {
  if (Block* const block = remove(slots_[next_++ % most_blocks])) release(block);
}

void FreeList::set_limit(std::size_t bytes) {
  limit_ = bytes;
  for (int i = 0; i < most_blocks && held_ > limit_; ++i) evict();
}

void FreeList::clear() noexcept {
  for (Slot& slot : slots_)
    if (Block* const block = remove(slot)) release(block);
}

void FreeList::release(Block* block) noexcept { cpu_device().release(block); }

}  // namespace charrnn_fast
