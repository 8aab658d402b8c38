// Arrays in memory of the card as Python's capsules: owners of memory, and DLPack's tensors, whose
// structs are those of its specification (versions 0 and 1).
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "charrnn_fast/device.hpp"

namespace charrnn_fast {
namespace dlpack {

struct Place {
  std::int32_t type, ordinal;  // 2: CUDA
};
struct ElementType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};
struct Tensor {
  void* data;
  Place place;
  std::int32_t ndim;
  ElementType type;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: row-major
  std::uint64_t byte_offset;
};
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};
struct Version {
  std::uint32_t major, minor;
};
struct VersionedManaged {
  Version version;
  void* context;
  void (*deleter)(VersionedManaged*);
  std::uint64_t flags;  // 1: read-only
  Tensor tensor;
};

constexpr const char *unversioned = "dltensor", *versioned = "dltensor_versioned";
constexpr const char *used_unversioned = "used_dltensor",
                     *used_versioned = "used_dltensor_versioned";

// What a tensor that others hold needs: its owner, and the arrays that it refers to.
template <class M>
struct Export {
  M managed{};
  PyObject* owner;
  std::vector<std::int64_t> shape, strides;
};

template <class M>
void delete_export(M* managed) {
  auto* const all = static_cast<Export<M>*>(managed->context);
  if (Py_IsInitialized()) {
    const PyGILState_STATE state = PyGILState_Ensure();
    Py_DECREF(all->owner);
    PyGILState_Release(state);
  }
  delete all;
}

template <class M>
void destroy_capsule(PyObject* capsule, const char* name) {
  if (!PyCapsule_IsValid(capsule, name)) return;  // somebody has taken it
  auto* const managed = static_cast<M*>(PyCapsule_GetPointer(capsule, name));
  if (managed->deleter) managed->deleter(managed);
}

template <class M>
PyObject* new_export(PyObject* owner, const Tensor& tensor, const char* name,
                     PyCapsule_Destructor destructor) {
  auto all = std::make_unique<Export<M>>();
  all->shape.assign(tensor.shape, tensor.shape + tensor.ndim);
  all->strides.assign(tensor.strides, tensor.strides + tensor.ndim);
  all->managed.tensor = tensor;
  all->managed.tensor.shape = all->shape.data();
  all->managed.tensor.strides = all->strides.data();
  all->managed.context = all.get();
  all->managed.deleter = delete_export<M>;
  all->owner = owner;
  if constexpr (std::is_same_v<M, VersionedManaged>) all->managed.version = {1, 0};
  PyObject* const capsule = PyCapsule_New(&all->managed, name, destructor);
  if (!capsule) return nullptr;
  Py_INCREF(owner);
  all.release();
  return capsule;
}

inline PyObject* to_capsule(PyObject* owner, const Tensor& tensor, bool with_version) {
  if (with_version)
    return new_export<VersionedManaged>(owner, tensor, versioned, [](PyObject* capsule) {
      destroy_capsule<VersionedManaged>(capsule, versioned);
    });
  return new_export<Managed>(owner, tensor, unversioned, [](PyObject* capsule) {
    destroy_capsule<Managed>(capsule, unversioned);
  });
}

// A tensor taken from another library, and the capsule that gives it back when it goes.
struct Taken {
  PyObject* owner = nullptr;  // null: a Python error is set
  Tensor tensor{};
  bool read_only = false;
};

template <class M>
Taken take_as(PyObject* capsule, const char* name, const char* used, const char* owner_name,
              PyCapsule_Destructor destructor) {
  auto* const managed = static_cast<M*>(PyCapsule_GetPointer(capsule, name));
  Taken taken;
  taken.tensor = managed->tensor;
  if constexpr (std::is_same_v<M, VersionedManaged>) {
    if (managed->version.major > 1) {
      PyErr_SetString(PyExc_BufferError, "a DLPack tensor must be of version 1 or older");
      return taken;
    }
    taken.read_only = managed->flags & 1;
  }
  taken.owner = PyCapsule_New(managed, owner_name, destructor);
  if (taken.owner && PyCapsule_SetName(capsule, used) < 0) Py_CLEAR(taken.owner);
  return taken;
}

inline Taken take(PyObject* capsule) {
  constexpr const char *owner = "charrnn_fast.taken", *owner_versioned = "charrnn_fast.taken/1";
  if (PyCapsule_IsValid(capsule, versioned))
    return take_as<VersionedManaged>(
        capsule, versioned, used_versioned, "charrnn_fast.taken/1",
        [](PyObject* own) { destroy_capsule<VersionedManaged>(own, owner_versioned); });
  if (PyCapsule_IsValid(capsule, unversioned))
    return take_as<Managed>(capsule, unversioned, used_unversioned, "charrnn_fast.taken",
                            [](PyObject* own) { destroy_capsule<Managed>(own, owner); });
  PyErr_SetString(PyExc_BufferError, "a DLPack capsule must be unused, got another one");
  return {};
}

}  // namespace dlpack

// Memory of the card for arrays: what is given back serves the next array of its size. Work on the
// device's own stream is in order, so it needs no wait; memory that others have seen, on whatever
// stream, is released for good, behind all work of the card.
class CardMemory {
 public:
  struct Block {
    void* address;
    std::size_t bytes;
    bool seen;  // by another library, or on another stream
  };

  static CardMemory& instance() {
    static CardMemory& it = *new CardMemory;
    return it;
  }
  // Null when out of memory.
  void* take(Device& device, std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = free_.find(bytes);
    if (found != free_.end()) {
      void* const address = found->second;
      free_.erase(found);
      held_ -= bytes;
      return address;
    }
    void* const address = device.allocate(bytes);
    if (address || free_.empty()) return address;
    for (const auto& [size, other] : free_) device.release(other);
    free_.clear();
    held_ = 0;
    return device.allocate(bytes);
  }
  void give_back(Device& device, const Block& block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (block.seen || held_ + block.bytes > most) return device.release(block.address);
    free_.emplace(block.bytes, block.address);
    held_ += block.bytes;
  }
  std::size_t held() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return held_;
  }

  static constexpr std::size_t unit = 512, most = std::size_t(1) << 30;

 private:
  std::mutex mutex_;
  std::multimap<std::size_t, void*> free_;
  std::size_t held_ = 0;
};

}  // namespace charrnn_fast
