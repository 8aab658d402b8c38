// Every cell of the package as device code. Compiled, not run: no library links it yet.
#include "kernels/pointwise.cuh"

#include <initializer_list>

namespace charrnn_fast {
namespace cuda {
namespace {

template <class... C>
void instantiate(CellList<C...>) {
  (void)std::initializer_list<const void*>{
      reinterpret_cast<const void*>(&pointwise_forward<C, float>)...,
      reinterpret_cast<const void*>(&pointwise_forward<C, double>)...,
      reinterpret_cast<const void*>(&pointwise_backward<C, float>)...,
      reinterpret_cast<const void*>(&pointwise_backward<C, double>)...};
}

}  // namespace

void instantiate_all() { instantiate(Cells()); }

}  // namespace cuda
}  // namespace charrnn_fast
