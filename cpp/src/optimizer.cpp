#include "charrnn_fast/optimizer.hpp"

#include <algorithm>
#include <cmath>

#include "errors.hpp"
#include "squares.hpp"
#include "team.hpp"

namespace charrnn_fast {
namespace {

struct Rule {
  std::string name;
  std::vector<std::string> slot_names;
  bool (*chosen)(const OptimizerOptions&);
  void (*prepare)(const OptimizerOptions&, Index, double*);
};

template <class R>
Rule describe() {
  Rule rule{R::name, {}, &R::chosen, &R::prepare};
  for (int i = 0; i < R::num_slots; ++i) rule.slot_names.push_back(R::slot_names[i]);
  return rule;
}
template <class... R>
std::vector<Rule> describe(RuleList<R...>) {
  return {describe<R>()...};
}
const std::vector<Rule>& rules() {
  static const std::vector<Rule> all = describe(UpdateRules());
  return all;
}

void check(const OptimizerOptions& o) {
  const auto in = [](const char* name, double x, double low, double high, const char* takes) {
    require(x >= low && x < high, name, " is ", x, ", it takes ", takes);
  };
  constexpr double inf = std::numeric_limits<double>::infinity();
  in("weight_decay", o.weight_decay, 0, inf, "0 or more");
  in("momentum", o.momentum, 0, inf, "0 or more");
  in("alpha", o.alpha, 0, 1, "a number from 0 to below 1");
  in("eps", o.eps, 0, inf, "0 or more");
  in("lr_decay", o.lr_decay, 0, inf, "0 or more");
  in("initial_accumulator_value", o.initial_accumulator_value, 0, inf, "0 or more");
  in("beta1", o.beta1, 0, 1, "a number from 0 to below 1");
  in("beta2", o.beta2, 0, 1, "a number from 0 to below 1");
  require(!o.nesterov || (o.momentum > 0 && o.dampening == 0),
          "nesterov takes a momentum above 0 and a dampening of 0, momentum is ", o.momentum,
          " and dampening is ", o.dampening);
}

// The place in rules() of the one that serves; throws where the options or the name are wrong.
int find_rule(const std::string& name, const OptimizerOptions& options) {
  check(options);
  std::string known;
  for (std::size_t i = 0; i < rules().size(); ++i) {
    const Rule& r = rules()[i];
    if (r.name == name && r.chosen(options)) return static_cast<int>(i);
    if (i == 0 || rules()[i - 1].name != r.name) known += (known.empty() ? "" : ", ") + r.name;
  }
  fail("optimizer is '", name, "', it takes one of ", known);
}

// An element takes about as long as so many operations of a matrix product.
constexpr double operations_per_element = 16;

}  // namespace

double clip_factor(double norm, double limit) { return std::min(1.0, limit / (norm + 1e-6)); }

template <class T>
double sum_of_squares(const T* x, Index n) {
  Device& device = cpu_device();
  const Kernels<T>& k = kernels_of<T>(device);
  const Index chunks = square_chunks(n);
  // Chunks are summed by threads in rounds of a fixed number, and added up in their order.
  constexpr Index round = 64;
  double total = 0, sums[round];
  for (Index first = 0; first < chunks; first += round) {
    const Index count = std::min(round, chunks - first);
    const Index done = first * square_chunk;
    run_team(device, device.parts(operations_per_element * double(n)), [&](const Team& team) {
      k.sums_of_squares(x + done, n - done, team.share(count), sums);
    });
    for (Index i = 0; i < count; ++i) total += sums[i];
  }
  return total;
}

template <class T>
void sum_of_squares(Device& device, const T* x, Index n, double* chunks, double* sum) {
  const Kernels<T>& k = kernels_of<T>(device);
  run_team(device, device.parts(operations_per_element * double(n)), [&](const Team& team) {
    k.sums_of_squares(x, n, team.share(square_chunks(n)), chunks);
  });
  k.add_up(chunks, square_chunks(n), sum);
}

template <class T>
Optimizer<T>::Optimizer(const std::string& rule, const OptimizerOptions& options, Index elements,
                        Device& device)
    : device_(&device), options_(options), elements_(elements), rule_(find_rule(rule, options)) {
  const Rule& chosen = rules()[static_cast<std::size_t>(rule_)];
  prepare_ = chosen.prepare;
  slot_names_ = chosen.slot_names;
  for (std::size_t i = 0; i < slot_names_.size(); ++i) {
    slots_.emplace_back(device);
    slots_[i].reserve(elements);
    const double first = rule == Adagrad::name ? options.initial_accumulator_value : 0;
    kernels_of<T>(device).fill(slots_[i].get(), static_cast<T>(first), {0, elements});
  }
}

template <class T>
Index Optimizer<T>::memory(const std::string& rule, const OptimizerOptions& options,
                           Index elements) {
  const Rule& chosen = rules()[static_cast<std::size_t>(find_rule(rule, options))];
  return static_cast<Index>(chosen.slot_names.size()) * elements * Index(sizeof(T));
}

template <class T>
Index Optimizer<T>::held_memory() const {
  Index bytes = 0;
  for (const AlignedBuffer<T>& slot : slots_) bytes += slot.size() * Index(sizeof(T));
  return bytes;
}

template <class T>
void Optimizer<T>::step(T* parameters, const T* gradients, double learning_rate,
                        double gradient_scale, double gradient_limit) {
  options_.learning_rate = learning_rate;
  ++num_steps_;
  double hyper[max_hyper] = {};
  prepare_(options_, num_steps_, hyper);
  UpdateArgs<T> args{
      parameters, gradients, {}, static_cast<T>(gradient_scale), static_cast<T>(gradient_limit),
      {}};
  std::transform(hyper, hyper + max_hyper, args.hyper, [](double h) { return static_cast<T>(h); });
  for (std::size_t i = 0; i < slots_.size(); ++i) args.slots[i] = slots_[i].get();
  const Kernels<T>& k = kernels_of<T>(*device_);
  run_team(*device_, device_->parts(operations_per_element * double(elements_)),
           [&](const Team& team) { k.update[rule_](args, team.share(elements_, 64)); });
}

template void sum_of_squares(Device&, const float*, Index, double*, double*);
template void sum_of_squares(Device&, const double*, Index, double*, double*);
template double sum_of_squares(const float*, Index);
template double sum_of_squares(const double*, Index);
template class Optimizer<float>;
template class Optimizer<double>;

}  // namespace charrnn_fast
