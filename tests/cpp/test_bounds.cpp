// No call reads or writes outside the arrays that it is given, as large as the headers say: every
// array of the caller, and every buffer of a Model, lies next to a page without access (see
// guarded.hpp). For all cells and options, from tokens and vectors, of one length and of many.
#include <algorithm>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "charrnn_fast/losses.hpp"
#include "charrnn_fast/model.hpp"
#include "charrnn_fast/threads.hpp"
#include "check.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/thread_pool.hpp"
#include "guarded.hpp"
#include "masks.hpp"
#include "measure.hpp"
#include "results.hpp"
#include "values.hpp"

// Those of AlignedBuffer: a Model's own memory. The alignment is only for speed.
void* operator new(std::size_t size, std::align_val_t) {
  return charrnn_fast::GuardedMemory::instance().allocate(size);
}
void operator delete(void* p, std::align_val_t) noexcept {
  charrnn_fast::GuardedMemory::instance().release(p);
}
void operator delete(void* p, std::size_t, std::align_val_t) noexcept {
  charrnn_fast::GuardedMemory::instance().release(p);
}

using namespace charrnn_fast;

namespace {

// f() with arrays guarded at the end and at the begin.
template <class F>
void check_both_sides(const std::string& name, F&& f) {
  Results results[2];
  for (const Side side : {Side::begin, Side::end}) {
    guarded_side = side;
    name_guarded_case(name);
    results[static_cast<int>(side)] = f();
  }
  CHECK(results[0] == results[1], "%s", name.c_str());
}

struct Sizes {
  Index T, B, V, H, L;
};
constexpr Sizes all_sizes[] = {
    {3, 5, 7, 19, 2}, {2, 1, 33, 32, 1}, {1, 13, 16, 5, 3}, {4, 6, 3, 16, 2}, {2, 3, 1, 1, 2}};

struct Options {
  bool dense, ragged, bidirectional, projection, layer_norm, masked;
  Bias bias;
  bool decoder;
};

template <class T>
struct Case {
  NetworkShape shape;
  Sizes s;
  Options o;
  std::vector<Index> lengths;
  std::vector<Token> tokens, targets;
  std::vector<T> x;
  const std::uint64_t mask_seed = 5;

  Case(const CellInfo& cell, const Sizes& sizes, const Options& options) : s(sizes), o(options) {
    shape = NetworkShape{cell.name, s.V, s.H, o.decoder ? s.V : 0, s.L, o.bias};
    shape.nonlinearity = cell.nonlinearity;
    shape.bidirectional = o.bidirectional;
    shape.proj_size = o.projection ? s.H / 2 : 0;
    shape.layer_norm = o.layer_norm;
    if (o.masked)
      shape.regularization = {.input_dropout = 0.1,
                              .dropout = 0.2,
                              .output_dropout = 0.3,
                              .recurrent_dropout = 0.4,
                              .variational = s.L == 2,
                              .weight_drop = 0.1,
                              .zoneout = {o.projection ? 0 : 0.1, 0}};
    for (Index b = 0; b < s.B; ++b) lengths.push_back((b * 3 + 1) % (s.T + 1));
    tokens = random_tokens(s.T * s.B, s.V, 1);
    targets = random_tokens(s.T * s.B, s.V, 2, true);
    x = random_values<T>(s.T * s.B * s.V, 3);
  }
};

// Between the arrays zeros, as network.hpp asks for.
template <class T>
std::vector<T> parameters_of(const Network<T>& network) {
  std::vector<T> flat(count(network.parameter_elements()), T(0));
  for (const Parameter& p : network.parameters()) {
    const auto values = random_values<T>(p.elements(), static_cast<unsigned>(p.offset));
    for (Index i = 0; i < p.elements(); ++i) flat[count(p.offset + i)] = T(0.3) * values[count(i)];
  }
  return flat;
}

// Parameters or gradients, as flat memory or as arrays of their own.
template <class T>
class GuardedParameters {
 public:
  GuardedParameters(const Network<T>& network, const std::vector<T>& values, bool separate)
      : network_(network) {
    if (!separate) {
      flat_ = std::make_unique<Guarded<T>>(values);
      return;
    }
    for (const Parameter& p : network.parameters()) {
      arrays_.push_back(std::make_unique<Guarded<T>>(count(p.elements())));
      pointers_.push_back(arrays_.back()->data());
      each(p, [&](Index flat, Index here) { pointers_.back()[here] = values[count(flat)]; });
    }
  }
  ParameterArrays<T> get() const {
    if (flat_) return flat_->data();
    return pointers_.data();
  }
  ParameterArrays<const T> values() const {
    if (flat_) return flat_->data();
    return pointers_.data();
  }
  // The arrays' own elements, without those between them, as flat memory has them.
  void add_to(Results& results) const {
    for (std::size_t i = 0; i < network_.parameters().size(); ++i) {
      const Parameter& p = network_.parameters()[i];
      std::vector<T> own(count(p.elements()));
      each(p, [&](Index flat, Index here) {
        own[count(flat - p.offset)] = flat_ ? flat_->data()[flat] : pointers_[i][here];
      });
      results.add(own);
    }
  }

 private:
  // f(place in flat memory, place in an array as PyTorch has it) of every element.
  template <class F>
  static void each(const Parameter& p, F&& f) {
    const Index cols = p.elements() / p.rows;
    for (Index r = 0; r < p.rows; ++r)
      for (Index c = 0; c < cols; ++c)
        f(p.offset + (p.transposed ? c * p.rows + r : r * cols + c), r * cols + c);
  }

  const Network<T>& network_;
  std::unique_ptr<Guarded<T>> flat_;
  std::vector<std::unique_ptr<Guarded<T>>> arrays_;
  std::vector<T*> pointers_;
};

// The parameters' own elements, without those between them.
template <class T>
void add_parameters(Results& results, const Network<T>& network, const T* flat) {
  for (const Parameter& p : network.parameters()) results.add(flat + p.offset, p.elements());
}

// The sorted batch that a Network takes: the rows of step t are those of the sequences longer than
// t.
template <class T>
Results run_network(const Case<T>& c, bool separate) {
  const Network<T> network(c.shape);
  const int threads = get_num_threads();
  const std::vector<T> zeros(count(network.parameter_elements()), T(0));
  const GuardedParameters<T> all(network, parameters_of(network), separate);
  const ParameterArrays<const T> parameters = all.values();
  const auto pack = [&](Packing packing) {
    auto packed = std::make_unique<Guarded<T>>(count(network.packed_elements(packing)));
    network.pack(packing, parameters, packed->data());
    return packed;
  };
  std::vector<Index> ends{0};
  for (Index t = 0; t < c.s.T; ++t) {
    Index rows = c.s.B;
    if (c.o.ragged)
      rows = std::count_if(c.lengths.begin(), c.lengths.end(), [&](Index n) { return n > t; });
    ends.push_back(ends.back() + rows);
  }
  const Index N = ends.back(), D = network.hidden_width(), V = c.s.V;
  const Guarded<Index> offsets(ends);
  const Guarded<Token> tokens({c.tokens.begin(), c.tokens.begin() + N});
  const Guarded<Token> targets({c.targets.begin(), c.targets.begin() + N});
  const Guarded<T> x(std::vector<T>(c.x.begin(), c.x.begin() + N * V));
  SequenceInput<T> in{c.s.T, c.s.B, c.o.dense ? nullptr : tokens.data(),
                      c.o.dense ? x.data() : nullptr};
  if (c.o.ragged) in.offsets = offsets.data();
  if (c.o.masked) in.mask_seed = &c.mask_seed;
  const Guarded<T> state_0(random_values<T>(network.state_elements(c.s.B), 4));
  Guarded<T> state_n(state_0.size()), dx(x.size());
  Results results;
  {
    const auto layers = pack(Packing::forward),
               first = pack(c.o.dense ? Packing::forward_dense : Packing::forward_tokens);
    const PackedWeights<T> weights{layers->data(), c.o.dense || separate ? first->data() : nullptr};
    for (const bool keep : {false, true}) {
      const TapeSize size = network.tape_size(in, keep);
      CHECK(network.tape_elements(in, keep) ==
                size.per_row * N + size.per_stream * c.s.B + size.constant,
            "tape of %ld elements", long(network.tape_elements(in, keep)));
      Guarded<T> tape(count(network.tape_elements(in, keep)));
      {
        Guarded<T> workspace(count(network.forward_elements(in)));
        network.forward(parameters, weights, in, state_0.data(), keep, tape.data(), state_n.data(),
                        workspace.data());
      }
      results.add(network.hidden(in, keep, tape.data()), N * D);
      results.add(state_n);
      if (!keep) continue;
      results.add(tape);  // all of it is written
      tape.make_read_only();
      const Guarded<T> h(std::vector<T>(network.hidden(in, keep, tape.data()),
                                        network.hidden(in, keep, tape.data()) + N * D));
      const GuardedParameters<T> sums(network, zeros, separate);
      const ParameterArrays<T> gradients = sums.get();
      Guarded<T> dh(random_values<T>(N * D, 5)),
          dstate(random_values<T>(network.state_elements(c.s.B), 6));
      if (c.o.decoder) {
        Guarded<T> y(count(N * V)), losses(count(N));
        const auto decoder = pack(Packing::decoder);
        network.decode(decoder->data(), h.data(), N, y.data());
        results.add(y);
        {
          Guarded<T> workspace(count(network.decode_backward_elements(threads)));
          network.decode_backward(parameters, h.data(), y.data(), N, dh.data(), gradients, threads,
                                  workspace.data());
          results.add(dh);
        }
        Guarded<T> workspace(count(network.head_elements(N, threads)));
        network.head(parameters, h.data(), targets.data(), N, T(1), losses.data(), nullptr, nullptr,
                     threads, workspace.data());
        results.add(losses);
        network.head(parameters, h.data(), targets.data(), N, T(0.5), losses.data(), dh.data(),
                     gradients, threads, workspace.data());
        results.add(losses);
      }
      // Reads the weights as they stand.
      const bool few = c.s.B % 2 && !(separate && network.packs_backward(parameters, 1));
      const auto back = pack(Packing::backward), back_dense = pack(Packing::backward_dense);
      const PackedWeights<T> weights_back{few ? nullptr : back->data(),
                                          c.o.dense ? back_dense->data() : nullptr};
      Guarded<T> workspace(count(network.backward_elements(in, threads)));
      network.backward(parameters, weights_back, in, tape.data(), dh.data(), dstate.data(),
                       c.o.dense ? dx.data() : nullptr, gradients, threads, workspace.data());
      results.add(dstate);
      if (c.o.dense) results.add(dx);
      sums.add_to(results);
    }
  }
  if (!c.o.masked) return results;
  const GuardedParameters<T> dropped(network, separate ? parameters_of(network) : zeros, separate);
  network.drop_weights(c.mask_seed, parameters, dropped.get());
  dropped.add_to(results);
  network.drop_weights_backward(c.mask_seed + 1, dropped.get());
  dropped.add_to(results);
  return results;
}

// A new Model for each call: what another call has left there would be room.
template <class T>
Results run_model(const Case<T>& c, const std::string& rule, const OptimizerOptions& options) {
  const Guarded<Token> tokens(c.tokens), targets(c.targets);
  const Guarded<T> x(c.x);
  const Guarded<Index> lengths(c.lengths);
  const Index rows = c.s.T * c.s.B, V = c.s.V, B = c.s.B;
  typename Model<T>::Batch batch{c.s.T, B, c.o.dense ? nullptr : tokens.data(),
                                 c.o.dense ? x.data() : nullptr};
  if (c.o.ragged) batch.lengths = lengths.data();
  if (c.o.masked) batch.mask_seed = &c.mask_seed;
  Results results;
  const auto with_model = [&](auto&& f) {
    Model<T> model(c.shape);
    const std::vector<T> values = parameters_of(model.network());
    model.change_parameters([&](T* p) { std::copy(values.begin(), values.end(), p); });
    Guarded<T> state(random_values<T>(model.state_elements(B), 4));
    f(model, state);
    results.add(state);
  };
  for (const bool keep : {false, true})
    with_model([&](Model<T>& model, Guarded<T>& state) {
      Guarded<T> y(count(rows * model.output_size())), dstate(state.size(), T(1));
      model.forward(batch, state.data(), keep, y.data(), state.data());
      results.add(y);
      if (!keep) return;
      Guarded<T> dx(x.size()), gradients(count(model.network().parameter_elements()));
      model.backward(model.kept(), y.data(), dstate.data(), c.o.dense ? dx.data() : nullptr,
                     gradients.data());
      if (c.o.dense) results.add(dx);
      results.add(dstate);
      add_parameters(results, model.network(), gradients.data());
    });
  with_model([&](Model<T>& model, Guarded<T>& state) { model.read(batch, state.data()); });
  if (!c.o.bidirectional)
    with_model([&](Model<T>& model, Guarded<T>& state) {
      const Guarded<Token> token({c.tokens.begin(), c.tokens.begin() + B});
      const Guarded<T> vector(std::vector<T>(c.x.begin(), c.x.begin() + B * V));
      Guarded<T> y(count(B * model.output_size()));
      model.step({1, B, c.o.dense ? nullptr : token.data(), c.o.dense ? vector.data() : nullptr},
                 state.data(), y.data());
      results.add(y);
    });
  if (!c.o.decoder) return results;
  with_model([&](Model<T>& model, Guarded<T>& state) {
    results.add(model.evaluate(batch, targets.data(), state.data()).loss_sum);
    Guarded<double> of_streams(count(B));
    model.evaluate(batch, targets.data(), state.data(), of_streams.data());
    results.add(of_streams);
  });
  for (const bool in_parts : {false, true})
    with_model([&](Model<T>& model, Guarded<T>& state) {
      Optimizer<T> optimizer(rule, options, model.network().parameter_elements());
      const TrainOptions train{0.01, 1.0, 0.5, true};
      if (in_parts) {
        auto numbered = batch;
        const Guarded<Index> streams(count(B), 3);
        numbered.streams = streams.data();
        model.accumulate(batch, targets.data(), state.data(), state.data());
        model.accumulate(numbered, targets.data(), state.data(), state.data());
        results.add(model.update(optimizer, train).loss);
      } else {
        results.add(model.train_step(batch, targets.data(), state.data(), optimizer, train).loss);
      }
      add_parameters(results, model.network(), model.parameters());
    });
  if (c.o.dense || c.o.bidirectional) return results;
  for (const Storage storage : {Storage::full, Storage::bfloat16, Storage::int8}) {
    if (sizeof(T) != 4 && storage != Storage::full) continue;
    with_model([&](Model<T>& model, Guarded<T>& state) {
      const Guarded<Token> first({c.tokens.begin(), c.tokens.begin() + B});
      const Guarded<std::uint64_t> seeds(count(B), 3);
      Guarded<Token> drawn(count(3 * B));
      model.sample(3, B, first.data(), state.data(), seeds.data(), 0, {0.9, V / 2, 0.95},
                   drawn.data(), storage);
      results.add(drawn);
      const Guarded<StreamSampling> streams(count(B), {3, 7, {0.9, V / 2, 0.95}});
      model.sample(3, B, first.data(), state.data(), streams.data(), drawn.data(), storage);
      results.add(drawn);
      SamplingOptions penalized{0.9, V / 2, 0.95, 1.5, 5};
      Guarded<Token> recent(count(5 * B), Token(0));
      model.sample(3, B, first.data(), state.data(), seeds.data(), 0, penalized, drawn.data(),
                   storage, recent.data());
      results.add(drawn), results.add(recent);
      Guarded<T> nats(count(B * V));
      model.next(B, first.data(), state.data(), nats.data(), storage);
      results.add(nats);
    });
  }
  return results;
}

template <class T>
void check_networks() {
  const char* const rules[] = {"sgd", "rmsprop", "adagrad", "adam", "adamw"};
  const Kernels<T>& k = kernels<T>();
  int number = 0;
  for (int i = 0; i < k.num_cells; ++i)
    // All options in float; in double, where the vectors are half as wide, each with some others.
    for (int bits = 0; bits < 64; bits += sizeof(T) == 4 ? 1 : 5, ++number) {
      const CellKernels<T>& cell = k.cells[i];
      const Sizes& sizes = all_sizes[number % 5];
      const Bias biases[] = {Bias::both, Bias::single, Bias::none};
      const bool projected = cell.num_states > 1 && !cell.h_bypass && sizes.H > 1;
      const Options options{bool(bits & 1),          bool(bits & 2),  bool(bits & 4),
                            projected && (bits & 8), bool(bits & 16), bool(bits & 32),
                            biases[number % 3],      number % 4 != 0};
      const Case<T> c(cell, sizes, options);
      OptimizerOptions hyper;
      if (number % 5 < 2) hyper.momentum = 0.9;
      if (number % 5 == 1) hyper.centered = true;
      set_num_threads(1 + number % 2);
      const std::string name = std::string(cell.name) + (sizeof(T) == 4 ? " float" : " double") +
                               ", options " + std::to_string(bits) + ", sizes " +
                               std::to_string(number % 5) + ", case " + std::to_string(number);
      check_both_sides("network of " + name, [&] {
        const Results flat = run_network(c, false);
        CHECK(flat == run_network(c, true), "%s, with separate parameters", name.c_str());
        return flat;
      });
      check_both_sides("model of " + name, [&] { return run_model(c, rules[number % 5], hyper); });
    }
}

// Losses, clipping, draws, masks and functions: arrays of every length up to beyond two vectors,
// and some up to beyond four.
template <class T>
void check_functions() {
  for (Index n = 0; n <= 70; n += n < 35 ? 1 : 3) {
    const std::string name =
        std::string(sizeof(T) == 4 ? "float" : "double") + " arrays of " + std::to_string(n);
    check_both_sides(name, [&] {
      Results results;
      Guarded<T> x(random_values<T>(n, 1)), out(count(n)), weights(count(n), T(0.5));
      const Guarded<T> halves(count(n), T(0.5));
      for (const T* w : {static_cast<const T*>(nullptr), static_cast<const T*>(weights.data())}) {
        results.add(binary_cross_entropy(x.data(), halves.data(), n, true, out.data(), w));
        results.add(out);
        results.add(mean_square(x.data(), halves.data(), n, false, out.data(), w));
        results.add(out);
        if (n == 0) continue;
        for (const Index rows : {1, 3}) {
          const Guarded<T> logits(random_values<T>(rows * n, 2));
          const Guarded<Token> classes(random_tokens(rows, n, 3, true));
          const Guarded<T> row_weights(count(rows), T(2));
          Guarded<T> dlogits(logits.size());
          results.add(cross_entropy(logits.data(), classes.data(), rows, n, true, dlogits.data(),
                                    w ? row_weights.data() : nullptr));
          results.add(dlogits);
          const Guarded<std::uint64_t> seeds(count(rows), 9);
          Guarded<Token> drawn(count(rows));
          Guarded<T> workspace(count(draw_elements<T>(n)));
          draw_tokens(logits.data(), rows, n, seeds.data(), 0, {0.7, n / 2, 0.9}, drawn.data(),
                      workspace.data());
          results.add(drawn);
        }
      }
      for (const char* function : {"exp", "sigmoid", "tanh", "softplus"}) {
        apply_math(function, x.data(), n, out.data());
        results.add(out);
      }
      MaskArgs<T> mask = mask_args<T>(MaskKind::dropout, 0.3, 1, 2);
      const Guarded<Index> streams(std::vector<Index>{4, 2});
      Guarded<T> masked(count(2 * n));
      mask.streams = streams.data(), mask.out = masked.data();
      mask.out_stride = mask.cols = n;
      kernels<T>().mask(mask, {0, 2});
      results.add(masked);
      results.add(sum_of_squares(x.data(), n));
      clip_value(x.data(), n, T(0.5));
      scale(x.data(), n, T(0.25));
      results.add(x);
      const Guarded<T> a(random_values<T>(3 * n, 4)), b(random_values<T>(n * 5, 5));
      Guarded<T> c(count(15)), wide(count(n * n));
      multiply(a.data(), b.data(), 3, 5, n, c.data());
      multiply(a.data(), x.data(), n, n, 1, wide.data());
      results.add(c), results.add(wide);
      return results;
    });
  }
}

}  // namespace

int main() {
  watch_accesses();
  sharing_limits() = {0, 0};  // small cases shall run on all threads too
  std::printf("instruction set %s\n", isa_in_use().c_str());
  std::fflush(stdout);
  check_functions<float>();
  check_functions<double>();
  check_networks<float>();
  check_networks<double>();
  return report();
}
