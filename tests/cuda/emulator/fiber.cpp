#include "fiber.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>
#include <vector>

// A switch of its own where there is one; ucontext takes longer, for it asks the system
// about signals. CUDA_EMULATOR_UCONTEXT: everywhere.
#if defined(__x86_64__) && !defined(CUDA_EMULATOR_UCONTEXT)
#define OWN_SWITCH 1
#else
#define OWN_SWITCH 0
#include <ucontext.h>
#endif
#if defined(CUDA_EMULATOR_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(CUDA_EMULATOR_THREAD_SANITIZER)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

namespace cuda_emulator {
namespace {

#if defined(CUDA_EMULATOR_ADDRESS_SANITIZER)
constexpr std::size_t stack_bytes = 256 << 10;  // instrumented frames are large
#else
constexpr std::size_t stack_bytes = 64 << 10;
#endif
const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));

// Stacks begin at different lines of a page: the first-level cache has few places for the same one.
constexpr std::size_t lines = 32, line_bytes = 64;

// A stack and the thread that it is to the thread sanitizer, both of which take long to make, are
// used again: by the next launch, which is ordered behind the one before. Within a launch no two
// threads may share them, so the scheduler keeps all fibers until it ends.
struct Place {
  char* stack;
  void* sanitizer;
  std::size_t number;
};
std::vector<Place>& free_places() {
  static std::vector<Place> places;
  return places;
}

Place new_place() {
  if (!free_places().empty()) {
    const Place place = free_places().back();
    free_places().pop_back();
    return place;
  }
  void* const memory = mmap(nullptr, page + stack_bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page, PROT_NONE);
  static std::size_t made = 0;
#if defined(CUDA_EMULATOR_THREAD_SANITIZER)
  return {static_cast<char*>(memory), __tsan_create_fiber(0), made++};
#else
  return {static_cast<char*>(memory), nullptr, made++};
#endif
}

void give_back(const Place& place) {
#if defined(CUDA_EMULATOR_ADDRESS_SANITIZER)
  // frames that were left, not returned from
  ASAN_UNPOISON_MEMORY_REGION(place.stack + page, stack_bytes);
#endif
  free_places().push_back(place);
}

// The fiber that a switch left and the one that it went to.
Fiber *left, *entered;

}  // namespace

#if OWN_SWITCH
// Saves the registers that a call keeps on the stack of the fiber that is left, the stack pointer
// in *from, and takes those of the other.
extern "C" void cuda_emulator_switch(void** from, void* to);
asm(R"(
.text
.globl cuda_emulator_switch
.hidden cuda_emulator_switch
.type cuda_emulator_switch, @function
cuda_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_emulator_switch, . - cuda_emulator_switch
)");
#endif

Fiber::Fiber() {
#if !OWN_SWITCH
  context_ = new ucontext_t;
#endif
#if defined(CUDA_EMULATOR_THREAD_SANITIZER)
  sanitizer_ = __tsan_get_current_fiber();
#endif
}

Fiber::Fiber(Entry entry) {
  const Place place = new_place();
  stack_ = place.stack;
  sanitizer_ = place.sanitizer;
  number_ = place.number;
  bottom_ = stack_ + page;
  size_ = stack_bytes - number_ % lines * line_bytes;
#if OWN_SWITCH
  // As a call leaves it: the return address lies 8 below a multiple of 16 when the entry begins.
  auto* top = reinterpret_cast<std::uintptr_t*>(stack_ + page + size_);
  *--top = 0;  // where the entry would return to
  *--top = reinterpret_cast<std::uintptr_t>(entry);
  for (int i = 0; i < 6; ++i) *--top = 0;
  context_ = top;
#else
  auto* const context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = stack_ + page;
  context->uc_stack.ss_size = size_;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  context_ = context;
#endif
}

Fiber::~Fiber() {
#if !OWN_SWITCH
  delete static_cast<ucontext_t*>(context_);
#endif
  if (stack_) give_back({stack_, sanitizer_, number_});
}

void Fiber::switch_from(Fiber& from, bool last) {
  left = &from;
  entered = this;
#if defined(CUDA_EMULATOR_ADDRESS_SANITIZER)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack_, bottom_, size_);
#endif
  (void)last;
#if defined(CUDA_EMULATOR_THREAD_SANITIZER)
  __tsan_switch_to_fiber(sanitizer_, 1);  // 1: orders nothing
#endif
#if OWN_SWITCH
  cuda_emulator_switch(&from.context_, context_);
#else
  swapcontext(static_cast<ucontext_t*>(from.context_), static_cast<ucontext_t*>(context_));
#endif
  begin();
}

void Fiber::begin() {
#if defined(CUDA_EMULATOR_ADDRESS_SANITIZER)
  const void* bottom;
  std::size_t size;
  __sanitizer_finish_switch_fiber(entered->fake_stack_, &bottom, &size);
  if (!left->stack_) {  // the program's own stack, which only the sanitizer knows
    left->bottom_ = bottom;
    left->size_ = size;
  }
#endif
}

bool Fiber::owns(const void* address) const {
  const auto* const place = static_cast<const char*>(address);
  return stack_ && place >= stack_ && place < stack_ + page + stack_bytes;
}

#if defined(CUDA_EMULATOR_THREAD_SANITIZER)
Fiber::As::As(Fiber& other, Fiber& self) : self_(self) {
  __tsan_switch_to_fiber(other.sanitizer_, 1);
}
Fiber::As::~As() { __tsan_switch_to_fiber(self_.sanitizer_, 1); }
#else
Fiber::As::As(Fiber&, Fiber& self) : self_(self) {}
Fiber::As::~As() { (void)self_; }
#endif

void order_release(const void* object) {
#if defined(CUDA_EMULATOR_THREAD_SANITIZER)
  __tsan_release(const_cast<void*>(object));
#else
  (void)object;
#endif
}

void order_acquire(const void* object) {
#if defined(CUDA_EMULATOR_THREAD_SANITIZER)
  __tsan_acquire(const_cast<void*>(object));
#else
  (void)object;
#endif
}

}  // namespace cuda_emulator
