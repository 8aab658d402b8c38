// A Python module with the guarded device, as the capsule that a network of charrnn_fast._core
// takes.
#include <Python.h>

#include "guarded_device.hpp"

PyMODINIT_FUNC PyInit_guarded_device() {
  using namespace charrnn_fast;
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                   "guarded_device",
                                   nullptr,
                                   -1,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr};
  PyObject* const module = PyModule_Create(&definition);
  if (!module) return nullptr;
  Device* const device = &GuardedDevice::instance();
  PyObject* const capsule = PyCapsule_New(device, device_capsule, nullptr);
  if (!capsule || PyModule_AddObject(module, "device", capsule) < 0) {
    Py_XDECREF(capsule);
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
