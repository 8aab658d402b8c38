#include "cpu/openmp.hpp"

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <mutex>
#include <string>
#include <vector>

#include "cpu/oversubscription.hpp"
#include "cpu/thread_pool.hpp"
#endif

namespace charrnn_fast {

#if defined(__linux__)

namespace {

constexpr std::int64_t between_looks = 10'000'000;

bool file_begins_with(const char* path, const char* begin) {
  const char* const slash = std::strrchr(path, '/');
  return std::strncmp(slash ? slash + 1 : path, begin, std::strlen(begin)) == 0;
}

// The loaded libraries of interest.
struct Loaded {
  std::string torch;
  std::vector<std::string> gomps;
};

Loaded loaded_libraries() {
  Loaded found;
  dl_iterate_phdr(
      [](dl_phdr_info* library, std::size_t, void* context) {
        Loaded& loaded = *static_cast<Loaded*>(context);
        if (file_begins_with(library->dlpi_name, "libtorch_cpu.so"))
          loaded.torch = library->dlpi_name;
        if (file_begins_with(library->dlpi_name, "libgomp"))
          loaded.gomps.push_back(library->dlpi_name);
        return 0;
      },
      &found);
  return found;
}

// Number of libraries that have ever been loaded.
unsigned long long libraries_loaded() {
  unsigned long long count = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* first, std::size_t, void* context) {
        *static_cast<unsigned long long*>(context) = first->dlpi_adds;
        return 1;
      },
      &count);
  return count;
}

// Whether this process was forked, and has executed no program since. If unknown, true.
bool is_forked() {
  constexpr unsigned long forked_and_not_executed = 0x40;  // PF_FORKNOEXEC of Linux's sched.h
  std::ifstream file("/proc/self/stat");
  std::string text;
  std::getline(file, text);
  const std::size_t name_end = text.rfind(')');  // of the program, which may hold anything
  if (name_end == std::string::npos) return true;
  char state;
  int skipped;
  unsigned long flags;
  if (std::sscanf(text.c_str() + name_end + 1, " %c %d %d %d %d %d %lu", &state, &skipped, &skipped,
                  &skipped, &skipped, &skipped, &flags) != 7)
    return true;
  return (flags & forked_and_not_executed) != 0;
}

// If this library is loaded in a forked process, a libgomp that is there already may have lost its
// threads. Forks after that raise the fork generation.
const bool is_inherited = is_forked() && !loaded_libraries().gomps.empty();

// Stays loaded from now on. `library` is libgomp, or needs it.
bool open(const char* library, OpenMp& openmp) {
  void* const handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
  if (!handle) return false;
  const auto load = [&](auto& function, const char* name) {
    void* const symbol = dlsym(handle, name);
    Dl_info where;
    if (!symbol || !dladdr(symbol, &where) || !file_begins_with(where.dli_fname, "libgomp"))
      return false;
    std::memcpy(&function, &symbol, sizeof symbol);
    return true;
  };
  return load(openmp.parallel, "GOMP_parallel") && load(openmp.in_parallel, "omp_in_parallel") &&
         load(openmp.max_threads, "omp_get_max_threads") &&
         load(openmp.num_threads, "omp_get_num_threads") &&
         load(openmp.thread_num, "omp_get_thread_num");
}

struct Found {
  std::mutex mutex;
  std::atomic<std::int64_t> next_look{0};
  unsigned long long libraries = 0;
  OpenMp pytorchs_openmp{}, other_openmp{};
  std::atomic<const OpenMp*> pytorchs{nullptr}, other{nullptr};

  void look() {
    const std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
    if (!lock) return;
    next_look.store(wall_clock() + between_looks, std::memory_order_relaxed);
    const unsigned long long count = libraries_loaded();
    if (count == libraries) return;
    libraries = count;
    const Loaded loaded = loaded_libraries();
    if (!loaded.torch.empty() && open(loaded.torch.c_str(), pytorchs_openmp))
      pytorchs.store(&pytorchs_openmp, std::memory_order_release);
    // Where there are several copies, the program's own comes first: its name is null.
    if (!other.load(std::memory_order_relaxed)) {
      bool have = open(nullptr, other_openmp);
      for (const std::string& gomp : loaded.gomps) have = have || open(gomp.c_str(), other_openmp);
      if (have) other.store(&other_openmp, std::memory_order_release);
    }
  }
};

Found& found() {
  static Found* const instance = new Found;  // never destroyed: threads may compute at exit
  return *instance;
}

}  // namespace

const OpenMp* find_openmp(bool only_pytorchs, std::int64_t now) {
  if (is_inherited || fork_generation() > 0) return nullptr;
  Found& all = found();
  const OpenMp* openmp = all.pytorchs.load(std::memory_order_acquire);
  if (openmp) return openmp;
  if (now >= all.next_look.load(std::memory_order_relaxed)) all.look();
  openmp = all.pytorchs.load(std::memory_order_acquire);
  return openmp || only_pytorchs ? openmp : all.other.load(std::memory_order_acquire);
}

bool on_main_thread() {
  thread_local const bool main = getpid() == this_thread();
  return main;
}

int this_thread() { return static_cast<int>(syscall(SYS_gettid)); }

std::int64_t processor_time(int thread) {
  // As pthread_getcpuclockid() has it, which must not be asked about a thread that has ended.
  const auto clock = static_cast<clockid_t>(~static_cast<unsigned>(thread) << 3 | 6u);
  timespec t;
  if (clock_gettime(clock, &t) != 0) return -1;
  return std::int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

#else

const OpenMp* find_openmp(bool, std::int64_t) { return nullptr; }
bool on_main_thread() { return false; }
int this_thread() { return 0; }
std::int64_t processor_time(int) { return -1; }

#endif

}  // namespace charrnn_fast
