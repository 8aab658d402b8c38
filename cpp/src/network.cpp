// A network's shape, parameters and packed weights.
#include "charrnn_fast/network.hpp"

#include "charrnn_fast/registry.hpp"
#include "errors.hpp"
#include "internal/network_of_cell.hpp"
#include "network_common.hpp"

namespace charrnn_fast {
namespace {

template <class T>
const CellKernels<T>& find_cell(const Kernels<T>& k, const NetworkShape& shape) {
  std::string known, nonlinearities;
  for (int i = 0; i < k.num_cells; ++i) {
    const CellKernels<T>& cell = k.cells[i];
    const bool named = cell.name == shape.cell;
    if (named && cell.nonlinearity == shape.nonlinearity) return cell;
    if (named) nonlinearities += (nonlinearities.empty() ? "" : ", ") + quoted(cell.nonlinearity);
    if (i == 0 || std::string(k.cells[i - 1].name) != cell.name)
      known += (i ? ", " : "") + quoted(cell.name);
  }
  require(!nonlinearities.empty(), "cell must be one of ", known, ", got ", quoted(shape.cell));
  fail("nonlinearity of cell ", quoted(shape.cell), " must be one of ", nonlinearities, ", got ",
       quoted(shape.nonlinearity));
}

}  // namespace

bool can_compute(const Device& device, Compute compute) {
  return compute != Compute::tf32 || !device.is_host;
}

void check_compute(Compute compute, bool is_float64, const Device& device) {
  const std::string got = quoted(name_of(compute));
  require(compute == Compute::float32 || !is_float64,
          "compute_dtype of a float64 network must be 'float32', got ", got);
  std::string known;
  for (const ComputeInfo& info : compute_dtypes)
    if (can_compute(device, info.compute))
      known += (known.empty() ? "" : " or ") + quoted(info.name);
  require(can_compute(device, compute), "compute_dtype on ", device.name, " must be ", known,
          ", got ", got);
}

// ---- shape and parameters -----------------------------------------------------------------

template <class T>
Network<T>::Network(const NetworkShape& shape, Device& device)
    : Network(shape, find_cell(kernels_of<T>(device), shape), device) {}

template <class T>
Network<T>::Network(const NetworkShape& shape, const CellKernels<T>& cell, Device& device)
    : shape_(shape), device_(&device), kernels_(&kernels_of<T>(device)), cell_(&cell) {
  require(shape.input_size >= 1, "input_size must be >= 1, got ", shape.input_size);
  require(shape.hidden_size >= 1, "hidden_size must be >= 1, got ", shape.hidden_size);
  require(shape.num_layers >= 1, "num_layers must be >= 1, got ", shape.num_layers);
  require(cell.num_states <= max_states, "the states of cell ", quoted(cell.name),
          " must be at most ", max_states, ", got ", cell.num_states);
  // Far beyond any memory; products of sizes cannot overflow.
  constexpr double most_elements = 1e13;
  const double H = static_cast<double>(shape.hidden_size);
  const double gates = cell.num_gates + cell.num_split + cell.num_params;
  const double widest = H + static_cast<double>(std::max(shape.input_size, shape.output_size));
  require(gates * H * widest * static_cast<double>(shape.num_layers) < most_elements,
          "the network must fit into memory, got input_size ", shape.input_size, ", hidden_size ",
          shape.hidden_size, ", output_size ", shape.output_size, ", num_layers ",
          shape.num_layers);
  require(shape.output_size >= 0, "output_size must be >= 0, got ", shape.output_size);
  require(shape.proj_size == 0 || (shape.proj_size > 0 && shape.proj_size < shape.hidden_size),
          "proj_size must be 0 (none) or less than hidden_size, ", shape.hidden_size, ", got ",
          shape.proj_size);
  require(shape.proj_size == 0 || cell.takes_projection(), "proj_size of cell ", quoted(cell.name),
          ", which has no projection, must be 0, got ", shape.proj_size);
  const Regularization& r = shape.regularization;
  const auto check_rate = [](const char* name, double rate) {
    require(rate >= 0 && rate < 1, name, " must be at least 0, below 1, got ", rate);
  };
  for (const DropoutRate& rate : dropout_rates) check_rate(rate.name, r.*rate.value);
  for (int s = 0; s < 2; ++s) check_rate(zoneout_rates[s], r.zoneout[s]);
  require(r.zoneout[1] == 0 || cell.num_states > 1, "zoneout_c of cell ", quoted(cell.name),
          ", which has no c, must be 0, got ", r.zoneout[1]);
  require(r.zoneout[0] == 0 || shape.proj_size == 0, "zoneout_h must be 0 with a projection, got ",
          r.zoneout[0]);
  check_compute(shape.compute, sizeof(T) == 8, device);
  lay_out();
}

template <class T>
Index Network<T>::num_states() const {
  return cell_->num_states;
}

template <class T>
Index Network<T>::state_offset(Index s, Index batch) const {
  Index width_before = 0;
  for (Index i = 0; i < s; ++i) width_before += state_width(i);
  return shape_.num_layers * directions() * batch * width_before;
}

template <class T>
Index Network<T>::num_slots() const {
  const Index G = cell_->num_gates;
  return (shape_.layer_norm ? 2 * G : G) + cell_->num_split + cell_->num_params;
}

template <class T>
Index Network<T>::add_parameter(std::string name, Index rows, Index cols, bool transposed) {
  const auto entry = static_cast<Index>(parameters_.size());
  parameters_.push_back({std::move(name), rows, cols, parameter_elements_, transposed});
  parameter_elements_ += aligned(parameters_.back().elements());
  return entry;
}

template <class T>
void Network<T>::lay_out() {
  const Index H = shape_.hidden_size, G = cell_->num_gates, split = cell_->num_split;
  const Index plain = kernels_->gemm_units, gates = cell_->forward_units;
  // Depths and gaps are such that half of each offset serves for bfloat16, and a quarter for int8,
  // which has scales in front. Nothing writes to the gaps.
  const auto weights = [&](Packing packing, Index units, Index depth, Index panel_units,
                           Index groups = 1) {
    Index& elements = packed_[static_cast<int>(packing)].weights;
    const Index offset = elements, columns = ceil_div(units, panel_units) * panel_units * groups;
    const bool small = packing == Packing::forward || packing == Packing::forward_dense ||
                       packing == Packing::decoder;
    const Index steps = small ? 4 * packed_steps(depth, Storage::int8) : depth + depth % 2;
    elements += 4 * aligned(ceil_div(columns * steps, 4));
    return offset;
  };
  const auto biases = [&](Packing packing, Index n) {
    Index& elements = packed_[static_cast<int>(packing)].biases;
    const Index offset = elements;
    elements += aligned(n);
    return offset;
  };
  const Index R = width();
  // With normalization all gates' input terms have their own gradients.
  const Index input_split = shape_.layer_norm ? G : split;
  for (Index l = 0; l < shape_.num_layers; ++l)
    for (Index d = 0; d < directions(); ++d) {
      const std::string suffix = "_l" + std::to_string(l) + (d > 0 ? "_reverse" : "");
      const Index I = layer_input_size(l);
      Layer p{};
      p.weight_ih = add_parameter("weight_ih" + suffix, G * H, I, l == 0);
      p.weight_hh = add_parameter("weight_hh" + suffix, G * H, R, false);
      const auto vector = [&](bool there, const char* name, Index elements) {
        return there ? add_parameter(name + suffix, elements, 0, false) : Index(-1);
      };
      p.bias_ih = vector(shape_.bias != Bias::none, "bias_ih", G * H);
      p.bias_hh = vector(shape_.bias == Bias::both, "bias_hh", G * H);
      if (cell_->num_params > 0)
        p.params = add_parameter("weight_" + std::string(cell_->params_name) + suffix,
                                 cell_->num_params, H, false);
      p.gain_ih = vector(shape_.layer_norm, "gain_ih", G * H);
      p.gain_hh = vector(shape_.layer_norm, "gain_hh", G * H);
      p.weight_hr =
          shape_.proj_size > 0 ? add_parameter("weight_hr" + suffix, R, H, false) : Index(-1);

      p.input_bias = p.bias_ih < 0 ? -1 : biases(Packing::forward, G * H);
      p.split_bias = p.bias_hh >= 0 && split > 0 ? biases(Packing::forward, split * H) : -1;
      p.hh = weights(Packing::forward, H, R, gates, G);
      p.hh_t = weights(Packing::backward, R, G * H, plain);
      p.hr = shape_.proj_size > 0 ? weights(Packing::forward, R, H, plain) : -1;
      p.hr_t = shape_.proj_size > 0 ? weights(Packing::backward, H, R, plain) : -1;
      p.table = l == 0 ? weights(Packing::forward_tokens, G * H, I, 1) : -1;
      const Packing ih = l == 0 ? Packing::forward_dense : Packing::forward;
      const Packing ih_t = l == 0 ? Packing::backward_dense : Packing::backward;
      p.ih = weights(ih, G * H, I, plain);
      p.ih_t = weights(ih_t, I, (G - input_split) * H, plain);
      p.ih_t_split = input_split > 0 ? weights(ih_t, I, input_split * H, plain) : -1;
      layers_.push_back(p);
    }
  if (shape_.output_size > 0) {
    decoder_weight_ = add_parameter("decoder.weight", shape_.output_size, hidden_width(), false);
    if (shape_.bias != Bias::none) {
      decoder_bias_ = add_parameter("decoder.bias", shape_.output_size, 0, false);
      biases(Packing::decoder, shape_.output_size);
    }
    weights(Packing::decoder, shape_.output_size, hidden_width(), plain);
  }
  parameter_elements_ += alignment_elements;  // read past a row, see Weights
}

template <class T>
Index Network<T>::packed_elements(Packing packing, Storage storage) const {
  const PackedLayout& p = packed_[static_cast<int>(packing)];
  const bool tokens = packing == Packing::forward_tokens;
  return p.biases +
         packed_size(p.weights, tokens ? Storage::full : stored(storage, shape_.compute));
}

template <class T>
bool Network<T>::reads_whole_vectors(const Parameters& parameters, Index cols) const {
  return !parameters.separate || cols % kernels_->lanes == 0;
}

// A few streams read unpacked weights. But rows of wide layers lie pages apart: reading them costs
// more than packing.
template <class T>
bool Network<T>::packs_backward(const Parameters& parameters, Index batch) const {
  constexpr Index few_streams = 4, widest = 512;
  const bool readable =
      reads_whole_vectors(parameters, width()) &&
      (shape_.proj_size == 0 || reads_whole_vectors(parameters, shape_.hidden_size));
  return !readable || batch > few_streams || shape_.hidden_size > widest ||
         shape_.compute == Compute::bfloat16;
}

template <class T>
void Network<T>::check_storage(Storage storage, bool vectors) const {
  const Index depth = kernels_->int8_depth;
  require(storage == Storage::full || sizeof(T) == 4,
          "weights stored as bfloat16 or int8 must be float32, got float64");
  if (storage != Storage::int8) return;
  require(depth > 0, "weights on ", device_->name, " must be full or bfloat16, got int8");
  const Index most =
      std::max({hidden_width(), shape_.hidden_size, vectors ? shape_.input_size : Index(0)});
  require(most <= depth, "rows of int8 weights must have at most ", depth, " elements, got ", most,
          ": take bfloat16");
  require(shape_.compute == Compute::float32, "weights of a network whose compute_dtype is ",
          quoted(name_of(shape_.compute)), " must be full or bfloat16, got int8");
}

template <class T>
void Network<T>::pack(Packing packing, const Parameters& parameters, T* packed,
                      Storage given) const {
  check_storage(given, packing == Packing::forward_dense);
  const Storage storage = stored(given, shape_.compute);
  const Kernels<T>& k = *kernels_;
  const Index H = shape_.hidden_size, R = width(), G = cell_->num_gates, split = cell_->num_split;
  const Index summed = shape_.layer_norm ? 0 : G - split;  // gates whose terms have one gradient
  const PackedLayout& layout = packed_[static_cast<int>(packing)];
  T* const weights = packed + layout.biases;
  const double work = 4.0 * static_cast<double>(layout.weights);
  run_team(*device_, device_->parts(work), [&](const Team& team) {
    // Row r, depth d of the matrix is at r * row_stride + d * depth_stride.
    const auto run = [&](const T* from, Index row_stride, Index depth_stride, Index groups,
                         Index units, Index depth, Index to) {
      k.pack(PackArgs<T>{from, row_stride, depth_stride, groups, units, depth,
                         weights + packed_size(to, storage), storage, shape_.compute},
             team.share(ceil_div(units, groups > 1 ? cell_->forward_units : k.gemm_units)));
    };
    if (packing == Packing::decoder) {
      if (team.part == 0 && decoder_bias_ >= 0)
        device_->copy(array(parameters, decoder_bias_), shape_.output_size, packed);
      return run(array(parameters, decoder_weight_), hidden_width(), 1, 1, shape_.output_size,
                 hidden_width(), 0);
    }
    if (packing == Packing::forward_tokens) {
      for (Index d = 0; d < directions(); ++d) {
        const Layer& p = layer(0, d);
        const T* const ih = array(parameters, p.weight_ih);
        if (parameters.separate)
          k.transpose(ih, G * H, shape_.input_size, team.share(G * H, alignment_elements),
                      packed + p.table);
        else if (team.part == 0)
          device_->copy(ih, G * H * shape_.input_size, packed + p.table);
      }
      return;
    }
    const bool dense = packing == Packing::forward_dense || packing == Packing::backward_dense;
    const bool backward = packing == Packing::backward || packing == Packing::backward_dense;
    for (Index l = 0; l < (dense ? 1 : shape_.num_layers); ++l)
      for (Index d = 0; d < directions(); ++d) {
        const Index I = layer_input_size(l);
        const Layer& p = layer(l, d);
        const T* const hh = array(parameters, p.weight_hh);
        const T* const ih = array(parameters, p.weight_ih);
        const bool transposed = l == 0 && !parameters.separate;
        const Index ih_row = transposed ? 1 : I, ih_col = transposed ? G * H : 1;
        if (!dense) backward ? run(hh, 1, R, 1, R, G * H, p.hh_t) : run(hh, R, 1, G, H, R, p.hh);
        if (const T* const hr = array(parameters, p.weight_hr); hr && !dense)
          backward ? run(hr, 1, H, 1, H, R, p.hr_t) : run(hr, H, 1, 1, R, H, p.hr);
        if (dense == (l == 0) && !backward) run(ih, ih_row, ih_col, 1, G * H, I, p.ih);
        if (dense == (l == 0) && backward) {
          if (summed > 0) run(ih, ih_col, ih_row, 1, I, summed * H, p.ih_t);
          if (summed < G)
            run(ih + summed * H * ih_row, ih_col, ih_row, 1, I, (G - summed) * H, p.ih_t_split);
        }
        if (packing != Packing::forward || team.part > 0 || p.bias_ih < 0) continue;
        // A sum begins with b_ih + b_hh; a split gate's two terms keep their own bias.
        device_->copy(array(parameters, p.bias_ih), G * H, packed + p.input_bias);
        if (p.bias_hh >= 0) {
          const T* b_hh = array(parameters, p.bias_hh);
          k.add(b_hh, {0, (G - split) * H}, packed + p.input_bias);
          if (split > 0) device_->copy(b_hh + (G - split) * H, split * H, packed + p.split_bias);
        }
      }
  });
}

template <class T>
void Network<T>::check_tokens(const char* name, const Token* tokens, Index rows, Index cols) const {
  const auto limit = static_cast<std::uint64_t>(shape_.input_size);
  const Index n = rows * std::max<Index>(1, cols);
  bool good = true;
  for (Index i = 0; i < n; ++i)
    good &= static_cast<std::uint64_t>(static_cast<std::int64_t>(tokens[i])) < limit;
  if (good) return;
  for (Index i = 0; i < n; ++i) {
    if (tokens[i] >= 0 && tokens[i] < shape_.input_size) continue;
    const std::string place =
        cols > 0 ? std::to_string(i / cols) + ", " + std::to_string(i % cols) : std::to_string(i);
    fail(name, "[", place, "] must be in 0 to ", shape_.input_size - 1, ", got ", tokens[i]);
  }
}

template <class T>
Network<T> network_of_cell(const NetworkShape& shape, const CellKernels<T>& cell, Device& device) {
  return Network<T>(shape, cell, device);
}

template Network<float> network_of_cell(const NetworkShape&, const CellKernels<float>&, Device&);
template Network<double> network_of_cell(const NetworkShape&, const CellKernels<double>&, Device&);
template class Network<float>;
template class Network<double>;

}  // namespace charrnn_fast
