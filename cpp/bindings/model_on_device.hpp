// Calls of a model whose arrays are the device's, given by addresses: x, y, states and gradients
// stay there. Tokens are NumPy's, for the host checks them. Shapes are the caller's to check.
#pragma once

#include <cstdint>

#include "arrays.hpp"

namespace charrnn_fast::bindings {

template <class T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// tokens [T, B] or [B] of NumPy, or None.
inline const Token* host_tokens(const py::object& tokens) {
  if (tokens.is_none()) return nullptr;
  return static_cast<const Token*>(checked_array<Token>(tokens, "x").data());
}

template <class T>
Index forward_on_device(Model<T>& model, Index seq_len, Index batch, std::uintptr_t x,
                        const py::object& tokens, std::uintptr_t state_0, bool keep,
                        const py::object& lengths, const py::object& mask_seed, std::uintptr_t y,
                        std::uintptr_t state_n) {
  const MaskSeed seed(mask_seed);
  typename Model<T>::Batch in{seq_len, batch, host_tokens(tokens), at<const T>(x)};
  in.mask_seed = seed.get();
  if (!lengths.is_none()) in.lengths = input<Index>(lengths, "lengths", {batch});
  py::gil_scoped_release release;
  return model.forward(in, at<const T>(state_0), keep, at<T>(y), at<T>(state_n));
}

// dstate: on entry the gradient of the last state, on return that of the initial state.
template <class T>
void backward_on_device(Model<T>& model, Index id, std::uintptr_t dy, std::uintptr_t dstate,
                        std::uintptr_t dx, std::uintptr_t gradients) {
  py::gil_scoped_release release;
  const auto kept = model.kept();
  if (kept.id != id || id == 0)
    throw std::runtime_error(
        "backward must follow its own forward, got a later one from another thread");
  model.backward(kept, at<const T>(dy), at<T>(dstate), at<T>(dx), at<T>(gradients));
}

template <class T>
void step_on_device(Model<T>& model, Index batch, std::uintptr_t x, const py::object& tokens,
                    std::uintptr_t state, std::uintptr_t y) {
  const Token* const from = host_tokens(tokens);
  py::gil_scoped_release release;
  model.step({1, batch, from, at<const T>(x)}, at<T>(state), at<T>(y));
}

// Where a parameter's gradient is in the flat array: (offset, rows, cols or 0, whether stored as
// [cols, rows]).
template <class T>
py::dict gradient_places(const Model<T>& model) {
  py::dict places;
  for (const Parameter& p : model.network().parameters())
    places[py::str(p.name)] = py::make_tuple(p.offset, p.rows, p.cols, p.transposed);
  return places;
}

}  // namespace charrnn_fast::bindings
