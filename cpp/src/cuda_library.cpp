#include "cuda_library.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "errors.hpp"

namespace charrnn_fast {
namespace {

// Beside the library that this is a part of, else where the system's loader looks.
OpenCuda open_cuda() {
  Dl_info own;
  std::string folder;
  if (dladdr(reinterpret_cast<const void*>(&device_named), &own) && own.dli_fname) {
    folder = own.dli_fname;
    folder.resize(folder.rfind('/') == std::string::npos ? 0 : folder.rfind('/') + 1);
  }
  void* library = dlopen((folder + CHARRNN_CUDA_LIBRARY).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) library = dlopen(CHARRNN_CUDA_LIBRARY, RTLD_NOW | RTLD_LOCAL);
  if (!library)
    throw NoDevice(std::string("this build has no CUDA kernels (") + CHARRNN_CUDA_LIBRARY +
                   "): build with CHARRNN_CUDA=ON or PIP");
  auto* const function = dlsym(library, open_cuda_name);
  if (!function) throw NoDevice(std::string(CHARRNN_CUDA_LIBRARY) + " is of another version");
  return reinterpret_cast<OpenCuda>(function);
}

}  // namespace

Device& device_named(const char* name) {
  if (std::strcmp(name, "cpu") == 0) return cpu_device();
  int ordinal = 0;
  const bool cuda = std::strncmp(name, "cuda", 4) == 0;
  bool good = cuda && name[4] == '\0';
  if (cuda && name[4] == ':' && name[5] >= '0' && name[5] <= '9') {
    char* end = nullptr;
    const long number = std::strtol(name + 5, &end, 10);
    good = *end == '\0' && number <= 1 << 20;
    ordinal = static_cast<int>(number);
  }
  require(good, "device must be 'cpu', 'cuda' or 'cuda:N', got ", quoted(name));
  char why_not[512] = "";
  Device* const device = open_cuda()(device_capsule, ordinal, why_not, sizeof why_not);
  if (!device) throw NoDevice(why_not);
  return *device;
}

}  // namespace charrnn_fast
