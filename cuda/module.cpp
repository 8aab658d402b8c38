// The Python module charrnn_fast._cuda: what the package asks of the GPU. It imports, and answers,
// on a machine without a card or a driver.
//
//   probe() -> dict          reason (str or None), driver and runtime ((major, minor) or None),
//                            architectures (list of str), devices (list of dicts)
//   device(ordinal)          the capsule that a model of charrnn_fast._core takes
//   memory(ordinal)          (free, total), in bytes
//
// The tests compile it for the emulator, too (tests/cuda/emulated_module.cpp).
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <exception>
#include <string>

#include "charrnn_fast/cuda.hpp"

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

PyMethodDef cuda_methods[] = {
    {"probe", probe, METH_NOARGS, "What there is of CUDA; starts nothing on a card."},
    {"device", device, METH_O, "The card, as a model of _core takes it."},
    {"memory", memory, METH_O, "Free and total bytes of the card."},
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
