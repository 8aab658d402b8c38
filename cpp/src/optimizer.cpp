#include "charrnn_fast/optimizer.hpp"

#include <algorithm>
#include <cmath>

#include "charrnn_fast/registry.hpp"
#include "errors.hpp"
#include "squares.hpp"
#include "team.hpp"

namespace charrnn_fast {
namespace {

struct Rule {
  std::string name;
  bool trains;
  std::vector<RuleOption> options;
  std::vector<std::string> slot_names;
  bool (*chosen)(const OptimizerOptions&);
  const char* (*wrong)(const OptimizerOptions&);
  double (*initial_slot)(const OptimizerOptions&);
  void (*prepare)(const OptimizerOptions&, Index, double*);
};

template <class R>
Rule describe() {
  Rule rule{R::name,
            R::trains,
            {std::begin(R::options), std::end(R::options)},
            {},
            &R::chosen,
            &R::wrong,
            &R::initial_slot,
            &R::prepare};
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

// The first rule of that name. All rules of a name have its options.
const Rule& rule_named(const std::string& name) {
  std::string known;
  for (const Rule& r : rules()) {
    if (r.name == name) return r;
    if (r.trains && (&r == &rules().front() || (&r - 1)->name != r.name))
      known += (known.empty() ? "" : ", ") + quoted(r.name);
  }
  fail("optimizer must be one of ", known, ", got ", quoted(name));
}

void check(const Rule& rule, const OptimizerOptions& o) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  for (const RuleOption& option : rule.options) {
    if (option.flag) continue;
    const double x = o.*option.number;
    require(x >= option.least && x < option.below && x > -inf, option.name, " must be finite",
            option.least > -inf ? ", at least " + text(option.least) : "",
            option.below < inf ? ", below " + text(option.below) : "", ", got ", x);
  }
  if (const char* const message = rule.wrong(o)) fail(message);
}

// Index in rules() of the rule that serves. Throws for a bad name or bad options.
int find_rule(const std::string& name, const OptimizerOptions& options) {
  check(rule_named(name), options);
  const auto serves = [&](const Rule& r) { return r.name == name && r.chosen(options); };
  return static_cast<int>(std::find_if(rules().begin(), rules().end(), serves) - rules().begin());
}

// Time of an element, in operations of a matrix product.
constexpr double operations_per_element = 16;

}  // namespace

const std::vector<OptimizerInfo>& optimizers() {
  static const std::vector<OptimizerInfo> all = [] {
    std::vector<OptimizerInfo> infos;
    for (const Rule& rule : rules()) {
      if (!rule.trains || (!infos.empty() && infos.back().name == rule.name)) continue;
      infos.push_back({rule.name, {}});
      for (const RuleOption& o : rule.options)
        infos.back().options.push_back({o.name, o.initial, o.flag != nullptr});
    }
    return infos;
  }();
  return all;
}

OptimizerOptions optimizer_options(const std::string& rule,
                                   const std::map<std::string, double>& given) {
  OptimizerOptions options;
  const Rule& chosen = rule_named(rule);
  for (const RuleOption& option : chosen.options) {
    const auto found = given.find(option.name);
    const double value = found == given.end() ? option.initial : found->second;
    if (option.flag)
      options.*option.flag = value != 0;
    else
      options.*option.number = value;
  }
  for (const auto& [name, value] : given)
    require(std::any_of(chosen.options.begin(), chosen.options.end(),
                        [&](const RuleOption& option) { return option.name == name; }),
            "options of ", quoted(rule), " must be those in its list, got ", quoted(name));
  return options;
}

double clip_factor(double norm, double limit) { return norm_factor(norm, limit); }

template <class T>
double sum_of_squares(const T* x, Index n) {
  Device& device = cpu_device();
  const Kernels<T>& k = kernels_of<T>(device);
  const Index chunks = square_chunks(n);
  // Threads sum chunks in rounds of a fixed number; the chunks' sums are added in order.
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
    const auto first = static_cast<T>(chosen.initial_slot(options));
    kernels_of<T>(device).fill(slots_[i].get(), first, {0, elements});
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
  launch(parameters, gradients, learning_rate, gradient_scale, gradient_limit, nullptr);
  ++num_steps_;
}

// The kernels of one update, which is not counted.
template <class T>
void Optimizer<T>::launch(T* parameters, const T* gradients, double learning_rate,
                          double gradient_scale, double gradient_limit,
                          const UpdateControl<T>* control) {
  options_.learning_rate = learning_rate;
  double hyper[max_hyper] = {};
  prepare_(options_, num_steps_ + 1, hyper);
  UpdateArgs<T> args{
      parameters, gradients, {}, static_cast<T>(gradient_scale), static_cast<T>(gradient_limit),
      {}};
  args.control = control;
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
