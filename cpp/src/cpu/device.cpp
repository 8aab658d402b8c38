// The CPU as a device: its memory is the host's.
#include "charrnn_fast/device.hpp"

#include <algorithm>
#include <cstring>
#include <new>

#include "cpu/dispatch.hpp"
#include "cpu/thread_pool.hpp"

namespace charrnn_fast {
namespace {

constexpr auto alignment = std::align_val_t(64);

class Cpu final : public Device {
 public:
  Cpu() : Device("cpu", true, &kernels<float>(), &kernels<double>()) {}

  void* allocate(std::size_t bytes) override {
    return ::operator new(bytes, alignment, std::nothrow);
  }
  void release(void* memory) override { ::operator delete(memory, alignment); }

  void upload_bytes(const void* from, std::size_t bytes, void* to) override {
    std::memcpy(to, from, bytes);
  }
  void download_bytes(const void* from, std::size_t bytes, void* to) override {
    std::memcpy(to, from, bytes);
  }
  void copy_bytes(const void* from, std::size_t bytes, void* to) override {
    std::memcpy(to, from, bytes);
  }
  void zero_bytes(void* to, std::size_t bytes) override { std::memset(to, 0, bytes); }
  void synchronize() override {}

  int parts(double operations) const override {
    return share(operations / sharing_limits().operations_per_thread);
  }
  int parts_before_wait(double operations) const override {
    return share(operations / sharing_limits().operations_per_barrier);
  }
  void run(int parts, TeamFunction f, void* context) override {
    ThreadPool::instance().run_erased(parts, f, context);
  }

 private:
  static int share(double parts) {
    return static_cast<int>(std::clamp(parts, 1.0, double(ThreadPool::instance().size())));
  }
};

}  // namespace

Device& cpu_device() {
  static Cpu device;  // trivially destroyed: threads may compute while the process exits
  return device;
}

}  // namespace charrnn_fast
