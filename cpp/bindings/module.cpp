#include "arrays.hpp"
#include "charrnn_fast/threads.hpp"
#include "cpu/dispatch.hpp"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled kernels of charrnn_fast. Private; see the package.";
  // An unusable CHARRNN_ISA or CHARRNN_NUM_THREADS is reported at import, not at first use.
  charrnn_fast::isa_in_use();
  charrnn_fast::get_num_threads();
  charrnn_fast::bindings::register_threads(m);
  charrnn_fast::bindings::register_registry(m);
  charrnn_fast::bindings::register_models(m);
  charrnn_fast::bindings::register_networks(m);
  charrnn_fast::bindings::register_optimizers(m);
  charrnn_fast::bindings::register_functions(m);
  charrnn_fast::bindings::register_files(m);
  charrnn_fast::bindings::register_language_models(m);
  charrnn_fast::bindings::register_measurements(m);
#ifdef CHARRNN_JAX
  charrnn_fast::bindings::register_jax(m);
#endif
}
