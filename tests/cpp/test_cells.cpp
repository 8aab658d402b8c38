// A cell that the library does not know, leaky units, through the whole of the library's own
// path: layers, SIMD kernels, threads; and the two epilogues of every cell against each other.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "charrnn_fast/network.hpp"
#include "charrnn_fast/threads.hpp"
#include "check.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/thread_pool.hpp"
#include "internal/network_of_cell.hpp"
#include "test_isas.hpp"  // TEST_ISAS(X): X(namespace, "name") of each instruction set built
#include "values.hpp"

using namespace charrnn_fast;

#define X(isa, name)                        \
  namespace charrnn_fast::isa {             \
  const CellKernels<float>& leaky(float);   \
  const CellKernels<double>& leaky(double); \
  }
TEST_ISAS(X)
#undef X

namespace {

template <class T>
const CellKernels<T>& leaky() {
#define X(isa, name) \
  if (isa_in_use() == name) return charrnn_fast::isa::leaky(T());
  TEST_ISAS(X)
#undef X
  std::abort();
}

template <class T>
struct Run {
  Network<T> network;
  SequenceInput<T> in;
  std::vector<T> parameters, x, state_0, y, state_n, dstate, dx, gradients;

  Run(const CellKernels<T>& cell, Index layers, Index T_, Index B, Index I, Index H)
      : network(
            network_of_cell(NetworkShape{"", I, H, 0, layers, Bias::both}, cell, cpu_device())) {
    parameters.assign(static_cast<std::size_t>(network.parameter_elements()), T(0));
    unsigned seed = 1;
    for (const Parameter& p : network.parameters()) {
      const auto values = random_values<T>(p.elements(), seed++);
      std::copy(values.begin(), values.end(), parameters.begin() + p.offset);
    }
    x = random_values<T>(T_ * B * I, 100);
    state_0 = random_values<T>(network.num_states() * layers * B * H, 101);
    in = {T_, B, nullptr, x.data()};
  }

  Index hidden_elements() const { return in.seq_len * in.batch * network.shape().hidden_size; }

  void forward(bool keep, AlignedBuffer<T>& tape) {
    tape.reserve(network.tape_elements(in, keep));
    state_n.assign(state_0.size(), T(0));
    PackedCopies<T> packed(network, parameters.data());
    const PackedWeights<T> weights{packed[Packing::forward], packed[Packing::forward_dense]};
    AlignedBuffer<T> workspace;
    workspace.reserve(network.forward_elements(in));
    network.forward(parameters.data(), weights, in, state_0.data(), keep, tape.get(),
                    state_n.data(), workspace.get());
    const T* h = network.hidden(in, keep, tape.get());
    y.assign(h, h + hidden_elements());
  }

  // The loss: sum of y and the last state against fixed random weights.
  double loss() {
    AlignedBuffer<T> tape;
    forward(false, tape);
    const auto wy = random_values<T>(hidden_elements(), 102);
    const auto ws = random_values<T>(static_cast<Index>(state_n.size()), 103);
    double sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i)
      sum += static_cast<double>(y[i]) * static_cast<double>(wy[i]);
    for (std::size_t i = 0; i < state_n.size(); ++i)
      sum += static_cast<double>(state_n[i]) * static_cast<double>(ws[i]);
    return sum;
  }

  void backward() {
    AlignedBuffer<T> tape, workspace;
    forward(true, tape);
    auto dh = random_values<T>(hidden_elements(), 102);
    dstate = random_values<T>(static_cast<Index>(state_n.size()), 103);
    dx.assign(x.size(), T(0));
    gradients.assign(parameters.size(), T(0));
    workspace.reserve(network.backward_elements(in, get_num_threads()));
    PackedCopies<T> packed(network, parameters.data());
    const PackedWeights<T> weights{packed[Packing::backward], packed[Packing::backward_dense]};
    network.backward(parameters.data(), weights, in, tape.get(), dh.data(), dstate.data(),
                     dx.data(), gradients.data(), get_num_threads(), workspace.get());
  }
};

// Central differences with step h = 1e-5: truncation about h^2, rounding about 1e-16 / h.
void check_gradients(const CellKernels<double>& cell, Index layers) {
  Run<double> run(cell, layers, 4, 3, 5, 9);
  run.backward();
  const auto compare = [&](const char* name, std::vector<double>& values,
                           const std::vector<double>& gradient) {
    double worst = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double h = 1e-5, value = values[i];
      values[i] = value + h;
      const double above = run.loss();
      values[i] = value - h;
      const double below = run.loss();
      values[i] = value;
      worst = std::max(worst, std::fabs((above - below) / (2 * h) - gradient[i]));
    }
    CHECK(worst < 1e-8, "%s of %s, %d layers: %g", name, cell.name, static_cast<int>(layers),
          worst);
  };
  // Between the arrays of the flat parameters lie unused elements; a change there changes nothing.
  compare("parameters", run.parameters, run.gradients);
  compare("x", run.x, run.dx);
  compare("initial state", run.state_0, run.dstate);
}

// Float against double: rounding grows with the length of sums and of the sequence.
void check_float(const CellKernels<float>& cell, const CellKernels<double>& cell64) {
  Run<float> a(cell, 2, 6, 7, 5, 17);
  Run<double> b(cell64, 2, 6, 7, 5, 17);
  a.backward(), b.backward();
  const auto compare = [&](const char* name, const std::vector<float>& got,
                           const std::vector<double>& wanted) {
    double worst = 0, size = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      worst = std::max(worst, std::fabs(static_cast<double>(got[i]) - wanted[i]));
      size = std::max(size, std::fabs(wanted[i]));
    }
    CHECK(worst < 6e-8 * 40 * size, "%s of %s: %g of %g", name, cell.name, worst, size);
  };
  CHECK(a.gradients.size() == b.gradients.size(), "layouts differ");
  compare("y", a.y, b.y);
  compare("gradients", a.gradients, b.gradients);
  compare("dx", a.dx, b.dx);
}

template <class T>
void check_bits(const CellKernels<T>& cell) {
  for (const Index H : {1, 7, 16, 33}) {
    set_num_threads(1);
    Run<T> one(cell, 2, 5, 13, 3, H);
    one.backward();
    for (const int threads : {2, 3, 7}) {
      set_num_threads(threads);
      Run<T> many(cell, 2, 5, 13, 3, H);
      const auto teams_before = ThreadPool::instance().teams();
      many.backward();
      CHECK(ThreadPool::instance().teams() > teams_before, "%d threads did not share the work",
            threads);
      CHECK(same_bits(one.y, many.y) && same_bits(one.gradients, many.gradients) &&
                same_bits(one.dx, many.dx) && same_bits(one.dstate, many.dstate),
            "%s, H %d, %d threads", cell.name, static_cast<int>(H), threads);
    }
    // Each row alone.
    const Index I = 3, B = 13, L = 2, S = one.network.num_states();
    for (const Index row : {0, 5, 12}) {
      Run<T> alone(cell, L, 5, 1, I, H);
      for (Index t = 0; t < 5; ++t)
        std::copy_n(one.x.begin() + (t * B + row) * I, I, alone.x.begin() + t * I);
      for (Index s = 0; s < S * L; ++s)
        std::copy_n(one.state_0.begin() + (s * B + row) * H, H, alone.state_0.begin() + s * H);
      AlignedBuffer<T> tape;
      alone.forward(false, tape);
      bool same = true;
      for (Index t = 0; t < 5; ++t)
        same &= same_bits(one.y.data() + (t * B + row) * H, alone.y.data() + t * H, H);
      CHECK(same, "%s, H %d, row %d alone", cell.name, static_cast<int>(H), static_cast<int>(row));
    }
  }
  set_num_threads(1);
}

// The staged epilogue (a whole row of gates in memory before the cell) against the fused one, and
// units shared out against rows shared out, straight at the kernels.
template <class T>
void check_epilogues(const CellKernels<T>& cell) {
  const Kernels<T>& k = kernels<T>();
  for (const Index H : {1, 16, 31, 50}) {
    const Index steps = 3, B = 7, G = cell.num_gates, S = cell.num_states, BH = B * H;
    const Index panels = (H + cell.forward_units - 1) / cell.forward_units;
    const Index panels_t = (H + k.gemm_units - 1) / k.gemm_units;
    const Index slots = G + cell.num_split + cell.num_params;
    const auto w_hh = random_values<T>(G * H * H, 1), gx = random_values<T>(steps * B * G * H, 2);
    const auto split_bias = random_values<T>(cell.num_split * H, 3),
               params = random_values<T>(cell.num_params * H, 4);
    const auto dy = random_values<T>(steps * BH, 5);
    std::vector<T> packed(static_cast<std::size_t>(panels * cell.forward_units * G * H)),
        packed_t(static_cast<std::size_t>(panels_t * k.gemm_units * G * H));
    k.pack(PackArgs<T>{w_hh.data(), H, 1, G, H, H, packed.data()}, {0, panels});
    k.pack(PackArgs<T>{w_hh.data(), 1, H, 1, H, G * H, packed_t.data()}, {0, panels_t});

    struct Result {
      std::vector<T> states, saved, dgates, dstates;
    };
    const auto run = [&](bool staged, bool by_units) {
      Result r;
      r.states = random_values<T>(S * (steps + 1) * BH, 6);
      r.saved.assign(static_cast<std::size_t>(steps * BH * cell.num_saved), T(0));
      r.dgates.assign(static_cast<std::size_t>(steps * BH * slots), T(0));
      r.dstates = random_values<T>(S * BH, 7);
      std::vector<T> rows_of_gates(static_cast<std::size_t>(B * G * H));
      States<T> states{};
      StateGradients<T> dstates{};
      for (Index s = 0; s < S; ++s) {
        T* const first = r.states.data() + s * (steps + 1) * BH;
        states.of[s] = {first, first + BH, H, false};
        dstates.of[s] = r.dstates.data() + s * BH;
      }
      const Steps all{steps, B, nullptr, false};
      const RecurrentForwardArgs<T> f{
          .steps = all,
          .hidden_size = H,
          .width = H,
          .hh = {packed.data(), cell.forward_units * G, cell.forward_units * G * H},
          .gx = gx.data(),
          .tokens = nullptr,
          .table = nullptr,
          .input_bias = nullptr,
          .split_bias = split_bias.data(),
          .params = params.data(),
          .states = states,
          .saved = r.saved.data(),
          .staged = staged ? rows_of_gates.data() : nullptr,
          .staged_in_place = true};
      const RecurrentBackwardArgs<T> b{.steps = all,
                                       .hidden_size = H,
                                       .width = H,
                                       .hh = {packed_t.data(), k.gemm_units, k.gemm_units * G * H},
                                       .params = params.data(),
                                       .states = states,
                                       .saved = r.saved.data(),
                                       .dy = dy.data(),
                                       .dy_stride = H,
                                       .dstates = dstates,
                                       .dgates = r.dgates.data()};
      if (by_units) {
        for (Index t = 0; t < steps; ++t)
          for (Index p = 0; p < panels; ++p) cell.forward(f, {t, t + 1}, {0, B}, {p, p + 1});
        for (Index t = steps - 1; t >= 0; --t)
          for (Index p = 0; p < panels_t; ++p) cell.backward(b, {t, t + 1}, {0, B}, {p, p + 1});
        for (Index p = 0; p < panels_t; ++p) cell.backward_initial(b, {0, B}, {p, p + 1});
      } else {
        for (const Range rows : {Range{0, 2}, Range{2, B}})
          cell.forward(f, {0, steps}, rows, {0, panels});
        for (const Range rows : {Range{0, 3}, Range{3, B}}) {
          cell.backward(b, {0, steps}, rows, {0, panels_t});
          cell.backward_initial(b, rows, {0, panels_t});
        }
      }
      return r;
    };
    const Result fused = run(false, false);
    for (const auto& [staged, by_units] : {std::pair{true, false}, {false, true}, {true, true}}) {
      const Result other = run(staged, by_units);
      CHECK(same_bits(fused.states, other.states) && same_bits(fused.saved, other.saved) &&
                same_bits(fused.dgates, other.dgates) && same_bits(fused.dstates, other.dstates),
            "%s, H %d, staged %d, by units %d", cell.name, static_cast<int>(H), staged, by_units);
    }
  }
}

template <class T>
void check_all() {
  const Kernels<T>& k = kernels<T>();
  for (int i = 0; i < k.num_cells; ++i) check_epilogues(k.cells[i]);
  check_epilogues(leaky<T>());
  check_bits(leaky<T>());
}

}  // namespace

int main() {
  // Small cases shall run on all threads too.
  sharing_limits() = {0, 0};
  std::printf("instruction set %s\n", isa_in_use().c_str());
  set_num_threads(1);
  for (const Index layers : {1, 2, 3}) check_gradients(leaky<double>(), layers);
  const Kernels<double>& k = kernels<double>();
  for (int i = 0; i < k.num_cells; ++i)
    if (std::string(k.cells[i].nonlinearity) != "relu")  // has no derivative at 0: tested elsewhere
      check_gradients(k.cells[i], 2);
  check_float(leaky<float>(), leaky<double>());
  check_all<float>();
  check_all<double>();
  return report();
}
