// What networks, models and optimizers do on a device whose memory is not the program's, see
// guarded_device.hpp: the bits of the CPU, for all cells and options, and not one access of the
// host.
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "charrnn_fast/model.hpp"
#include "charrnn_fast/threads.hpp"
#include "check.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/thread_pool.hpp"
#include "device_cases.hpp"
#include "guarded_device.hpp"

using namespace charrnn_fast;

namespace {

// Errors that a kernel finds come to the host.
void check_damaged() {
  const NetworkShape shape{"lstm", 5, 3, 5};
  for (Device* device : {&cpu_device(), static_cast<Device*>(&GuardedDevice::instance())}) {
    Model<float> model(shape, *device);
    model.change_parameters(
        [&](float* flat) { flat[model.network().parameters().back().offset + 2] = std::nanf(""); });
    std::vector<float> state(count(model.state_elements(1)));
    const Token first = 1;
    const std::uint64_t seed = 1;
    Token drawn[3];
    std::string message;
    try {
      model.sample(3, 1, &first, state.data(), &seed, 0, {}, drawn);
    } catch (const std::invalid_argument& error) {
      message = error.what();
    }
    CHECK(message == "logits must be finite, got nan for token 2: the weights are damaged",
          "%s: %s", device->name, message.c_str());
    Optimizer<float> other("adam", {}, model.network().parameter_elements(),
                           device->is_host ? GuardedDevice::instance() : cpu_device());
    message.clear();
    try {
      model.update(other, model.parameters(), 0.1);
    } catch (const std::invalid_argument& error) {
      message = error.what();
    }
    CHECK(message.find("optimizer must be made for this network") == 0, "%s", message.c_str());
  }
}

// A device that has kernels for float32 alone, and refuses the rest.
class FloatsOnly final : public Device {
 public:
  FloatsOnly() : Device("floats", false, cpu_device().f32, nullptr) {}
  void* allocate(std::size_t) override { return nullptr; }
  void release(void*) override {}
  void upload_bytes(const void*, std::size_t, void*) override {}
  void download_bytes(const void*, std::size_t, void*) override {}
  void copy_bytes(const void*, std::size_t, void*) override {}
  void zero_bytes(void*, std::size_t) override {}
  void synchronize() override {}
  int parts(double) const override { return 1; }
  int parts_before_wait(double) const override { return 1; }
  void run(int, TeamFunction, void*) override {}
};

void check_refusals() {
  FloatsOnly device;
  const NetworkShape shape{"gru", 2, 3};
  CHECK(&Network<float>(shape, device).device() == &device, "float32");
  std::string message;
  try {
    Network<double>(shape, device);
  } catch (const std::invalid_argument& error) {
    message = error.what();
  }
  CHECK(message == "dtype on device 'floats' must be float32, got float64", "%s", message.c_str());
  message.clear();
  try {
    Model<float>(shape, device);
  } catch (const OutOfMemory& error) {
    message = error.what();
  }
  CHECK(message.find("out of memory on floats: ") == 0, "%s", message.c_str());
}

// f, of this function, ends its process with this text.
void check_caught(const char* text, const char* function, const std::function<void()>& f) {
  int ends[2];
  CHECK(pipe(ends) == 0, "pipe");
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    dup2(ends[1], 2);
    f();
    _exit(0);
  }
  close(ends[1]);
  std::string output;
  char buffer[4096];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) output.append(buffer, count(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 1 && output.find(text) != output.npos &&
            output.find(function) != output.npos,
        "%s: status %d, %s", text, status, output.c_str());
}

void check_guard() {
  Device& device = GuardedDevice::instance();
  AlignedBuffer<float> buffer(device);
  buffer.reserve(100);
  const float values[3] = {1, 2, 3};
  device.upload(values, 3, buffer.get());
  float found[4];
  device.download(buffer.get(), 4, found);
  CHECK(found[0] == 1 && found[2] == 3 && std::isnan(found[3]), "%g %g", double(found[0]),
        double(found[3]));
  AlignedBuffer<Token> tokens(device);
  tokens.reserve(1);
  Token token = 0;
  device.download(tokens.get(), 1, &token);
  CHECK(token < 0, "%d", token);

#if defined(CHARRNN_EMULATED)
  const char* const here = "";  // the machine's tools need not know the emulated one's programs
#else
  const char* const here = "check_caught";
#endif
  volatile float sink = 0;
  check_caught("access by the host", here, [&] { sink = buffer.get()[1]; });
  check_caught("access by the host", here,
               [&] { *const_cast<volatile float*>(buffer.get()) = sink; });
  check_caught("an array of the host for a kernel", here,
               [&] { device.f32->add(values, {0, 3}, buffer.get()); });
  check_caught("upload", here, [&] { device.upload(buffer.get(), 3, buffer.get() + 50); });
  check_caught("access by the host", here, [&] {
    Model<float> model({"gru", 4, 3}, device);
    model.change_parameters([&](float*) { sink = model.parameters()[0]; });
  });
}

}  // namespace

int main() {
  sharing_limits() = {0, 0};  // small cases shall run on all threads of the CPU too
  set_num_threads(2);
  std::printf("instruction set %s\n", isa_in_use().c_str());
  std::fflush(stdout);
  check_guard();
  check_damaged();
  check_refusals();
  Device& device = GuardedDevice::instance();
  check_separate<float>(device);
  check_separate<double>(device);
  check_models<float>(device);
  check_models<double>(device);
  return report();
}
