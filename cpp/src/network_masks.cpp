// Weight drop.
#include "network_masks.hpp"

namespace charrnn_fast {

template <class T>
void Network<T>::multiply_by_weight_masks(std::uint64_t mask_seed, T* weights) const {
  const Kernels<T>& k = *kernels_;
  const Index R = width(), rows = cell_->num_gates * shape_.hidden_size, D = directions();
  const double work = 20.0 * double(rows * R) * double(shape_.num_layers * D);
  run_team(*device_, device_->parts(work), [&](const Team& team) {
    for (Index l = 0; l < shape_.num_layers; ++l)
      for (Index d = 0; d < D; ++d) {
        MaskArgs<T> args = mask_args<T>(MaskKind::dropout, shape_.regularization.weight_drop,
                                        mask_seed, mask_site(l, d, MaskSite::weights));
        args.x = args.out = array(ParameterArrays<T>(weights), layer(l, d).weight_hh);
        args.x_stride = args.out_stride = args.cols = R;
        k.mask(args, team.share(rows));
      }
  });
}

template <class T>
void Network<T>::drop_weights(std::uint64_t mask_seed, const T* parameters, T* dropped) const {
  device_->copy(parameters, parameter_elements_, dropped);
  multiply_by_weight_masks(mask_seed, dropped);
}

template <class T>
void Network<T>::drop_weights_backward(std::uint64_t mask_seed, T* gradients) const {
  multiply_by_weight_masks(mask_seed, gradients);
}

template class Network<float>;
template class Network<double>;

}  // namespace charrnn_fast
