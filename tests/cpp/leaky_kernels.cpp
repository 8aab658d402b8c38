// The kernels of the leaky cell, compiled per instruction set like those of the library.
#include "internal/cell_kernels.hpp"
#include "leaky_rnn.hpp"

namespace charrnn_fast {
namespace CHARRNN_ISA {
namespace {
constexpr CellKernels<CHARRNN_SCALAR> table = cell_kernels<LeakyRnn, CHARRNN_SCALAR>();
}
const CellKernels<CHARRNN_SCALAR>& leaky(CHARRNN_SCALAR) { return table; }
}  // namespace CHARRNN_ISA
}  // namespace charrnn_fast
