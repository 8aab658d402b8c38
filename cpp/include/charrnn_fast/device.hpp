// A device: its memory, copies to and from it, and a table of kernels for each number type.
// Network, Optimizer and Model are written once, for every device.
//
// Only a device's kernels and copies access the memory that it allocates. The program's own memory
// is the host's. Where is_host holds, the two are one, and the caller's arrays are used in place.
#pragma once

#include <cstddef>
#include <limits>
#include <memory>
#include <new>

#include "charrnn_fast/config.hpp"

namespace charrnn_fast {

struct Team;
template <class T>
struct Kernels;

// A device must outlive everything on it. It cannot be copied.
class Device {
 public:
  using TeamFunction = void (*)(void* context, const Team& team);

  const char* const name;
  const bool is_host;
  const Kernels<float>* const f32;
  const Kernels<double>* const f64;  // null: float32 only

  // Aligned to 64 bytes; null when out of memory.
  virtual void* allocate(std::size_t bytes) = 0;
  virtual void release(void* memory) = 0;

  // Copies and kernels run in the order of the calls. upload_bytes has read `from` when it returns;
  // download_bytes has written `to`.
  virtual void upload_bytes(const void* from, std::size_t bytes, void* to) = 0;    // from the host
  virtual void download_bytes(const void* from, std::size_t bytes, void* to) = 0;  // to the host
  virtual void copy_bytes(const void* from, std::size_t bytes, void* to) = 0;
  virtual void zero_bytes(void* to, std::size_t bytes) = 0;
  // Waits until all of them are done.
  virtual void synchronize() = 0;

  // Number of parts that share `operations` floating-point operations: threads of a CPU; 1 on a
  // GPU, whose kernels have threads of their own. parts_before_wait: for work that ends with a wait
  // for all parts.
  virtual int parts(double operations) const = 0;
  virtual int parts_before_wait(double operations) const = 0;
  int most_parts() const { return parts(std::numeric_limits<double>::infinity()); }
  // Calls f(context, team) for each of at most `parts` parts, at once. f launches kernels and must
  // not throw.
  virtual void run(int parts, TeamFunction f, void* context) = 0;

  template <class T>
  void upload(const T* from, Index n, T* to) {
    if (n > 0) upload_bytes(from, static_cast<std::size_t>(n) * sizeof(T), to);
  }
  template <class T>
  void download(const T* from, Index n, T* to) {
    if (n > 0) download_bytes(from, static_cast<std::size_t>(n) * sizeof(T), to);
  }
  template <class T>
  void copy(const T* from, Index n, T* to) {
    if (n > 0) copy_bytes(from, static_cast<std::size_t>(n) * sizeof(T), to);
  }
  template <class T>
  void zero(T* to, Index n) {
    if (n > 0) zero_bytes(to, static_cast<std::size_t>(n) * sizeof(T));
  }

 protected:
  Device(const char* device_name, bool host, const Kernels<float>* floats,
         const Kernels<double>* doubles)
      : name(device_name), is_host(host), f32(floats), f64(doubles) {}
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() = default;
};

// The CPU, with the kernels of its instruction set (CHARRNN_ISA) and the threads of threads.hpp.
// There is one; it is never destroyed. Throws std::invalid_argument if CHARRNN_ISA names no
// instruction set that runs here.
Device& cpu_device();

// Name of a Python capsule that holds a Device*, by which a separate module gives the package a
// device. That must never be destroyed. The number changes whenever Device or Kernels does.
constexpr const char* device_capsule = "charrnn_fast.Device/7";

// Its message says how much was requested: "out of memory: 12.3 GB more were asked for". With a
// device that is not the host: "out of memory on cuda: ...".
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(double bytes, const Device* device = nullptr);
  const char* what() const noexcept override { return message_; }

 private:
  char message_[128];  // a string would allocate
};

// Memory of a device, aligned for its kernels. Growing loses the contents. Throws OutOfMemory.
template <class T>
class AlignedBuffer {
 public:
  AlignedBuffer() : AlignedBuffer(cpu_device()) {}
  explicit AlignedBuffer(Device& device) : data_(nullptr, Release{&device}) {}
  T* get() const { return data_.get(); }
  Index size() const { return size_; }
  void reserve(Index elements) {
    if (elements <= size_) return;
    data_.reset();
    size_ = 0;
    constexpr auto most = std::numeric_limits<std::ptrdiff_t>::max() / Index(sizeof(T));
    void* const memory =
        elements > most
            ? nullptr
            : data_.get_deleter().device->allocate(static_cast<std::size_t>(elements) * sizeof(T));
    if (!memory)
      throw OutOfMemory(static_cast<double>(elements) * sizeof(T), data_.get_deleter().device);
    data_.reset(static_cast<T*>(memory));
    size_ = elements;
  }

 private:
  struct Release {
    Device* device;
    void operator()(T* p) const { device->release(p); }
  };
  std::unique_ptr<T, Release> data_;
  Index size_ = 0;
};

// An array that the host writes and kernels read. Where the device is the host, both use one copy.
template <class T>
class MirroredBuffer {
 public:
  explicit MirroredBuffer(Device& device) : device_(&device), there_(device) {}
  T* get() const { return here_.get(); }  // the host's
  Index size() const { return here_.size() + there_.size(); }
  void reserve(Index elements) {
    here_.reserve(elements);
    if (!device_->is_host) there_.reserve(elements);
  }
  T* there() const { return device_->is_host ? here_.get() : there_.get(); }  // the device's
  // Copies the host's first n elements to the device; returns there().
  T* upload(Index n) const {
    if (!device_->is_host) device_->upload(here_.get(), n, there_.get());
    return there();
  }

 private:
  Device* device_;
  AlignedBuffer<T> here_, there_;
};

}  // namespace charrnn_fast
