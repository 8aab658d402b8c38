// The kernels of the peephole cell, compiled per instruction set like those of the library.
#include "kernels/isa.hpp"
#include "peephole_lstm.hpp"

namespace charrnn_fast {
namespace CHARRNN_ISA {
namespace {
constexpr CellKernels<CHARRNN_SCALAR> table = cell_kernels<PeepholeLstm, CHARRNN_SCALAR>();
}
const CellKernels<CHARRNN_SCALAR>& peephole(CHARRNN_SCALAR) { return table; }
}  // namespace CHARRNN_ISA
}  // namespace charrnn_fast
