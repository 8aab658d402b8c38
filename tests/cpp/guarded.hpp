// Arrays that end where memory ends, or begin where it begins: one access outside of them, however
// small, ends the program in any build, on every instruction set, with the name of the case.
#pragma once

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

namespace charrnn_fast {

// Which side of an array is guarded up to its last byte; the other one to within a page.
enum class Side { begin, end };
inline Side guarded_side = Side::end;

inline char guarded_case[200] = "";
inline void name_guarded_case(const std::string& name) {
  std::snprintf(guarded_case, sizeof guarded_case, "%s, guarded at the %s\n", name.c_str(),
                guarded_side == Side::end ? "end" : "begin");
}
inline void report_access(int) {
  const char message[] = "access outside an array: ";
  if (write(1, message, sizeof message - 1) < 0 ||
      write(1, guarded_case, std::strlen(guarded_case)) < 0)
    _exit(2);
  _exit(1);
}
inline void watch_accesses() {
  std::signal(SIGSEGV, report_access);
  std::signal(SIGBUS, report_access);
}

// Memory between two pages without access. Its bytes are 0xff, NaN in numbers: what is read before
// it is written shows.
class GuardedMemory {
 public:
  static GuardedMemory& instance() {
    static GuardedMemory* const all = new GuardedMemory;  // outlives whatever is released last
    return *all;
  }
  void* allocate(std::size_t size) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t inside = (size + page - 1) / page * page, whole = inside + 2 * page;
    void* const mapping =
        mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) std::abort();
    char* const first = static_cast<char*>(mapping) + page;
    if (inside > 0) {
      if (mprotect(first, inside, PROT_READ | PROT_WRITE) != 0) std::abort();
      std::memset(first, 0xff, inside);
    }
    char* const p = guarded_side == Side::end ? first + (inside - size) : first;
    const std::lock_guard<std::mutex> lock(mutex_);
    mappings_[p] = {mapping, whole};
    return p;
  }
  void make_read_only(void* p) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto [mapping, whole] = mappings_.at(p);
    if (mprotect(static_cast<char*>(mapping) + page, whole - 2 * page, PROT_READ) != 0)
      std::abort();
  }
  void release(void* p) {
    if (!p) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = mappings_.find(p);
    if (found == mappings_.end()) std::abort();
    munmap(found->second.first, found->second.second);
    mappings_.erase(found);
  }

 private:
  std::mutex mutex_;
  std::map<void*, std::pair<void*, std::size_t>> mappings_;
};

template <class T>
class Guarded {
 public:
  explicit Guarded(std::size_t n)
      : data_(static_cast<T*>(GuardedMemory::instance().allocate(n * sizeof(T)))), size_(n) {}
  explicit Guarded(const std::vector<T>& values) : Guarded(values.size()) {
    if (size_ > 0) std::memcpy(data_, values.data(), size_ * sizeof(T));
  }
  Guarded(std::size_t n, T value) : Guarded(std::vector<T>(n, value)) {}
  ~Guarded() { GuardedMemory::instance().release(data_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  T* data() { return data_; }
  const T* data() const { return data_; }
  void make_read_only() { GuardedMemory::instance().make_read_only(data_); }
  std::size_t size() const { return size_; }

 private:
  T* data_;
  std::size_t size_;
};

}  // namespace charrnn_fast
