// The Python module charrnn_fast._cuda: what the package asks of the GPU. It imports, and answers,
// on a machine without a card or a driver.
//
//   probe() -> dict          reason (str or None), driver and runtime ((major, minor) or None),
//                            architectures (list of str), devices (list of dicts)
//   device(ordinal)          the capsule that a model of charrnn_fast._core takes
//   memory(ordinal)          (free, total), in bytes
//   set_tier(name), tier()   "T1" to "T4", or None: see charrnn_fast/cuda.hpp
//   describe(shape, ...)     how a network's layers would run, in words
//
// For arrays of the card, once device() has been called; addresses and streams are integers:
//
//   ordinal()                of the card
//   allocate(bytes)          (owner, address); the memory lives as long as the owner
//   share(owner)             before others may see it
//   upload(buffer, address), download(address, buffer), copy(from, bytes, to), zero(address, bytes)
//   stream(), set_stream(stream or None), wait_in_stream(waiting, ahead), synchronize()
//   mark(), reached(mark)    a place in the stream, and whether all before it is done
//   to_dlpack(owner, address, shape, strides, (code, bits), ordinal, versioned) -> capsule
//   from_dlpack(capsule)     (owner, address, shape, strides or None, (code, bits, lanes),
//                            (device type, ordinal), read-only)
//
// The tests compile it for the emulator, too (tests/cuda/emulated_module.cpp).
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "charrnn_fast/cuda.hpp"
#include "charrnn_fast/network.hpp"
#include "dlpack.hpp"

namespace charrnn_fast {
namespace {

// Calls f() without the GIL. What it throws becomes a RuntimeError; then returns false.
template <class F>
bool without_gil(F f) {
  std::string error;
  bool thrown = false;
  Py_BEGIN_ALLOW_THREADS;
  try {
    f();
  } catch (const std::exception& e) {
    thrown = true;
    error = e.what();
  }
  Py_END_ALLOW_THREADS;
  if (thrown) PyErr_SetString(PyExc_RuntimeError, error.c_str());
  return !thrown;
}

PyObject* none() {
  Py_INCREF(Py_None);
  return Py_None;
}

// A list of what make(element) gives; it may give null, with an error set.
template <class Elements, class Make>
PyObject* list_of(const Elements& elements, Make make) {
  PyObject* const list = PyList_New(0);
  if (!list) return nullptr;
  for (const auto& element : elements) {
    PyObject* const object = make(element);
    const bool failed = !object || PyList_Append(list, object) < 0;
    Py_XDECREF(object);
    if (failed) {
      Py_DECREF(list);
      return nullptr;
    }
  }
  return list;
}

PyObject* version(int number) {
  return number == 0 ? none() : Py_BuildValue("(ii)", number / 1000, number % 1000 / 10);
}

PyObject* probe(PyObject*, PyObject*) {
  CudaCards found{};
  if (!without_gil([&] { found = cuda_cards(); })) return nullptr;
  int ordinal = 0;
  PyObject* const devices = list_of(found.all, [&](const CudaCard& card) {
    return Py_BuildValue("{s:i, s:s, s:(ii), s:K, s:i}", "ordinal", ordinal++, "name",
                         card.name.c_str(), "capability", card.major, card.minor, "memory",
                         static_cast<unsigned long long>(card.memory), "multiprocessors",
                         card.multiprocessors);
  });
  PyObject* const architectures = list_of(cuda_architectures(), [](const std::string& name) {
    return PyUnicode_FromStringAndSize(name.data(), static_cast<Py_ssize_t>(name.size()));
  });
  PyObject* const reason =
      found.why_not.empty() ? none() : PyUnicode_FromString(found.why_not.c_str());
  // N: takes the references, also when it fails, and fails for a null
  return Py_BuildValue("{s:N, s:N, s:N, s:N, s:N}", "reason", reason, "driver",
                       version(found.driver), "runtime", version(found.runtime), "architectures",
                       architectures, "devices", devices);
}

bool to_ordinal(PyObject* argument, int* ordinal) {
  const long number = PyLong_AsLong(argument);
  if (number == -1 && PyErr_Occurred()) return false;
  *ordinal = number < -1 || number > 1 << 20 ? -1 : static_cast<int>(number);  // no card's
  return true;
}

PyObject* device(PyObject*, PyObject* argument) {
  int ordinal;
  Device* found = nullptr;
  if (!to_ordinal(argument, &ordinal) || !without_gil([&] { found = &cuda_device(ordinal); }))
    return nullptr;
  return PyCapsule_New(found, device_capsule, nullptr);
}

PyObject* memory(PyObject*, PyObject* argument) {
  int ordinal;
  CudaMemory now{};
  const auto read = [&] {
    cuda_device(ordinal);
    now = cuda_memory();
  };
  if (!to_ordinal(argument, &ordinal) || !without_gil(read)) return nullptr;
  return Py_BuildValue("(KK)", static_cast<unsigned long long>(now.free),
                       static_cast<unsigned long long>(now.total));
}

// ---- arrays of the card -------------------------------------------------------------------

// The device that the process uses; it must have been asked for.
Device& device_in_use() { return cuda_device(cuda_ordinal()); }

constexpr const char* block_name = "charrnn_fast.block";
using Block = CardMemory::Block;

void give_back(PyObject* owner) {
  const std::unique_ptr<Block> block(static_cast<Block*>(PyCapsule_GetPointer(owner, block_name)));
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  if (!without_gil([&] { CardMemory::instance().give_back(device_in_use(), *block); }))
    PyErr_WriteUnraisable(nullptr);
  PyErr_Restore(type, value, traceback);
}

PyObject* allocate(PyObject*, PyObject* argument) {
  const std::size_t asked = PyLong_AsSize_t(argument);
  if (PyErr_Occurred()) return nullptr;
  constexpr std::size_t unit = CardMemory::unit;
  auto block = std::make_unique<Block>();
  block->bytes = std::max<std::size_t>(1, (asked + unit - 1) / unit) * unit;
  block->seen = cuda_stream_is_given();
  if (!without_gil(
          [&] { block->address = CardMemory::instance().take(device_in_use(), block->bytes); }))
    return nullptr;
  if (!block->address) {
    PyErr_SetString(PyExc_MemoryError, OutOfMemory(static_cast<double>(asked)).what());
    return nullptr;
  }
  const auto address = reinterpret_cast<std::uintptr_t>(block->address);
  PyObject* const owner = PyCapsule_New(block.get(), block_name, give_back);
  if (!owner) return nullptr;
  block.release();
  return Py_BuildValue("(NK)", owner, static_cast<unsigned long long>(address));
}

PyObject* share(PyObject*, PyObject* owner) {
  // What others own they have seen.
  if (PyCapsule_IsValid(owner, block_name))
    static_cast<Block*>(PyCapsule_GetPointer(owner, block_name))->seen = true;
  return none();
}

void* pointer(unsigned long long address) {
  return reinterpret_cast<void*>(static_cast<std::uintptr_t>(address));
}

PyObject* upload(PyObject*, PyObject* arguments) {
  Py_buffer from;
  unsigned long long to;
  if (!PyArg_ParseTuple(arguments, "y*K", &from, &to)) return nullptr;
  const bool done = without_gil([&] {
    if (from.len > 0)
      device_in_use().upload_bytes(from.buf, static_cast<std::size_t>(from.len), pointer(to));
  });
  PyBuffer_Release(&from);
  return done ? none() : nullptr;
}

PyObject* download(PyObject*, PyObject* arguments) {
  unsigned long long from;
  Py_buffer to;
  if (!PyArg_ParseTuple(arguments, "Kw*", &from, &to)) return nullptr;
  const bool done = without_gil([&] {
    if (to.len > 0)
      device_in_use().download_bytes(pointer(from), static_cast<std::size_t>(to.len), to.buf);
  });
  PyBuffer_Release(&to);
  return done ? none() : nullptr;
}

PyObject* copy(PyObject*, PyObject* arguments) {
  unsigned long long from, bytes, to;
  if (!PyArg_ParseTuple(arguments, "KKK", &from, &bytes, &to)) return nullptr;
  const auto done = [&] {
    if (bytes > 0) device_in_use().copy_bytes(pointer(from), bytes, pointer(to));
  };
  return without_gil(done) ? none() : nullptr;
}

PyObject* zero(PyObject*, PyObject* arguments) {
  unsigned long long to, bytes;
  if (!PyArg_ParseTuple(arguments, "KK", &to, &bytes)) return nullptr;
  const auto done = [&] {
    if (bytes > 0) device_in_use().zero_bytes(pointer(to), bytes);
  };
  return without_gil(done) ? none() : nullptr;
}

PyObject* stream(PyObject*, PyObject*) {
  void* now = nullptr;
  if (!without_gil([&] { now = cuda_stream(); })) return nullptr;
  return PyLong_FromUnsignedLongLong(reinterpret_cast<std::uintptr_t>(now));
}

PyObject* set_stream(PyObject*, PyObject* argument) {
  const bool given = argument != Py_None;
  const unsigned long long handle = given ? PyLong_AsUnsignedLongLong(argument) : 0;
  if (PyErr_Occurred()) return nullptr;
  const bool was_given = cuda_stream_is_given();
  PyObject* const before = was_given ? stream(nullptr, nullptr) : none();
  if (before) given ? cuda_give_stream(pointer(handle)) : cuda_take_stream_back();
  return before;
}

PyObject* wait_in_stream(PyObject*, PyObject* arguments) {
  unsigned long long waiting, ahead;
  if (!PyArg_ParseTuple(arguments, "KK", &waiting, &ahead)) return nullptr;
  return without_gil([&] { cuda_stream_wait(pointer(waiting), pointer(ahead)); }) ? none()
                                                                                  : nullptr;
}

PyObject* synchronize(PyObject*, PyObject*) {
  return without_gil([] { device_in_use().synchronize(); }) ? none() : nullptr;
}

constexpr const char* mark_name = "charrnn_fast.mark";

PyObject* mark(PyObject*, PyObject*) {
  void* made = nullptr;
  if (!without_gil([&] { made = cuda_new_mark(); })) return nullptr;
  PyObject* const capsule = PyCapsule_New(made, mark_name, [](PyObject* own) {
    cuda_delete_mark(PyCapsule_GetPointer(own, mark_name));
  });
  if (!capsule) cuda_delete_mark(made);
  return capsule;
}

PyObject* reached(PyObject*, PyObject* capsule) {
  void* const place = PyCapsule_GetPointer(capsule, mark_name);
  bool is = false;
  if (!place || !without_gil([&] { is = cuda_reached(place); })) return nullptr;
  return PyBool_FromLong(is);
}

bool to_numbers(PyObject* object, std::vector<std::int64_t>* numbers) {
  PyObject* const all = PySequence_Fast(object, "must be a sequence of integers");
  if (!all) return false;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(all); ++i)
    numbers->push_back(PyLong_AsLongLong(PySequence_Fast_GET_ITEM(all, i)));
  Py_DECREF(all);
  return !PyErr_Occurred();
}

PyObject* to_dlpack(PyObject*, PyObject* arguments) {
  PyObject *owner, *shape_object, *strides_object;
  unsigned long long address;
  unsigned char code, bits;
  int ordinal, with_version;
  std::vector<std::int64_t> shape, strides;
  if (!PyArg_ParseTuple(arguments, "OKOO(bb)ip", &owner, &address, &shape_object, &strides_object,
                        &code, &bits, &ordinal, &with_version) ||
      !to_numbers(shape_object, &shape) || !to_numbers(strides_object, &strides))
    return nullptr;
  const dlpack::Tensor tensor{pointer(address),
                              {2, ordinal},
                              static_cast<int>(shape.size()),
                              {code, bits, 1},
                              shape.data(),
                              strides.data(),
                              0};
  return dlpack::to_capsule(owner, tensor, with_version);
}

PyObject* from_dlpack(PyObject*, PyObject* capsule) {
  const dlpack::Taken taken = dlpack::take(capsule);
  if (!taken.owner) return nullptr;
  const dlpack::Tensor& tensor = taken.tensor;
  const auto numbers = [&](const std::int64_t* from) {
    return from ? list_of(std::vector<std::int64_t>(from, from + tensor.ndim),
                          [](std::int64_t n) { return PyLong_FromLongLong(n); })
                : none();
  };
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset;
  return Py_BuildValue("(NKNN(BBH)(ii)O)", taken.owner, static_cast<unsigned long long>(address),
                       numbers(tensor.shape), numbers(tensor.strides), tensor.type.code,
                       tensor.type.bits, tensor.type.lanes, tensor.place.type, tensor.place.ordinal,
                       taken.read_only ? Py_True : Py_False);
}

PyObject* ordinal(PyObject*, PyObject*) { return PyLong_FromLong(cuda_ordinal()); }

// ---- how recurrent layers run -------------------------------------------------------------

PyObject* set_tier(PyObject*, PyObject* argument) {
  const char* const name = argument == Py_None ? nullptr : PyUnicode_AsUTF8(argument);
  if (argument != Py_None && !name) return nullptr;
  try {
    set_cuda_tier(name);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
  return none();
}

PyObject* tier(PyObject*, PyObject*) {
  try {
    const char* const name = cuda_tier();
    return name ? PyUnicode_FromString(name) : none();
  } catch (const std::exception& error) {  // of the environment
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
}

PyObject* describe_plan(PyObject*, PyObject* arguments, PyObject* keywords) {
  static const char* const names[] = {"cell",    "hidden_size",  "num_layers", "batch",
                                      "seq_len", "nonlinearity", "proj_size",  "layer_norm",
                                      "float64", nullptr};
  NetworkShape shape;
  const char *cell, *nonlinearity = "tanh";
  long long hidden_size, num_layers, batch, seq_len, proj_size = 0;
  int layer_norm = 0, float64 = 0;
  if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "sLLLL|$sLpp:describe",
                                   const_cast<char**>(names), &cell, &hidden_size, &num_layers,
                                   &batch, &seq_len, &nonlinearity, &proj_size, &layer_norm,
                                   &float64))
    return nullptr;
  try {
    shape.cell = cell;
    shape.hidden_size = hidden_size;
    shape.num_layers = num_layers;
    shape.nonlinearity = nonlinearity;
    shape.proj_size = proj_size;
    shape.layer_norm = layer_norm != 0;
    const std::string text = describe(cuda_plan(shape, batch, seq_len, float64 != 0));
    return PyUnicode_FromStringAndSize(text.data(), static_cast<Py_ssize_t>(text.size()));
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyMethodDef cuda_methods[] = {
    {"probe", probe, METH_NOARGS, "What there is of CUDA; starts nothing on a card."},
    {"device", device, METH_O, "The card, as a model of _core takes it."},
    {"memory", memory, METH_O, "Free and total bytes of the card."},
    {"ordinal", ordinal, METH_NOARGS, "Of the card that the process uses."},
    {"allocate", allocate, METH_O, nullptr},
    {"share", share, METH_O, nullptr},
    {"upload", upload, METH_VARARGS, nullptr},
    {"download", download, METH_VARARGS, nullptr},
    {"copy", copy, METH_VARARGS, nullptr},
    {"zero", zero, METH_VARARGS, nullptr},
    {"stream", stream, METH_NOARGS, nullptr},
    {"set_stream", set_stream, METH_O, nullptr},
    {"wait_in_stream", wait_in_stream, METH_VARARGS, nullptr},
    {"synchronize", synchronize, METH_NOARGS, nullptr},
    {"mark", mark, METH_NOARGS, nullptr},
    {"reached", reached, METH_O, nullptr},
    {"to_dlpack", to_dlpack, METH_VARARGS, nullptr},
    {"from_dlpack", from_dlpack, METH_O, nullptr},
    {"set_tier", set_tier, METH_O, "All recurrent layers take T1, T2, T3 or T4; None: their own."},
    {"tier", tier, METH_NOARGS, "The tier that is forced, or None."},
    {"describe", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(describe_plan)),
     METH_VARARGS | METH_KEYWORDS, "How the layers of a network would run, a line for each pass."},
    {nullptr, nullptr, 0, nullptr}};

PyObject* new_module(const char* name) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                   name,
                                   "The CUDA kernels of charrnn_fast. Private; see the package.",
                                   -1,
                                   cuda_methods,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr};
  return PyModule_Create(&definition);
}

}  // namespace
}  // namespace charrnn_fast

#ifndef CHARRNN_EMULATED
PyMODINIT_FUNC PyInit__cuda() { return charrnn_fast::new_module("_cuda"); }
#endif
