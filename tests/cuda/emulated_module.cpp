// charrnn_fast._cuda with the emulated device: the CUDA kernels and their launchers, run by the
// emulator. set_order(n) and statistics() are the emulator's.
#define CHARRNN_EMULATED
#include "emulator/emulator.hpp"
#include "module.cpp"

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

// A stream as another library would have it, never destroyed; its number.
PyObject* new_stream(PyObject*, PyObject*) { return PyLong_FromVoidPtr(new cuda_emulator::Stream); }
// How much of a stream waits to be run.
PyObject* queued(PyObject*, PyObject* argument) {
  void* const handle = PyLong_AsVoidPtr(argument);
  if (PyErr_Occurred()) return nullptr;
  return PyLong_FromSize_t(static_cast<cuda_emulator::Stream*>(handle)->queued());
}

PyMethodDef methods[] = {
    {"new_stream", new_stream, METH_NOARGS, nullptr},
    {"queued", queued, METH_O, nullptr},
    {"set_order", set_order, METH_O, nullptr},
    {"statistics", statistics, METH_NOARGS, "Launches, threads, thread-steps."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

PyMODINIT_FUNC PyInit_emulated_device() {
  PyObject* const module = charrnn_fast::new_module("emulated_device");
  if (module && PyModule_AddFunctions(module, methods) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
