// A device whose memory is the CPU's, and locked to the program: it may be accessed while one of
// the device's kernels or copies runs, and at no other time. It computes by the CPU's kernels, as
// one part, so that its results are the CPU's bit for bit; what is read before it is written is
// NaN, or a token out of range. A kernel that is given an array elsewhere ends the program, as does
// an access from outside, with the place named.
#pragma once

#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <type_traits>

#include <dlfcn.h>
#include <execinfo.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "charrnn_fast/device.hpp"
#include "charrnn_fast/optimizers.hpp"
#include "cpu/dispatch.hpp"
#include "team.hpp"

namespace charrnn_fast {

// Writes the function that the address is in, from the symbols of its file.
inline void write_place(void* address) {
  Dl_info info;
  if (!dladdr(address, &info)) return;
  char offset[32];
  std::snprintf(offset, sizeof offset, "%#tx",
                static_cast<char*>(address) - static_cast<char*>(info.dli_fbase) - 1);
  const pid_t child = fork();
  if (child == 0) {
    dup2(2, 1);
    execlp("addr2line", "addr2line", "-f", "-C", "-p", "-e", info.dli_fname, offset, nullptr);
    _exit(1);
  }
  waitpid(child, nullptr, 0);
}

[[noreturn]] inline void end_at(const char* what, const void* address) {
  std::signal(SIGSEGV, SIG_DFL);
  char line[200];
  std::snprintf(line, sizeof line, "guarded device: %s at %p, from\n", what, address);
  if (write(2, line, std::strlen(line)) < 0) _exit(2);
  void* frames[32];
  for (int i = 0, n = backtrace(frames, 32); i < n; ++i) write_place(frames[i]);
  _exit(1);
}

// One range of addresses, locked and unlocked as a whole.
class LockedMemory {
 public:
  static LockedMemory& instance() {
    static LockedMemory* const memory = new LockedMemory;
    return *memory;
  }

  // The bytes are 0xff: NaN in numbers, -1 in tokens and indices.
  void* allocate(std::size_t bytes) {
    const std::size_t size = (bytes / step + 2) * step;  // with a gap behind
    char* place = nullptr;
    if (const auto free = free_.lower_bound(size); free != free_.end()) {
      place = free->second;
      sizes_[place] = free->first;
      free_.erase(free);
    } else {
      if (used_ + size > reserved) return nullptr;
      place = begin_ + used_;
      sizes_[place] = size;
      used_ += size;
    }
    unlock();
    std::memset(place, 0xff, sizes_[place]);
    lock();
    return place;
  }
  void release(void* memory) {
    if (!memory) return;
    const auto found = sizes_.find(static_cast<char*>(memory));
    if (found == sizes_.end()) end_at("release of what was not allocated", memory);
    free_.emplace(found->second, found->first);
    sizes_.erase(found);
    if (!sizes_.empty()) return;
    // A short range takes less time to lock.
    free_.clear();
    used_ = 0;
  }
  bool has(const void* p) const { return p >= begin_ && p < begin_ + used_; }

  void unlock() {
    if (depth_++ == 0) protect(PROT_READ | PROT_WRITE);
  }
  void lock() {
    if (--depth_ == 0) protect(PROT_NONE);
  }

 private:
  static constexpr std::size_t reserved = std::size_t(1) << 32, step = 64;

  LockedMemory() {
    void* const mapping =
        mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) end_at("no range of addresses", nullptr);
    begin_ = static_cast<char*>(mapping);
    void* frame[1];
    backtrace(frame, 1);  // loads what it needs, which a handler of signals must not
    struct sigaction action{};
    action.sa_sigaction = [](int, siginfo_t* info, void*) {
      end_at(instance().has(info->si_addr) ? "access by the host" : "access", info->si_addr);
    };
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, nullptr);
  }
  void protect(int access) {
    if (used_ > 0 && mprotect(begin_, used_, access) != 0) end_at("mprotect", begin_);
  }

  char* begin_;
  std::size_t used_ = 0;
  int depth_ = 0;
  std::map<char*, std::size_t> sizes_;
  std::multimap<std::size_t, char*> free_;
};

// ---- the pointers that a kernel is given --------------------------------------------------

inline void check_pointer(const void* p, const char* kernel) {
  if (p && !LockedMemory::instance().has(p)) {
    std::fprintf(stderr, "%s: ", kernel);
    end_at("an array of the host for a kernel", p);
  }
}

template <class... P>
void check_pointers(const char* kernel, P... pointers) {
  (check_pointer(pointers, kernel), ...);
}

template <class T>
void check_args(const char* k, T* pointer) {
  check_pointer(pointer, k);
}
template <class A>
  requires(std::is_arithmetic_v<A> || std::is_same_v<A, Range>)
void check_args(const char*, A) {}
inline void check_args(const char* k, const Steps& s) { check_pointers(k, s.offsets); }
template <class T>
void check_args(const char* k, const Weights<T>& w) {
  check_pointers(k, w.data);
}
template <class T>
void check_args(const char* k, const PackArgs<T>& p) {
  check_pointers(k, p.weights, p.packed);
}
template <class T>
void check_args(const char* k, const GemmArgs<T>& p) {
  check_args(k, p.weights);
  check_pointers(k, p.a, p.bias, p.c);
}
template <class T>
void check_args(const char* k, const GemmTnArgs<T>& p) {
  check_pointers(k, p.a, p.sums, p.sums_errors);
  for (int i = 0; i < p.num_products; ++i)
    check_pointers(k, p.products[i].b, p.products[i].c, p.products[i].errors);
}
template <class T>
void check_args(const char* k, const States<T>& states) {
  for (const StateRows<T>& s : states.of) check_pointers(k, s.initial, s.rows);
}
template <class T>
void check_args(const char* k, const StatesArgs<T>& p) {
  check_args(k, p.steps), check_args(k, p.states);
  for (T* at : p.at) check_pointers(k, at);
}
template <class T>
void check_args(const char* k, const Zoneouts<T>& zoneouts) {
  for (const Zoneout<T>& z : zoneouts.of) check_pointers(k, z.mask.data, z.raw);
}
template <class T>
void check_args(const char* k, const RecurrentForwardArgs<T>& p) {
  check_args(k, p.steps), check_args(k, p.hh), check_args(k, p.states), check_args(k, p.zoneout);
  check_pointers(k, p.gx, p.tokens, p.table, p.input_bias, p.split_bias, p.params, p.saved,
                 p.recurrent, p.recurrent_mask.data, p.norm.gain, p.norm.inverse,
                 p.projection.weights.data, p.projection.hidden, p.staged, p.flags);
}
template <class T>
void check_args(const char* k, const RecurrentBackwardArgs<T>& p) {
  check_args(k, p.steps), check_args(k, p.hh), check_args(k, p.states), check_args(k, p.zoneout);
  for (T* d : p.dstates.of) check_pointers(k, d);
  check_pointers(k, p.params, p.saved, p.dy, p.dgates, p.recurrent_mask.data, p.norm.gain,
                 p.norm.inverse, p.normalized, p.projection.weights.data, p.projection.hidden,
                 p.dprojected, p.flags);
}
template <class T>
void check_args(const char* k, const CrossEntropyArgs<T>& p) {
  check_pointers(k, p.logits, p.targets, p.dlogits, p.losses, p.weights);
}
template <class T>
void check_args(const char* k, const ElementLossArgs<T>& p) {
  check_pointers(k, p.x, p.targets, p.weights, p.dx, p.sums);
}
template <class T>
void check_args(const char* k, const GatherArgs<T>& p) {
  check_pointers(k, p.tokens, p.scales, p.table, p.bias, p.out);
}
template <class T>
void check_args(const char* k, const ScatterArgs<T>& p) {
  check_pointers(k, p.a, p.tokens, p.order, p.scales, p.table);
}
template <class T>
void check_args(const char* k, const LayerNormArgs<T>& p) {
  check_pointers(k, p.gain, p.bias, p.x, p.normalized, p.inverse);
}
template <class T>
void check_args(const char* k, const LayerNormBackwardArgs<T>& p) {
  check_pointers(k, p.gain, p.normalized, p.inverse, p.d);
}
template <class T>
void check_args(const char* k, const MaskArgs<T>& p) {
  check_args(k, p.steps);
  check_pointers(k, p.streams, p.x, p.out);
}
template <class T>
void check_args(const char* k, const SortArgs<T>& p) {
  check_args(k, p.steps);
  check_pointers(k, p.order, p.from, p.to);
}
template <class T>
void check_args(const char* k, const LossSumArgs<T>& p) {
  check_args(k, p.steps);
  check_pointers(k, p.ranks, p.losses, p.sum, p.stream_sums);
}
template <class T>
void check_args(const char* k, const DrawArgs<T>& p) {
  check_pointers(k, p.logits, p.streams, p.tokens, p.drawn, p.scratch, p.failure, p.recent);
}
template <class T>
void check_args(const char* k, const LogSoftmaxArgs<T>& p) {
  check_pointers(k, p.logits, p.out);
}
template <class T>
void check_args(const char* k, const UpdateArgs<T>& p) {
  check_pointers(k, p.params, p.gradients, p.slots[0], p.slots[1], p.slots[2]);
}

// ---- the table ----------------------------------------------------------------------------

// The kernel behind `F`, a constant that holds where the CPU's is and its name.
template <class F, class Signature>
struct GuardedKernel;
template <class F, class R, class... A>
struct GuardedKernel<F, R (*)(A...)> {
  static R call(A... args) {
    (check_args(F::name(), args), ...);
    LockedMemory& memory = LockedMemory::instance();
    memory.unlock();
    if constexpr (std::is_void_v<R>) {
      F::of_cpu()(args...);
      memory.lock();
    } else {
      const R result = F::of_cpu()(args...);
      memory.lock();
      return result;
    }
  }
};

template <class... R>
constexpr int length(RuleList<R...>) {
  return sizeof...(R);
}

template <class T>
class GuardedTable {
 public:
  GuardedTable() {
    const Kernels<T>& cpu = kernels<T>();
    table = cpu;
#define CHARRNN_GUARD(entry)                                          \
  {                                                                   \
    struct Entry {                                                    \
      static const char* name() { return #entry; }                    \
      static auto of_cpu() { return kernels<T>().entry; }             \
    };                                                                \
    table.entry = &GuardedKernel<Entry, decltype(table.entry)>::call; \
  }
    CHARRNN_GUARD(pack)
    CHARRNN_GUARD(transpose)
    CHARRNN_GUARD(gemm)
    CHARRNN_GUARD(gemm_tn)
    CHARRNN_GUARD(fill)
    CHARRNN_GUARD(add)
    CHARRNN_GUARD(sort_rows)
    CHARRNN_GUARD(unsort_rows)
    CHARRNN_GUARD(begin_states)
    CHARRNN_GUARD(end_states)
    CHARRNN_GUARD(mask)
    CHARRNN_GUARD(mask_elements)
    CHARRNN_GUARD(column_sums)
    CHARRNN_GUARD(column_products)
    CHARRNN_GUARD(gather)
    CHARRNN_GUARD(sort_by_token)
    CHARRNN_GUARD(scatter_add)
    CHARRNN_GUARD(layer_norm)
    CHARRNN_GUARD(layer_norm_backward)
    CHARRNN_GUARD(cross_entropy)
    CHARRNN_GUARD(binary_cross_entropy)
    CHARRNN_GUARD(mean_square)
    CHARRNN_GUARD(sum_losses)
    CHARRNN_GUARD(draw)
    CHARRNN_GUARD(log_softmax)
    CHARRNN_GUARD(sums_of_squares)
    CHARRNN_GUARD(add_up)
    CHARRNN_GUARD(scale)
    CHARRNN_GUARD(clip_value)
#undef CHARRNN_GUARD
    guard_rules(std::make_integer_sequence<int, num_rules>());
    guard_cells(std::make_integer_sequence<int, most_cells>());
  }

  Kernels<T> table;

 private:
  static constexpr int num_rules = length(UpdateRules()), most_cells = 16;
  using Update = void (*)(const UpdateArgs<T>&, Range);

  template <int i>
  struct Rule {
    static const char* name() { return "update"; }
    static auto of_cpu() { return kernels<T>().update[i]; }
  };
  template <int... i>
  void guard_rules(std::integer_sequence<int, i...>) {
    ((rules_[i] = &GuardedKernel<Rule<i>, Update>::call), ...);
    table.update = rules_;
  }
  template <int i>
  void guard_cell() {
    if (i >= table.num_cells) return;
    CellKernels<T>& cell = cells_[i] = table.cells[i];
#define CHARRNN_GUARD(entry)                                        \
  {                                                                 \
    struct Entry {                                                  \
      static const char* name() { return #entry; }                  \
      static auto of_cpu() { return kernels<T>().cells[i].entry; }  \
    };                                                              \
    cell.entry = &GuardedKernel<Entry, decltype(cell.entry)>::call; \
  }
    CHARRNN_GUARD(begin)
    CHARRNN_GUARD(forward)
    CHARRNN_GUARD(backward)
    CHARRNN_GUARD(backward_initial)
#undef CHARRNN_GUARD
  }
  template <int... i>
  void guard_cells(std::integer_sequence<int, i...>) {
    if (table.num_cells > most_cells) end_at("more cells than are guarded", nullptr);
    (guard_cell<i>(), ...);
    table.cells = cells_;
  }

  Update rules_[num_rules];
  CellKernels<T> cells_[most_cells];
};

class GuardedDevice final : public Device {
 public:
  static GuardedDevice& instance() {
    static GuardedDevice* const device = new GuardedDevice;
    return *device;
  }

  void* allocate(std::size_t bytes) override { return memory().allocate(bytes); }
  void release(void* p) override { memory().release(p); }
  void upload_bytes(const void* from, std::size_t bytes, void* to) override {
    move("upload", from, false, bytes, to, true);
  }
  void download_bytes(const void* from, std::size_t bytes, void* to) override {
    move("download", from, true, bytes, to, false);
  }
  void copy_bytes(const void* from, std::size_t bytes, void* to) override {
    move("copy", from, true, bytes, to, true);
  }
  void zero_bytes(void* to, std::size_t bytes) override {
    check_pointers("zero", to);
    memory().unlock();
    std::memset(to, 0, bytes);
    memory().lock();
  }
  void synchronize() override {}
  int parts(double) const override { return 1; }
  int parts_before_wait(double) const override { return 1; }
  void run(int, TeamFunction f, void* context) override { f(context, Team{0, 1, nullptr}); }

 private:
  struct Tables {
    GuardedTable<float> f32;
    GuardedTable<double> f64;
  };
  static Tables& tables() {
    static Tables* const all = new Tables;
    return *all;
  }
  static LockedMemory& memory() { return LockedMemory::instance(); }

  GuardedDevice() : Device("guarded", false, &tables().f32.table, &tables().f64.table) {}

  void move(const char* name, const void* from, bool from_here, std::size_t bytes, void* to,
            bool to_here) {
    if (memory().has(from) != from_here) end_at(name, from);
    if (memory().has(to) != to_here) end_at(name, to);
    memory().unlock();
    std::memcpy(to, from, bytes);
    memory().lock();
  }
};

}  // namespace charrnn_fast
