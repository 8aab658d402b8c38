// A stack with a program counter of its own. Told to the sanitizers: under the thread sanitizer
// each fiber is a thread, and a switch orders nothing.
#pragma once

#include <cstddef>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_EMULATOR_ADDRESS_SANITIZER
#endif
#if __has_feature(thread_sanitizer)
#define CUDA_EMULATOR_THREAD_SANITIZER
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define CUDA_EMULATOR_ADDRESS_SANITIZER
#endif
#if defined(__SANITIZE_THREAD__) || defined(CUDA_EMULATOR_UNDER_THREAD_SANITIZER)
#define CUDA_EMULATOR_THREAD_SANITIZER
#endif

namespace cuda_emulator {

class Fiber {
 public:
  using Entry = void (*)();  // must not return: it switches to another fiber for the last time

  Fiber();  // the caller's own stack
  explicit Fiber(Entry entry);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Leaves `from`, which is running, and goes on with this one. last: `from` never goes on.
  void switch_from(Fiber& from, bool last = false);
  // What an entry calls first.
  static void begin();

  bool owns(const void* address) const;  // whether it is in the stack or its guard page

  // While it lives, what the running fiber does counts as another's to the thread sanitizer, which
  // would see the memory that a scheduler allocates pass from thread to thread.
  class As {
   public:
    As(Fiber& other, Fiber& self);
    ~As();
    As(const As&) = delete;
    As& operator=(const As&) = delete;

   private:
    Fiber& self_;
  };

 private:
  void* context_ = nullptr;  // the stack pointer, or a ucontext_t
  char* stack_ = nullptr;
  void* sanitizer_ = nullptr;
  std::size_t number_ = 0;  // of the stack
  void* fake_stack_ = nullptr;
  const void* bottom_ = nullptr;
  std::size_t size_ = 0;
};

// What happens before a release of an object happens before what comes after its acquire.
void order_release(const void* object);
void order_acquire(const void* object);

}  // namespace cuda_emulator
