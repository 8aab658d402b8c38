// Weight drop.
#include "network_masks.hpp"
#include "errors.hpp"

namespace charrnn_fast {

template <class T>
void Network<T>::multiply_by_weight_masks(std::uint64_t mask_seed, const Parameters& weights,
                                          const Gradients& products) const {
  const Kernels<T>& k = *kernels_;
  const Index R = width(), rows = cell_->num_gates * shape_.hidden_size, D = directions();
  const double work = 20.0 * double(rows * R) * double(shape_.num_layers * D);
  run_team(*device_, device_->parts(work), [&](const Team& team) {
    for (Index l = 0; l < shape_.num_layers; ++l)
      for (Index d = 0; d < D; ++d) {
        MaskArgs<T> args = mask_args<T>(MaskKind::dropout, shape_.regularization.weight_drop,
                                        mask_seed, mask_site(l, d, MaskSite::weights));
        args.x = array(weights, layer(l, d).weight_hh);
        args.out = array(products, layer(l, d).weight_hh);
        args.x_stride = args.out_stride = args.cols = R;
        k.mask(args, team.share(rows));
      }
  });
}

template <class T>
void Network<T>::drop_weights(std::uint64_t mask_seed, const Parameters& parameters,
                              const Gradients& dropped) const {
  require(bool(parameters.flat) == bool(dropped.flat),
          "parameters and dropped must both be flat or both be separate");
  if (dropped.separate) return multiply_by_weight_masks(mask_seed, parameters, dropped);
  device_->copy(parameters.flat, parameter_elements_, dropped.flat);
  multiply_by_weight_masks(mask_seed, dropped.flat, dropped);
}

template <class T>
void Network<T>::drop_weights_backward(std::uint64_t mask_seed, const Gradients& gradients) const {
  if (gradients.separate)
    multiply_by_weight_masks(mask_seed, Parameters(gradients.separate), gradients);
  else
    multiply_by_weight_masks(mask_seed, gradients.flat, gradients);
}

template class Network<float>;
template class Network<double>;

}  // namespace charrnn_fast
