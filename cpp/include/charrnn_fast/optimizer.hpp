// An optimizer of flat parameters: a rule of optimizers.hpp, its state and its threads.
#pragma once

#include <limits>
#include <map>
#include <string>
#include <vector>

#include "charrnn_fast/network.hpp"
#include "charrnn_fast/optimizers.hpp"

namespace charrnn_fast {

// Factor that clips by norm: limit / (norm + 1e-6), at most 1 (PyTorch's clip_grad_norm_).
double clip_factor(double norm, double limit);

template <class T>
class Model;
template <class T>
struct UpdateControl;

// Sum of squares in fixed chunks: it does not depend on the number of threads.
template <class T>
double sum_of_squares(const T* x, Index n);

// A rule's options from numbers by name (flags: 0 or 1); others have the defaults of optimizers()
// in registry.hpp. Throws std::invalid_argument for unknown names. Optimizer's constructor checks
// the numbers.
OptimizerOptions optimizer_options(const std::string& rule,
                                   const std::map<std::string, double>& given);

template <class T>
class Optimizer {
 public:
  // rule: a name of optimizers() in registry.hpp; elements: of the flat parameters; device: that of
  // the parameters. Throws std::invalid_argument for an unknown rule or an option out of range.
  Optimizer(const std::string& rule, const OptimizerOptions& options, Index elements,
            Device& device = cpu_device());
  // Bytes that such an optimizer holds; allocates nothing. Throws as the constructor does.
  static Index memory(const std::string& rule, const OptimizerOptions& options, Index elements);
  Index held_memory() const;

  // Updates so far; enters the formulas of Adam and Adagrad.
  Index num_steps() const { return num_steps_; }
  void set_num_steps(Index n) { num_steps_ = n; }

  const std::vector<std::string>& slot_names() const { return slot_names_; }
  // [elements], memory of the device.
  T* slot(Index i) { return slots_[static_cast<std::size_t>(i)].get(); }
  Index elements() const { return elements_; }

  Device& device() const { return *device_; }

  // One update of the parameters by gradients * gradient_scale, clipped to +-gradient_limit.
  void step(T* parameters, const T* gradients, double learning_rate, double gradient_scale = 1,
            double gradient_limit = std::numeric_limits<double>::infinity());

 private:
  friend class Model<T>;
  void launch(T* parameters, const T* gradients, double learning_rate, double gradient_scale,
              double gradient_limit, const UpdateControl<T>* control);

  Device* device_;
  OptimizerOptions options_;
  Index elements_, num_steps_ = 0;
  int rule_;
  void (*prepare_)(const OptimizerOptions&, Index, double*) = nullptr;
  std::vector<std::string> slot_names_;
  std::vector<AlignedBuffer<T>> slots_;
};

extern template class Optimizer<float>;
extern template class Optimizer<double>;

}  // namespace charrnn_fast
