// Where a network computes: a device has memory, copies to it and from it, and a table of kernels
// for each number type. Network, Optimizer and Model are written once, for every device.
//
// What a device allocates is accessed by its kernels and copies alone. The program's own memory is
// called the host's. On a device with is_host the two are one, and arrays of the caller are used as
// they are.
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

// Devices live as long as what is on them, and are not copied.
class Device {
 public:
  using TeamFunction = void (*)(void* context, const Team& team);

  const char* const name;
  const bool is_host;
  const Kernels<float>* const f32;
  const Kernels<double>* const f64;  // or null: float32 alone

  // Aligned to 64 bytes; null where there is no such memory left.
  virtual void* allocate(std::size_t bytes) = 0;
  virtual void release(void* memory) = 0;

  // All of these, and kernels, happen in the order of their calls. `to` of a download holds what
  // was copied when the call returns; so `from` of an upload may change then.
  virtual void upload_bytes(const void* from, std::size_t bytes, void* to) = 0;    // from the host
  virtual void download_bytes(const void* from, std::size_t bytes, void* to) = 0;  // to the host
  virtual void copy_bytes(const void* from, std::size_t bytes, void* to) = 0;
  virtual void zero_bytes(void* to, std::size_t bytes) = 0;
  // Waits for all of them.
  virtual void synchronize() = 0;

  // Parts to share out so many floating-point operations among: threads of a CPU, 1 on a GPU, whose
  // threads are below its kernels. The second for work that ends with a wait for all parts.
  virtual int parts(double operations) const = 0;
  virtual int parts_before_wait(double operations) const = 0;
  int most_parts() const { return parts(std::numeric_limits<double>::infinity()); }
  // f(context, team) for each of at most so many parts, at once; f launches kernels, and must not
  // throw.
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

// The processor, with the kernels of its instruction set (CHARRNN_ISA) and the pool of threads of
// threads.hpp. There is one, and it is never destroyed. Throws std::invalid_argument where
// CHARRNN_ISA names no set that runs here.
Device& cpu_device();

// The name of a Python capsule of a Device*, of a device that is never destroyed: so a module of
// its own gives the package a device. The number changes where Device or Kernels does.
constexpr const char* device_capsule = "charrnn_fast.Device/2";

// Says how much was asked for: "out of memory: 12.3 GB more were asked for".
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(double bytes);
  const char* what() const noexcept override { return message_; }

 private:
  char message_[64];  // a string would allocate
};

// Memory of a device, aligned for its kernels; growing loses the contents. Throws OutOfMemory.
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
    if (!memory) throw OutOfMemory(static_cast<double>(elements) * sizeof(T));
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

// An array that the host writes and kernels read: where the device is the host, one and the same.
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
  // Its first n elements become what the host's are.
  T* upload(Index n) const {
    if (!device_->is_host) device_->upload(here_.get(), n, there_.get());
    return there();
  }

 private:
  Device* device_;
  AlignedBuffer<T> here_, there_;
};

}  // namespace charrnn_fast
