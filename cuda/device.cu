#include "device.hpp"

#include "kernels/table.cuh"
#include "team.hpp"

namespace charrnn_fast {
namespace {

class Cuda final : public Device {
 public:
  Cuda() : Device(cuda::device_name, false, &cuda::kernels<float>(), &cuda::kernels<double>()) {
    cuda::table_stream() = cuda::new_stream();
  }

  void* allocate(std::size_t bytes) override { return cuda::allocate_bytes(bytes); }
  // Work that is queued may use it.
  void release(void* memory) override {
    if (!memory) return;
    synchronize();
    cuda::release_bytes(memory);
  }

  void upload_bytes(const void* from, std::size_t bytes, void* to) override {
    cuda::copy_in(cuda::table_stream(), from, bytes, to);
  }
  void download_bytes(const void* from, std::size_t bytes, void* to) override {
    cuda::copy_out(cuda::table_stream(), from, bytes, to);
  }
  void copy_bytes(const void* from, std::size_t bytes, void* to) override {
    cuda::copy_within(cuda::table_stream(), from, bytes, to);
  }
  void zero_bytes(void* to, std::size_t bytes) override {
    cuda::set_zero(cuda::table_stream(), to, bytes);
  }
  void synchronize() override { cuda::wait_for(cuda::table_stream()); }

  int parts(double) const override { return 1; }
  int parts_before_wait(double) const override { return 1; }
  void run(int, TeamFunction f, void* context) override { f(context, Team{0, 1, nullptr}); }
};

}  // namespace

Device& cuda_device() {
  static Cuda* const device = new Cuda;
  return *device;
}

}  // namespace charrnn_fast
