// What networks, models and optimizers do on a device, compared bit for bit with the CPU: all
// cells, with all options.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "charrnn_fast/model.hpp"
#include "check.hpp"
#include "cpu/dispatch.hpp"
#include "results.hpp"
#include "values.hpp"

namespace charrnn_fast {

struct Options {
  bool dense, ragged, bidirectional, projection, layer_norm, masked;
};

struct Rule {
  const char* name;
  OptimizerOptions options;
};
inline std::vector<Rule> all_rules() {
  OptimizerOptions momentum, nesterov, centered, both, decay, brief;
  momentum.momentum = nesterov.momentum = both.momentum = 0.9;
  nesterov.nesterov = true;
  centered.centered = both.centered = true;
  decay.weight_decay = 0.1, decay.initial_accumulator_value = 0.5;
  brief = both, brief.alpha = brief.beta1 = 0.3;
  return {{"sgd", {}},           {"sgd", momentum},     {"sgd", nesterov},  {"rmsprop", {}},
          {"rmsprop", momentum}, {"rmsprop", centered}, {"rmsprop", both},  {"adagrad", decay},
          {"adam", decay},       {"adamw", decay},      {"rmsprop", brief}, {"adam", brief},
          {"adamw", brief}};
}

template <class T>
struct Case {
  static constexpr Index steps = 4, V = 9;
  NetworkShape shape;
  Options o;
  Rule rule;
  Index batch;
  std::vector<Index> lengths;
  std::vector<Token> tokens, targets;
  std::vector<T> x;
  std::uint64_t mask_seed = 5;

  Case(const CellKernels<T>& cell, const Options& options, int number)
      : o(options), rule(all_rules()[count(number) % all_rules().size()]), batch(2 + number % 6) {
    const bool projected = cell.num_states > 1 && !cell.h_bypass && o.projection;
    const Bias biases[] = {Bias::both, Bias::single, Bias::none};
    shape = NetworkShape{cell.name, V, 13, number % 4 ? V : 0, 1 + number % 3, biases[number % 3]};
    shape.nonlinearity = cell.nonlinearity;
    shape.bidirectional = o.bidirectional;
    shape.proj_size = projected ? 6 : 0;
    shape.layer_norm = o.layer_norm;
    if (o.masked)
      shape.regularization = {.input_dropout = 0.1,
                              .dropout = 0.2,
                              .output_dropout = 0.3,
                              .recurrent_dropout = 0.4,
                              .variational = number % 2 == 0,
                              .weight_drop = number % 3 ? 0.1 : 0,
                              .zoneout = {projected ? 0 : 0.1, cell.num_states > 1 ? 0.2 : 0}};
    for (Index b = 0; b < batch; ++b) lengths.push_back((b * 3 + 1) % (steps + 1));
    tokens = random_tokens(steps * batch, V, 1);
    targets = random_tokens(steps * batch, V, 2, true);
    x = random_values<T>(steps * batch * V, 3);
  }

  typename Model<T>::Batch data() const {
    typename Model<T>::Batch in{steps, batch, o.dense ? nullptr : tokens.data(),
                                o.dense ? x.data() : nullptr};
    if (o.ragged) in.lengths = lengths.data();
    if (o.masked) in.mask_seed = &mask_seed;
    return in;
  }
};

template <class T>
std::vector<T> values_of(Device& device, const T* array, Index n) {
  std::vector<T> values(count(n));
  device.download(array, n, values.data());
  return values;
}

// What all calls of a model give, on this device.
template <class T>
class Run {
 public:
  // The CPU's bfloat16 takes subnormal numbers for zeros in the cells' functions too, a GPU's in
  // products alone.
  Run(const Case<T>& c, Device& device)
      : results(c.shape.compute != Compute::bfloat16), c_(c), device_(device) {
    const Index B = c.batch, rows = Case<T>::steps * B, V = Case<T>::V;
    with_model([&](Model<T>& model, std::vector<T>& state) {
      forward_and_backward(model, state);
      model.read(c.data(), state.data());
      results.add(state);
      if (c.o.bidirectional) return;
      // A step between forward and backward, from the last state.
      std::vector<T> y(count(B * model.output_size()));
      const SequenceInput<T> in{1, B, c.o.dense ? nullptr : c.tokens.data(),
                                c.o.dense ? c.x.data() : nullptr};
      for (int i = 0; i < 2; ++i) {
        model.step(in, state.data(), y.data());
        results.add(y);
      }
    });
    if (c.shape.output_size == 0) return;
    with_model([&](Model<T>& model, std::vector<T>& state) {
      const Index told = model.memory(c.data(), false);
      const auto losses = model.evaluate(c.data(), c.targets.data(), state.data());
      results.add(losses.loss_sum), results.add(losses.count);
      std::vector<double> of_streams(count(B));
      model.evaluate(c.data(), c.targets.data(), state.data(), of_streams.data());
      results.add(of_streams);
      same_memory = told == model.held_memory();
    });
    with_model([&](Model<T>& model, std::vector<T>& state) {
      train(model, state);
      if (c.o.bidirectional) return;
      const std::vector<std::uint64_t> seeds(count(B), 3);
      for (const SamplingOptions& options :
           {SamplingOptions{}, {0.9, V / 2, 0.95}, {0.7, 0, 0.9}, {0, 0, 1}})
        for (const Storage storage : {Storage::full, Storage::bfloat16}) {
          if (sizeof(T) != 4 && storage == Storage::bfloat16) continue;
          std::vector<Token> drawn(count(rows));
          model.sample(Case<T>::steps, B, c.tokens.data(), state.data(), seeds.data(), 7, options,
                       drawn.data(), storage);
          results.add(drawn);
        }
      std::vector<StreamSampling> streams(count(B));  // which differ in everything
      for (Index b = 0; b < B; ++b) {
        const auto n = static_cast<std::uint64_t>(b);
        streams[count(b)] = {n, 5 * n, {0.4 * double(b % 3), b % 4, b % 2 ? 0.9 : 1.0}};
      }
      std::vector<Token> drawn(count(rows));
      model.sample(Case<T>::steps, B, c.tokens.data(), state.data(), streams.data(), drawn.data());
      results.add(drawn);
      for (Index b = 0; b < B; ++b) {
        SamplingOptions& o = streams[count(b)].options;
        o.repetition_penalty = 1 + 0.7 * double(b % 3), o.repetition_window = 2 + b % 3;
      }
      std::vector<Token> recent(count(4 * B), -1);  // the largest window
      std::fill_n(recent.end() - B, B, Token(1));
      model.sample(Case<T>::steps, B, c.tokens.data(), state.data(), streams.data(), drawn.data(),
                   Storage::full, B > 2 ? recent.data() : nullptr);
      results.add(drawn), results.add(recent);
      std::vector<T> nats(count(B * V));
      model.next(B, c.tokens.data(), state.data(), nats.data());
      results.add(nats), results.add(state);
    });
  }

  Results results;
  bool same_memory = true;

 private:
  template <class F>
  void with_model(F&& f) {
    Model<T> model(c_.shape, device_);
    model.change_parameters([&](T* flat) {
      for (const Parameter& p : model.network().parameters()) {
        const auto values = random_values<T>(p.elements(), static_cast<unsigned>(p.offset));
        for (Index i = 0; i < p.elements(); ++i) flat[p.offset + i] = T(0.3) * values[count(i)];
      }
    });
    std::vector<T> state = random_values<T>(model.state_elements(c_.batch), 4);
    f(model, state);
    results.add(state);
    for (const Parameter& p : model.network().parameters())
      results.add(values_of(device_, model.parameters() + p.offset, p.elements()));
  }

  void forward_and_backward(Model<T>& model, std::vector<T>& state) {
    const Index rows = Case<T>::steps * c_.batch;
    std::vector<T> y(count(rows * model.output_size())), dstate(state.size(), T(1)),
        dx(c_.x.size());
    std::vector<T> gradients(count(model.network().parameter_elements()));
    for (const bool keep : {false, true}) {
      model.forward(c_.data(), nullptr, keep, y.data(), state.data());
      results.add(y);
      model.forward(c_.data(), state.data(), keep, y.data(), state.data());
      results.add(y);
    }
    for (const T* dy : {static_cast<const T*>(y.data()), static_cast<const T*>(nullptr)}) {
      model.backward(model.kept(), dy, dstate.data(), c_.o.dense ? dx.data() : nullptr,
                     gradients.data());
      results.add(dstate);
      if (c_.o.dense) results.add(dx);
      for (const Parameter& p : model.network().parameters())
        results.add(std::vector<T>(gradients.begin() + p.offset,
                                   gradients.begin() + p.offset + p.elements()));
    }
    Optimizer<T> optimizer(c_.rule.name, c_.rule.options, model.network().parameter_elements(),
                           device_);
    model.update(optimizer, gradients.data(), 0.01);
  }

  void train(Model<T>& model, std::vector<T>& state) {
    Optimizer<T> optimizer(c_.rule.name, c_.rule.options, model.network().parameter_elements(),
                           device_);
    const Index told = model.memory(c_.data(), true);
    for (const TrainOptions& options : {TrainOptions{0.01, 1.0, 0.5, true}, TrainOptions{0.02}}) {
      const auto result =
          model.train_step(c_.data(), c_.targets.data(), state.data(), optimizer, options);
      results.add(result.loss), results.add(result.gradient_norm);
    }
    same_memory &= told == model.held_memory();
    for (const Index* streams : {static_cast<const Index*>(nullptr), c_.lengths.data()}) {
      auto part = c_.data();
      part.streams = streams;
      results.add(model.accumulate(part, c_.targets.data(), state.data(), state.data()).loss_sum);
    }
    results.add(model.update(optimizer, TrainOptions{0.01, 0.1}).loss);
    for (Index i = 0; i < static_cast<Index>(optimizer.slot_names().size()); ++i)
      for (const Parameter& p : model.network().parameters())
        results.add(values_of(device_, optimizer.slot(i) + p.offset, p.elements()));
  }

  const Case<T>& c_;
  Device& device_;
};

template <class T>
void check_case(Device& device, const Case<T>& c, const char* what) {
  const Run<T> cpu(c, cpu_device()), there(c, device);
  CHECK(cpu.results == there.results, "%s", what);
  CHECK(cpu.same_memory && there.same_memory, "%s: memory", what);
}

// Every `every`-th case, from number `first`; plain: of those without projection and normalization;
// rounded: with operands that are rounded to bfloat16, too.
template <class T>
void check_models(Device& device, int every = 1, int first = 0, bool plain = false,
                  bool rounded = true) {
  const Kernels<T>& k = kernels<T>();
  int number = 0;
  for (int i = 0; i < k.num_cells; ++i)
    // All options in float; in double each with some others.
    for (int bits = 0; bits < 64; bits += sizeof(T) == 4 ? 1 : 5, ++number) {
      if (number % every != first) continue;
      const Options options{bool(bits & 1), bool(bits & 2),  bool(bits & 4),
                            bool(bits & 8), bool(bits & 16), bool(bits & 32)};
      if (plain && (options.projection || options.layer_norm)) continue;
      Case<T> c(k.cells[i], options, number);
      char what[80];
      const auto check = [&](const char* type) {
        std::snprintf(what, sizeof what, "%s %s, options %d, case %d", k.cells[i].name, type, bits,
                      number);
        check_case(device, c, what);
      };
      check(sizeof(T) == 4 ? "float" : "double");
      if (sizeof(T) != 4 || plain || !rounded || number % 7 != 3) continue;
      c.shape.compute = Compute::bfloat16;
      check("bfloat16");
    }
}

// A network of separate arrays, as PyTorch has them: from tokens and from x, with the decoder. No
// array's rows fill vectors.
// run: calls what it is given, a call of the network.
struct Directly {
  template <class F>
  void operator()(F&& call) const {
    call();
  }
};
template <class T, class Run = Directly>
Results run_separate(Device& device, bool dense, const Run& run = {}) {
  constexpr Index steps = 4, B = 3, V = 7, rows = steps * B;
  const Network<T> network({"lstm", V, 13, V, 2, Bias::both}, device);
  std::vector<AlignedBuffer<T>> buffers;
  const auto fill = [&](const std::vector<T>& values) {
    AlignedBuffer<T>& buffer = buffers.emplace_back(device);
    buffer.reserve(std::max<Index>(1, static_cast<Index>(values.size())));
    device.upload(values.data(), static_cast<Index>(values.size()), buffer.get());
    return buffer.get();
  };
  const auto space = [&](Index n) { return fill(std::vector<T>(count(n), T(0))); };
  std::vector<T*> parameters, gradients;
  for (const Parameter& p : network.parameters()) {
    parameters.push_back(fill(random_values<T>(p.elements(), static_cast<unsigned>(p.offset))));
    gradients.push_back(space(p.elements()));
  }
  const ParameterArrays<const T> arrays = parameters.data();
  const auto packed = [&](Packing packing) {
    T* const to = space(network.packed_elements(packing));
    network.pack(packing, arrays, to);
    return to;
  };
  MirroredBuffer<Token> tokens(device), targets(device);
  for (MirroredBuffer<Token>* to : {&tokens, &targets}) {
    const auto values = random_tokens(rows, V, to == &tokens ? 1 : 2);
    to->reserve(rows);
    std::copy(values.begin(), values.end(), to->get());
    to->upload(rows);
  }
  const SequenceInput<T> in{steps, B, dense ? nullptr : tokens.there(),
                            dense ? fill(random_values<T>(rows * V, 3)) : nullptr};
  T* const state = fill(random_values<T>(network.state_elements(B), 4));
  T* const tape = space(network.tape_elements(in, true));
  const PackedWeights<T> forward{packed(Packing::forward),
                                 packed(dense ? Packing::forward_dense : Packing::forward_tokens)};
  const PackedWeights<T> backward{packed(Packing::backward), packed(Packing::backward_dense)};
  T* const workspace = space(std::max({network.forward_elements(in), network.head_elements(rows, 1),
                                       network.backward_elements(in, 1)}));
  run([&] { network.forward(arrays, forward, in, state, true, tape, state, workspace); });
  const T* const h = network.hidden(in, true, tape);
  T *const losses = space(rows), *const dh = space(rows * network.hidden_width());
  run([&] {
    network.head(arrays, h, targets.there(), rows, T(1), losses, dh, gradients.data(), 1,
                 workspace);
  });
  T* const dx = dense ? space(rows * V) : nullptr;
  run([&] {
    network.backward(arrays, backward, in, tape, dh, state, dx, gradients.data(), 1, workspace);
  });
  Results results;
  results.add(values_of(device, losses, rows));
  results.add(values_of(device, state, network.state_elements(B)));
  if (dense) results.add(values_of(device, dx, rows * V));
  for (std::size_t i = 0; i < gradients.size(); ++i)
    results.add(values_of(device, gradients[i], network.parameters()[i].elements()));
  return results;
}

template <class T>
void check_separate(Device& device) {
  for (const bool dense : {false, true})
    CHECK(run_separate<T>(cpu_device(), dense) == run_separate<T>(device, dense),
          "separate arrays, %s", dense ? "dense" : "tokens");
}

}  // namespace charrnn_fast
