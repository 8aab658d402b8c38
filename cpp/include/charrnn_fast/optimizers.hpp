// The optimizers' update rules: each once, for every device and number type, like the cells.
//
// A rule updates one parameter p from its gradient g and the rule's own state ("slots"). hyper(i)
// is the i-th of the numbers that `prepare` computes on the host, in double, before each update;
// `step` counts from 1. The formulas, and the order of their operations up to rounding, are
// PyTorch's (torch.optim).
//
//   name          the optimizer's name; several rules may share it
//   options       its options with their defaults; the same for all rules of a name
//   chosen        whether the rule serves these options
//   wrong         an error in these options, each of which is in its range; null: none
//   num_slots     numbers of state per parameter, named slot_names
//   initial_slot  their initial value
//   trains        whether it is an optimizer for training, one of optimizers() in registry.hpp
#pragma once

#include <cmath>
#include <limits>

#include "charrnn_fast/config.hpp"
#include "charrnn_fast/math.hpp"

namespace charrnn_fast {

struct OptimizerOptions {
  double learning_rate = 1e-3;
  double weight_decay = 0;
  double momentum = 0, dampening = 0;    // SGD; RMSprop: momentum
  bool nesterov = false;                 // SGD
  double alpha = 0.99;                   // RMSprop
  bool centered = false;                 // RMSprop
  double eps = 1e-8;                     // all but SGD
  double lr_decay = 0;                   // Adagrad
  double initial_accumulator_value = 0;  // Adagrad
  double beta1 = 0.9, beta2 = 0.999;     // Adam, AdamW
};

// Factor that clips by norm: limit / (norm + 1e-6), at most 1 (PyTorch's clip_grad_norm_).
CHARRNN_INLINE double norm_factor(double norm, double limit) {
  const double factor = limit / (norm + 1e-6);
  return factor < 1 ? factor : 1;
}

// The running average beta a + (1 - beta) g, computed as a step from the value of larger weight
// towards the other. A step from a far larger value of smaller weight would round away the result.
// brief: beta < 1/2, so g has the larger weight.
template <bool brief>
struct Average {
  static bool chosen(double beta) { return (beta < 0.5) == brief; }
  static double step(double beta) { return brief ? beta : 1 - beta; }

  template <class V>
  CHARRNN_INLINE static V next(V a, V g, V step) {
    return brief ? fma(step, a - g, g) : fma(step, g - a, a);
  }
};

// An option of a rule: a number in [least, below), or a flag.
struct RuleOption {
  const char* name;
  double initial;
  double OptimizerOptions::* number;
  double least = 0, below = std::numeric_limits<double>::infinity();
  bool OptimizerOptions::* flag = nullptr;
};
namespace rule_options {
constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr RuleOption learning_rate(double initial) {
  return {"lr", initial, &OptimizerOptions::learning_rate};
}
constexpr RuleOption weight_decay(double initial = 0) {
  return {"weight_decay", initial, &OptimizerOptions::weight_decay};
}
constexpr RuleOption momentum() { return {"momentum", 0, &OptimizerOptions::momentum}; }
constexpr RuleOption eps(double initial) { return {"eps", initial, &OptimizerOptions::eps}; }
constexpr RuleOption below_one(const char* name, double initial,
                               double OptimizerOptions::* number) {
  return {name, initial, number, 0, 1};
}
constexpr RuleOption flag(const char* name, bool OptimizerOptions::* flag) {
  return {name, 0, nullptr, 0, infinity, flag};
}
}  // namespace rule_options

// Defaults of the rules.
struct RuleDefaults {
  static constexpr bool trains = true;
  static constexpr int num_slots = 0;
  static constexpr const char* slot_names[max_slots] = {};
  static bool chosen(const OptimizerOptions&) { return true; }
  static const char* wrong(const OptimizerOptions&) { return nullptr; }
  static double initial_slot(const OptimizerOptions&) { return 0; }
};

struct SgdOptions : RuleDefaults {
  static constexpr const char* name = "sgd";
  static constexpr RuleOption options[] = {
      rule_options::learning_rate(1e-3),
      rule_options::momentum(),
      {"dampening", 0, &OptimizerOptions::dampening, -rule_options::infinity},
      rule_options::flag("nesterov", &OptimizerOptions::nesterov),
      rule_options::weight_decay()};
  static const char* wrong(const OptimizerOptions& o) {
    return o.nesterov && (o.momentum == 0 || o.dampening != 0)
               ? "nesterov takes a momentum above 0 and a dampening of 0"
               : nullptr;
  }
};

// p -= lr g
struct Sgd : SgdOptions {
  static bool chosen(const OptimizerOptions& o) { return o.momentum == 0; }
  static void prepare(const OptimizerOptions& o, Index, double* h) {
    h[0] = -o.learning_rate, h[1] = o.weight_decay;
  }

  template <class V, class H>
  CHARRNN_INLINE static void update(V& p, V g, V*, const H& hyper) {
    g = fma(hyper(1), p, g);
    p = fma(hyper(0), g, p);
  }
};

// b = momentum b + (1 - dampening) g, at the first step b = g; p -= lr b
// (Nesterov: p -= lr (g + momentum b)); Sutskever et al. 2013, as in PyTorch.
struct SgdMomentum : SgdOptions {
  static constexpr int num_slots = 1;
  static constexpr const char* slot_names[max_slots] = {"momentum_buffer"};
  static bool chosen(const OptimizerOptions& o) { return o.momentum != 0; }
  static void prepare(const OptimizerOptions& o, Index step, double* h) {
    h[0] = -o.learning_rate, h[1] = o.weight_decay;
    h[2] = step == 1 ? 0 : o.momentum, h[3] = step == 1 ? 1 : 1 - o.dampening;
    h[4] = o.nesterov ? 1 : 0, h[5] = o.nesterov ? o.momentum : 1;
  }

  template <class V, class H>
  CHARRNN_INLINE static void update(V& p, V g, V* slots, const H& hyper) {
    g = fma(hyper(1), p, g);
    slots[0] = fma(hyper(2), slots[0], hyper(3) * g);
    g = fma(hyper(5), slots[0], hyper(4) * g);
    p = fma(hyper(0), g, p);
  }
};

struct RmspropOptions : RuleDefaults {
  static constexpr const char* name = "rmsprop";
  static constexpr RuleOption options[] = {
      rule_options::learning_rate(1e-2),
      rule_options::below_one("alpha", 0.99, &OptimizerOptions::alpha),
      rule_options::eps(1e-8),
      rule_options::momentum(),
      rule_options::flag("centered", &OptimizerOptions::centered),
      rule_options::weight_decay()};
};

// s = alpha s + (1 - alpha) g^2; p -= lr g / (sqrt(s) + eps)  (Tieleman and Hinton 2012).
// centered: s minus the square of the mean gradient (Graves 2013). momentum: on the quotient.
template <bool centered, bool momentum, bool brief = false>
struct Rmsprop : RmspropOptions {
  static constexpr int num_slots = 1 + centered + momentum;
  static constexpr const char* slot_names[max_slots] = {
      "square_avg",
      centered   ? "grad_avg"
      : momentum ? "momentum_buffer"
                 : nullptr,
      centered && momentum ? "momentum_buffer" : nullptr};
  static bool chosen(const OptimizerOptions& o) {
    return o.centered == centered && (o.momentum != 0) == momentum &&
           (!centered || Average<brief>::chosen(o.alpha));
  }
  static void prepare(const OptimizerOptions& o, Index, double* h) {
    h[0] = -o.learning_rate, h[1] = o.weight_decay, h[2] = o.alpha, h[3] = 1 - o.alpha;
    h[4] = o.eps, h[5] = o.momentum, h[6] = Average<brief>::step(o.alpha);
  }

  template <class V, class H>
  CHARRNN_INLINE static void update(V& p, V g, V* slots, const H& hyper) {
    g = fma(hyper(1), p, g);
    V square = fma(hyper(2), slots[0], hyper(3) * g * g);
    slots[0] = square;
    if constexpr (centered) {
      slots[1] = Average<brief>::next(slots[1], g, hyper(6));
      square = fma(-slots[1], slots[1], square);
    }
    V delta = g / (sqrt(square) + hyper(4));
    if constexpr (momentum)
      delta = slots[num_slots - 1] = fma(hyper(5), slots[num_slots - 1], delta);
    p = fma(hyper(0), delta, p);
  }
};

// s += g^2; p -= lr / (1 + (step - 1) lr_decay) g / (sqrt(s) + eps)  (Duchi et al. 2011)
struct Adagrad : RuleDefaults {
  static constexpr const char* name = "adagrad";
  static constexpr RuleOption options[] = {
      rule_options::learning_rate(1e-2),
      {"lr_decay", 0, &OptimizerOptions::lr_decay},
      rule_options::eps(1e-10),
      {"initial_accumulator_value", 0, &OptimizerOptions::initial_accumulator_value},
      rule_options::weight_decay()};
  static constexpr int num_slots = 1;
  static constexpr const char* slot_names[max_slots] = {"sum"};
  static double initial_slot(const OptimizerOptions& o) { return o.initial_accumulator_value; }
  static void prepare(const OptimizerOptions& o, Index step, double* h) {
    h[0] = -o.learning_rate / (1 + static_cast<double>(step - 1) * o.lr_decay);
    h[1] = o.weight_decay, h[2] = o.eps;
  }

  template <class V, class H>
  CHARRNN_INLINE static void update(V& p, V g, V* slots, const H& hyper) {
    g = fma(hyper(1), p, g);
    slots[0] = fma(g, g, slots[0]);
    p = fma(hyper(0), g / (sqrt(slots[0]) + hyper(2)), p);
  }
};

// m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
// p -= lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)  (Kingma and Ba 2015).
// Weight decay adds to the gradient (Adam) or shrinks p first (AdamW, Loshchilov and Hutter 2019).
template <bool decoupled, bool brief = false>
struct AdamRule : RuleDefaults {
  static constexpr const char* name = decoupled ? "adamw" : "adam";
  static constexpr RuleOption options[] = {
      rule_options::learning_rate(1e-3),
      rule_options::below_one("beta1", 0.9, &OptimizerOptions::beta1),
      rule_options::below_one("beta2", 0.999, &OptimizerOptions::beta2), rule_options::eps(1e-8),
      rule_options::weight_decay(decoupled ? 1e-2 : 0)};
  static constexpr int num_slots = 2;
  static constexpr const char* slot_names[max_slots] = {"exp_avg", "exp_avg_sq"};
  static bool chosen(const OptimizerOptions& o) { return Average<brief>::chosen(o.beta1); }
  static void prepare(const OptimizerOptions& o, Index step, double* h) {
    const double t = static_cast<double>(step);
    // The paper's sqrt(v / (1 - beta2^t)) + eps, times sqrt(1 - beta2^t): saves a vector division.
    const double root = std::sqrt(1 - std::pow(o.beta2, t));
    h[0] = -o.learning_rate * root / (1 - std::pow(o.beta1, t));
    h[1] = decoupled ? 1 - o.learning_rate * o.weight_decay : o.weight_decay;
    h[2] = Average<brief>::step(o.beta1), h[3] = o.beta2;
    h[4] = o.eps * root, h[5] = 1 - o.beta2;  // in double: 1 - 0.999f is off by 1e-5
  }

  template <class V, class H>
  CHARRNN_INLINE static void update(V& p, V g, V* slots, const H& hyper) {
    if constexpr (decoupled)
      p = p * hyper(1);
    else
      g = fma(hyper(1), p, g);
    slots[0] = Average<brief>::next(slots[0], g, hyper(2));
    slots[1] = fma(hyper(3), slots[1], hyper(5) * g * g);
    p = fma(hyper(0), slots[0] / (sqrt(slots[1]) + hyper(4)), p);
  }
};
using Adam = AdamRule<false>;
using AdamW = AdamRule<true>;

// Dynamic evaluation (Krause, Kahembwe, Murray and Renals, "Dynamic evaluation of neural sequence
// models", ICML 2018, arXiv 1709.07432, section 5: RMS with an RMS global prior):
// p += -lr g / (sqrt(MS_g) + eps) + lambda RMS_norm (p_g - p), with the trained parameters p_g.
// What does not change from step to step stands in the slots: scale = 1 / (sqrt(MS_g) + eps), decay
// = min(lambda RMS_norm, 1), anchor = p_g. The caller sets them.
struct DynamicEvaluation : RuleDefaults {
  static constexpr const char* name = "dynamic_evaluation";
  static constexpr RuleOption options[] = {rule_options::learning_rate(1e-3)};
  static constexpr bool trains = false;
  static constexpr int num_slots = 3;
  static constexpr const char* slot_names[max_slots] = {"scale", "decay", "anchor"};
  static void prepare(const OptimizerOptions& o, Index, double* h) { h[0] = -o.learning_rate; }

  template <class V, class H>
  CHARRNN_INLINE static void update(V& p, V g, V* slots, const H& hyper) {
    const V kept = fma(slots[1], slots[2] - p, p);
    p = fma(hyper(0) * g, slots[0], kept);
  }
};

template <class... R>
struct RuleList {};

// Every rule. Of those with the name, the first whose `chosen` holds is used.
using UpdateRules =
    RuleList<Sgd, SgdMomentum, Rmsprop<false, false>, Rmsprop<false, true>, Rmsprop<true, false>,
             Rmsprop<true, false, true>, Rmsprop<true, true>, Rmsprop<true, true, true>, Adagrad,
             Adam, AdamRule<false, true>, AdamW, AdamRule<true, true>, DynamicEvaluation>;

}  // namespace charrnn_fast
