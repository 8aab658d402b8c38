// NumPy arrays as views: checked here, without copies, for every function of the module.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "charrnn_fast/model.hpp"

namespace charrnn_fast::bindings {

namespace py = pybind11;

// The dtype of small weights: "" for the network's own.
inline Storage storage_named(const std::string& dtype) {
  if (dtype.empty()) return Storage::full;
  if (dtype == "bfloat16") return Storage::bfloat16;
  if (dtype == "int8") return Storage::int8;
  throw py::value_error("weights must be '', 'bfloat16' or 'int8', got '" + dtype + "'");
}
using Shape = std::vector<Index>;

inline std::string text(const Shape& shape) {
  std::ostringstream out;
  out << '[';
  for (std::size_t i = 0; i < shape.size(); ++i) out << (i ? ", " : "") << shape[i];
  out << ']';
  return out.str();
}

inline Shape shape_of(const py::array& a) { return Shape(a.shape(), a.shape() + a.ndim()); }

// Compiled loops may assume that a number's address is a multiple of its size.
inline void check_aligned(const py::array& array, const char* name) {
  if (!(array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_))
    throw py::value_error(std::string(name) + " must be aligned; pass " + name + ".copy()");
}

// Throws TypeError if `object` is not an array of T, ValueError if it is not contiguous or not
// aligned, or not writable if it must be.
template <class T>
py::array checked_array(const py::object& object, const char* name, bool writable = false) {
  const auto wanted = py::dtype::of<T>();
  if (!py::isinstance<py::array>(object))
    throw py::type_error(std::string(name) + " must be a NumPy array of " +
                         py::str(wanted).cast<std::string>() + ", got " +
                         py::str(py::type::of(object).attr("__name__")).cast<std::string>());
  auto array = py::reinterpret_borrow<py::array>(object);
  if (!py::isinstance<py::array_t<T>>(array))
    throw py::type_error(std::string(name) + " must have dtype " +
                         py::str(wanted).cast<std::string>() + ", got " +
                         py::str(array.dtype()).cast<std::string>());
  if (!(array.flags() & py::array::c_style))
    throw py::value_error(std::string(name) +
                          " must be C-contiguous; pass numpy.ascontiguousarray(" + name + ")");
  check_aligned(array, name);
  if (writable && !array.writeable())
    throw py::value_error(std::string(name) + " must be writable, got a read-only array");
  return array;
}

template <class T>
const T* input(const py::object& object, const char* name, const Shape& shape) {
  const py::array array = checked_array<T>(object, name);
  if (shape_of(array) != shape)
    throw py::value_error(std::string(name) + " must have shape " + text(shape) + ", got " +
                          text(shape_of(array)));
  return static_cast<const T*>(array.data());
}

template <class T>
T* output(const py::object& object, const char* name, const Shape& shape) {
  py::array array = checked_array<T>(object, name, true);
  if (shape_of(array) != shape)
    throw py::value_error(std::string(name) + " must have shape " + text(shape) + ", got " +
                          text(shape_of(array)));
  return static_cast<T*>(array.mutable_data());
}

template <class T>
py::array_t<T> new_array(const Shape& shape) {
  return py::array_t<T>(shape);
}

// [S, L*D, B, H]. With a projection, where h is narrower than c, flat: all h, then all c.
template <class T>
Shape state_shape(const Model<T>& model, Index batch) {
  const Network<T>& n = model.network();
  const NetworkShape& s = n.shape();
  if (s.proj_size > 0) return {n.state_elements(batch)};
  return {n.num_states(), s.num_layers * n.directions(), batch, s.hidden_size};
}

// The seed of a call's dropout masks: an integer, or None for no masks.
struct MaskSeed {
  std::uint64_t seed = 0;
  bool given = false;
  explicit MaskSeed(const py::object& object) : given(!object.is_none()) {
    if (given) seed = object.cast<std::uint64_t>();
  }
  const std::uint64_t* get() const { return given ? &seed : nullptr; }
};

// Arguments of a loss over a batch: tokens [T, B], targets [T, B], lengths [B] or None.
template <class T>
class LossBatch {
 public:
  LossBatch(const py::object& inputs, const py::object& target_ids, const py::object& lengths,
            const py::object& mask_seed)
      : seed_(mask_seed) {
    const py::array tokens = checked_array<Token>(inputs, "inputs");
    if (tokens.ndim() != 2 || tokens.shape(1) < 1)
      throw py::value_error("inputs must have shape [T, B] of tokens, got " +
                            text(shape_of(tokens)));
    batch = {tokens.shape(0), tokens.shape(1), static_cast<const Token*>(tokens.data()), nullptr};
    batch.mask_seed = seed_.get();
    targets = input<Token>(target_ids, "targets", {batch.seq_len, batch.batch});
    if (!lengths.is_none()) batch.lengths = input<Index>(lengths, "lengths", {batch.batch});
  }
  LossBatch(const LossBatch&) = delete;
  LossBatch& operator=(const LossBatch&) = delete;

  typename Model<T>::Batch batch{};
  const Token* targets;

 private:
  MaskSeed seed_;
};

// View of a parameter (or its gradient, or its slot) in flat memory that `base` owns.
template <class T>
py::array parameter_view(const Parameter& p, T* flat, const py::handle& base, bool writable) {
  constexpr auto size = static_cast<py::ssize_t>(sizeof(T));
  std::vector<py::ssize_t> shape{p.rows}, strides{size};
  if (p.cols > 0) {
    shape.push_back(p.cols);
    strides = p.transposed ? std::vector<py::ssize_t>{size, p.rows * size}
                           : std::vector<py::ssize_t>{p.cols * size, size};
  }
  py::array view(py::dtype::of<T>(), shape, strides, flat + p.offset, base);
  if (!writable) view.attr("setflags")(py::arg("write") = false);
  return view;
}

// The same for memory of a device: a view, or if the device is not the host, a copy.
template <class T>
py::array parameter_on(Device& device, const Parameter& p, const T* flat, const py::object& owner) {
  if (device.is_host) return parameter_view(p, const_cast<T*>(flat), owner, false);
  auto copy = new_array<T>({p.elements()});
  device.download(flat + p.offset, p.elements(), copy.mutable_data());
  Parameter alone = p;
  alone.offset = 0;
  return parameter_view(alone, copy.mutable_data(), copy, false);
}

// An array of one or two dimensions with any strides (in bytes) and alignment, readable without the
// GIL.
template <class T>
struct StridedView {
  const char* data;
  Index row_stride, col_stride;
};

template <class T>
void check_parameter(const Parameter& p, const py::object& object) {
  if (!py::isinstance<py::array_t<T>>(object))
    throw py::type_error(p.name + " takes an array of " +
                         py::str(py::dtype::of<T>()).cast<std::string>());
  const Shape shape = shape_of(py::reinterpret_borrow<py::array>(object));
  const Shape wanted = p.cols > 0 ? Shape{p.rows, p.cols} : Shape{p.rows};
  if (shape != wanted)
    throw py::value_error(p.name + " must have shape " + text(wanted) + ", got " + text(shape));
}

template <class T>
StridedView<T> view_of(const py::object& object) {
  const auto array = py::reinterpret_borrow<py::array>(object);
  return {static_cast<const char*>(array.data()), array.strides(0),
          array.ndim() > 1 ? array.strides(1) : 0};
}

// Copies a parameter's array, in PyTorch's orientation, to its place in flat memory.
template <class T>
void copy_parameter(const Parameter& p, const StridedView<T>& from, T* flat) {
  const Index cols = p.cols > 0 ? p.cols : 1;
  for (Index r = 0; r < p.rows; ++r)
    for (Index c = 0; c < cols; ++c)
      std::memcpy(flat + p.offset + (p.transposed ? c * p.rows + r : r * cols + c),
                  from.data + r * from.row_stride + c * from.col_stride, sizeof(T));
}

template <class T>
const Parameter& find_parameter(const Network<T>& network, const std::string& name) {
  for (const Parameter& p : network.parameters())
    if (p.name == name) return p;
  std::string known;
  for (const Parameter& p : network.parameters()) known += (known.empty() ? "" : ", ") + p.name;
  throw py::value_error("name must be one of " + known + ", got '" + name + "'");
}

// The device of another module's capsule; None: the CPU.
inline Device& device_of(const py::object& capsule) {
  if (capsule.is_none()) return cpu_device();
  if (!PyCapsule_IsValid(capsule.ptr(), device_capsule))
    throw py::type_error(std::string("device must be None or a capsule called ") + device_capsule +
                         ", got " +
                         py::str(py::type::of(capsule).attr("__name__")).cast<std::string>());
  return *static_cast<Device*>(PyCapsule_GetPointer(capsule.ptr(), device_capsule));
}

void register_threads(py::module_& m);
void register_functions(py::module_& m);
void register_files(py::module_& m);
void register_jax(py::module_& m);  // with CHARRNN_JAX alone
void register_language_models(py::module_& m);
void register_measurements(py::module_& m);
// Models first: the optimizers refer to them.
void register_models(py::module_& m);
void register_networks(py::module_& m);
void register_registry(py::module_& m);
void register_optimizers(py::module_& m);

}  // namespace charrnn_fast::bindings
