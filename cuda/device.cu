#include "charrnn_fast/cuda.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <stdexcept>

#include "cuda_library.hpp"
#include "kernels/launch.cuh"
#include "numbers.hpp"
#include "team.hpp"
#include "tiers.hpp"

namespace charrnn_fast {
namespace {

class Cuda final : public Device {
 public:
  Cuda() : Device(cuda::device_name, false, &cuda::kernels<float>(), &cuda::kernels<double>()) {
    cuda::own_stream() = cuda::new_stream();
  }

  void* allocate(std::size_t bytes) override { return cuda::allocate_bytes(bytes); }
  void release(void* memory) override {
    if (memory) cuda::release_bytes(memory);
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

const std::vector<std::string>& cuda_architectures() {
  static const auto* const names = [] {
    auto* const all = new std::vector<std::string>;
#if defined(CHARRNN_CUDA_ARCHITECTURES)
    // as CMake lists them: 80-real 80-virtual 90a
    std::string rest = CHARRNN_CUDA_ARCHITECTURES;
    while (!rest.empty()) {
      const std::size_t end = std::min(rest.find(' '), rest.size());
      const std::string entry = rest.substr(0, end);
      rest.erase(0, end + 1);
      const std::size_t dash = std::min(entry.find('-'), entry.size());
      const std::string number = entry.substr(0, dash), kind = entry.substr(dash);
      if (kind != "-virtual") all->push_back("sm_" + number);
      if (kind != "-real") all->push_back("compute_" + number);
    }
#elif defined(__CUDA_ARCH_LIST__)
    for (const int number : {__CUDA_ARCH_LIST__})
      all->push_back("sm_" + std::to_string(number / 10));
#else
    all->push_back("emulated");
#endif
    return all;
  }();
  return *names;
}

namespace {

// Code for sm_XY runs on cards of the same X and no lower Y, for sm_XYa on XY alone; the driver
// compiles compute_XY for any card that is not older.
bool has_code_for(const CudaCard& card) {
  for (const std::string& name : cuda_architectures()) {
    if (name == "emulated") return true;
    const std::size_t underscore = name.find('_');
    const int number = std::atoi(name.c_str() + underscore + 1);
    const int major = number / 10, minor = number % 10;
    const bool exact = name.back() == 'a';
    if (exact            ? card.major == major && card.minor == minor
        : name[0] == 's' ? card.major == major && card.minor >= minor
                         : card.major > major || (card.major == major && card.minor >= minor))
      return true;
  }
  return false;
}

std::string no_code_for(std::size_t ordinal, const CudaCard& card) {
  std::string built;
  for (const std::string& name : cuda_architectures()) built += (built.empty() ? "" : ", ") + name;
  return "the kernels have no code for cuda:" + std::to_string(ordinal) + " (" + card.name +
         ", compute capability " + std::to_string(card.major) + "." + std::to_string(card.minor) +
         "), they were compiled for " + built;
}

}  // namespace

CudaCards cuda_cards() {
  CudaCards found = cuda::find_cards();
  for (std::size_t i = 0; i < found.all.size(); ++i) {
    if (has_code_for(found.all[i])) {
      found.why_not.clear();
      break;
    }
    if (i == 0) found.why_not = no_code_for(0, found.all[0]);
  }
  return found;
}

Device& cuda_device(int ordinal) {
  static std::mutex mutex;
  static Cuda* device = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto name = [](int number) { return "cuda:" + std::to_string(number); };
  if (device) {
    if (ordinal != cuda::chosen_card())
      throw std::runtime_error("a process uses one card: must be " + name(cuda::chosen_card()) +
                               ", which it uses already, got " + name(ordinal));
    return *device;
  }
  const CudaCards found = cuda_cards();
  if (found.all.empty()) throw std::runtime_error(found.why_not);
  const auto cards = static_cast<int>(found.all.size());
  if (ordinal < 0 || ordinal >= cards)
    throw std::runtime_error("there is no " + name(ordinal) + ", this machine has " + name(0) +
                             (cards > 1 ? " to " + name(cards - 1) : ""));
  const auto index = static_cast<std::size_t>(ordinal);
  if (!has_code_for(found.all[index]))
    throw std::runtime_error(no_code_for(index, found.all[index]));
  cuda::chosen_card() = ordinal;
  const std::string why_not = cuda::why_not_run_kernels<float>();
  if (!why_not.empty()) throw std::runtime_error(name(ordinal) + ": " + why_not);
  device = new Cuda;
  return *device;
}

CudaStreamScope::CudaStreamScope(void* stream) {
  cuda::GivenStream& given = cuda::given_stream();
  had_ = given.given;
  before_ = had_ ? cuda::handle_of(given.stream) : nullptr;
  given = {true, cuda::stream_of(stream)};
}
CudaStreamScope::~CudaStreamScope() {
  cuda::given_stream() = {had_, had_ ? cuda::stream_of(before_) : cuda::Stream{}};
}

void cuda_give_stream(void* stream) { cuda::given_stream() = {true, cuda::stream_of(stream)}; }
void cuda_take_stream_back() { cuda::given_stream() = {}; }
bool cuda_stream_is_given() { return cuda::given_stream().given; }

int cuda_ordinal() { return cuda::chosen_card(); }

void* cuda_new_mark() {
  cuda_device(cuda::chosen_card());
  return cuda::new_mark(cuda::table_stream());
}
bool cuda_reached(void* mark) { return cuda::has_reached(mark); }
void cuda_delete_mark(void* mark) { cuda::delete_mark(mark); }

void* cuda_stream() {
  cuda_device(cuda::chosen_card());
  return cuda::handle_of(cuda::table_stream());
}

void cuda_stream_wait(void* waiting, void* ahead) {
  cuda_device(cuda::chosen_card());
  const cuda::Stream first = cuda::stream_of(waiting), second = cuda::stream_of(ahead);
  if (first != second) cuda::wait_in_stream(first, second);
}

extern "C" CHARRNN_CUDA_API Device* charrnn_cuda_open(const char* interface, int ordinal,
                                                      char* why_not, std::size_t size) {
  std::string reason;
  try {
    if (std::strcmp(interface, device_capsule) == 0) return &cuda_device(ordinal);
    reason = std::string("the library of the CUDA kernels is of another version: it has ") +
             device_capsule + ", must be " + interface;
  } catch (const std::exception& error) {
    reason = error.what();
  }
  std::snprintf(why_not, size, "%s", reason.c_str());
  return nullptr;
}

CudaMemory cuda_memory() {
  CudaMemory memory;
  cuda::memory_of_card(&memory.free, &memory.total);
  return memory;
}

// ---- tiers ---------------------------------------------------------------------------------

namespace cuda {

const char* name_of(Tier tier) {
  constexpr const char* names[] = {"T1", "T2", "T3", "T4"};
  return names[static_cast<int>(tier) - 1];
}

TierLimits& tier_limits() {
  static TierLimits limits;
  return limits;
}

}  // namespace cuda

void set_cuda_tier(const char* name) { cuda::forced().set(name); }
const char* cuda_tier() {
  const std::optional<cuda::Tier> tier = cuda::forced().get();
  return tier ? name_of(*tier) : nullptr;
}

std::vector<CudaLayerPlan> cuda_plan(const NetworkShape& shape, Index batch, Index seq_len,
                                     bool float64) {
  const auto at_least_one = [](const char* what, Index n) {
    if (n < 1)
      throw std::invalid_argument(std::string(what) + " must be at least 1, got " +
                                  std::to_string(n));
  };
  at_least_one("hidden_size", shape.hidden_size);
  at_least_one("num_layers", shape.num_layers);
  at_least_one("batch", batch);
  at_least_one("seq_len", seq_len);
  return float64 ? cuda::plan_layers<double>(shape, batch, seq_len)
                 : cuda::plan_layers<float>(shape, batch, seq_len);
}

std::string describe(const std::vector<CudaLayerPlan>& plan) {
  std::string text;
  const auto number = [](auto n) { return std::to_string(n); };
  const auto add = [&](std::size_t layer, const char* pass, const CudaPassPlan& p) {
    text += "layer " + number(layer) + ", " + pass + ": " + p.tier + " (" + p.reason + "), " +
            number(p.launches) + (p.launches == 1 ? " launch of " : " launches of ") +
            number(p.blocks) + " x " + number(p.threads) + " threads";
    if (p.cluster > 1) text += " in clusters of " + number(p.cluster);
    if (p.shared > 0) text += ", " + number(p.shared) + " bytes of shared memory a block";
    text += "\n";
  };
  for (std::size_t l = 0; l < plan.size(); ++l) {
    add(l, "forward", plan[l].forward);
    add(l, "backward", plan[l].backward);
  }
  return text;
}

}  // namespace charrnn_fast
