// cuda/device.cu, compiled for the emulator.
#include "device.cu"
