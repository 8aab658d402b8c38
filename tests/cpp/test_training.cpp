// Model's training step from vectors and tokens, of one length and of many, in one direction and
// in both: the bits of forward, loss, backward and update by hand, the memory that it has told, a
// batch in parts and shared out to processes.
#include <cstdio>
#include <limits>
#include <new>
#include <string>
#include <vector>

#include "charrnn_fast/cells.hpp"
#include "charrnn_fast/losses.hpp"
#include "charrnn_fast/model.hpp"
#include "charrnn_fast/threads.hpp"
#include "check.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/thread_pool.hpp"
#include "values.hpp"

using namespace charrnn_fast;

namespace {

constexpr Index steps = 6, B = 11, V = 9, H = 19;
constexpr std::uint64_t mask_seed = 3;

NetworkShape shape_of(const CellInfo& cell, bool bidirectional = false) {
  NetworkShape shape{cell.name, V, H, V, 2, Bias::both};
  shape.nonlinearity = cell.nonlinearity;
  shape.bidirectional = bidirectional;
  shape.regularization = {.input_dropout = 0.1,
                          .dropout = 0.2,
                          .output_dropout = 0.3,
                          .recurrent_dropout = 0.4,
                          .weight_drop = 0.1,
                          .zoneout = {0.1, 0}};
  return shape;
}

template <class T>
void draw_parameters(Model<T>& model) {
  model.change_parameters([&](T* p) {
    for (const Parameter& q : model.network().parameters()) {
      const auto values = random_values<T>(q.elements(), static_cast<unsigned>(q.offset));
      for (Index i = 0; i < q.elements(); ++i)
        p[q.offset + i] = T(0.3) * values[static_cast<std::size_t>(i)];
    }
  });
}

// A batch with the data that it points to.
template <class T>
struct Data {
  std::vector<Token> tokens = random_tokens(steps * B, V, 1);
  std::vector<T> x = random_values<T>(steps * B * V, 2);
  std::vector<Token> targets = random_tokens(steps * B, V, 3, true);
  std::vector<Index> lengths;
  typename Model<T>::Batch batch{steps, B, nullptr, nullptr};

  Data(bool dense, bool ragged, bool masked) {
    dense ? void(batch.x = x.data()) : void(batch.tokens = tokens.data());
    if (masked) batch.mask_seed = &mask_seed;
    if (!ragged) return;
    for (Index b = 0; b < B; ++b) lengths.push_back(b * 5 % (steps + 1));
    batch.lengths = lengths.data();
    for (Index i = 0; i < steps * B; ++i)
      if (i / B >= lengths[std::size_t(i % B)]) targets[std::size_t(i)] = -7;  // not read
  }
  // With -1 past the ends.
  std::vector<Token> ignored() const {
    std::vector<Token> result = targets;
    for (Token& target : result)
      if (target == -7) target = -1;
    return result;
  }
};

// A model, its optimizer and the state that it carries.
template <class T>
struct Trained {
  Model<T> model;
  Optimizer<T> optimizer;
  std::vector<T> state;

  explicit Trained(const NetworkShape& shape)
      : model(shape),
        optimizer("adam", OptimizerOptions{}, model.network().parameter_elements()),
        state(random_values<T>(model.state_elements(B), 4)) {
    draw_parameters(model);
  }
};

template <class T>
bool same_parameters(const Model<T>& a, const Model<T>& b) {
  return same_bits(a.parameters(), b.parameters(), a.network().parameter_elements());
}

template <class T>
void update_by_hand(Trained<T>& t, const Data<T>& data, double learning_rate) {
  const auto elements = static_cast<std::size_t>(t.model.network().parameter_elements());
  std::vector<T> y(std::size_t(steps * B * V)), dy(y.size()), dx(data.x.size());
  std::vector<T> dstate(t.state.size(), T(0)), gradients(elements);
  t.model.forward(data.batch, t.state.data(), true, y.data(), t.state.data());
  cross_entropy(y.data(), data.ignored().data(), steps * B, V, true, dy.data());
  t.model.backward(t.model.kept(), dy.data(), dstate.data(), data.batch.x ? dx.data() : nullptr,
                   gradients.data());
  t.model.update(t.optimizer, gradients.data(), learning_rate);
}

template <class T>
void check_training(const CellInfo& cell, bool dense, bool ragged, bool masked,
                    bool bidirectional) {
  const std::string name = std::string(cell.name) + " (" + cell.nonlinearity + ")" +
                           (dense ? ", vectors" : "") + (ragged ? ", ragged" : "") +
                           (masked ? ", masked" : "") + (bidirectional ? ", bidirectional" : "");
  const Data<T> data(dense, ragged, masked);
  const NetworkShape shape = shape_of(cell, bidirectional);
  Trained<T> fused(shape), by_hand(shape), in_one(shape);
  const Index told = fused.model.memory(data.batch, true);
  TrainOptions options;
  options.learning_rate = 0.01;
  for (int update = 0; update < 2; ++update) {
    fused.model.train_step(data.batch, data.targets.data(), fused.state.data(), fused.optimizer,
                           options);
    update_by_hand(by_hand, data, options.learning_rate);
    CHECK(same_parameters(fused.model, by_hand.model), "%s: by hand", name.c_str());
    CHECK(same_bits(fused.state, by_hand.state), "%s: state by hand", name.c_str());
    CHECK(fused.model.held_memory() == told, "%s: %td bytes told, %td held", name.c_str(), told,
          fused.model.held_memory());
  }
  CHECK(!same_parameters(fused.model, in_one.model), "%s: nothing is learnt", name.c_str());

  Trained<T> once(shape);
  options.mean = false;
  const auto expected = once.model.train_step(data.batch, data.targets.data(), once.state.data(),
                                              once.optimizer, options);
  const auto sum = in_one.model.accumulate(data.batch, data.targets.data(), in_one.state.data(),
                                           in_one.state.data());
  const auto found = in_one.model.update(in_one.optimizer, options);
  CHECK(sum.loss_sum == expected.loss && found.loss == expected.loss &&
            found.gradient_norm == expected.gradient_norm,
        "%s: results in one part", name.c_str());
  CHECK(same_parameters(once.model, in_one.model), "%s: in one part", name.c_str());
  CHECK(same_bits(once.state, in_one.state), "%s: state of one part", name.c_str());

  Trained<T> evaluated(shape);
  const Index evaluation = evaluated.model.memory(data.batch, false);
  const auto losses =
      evaluated.model.evaluate(data.batch, data.targets.data(), evaluated.state.data());
  CHECK(losses.loss_sum == expected.loss && losses.count == sum.count, "%s: evaluate",
        name.c_str());
  CHECK(same_bits(evaluated.state, once.state), "%s: state of evaluate", name.c_str());
  CHECK(evaluated.model.held_memory() == evaluation, "%s: %td bytes told, %td held to evaluate",
        name.c_str(), evaluation, evaluated.model.held_memory());
}

// Two processes with some of a batch's streams each: numbered alike, their masks, states and losses
// are those of the batch in parts; after adding up, both have the same parameters.
template <class T>
void check_processes(const CellInfo& cell, bool ragged) {
  const std::string name = std::string(cell.name) + (ragged ? ", ragged" : "");
  const NetworkShape shape = shape_of(cell);
  const Data<T> first(false, ragged, true), second(false, ragged, true);
  Trained<T> in_parts(shape), one(shape), other(shape);
  std::vector<Index> numbers;
  for (Index b = 0; b < B; ++b) numbers.push_back(B + b);
  auto numbered = second.batch;
  numbered.streams = numbers.data();
  std::vector<T> state_n(in_parts.state.size()), other_n(state_n.size());
  const Index told = other.model.memory(numbered, true);
  const auto accumulate = [&](Trained<T>& to, const auto& batch, const Data<T>& data,
                              std::vector<T>& state) {
    return to.model.accumulate(batch, data.targets.data(), to.state.data(), state.data());
  };
  accumulate(in_parts, first.batch, first, state_n);
  const auto expected = accumulate(in_parts, second.batch, second, state_n);
  const auto sum = accumulate(one, first.batch, first, other_n);
  CHECK(!same_bits(other_n, state_n), "%s: the masks are alike", name.c_str());
  const auto found = accumulate(other, numbered, second, other_n);
  CHECK(other.model.held_memory() == told, "%s: %td bytes told, %td held", name.c_str(), told,
        other.model.held_memory());
  CHECK(same_bits(other_n, state_n) && found.loss_sum == expected.loss_sum, "%s: masks",
        name.c_str());
  const auto ours = one.model.accumulated(), theirs = other.model.accumulated();
  CHECK(ours.losses.loss_sum == sum.loss_sum && theirs.losses.count == found.count,
        "%s: accumulated", name.c_str());
  for (Index i = 0; i < one.model.network().parameter_elements(); ++i)
    ours.gradients[i] = theirs.gradients[i] = ours.gradients[i] + theirs.gradients[i];
  const typename Model<T>::Losses losses{sum.loss_sum + found.loss_sum, sum.count + found.count};
  typename Model<T>::TrainResult results[3];
  int i = 0;
  for (Trained<T>* t : {&one, &other}) {
    t->model.set_accumulated(losses);
    results[i++] = t->model.update(t->optimizer, {});
  }
  results[i] = in_parts.model.update(in_parts.optimizer, {});
  CHECK(same_parameters(one.model, other.model), "%s: parameters", name.c_str());
  CHECK(results[0].loss == results[2].loss && results[1].loss == results[2].loss &&
            results[0].gradient_norm == results[1].gradient_norm,
        "%s: results", name.c_str());
}

// No state to begin with is one of zeros; and parts may have other shapes.
template <class T>
void check_parts(const CellInfo& cell) {
  const NetworkShape shape = shape_of(cell);
  Trained<T> zeros(shape), none(shape);
  std::fill(zeros.state.begin(), zeros.state.end(), T(0));
  for (const bool ragged : {false, true}) {
    Data<T> data(false, ragged, true);
    data.batch.seq_len = ragged ? steps : 2;
    zeros.model.accumulate(data.batch, data.targets.data(), zeros.state.data(), zeros.state.data());
    none.model.accumulate(data.batch, data.targets.data(), nullptr, none.state.data());
    CHECK(same_bits(zeros.state, none.state), "%s: state", cell.name);
    std::fill(zeros.state.begin(), zeros.state.end(), T(0));
  }
  const auto expected = zeros.model.update(zeros.optimizer, {});
  const auto found = none.model.update(none.optimizer, {});
  CHECK(found.loss == expected.loss && found.finite(), "%s: losses", cell.name);
  CHECK(same_parameters(zeros.model, none.model), "%s: parameters", cell.name);
}

template <class T>
void check_all() {
  const Kernels<T>& k = kernels<T>();
  for (int i = 0; i < k.num_cells; ++i) {
    for (int options = 0; options < 16; ++options)
      check_training<T>(k.cells[i], options & 1, options & 2, options & 4, options & 8);
    check_parts<T>(k.cells[i]);
    for (const bool ragged : {false, true}) check_processes<T>(k.cells[i], ragged);
  }
}

// The number of a forward is that by which backward knows it; memory that runs out is told.
void check_numbers_and_errors() {
  Model<float> model(shape_of(cell_info<Gru>()));
  draw_parameters(model);
  const std::vector<Token> tokens(steps * B, 1);
  std::vector<float> y(steps * B * V), state(static_cast<std::size_t>(model.state_elements(B)));
  const Model<float>::Batch batch{steps, B, tokens.data(), nullptr};
  for (Index n = 1; n <= 3; ++n) {
    CHECK(model.forward(batch, nullptr, true, y.data(), state.data()) == n, "%ld", long(n));
    CHECK(model.kept().id == n, "%ld", long(n));
  }
  CHECK(model.forward(batch, nullptr, false, y.data(), state.data()) == 0, "without keep");
  CHECK(model.kept().id == 0, "without keep");

  AlignedBuffer<float> buffer;
  buffer.reserve(10);
  for (const Index elements : {Index(1) << 61, std::numeric_limits<Index>::max()}) {
    std::string message;
    try {
      buffer.reserve(elements);
    } catch (const std::bad_alloc& error) {
      message = error.what();
    }
    CHECK(message.find("out of memory: ") == 0 && message.find("e+") != message.npos &&
              message.find(" GB more") != message.npos,
          "%s", message.c_str());
    CHECK(buffer.size() == 0, "%ld", long(buffer.size()));
  }
  buffer.reserve(10);
  CHECK(buffer.size() == 10, "%ld", long(buffer.size()));
}

}  // namespace

int main() {
  sharing_limits() = {0, 0};  // small cases shall run on all threads too
  set_num_threads(2);
  std::printf("instruction set %s\n", isa_in_use().c_str());
  check_all<float>();
  check_all<double>();
  check_numbers_and_errors();
  return report();
}
