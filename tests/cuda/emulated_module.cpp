// A Python module with the emulated device: the CUDA kernels and their launchers, run by the
// emulator. `device` is the capsule that a network of charrnn_fast._core takes; set_order(n) and
// statistics() are the emulator's.
#include <Python.h>

#include "device.hpp"
#include "emulator/emulator.hpp"

namespace {

PyObject* set_order(PyObject*, PyObject* argument) {
  const unsigned long long order = PyLong_AsUnsignedLongLong(argument);
  if (PyErr_Occurred()) return nullptr;
  cuda_emulator::set_order(order);
  Py_RETURN_NONE;
}

PyObject* statistics(PyObject*, PyObject*) {
  const cuda_emulator::Statistics done = cuda_emulator::statistics();
  return Py_BuildValue("(KKK)", static_cast<unsigned long long>(done.launches),
                       static_cast<unsigned long long>(done.threads),
                       static_cast<unsigned long long>(done.switches));
}

PyMethodDef methods[] = {
    {"set_order", set_order, METH_O, nullptr},
    {"statistics", statistics, METH_NOARGS, "Launches, threads, thread-steps."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

PyMODINIT_FUNC PyInit_emulated_device() {
  using namespace charrnn_fast;
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                   "emulated_device",
                                   nullptr,
                                   -1,
                                   methods,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr};
  PyObject* const module = PyModule_Create(&definition);
  if (!module) return nullptr;
  PyObject* const capsule = PyCapsule_New(&cuda_device(), device_capsule, nullptr);
  if (!capsule || PyModule_AddObject(module, "device", capsule) < 0) {
    Py_XDECREF(capsule);
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
