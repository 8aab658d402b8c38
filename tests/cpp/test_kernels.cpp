// The kernels against plain scalar loops, bit for bit.
//
// The cells, the optimizers' rules and the functions of math.hpp are templates; here they run on
// one number at a time, in the order of operations that the kernels promise (kernels/table.hpp):
// sums over the depth of a product in chains, sums over rows in blocks. Whatever tiles, vectors,
// blocks and threads the kernels use, they have to give these bits. What the formulas mean is
// checked against finite differences (test_cells.cpp) and, for the loss and the functions, against
// long double.
#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "charrnn_fast/cells.hpp"
#include "charrnn_fast/losses.hpp"
#include "charrnn_fast/network.hpp"
#include "charrnn_fast/optimizer.hpp"
#include "charrnn_fast/sampling.hpp"
#include "charrnn_fast/threads.hpp"
#include "check.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/thread_pool.hpp"
#include "masks.hpp"
#include "measure.hpp"
#include "values.hpp"

using namespace charrnn_fast;

namespace {

// One lane of the kernels' packs: a product and a sum are rounded apart where the instruction set
// has no fused one.
bool fused = true;

template <class T>
struct Lane {
  using Scalar = T;
  T v = 0;

  Lane() = default;
  explicit Lane(T x) : v(x) {}
  friend Lane operator+(Lane a, Lane b) { return Lane(a.v + b.v); }
  friend Lane operator-(Lane a, Lane b) { return Lane(a.v - b.v); }
  friend Lane operator*(Lane a, Lane b) { return Lane(a.v * b.v); }
  friend Lane operator/(Lane a, Lane b) { return Lane(a.v / b.v); }
  friend Lane operator-(Lane a) { return Lane(-a.v); }
  friend Lane fma(Lane a, Lane b, Lane c) {
    return Lane(fused ? std::fma(a.v, b.v, c.v) : a.v * b.v + c.v);
  }
  friend Lane max(Lane a, Lane b) { return Lane(charrnn_fast::max(a.v, b.v)); }
  friend Lane min(Lane a, Lane b) { return Lane(charrnn_fast::min(a.v, b.v)); }
  friend Lane abs(Lane a) { return Lane(charrnn_fast::abs(a.v)); }
  friend Lane sqrt(Lane a) { return Lane(charrnn_fast::sqrt(a.v)); }
  friend Lane copysign(Lane a, Lane s) { return Lane(charrnn_fast::copysign(a.v, s.v)); }
  friend Lane select_negative(Lane x, Lane a, Lane b) {
    return Lane(charrnn_fast::select_negative(x.v, a.v, b.v));
  }
  friend Lane select_positive(Lane x, Lane a, Lane b) {
    return Lane(charrnn_fast::select_positive(x.v, a.v, b.v));
  }
  friend Lane pow2(Lane n) { return Lane(charrnn_fast::pow2(n.v)); }
  friend Lane scale(Lane x, Lane n) { return scale_in_halves(x, n); }
};

// x, or if subnormal a zero of its sign.
float flushed(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0F, x) : x; }

// x rounded to bfloat16: of its two neighbours the nearer one, of two as near the even one.
float nearest_bfloat16(float x) {
  if (!std::isfinite(x) || flushed(x) == 0) return flushed(x);
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const std::uint32_t upper[2] = {bits & 0xffff0000, (bits & 0xffff0000) + 0x10000};
  float neighbours[2];  // towards zero, and away from it
  std::memcpy(neighbours, upper, sizeof upper);
  // What lies behind the largest number counts as the next power of two.
  const double inner = neighbours[0],
               outer = std::isfinite(neighbours[1]) ? neighbours[1] : std::copysign(0x1p128, x);
  const double to_inner = std::fabs(x - inner), to_outer = std::fabs(outer - x);
  const bool inner_is_even = (bits >> 16 & 1) == 0;
  return neighbours[to_inner < to_outer || (to_inner == to_outer && inner_is_even) ? 0 : 1];
}

// acc plus the products of a's and b's elements [first, end), one chain. Products with bfloat16:
// see table.hpp.
template <class T, class A, class B>
T chain(Compute compute, Index first, Index end, A&& a, B&& b) {
  Lane<T> acc(T(0));
  if (compute == Compute::float32) {
    for (Index k = first; k < end; ++k) acc = fma(Lane<T>(a(k)), Lane<T>(b(k)), acc);
    return acc.v;
  }
  const auto element = [&](auto& of, Index k) {
    return k < end ? nearest_bfloat16(static_cast<float>(of(k))) : 0.0F;
  };
  float sum = 0;
  for (Index k = first; k < end; k += 2) {
    sum = flushed(std::fma(element(a, k + 1), element(b, k + 1), sum));
    sum = flushed(std::fma(element(a, k), element(b, k), sum));
  }
  return T(sum);
}

// An output of a product: start + sum over k of a(k) b(k).
template <class T, class A, class B>
T product(Compute compute, T start, Index depth, A&& a, B&& b) {
  const auto normal = [&](T x) {
    return compute == Compute::float32 ? x : T(flushed(static_cast<float>(x)));
  };
  T total = normal(start);
  for (Index first = 0; first == 0 || first < depth; first += chain_depth)
    total = normal(total + chain<T>(compute, first, std::min(first + chain_depth, depth), a, b));
  return total;
}

// The sum of blocks of rows, block(begin, end) each.
template <class T, class Block>
T sum_of_blocks(Index rows, Block&& block) {
  T total = 0, error = 0;
  for (Index first = 0; first < rows; first += sum_block) {
    const T term = block(first, std::min(first + sum_block, rows)), sum = total + term;
    const T part = sum - total;  // what of the term has entered the sum
    if (rows > most_plain_rows) error += (total - (sum - part)) + (term - part);
    total = sum;
  }
  return total + error;
}

// An element of a weight's gradient: the sum of a(row) b(row).
template <class T, class A, class B>
T row_products(Compute compute, Index rows, A&& a, B&& b) {
  return sum_of_blocks<T>(
      rows, [&](Index begin, Index end) { return chain<T>(compute, begin, end, a, b); });
}

// An element of a bias's gradient: the sum of a(row).
template <class T, class A>
T row_sums(Index rows, A&& a) {
  return sum_of_blocks<T>(rows, [&](Index begin, Index end) {
    T sum = 0;
    for (Index first = begin; first < end; first += sum_rows) {
      T some = 0;
      for (Index r = first; r < std::min(first + sum_rows, end); ++r) some += a(r);
      sum += some;
    }
    return sum;
  });
}

template <class T>
const char* type_name() {
  return sizeof(T) == 4 ? "float" : "double";
}

// ---- whole networks -----------------------------------------------------------------------

struct Case {
  Index seq_len, batch, input_size, hidden_size, output_size, num_layers;
  bool tokens;
  Bias bias;
  Compute compute = Compute::float32;
};

NetworkShape shape_of(const CellInfo& cell, const Case& c) {
  NetworkShape shape{cell.name, c.input_size, c.hidden_size, c.output_size, c.num_layers, c.bias};
  shape.nonlinearity = cell.nonlinearity;
  shape.compute = c.compute;
  return shape;
}

template <class T>
struct Problem {
  Case c;
  Network<T> network;
  std::vector<T> parameters, x, state_0, dy, dstate_n;
  std::vector<Token> tokens;
  SequenceInput<T> in;

  Problem(const CellInfo& cell, const Case& wanted) : c(wanted), network(shape_of(cell, c)) {
    parameters.assign(static_cast<std::size_t>(network.parameter_elements()), T(0));
    unsigned seed = 1;
    for (const Parameter& p : network.parameters()) {
      auto values = random_values<T>(p.elements(), seed++);
      const T bound = T(1) / std::sqrt(static_cast<T>(c.hidden_size));
      for (T& v : values) v *= bound;
      std::copy(values.begin(), values.end(), parameters.begin() + p.offset);
    }
    x = random_values<T>(c.seq_len * c.batch * c.input_size, 100);
    tokens = random_tokens(c.seq_len * c.batch, c.input_size, 101);
    const Index states = network.num_states() * c.num_layers * c.batch * c.hidden_size;
    state_0 = random_values<T>(states, 102);
    dstate_n = random_values<T>(states, 103);
    dy = random_values<T>(c.seq_len * c.batch * c.output_size, 104);
    in = {c.seq_len, c.batch, c.tokens ? tokens.data() : nullptr, c.tokens ? nullptr : x.data()};
  }
};

template <class T>
struct Result {
  std::vector<T> hidden, y, state_n, dstate_0, dx, gradients;
};

template <class T>
Result<T> by_kernels(const Problem<T>& p) {
  const Network<T>& n = p.network;
  const Index rows = p.c.seq_len * p.c.batch, H = p.c.hidden_size;
  const int threads = get_num_threads();
  AlignedBuffer<T> tape, workspace, dh;
  PackedCopies<T> packed(n, p.parameters.data());
  const PackedWeights<T> forward{packed[Packing::forward], packed[Packing::forward_dense]};
  Result<T> r;
  // Once without keep, whose tape is laid out otherwise.
  tape.reserve(std::max(n.tape_elements(p.in, false), n.tape_elements(p.in, true)));
  workspace.reserve(std::max(n.forward_elements(p.in), n.backward_elements(p.in, threads)));
  r.state_n.resize(p.state_0.size());
  n.forward(p.parameters.data(), forward, p.in, p.state_0.data(), false, tape.get(),
            r.state_n.data(), workspace.get());
  const T* h = n.hidden(p.in, false, tape.get());
  r.hidden.assign(h, h + rows * H);
  n.forward(p.parameters.data(), forward, p.in, p.state_0.data(), true, tape.get(),
            r.state_n.data(), workspace.get());
  h = n.hidden(p.in, true, tape.get());
  CHECK(same_bits(h, r.hidden.data(), rows * H), "with and without keep");
  r.y.resize(p.dy.size());
  n.decode(packed[Packing::decoder], h, rows, r.y.data());

  r.gradients.assign(p.parameters.size(), T(0));
  r.dx.assign(p.c.tokens ? 0 : p.x.size(), T(0));
  r.dstate_0 = p.dstate_n;
  dh.reserve(rows * H);
  workspace.reserve(n.decode_backward_elements(threads));
  n.decode_backward(p.parameters.data(), h, p.dy.data(), rows, dh.get(), r.gradients.data(),
                    threads, workspace.get());
  const auto backward = [&](Result<T>& to, const T* layers) {
    std::vector<T> dh_layers(dh.get(), dh.get() + rows * H);  // is overwritten
    const PackedWeights<T> weights{layers, packed[Packing::backward_dense]};
    n.backward(p.parameters.data(), weights, p.in, tape.get(), dh_layers.data(), to.dstate_0.data(),
               p.c.tokens ? nullptr : to.dx.data(), to.gradients.data(), threads, workspace.get());
  };
  Result<T> as_they_stand = r;
  backward(r, packed[Packing::backward]);
  if (p.c.compute == Compute::bfloat16) return r;  // needs packed weights
  backward(as_they_stand, nullptr);
  CHECK(same_bits(r.gradients, as_they_stand.gradients) && same_bits(r.dx, as_they_stand.dx) &&
            same_bits(r.dstate_0, as_they_stand.dstate_0),
        "weights packed and as they stand");
  return r;
}

template <class Cell, class T>
Result<T> by_hand(const Problem<T>& p) {
  using V = Lane<T>;
  constexpr int G = Cell::num_gates, S = Cell::num_states, split = Cell::num_split,
                summed = G - split, num_saved = Cell::num_saved, P = Cell::num_params;
  const Index steps = p.c.seq_len, B = p.c.batch, H = p.c.hidden_size, L = p.c.num_layers,
              rows = steps * B, BH = B * H, O = p.c.output_size;
  const Compute compute = p.c.compute;
  const auto operand = [&](T x) {
    return compute == Compute::bfloat16 ? T(nearest_bfloat16(static_cast<float>(x))) : x;
  };
  Result<T> r;
  r.gradients.assign(p.parameters.size(), T(0));
  r.state_n.resize(p.state_0.size());
  r.dstate_0 = p.dstate_n;
  const std::vector<T> zeros(static_cast<std::size_t>(G * H + O), T(0));
  // An array's values and gradients by its name; zeros where there is no such bias.
  const auto find = [&](const std::string& name) -> const Parameter* {
    for (const Parameter& q : p.network.parameters())
      if (q.name == name) return &q;
    return nullptr;
  };
  const auto values = [&](const Parameter* q) {
    return q ? p.parameters.data() + q->offset : zeros.data();
  };

  struct LayerRun {
    std::vector<T> states[S];  // [T + 1, B, H]
    std::vector<T> saved;      // [T, B, num_saved, H]
    std::vector<T> input;      // [T, B, I]
  };
  std::vector<LayerRun> layers(static_cast<std::size_t>(L));
  const auto weight_ih = [&](Index l, Index row, Index col) {
    const Parameter* q = find("weight_ih_l" + std::to_string(l));
    return p.parameters[static_cast<std::size_t>(
        q->offset + (q->transposed ? col * q->rows + row : row * q->cols + col))];
  };

  // ---- forward
  for (Index l = 0; l < L; ++l) {
    const std::string suffix = "_l" + std::to_string(l);
    LayerRun& run = layers[static_cast<std::size_t>(l)];
    const Index I = l == 0 ? p.c.input_size : H;
    const bool gather = l == 0 && p.c.tokens;
    if (l == 0)
      run.input = p.x;
    else
      run.input.assign(layers[static_cast<std::size_t>(l - 1)].states[0].begin() + BH,
                       layers[static_cast<std::size_t>(l - 1)].states[0].end());
    const T* const w_hh = values(find("weight_hh" + suffix));
    const T* const b_ih = values(find("bias_ih" + suffix));
    const T* const b_hh = values(find("bias_hh" + suffix));
    const T* const own = values(find(std::string("weight_") + Cell::params_name + suffix));
    for (int s = 0; s < S; ++s) {
      run.states[s].resize(static_cast<std::size_t>((steps + 1) * BH));
      std::copy_n(p.state_0.begin() + (s * L + l) * BH, BH, run.states[s].begin());
    }
    run.saved.resize(static_cast<std::size_t>(rows * num_saved * H + 1));
    for (Index row = 0; row < rows; ++row) {
      const T* const h = run.states[0].data() + row * H;
      for (Index u = 0; u < H; ++u) {
        V gates[G], gx[split + 1], params[P + 1], prev[S], next[S], saved[num_saved + 1];
        for (int g = 0; g < G; ++g) {
          const Index j = g * H + u;
          const T bias = g < summed ? b_ih[j] + b_hh[j] : b_ih[j];
          const T input =
              gather ? bias + operand(weight_ih(0, j, p.tokens[static_cast<std::size_t>(row)]))
                     : product(
                           compute, bias, I,
                           [&](Index k) { return run.input[std::size_t(row * I + k)]; },
                           [&](Index k) { return weight_ih(l, j, k); });
          if (g >= summed) gx[g - summed] = V(input);
          gates[g] = V(product(
              compute, g < summed ? input : b_hh[j], H, [&](Index k) { return h[k]; },
              [&](Index k) { return w_hh[j * H + k]; }));
        }
        for (int s = 0; s < S; ++s) prev[s] = V(run.states[s][std::size_t(row * H + u)]);
        for (int i = 0; i < P; ++i) params[i] = V(own[i * H + u]);
        Cell::forward(CellForward<V>{gates, gx, params, prev, next, saved});
        for (int s = 0; s < S; ++s) run.states[s][std::size_t(BH + row * H + u)] = next[s].v;
        for (int i = 0; i < num_saved; ++i)
          run.saved[std::size_t((row * num_saved + i) * H + u)] = saved[i].v;
      }
    }
    for (int s = 0; s < S; ++s)
      std::copy_n(run.states[s].begin() + steps * BH, BH, r.state_n.begin() + (s * L + l) * BH);
  }
  r.hidden.assign(layers.back().states[0].begin() + BH, layers.back().states[0].end());

  // ---- decoder
  const T* const w_out = values(find("decoder.weight"));
  const T* const b_out = values(find("decoder.bias"));
  std::vector<T> dh(static_cast<std::size_t>(rows * H));
  for (Index row = 0; row < rows; ++row) {
    const auto hidden = [&](Index k) { return r.hidden[std::size_t(row * H + k)]; };
    for (Index o = 0; o < O; ++o)
      r.y.push_back(
          product(compute, b_out[o], H, hidden, [&](Index k) { return w_out[o * H + k]; }));
    for (Index u = 0; u < H; ++u)
      dh[std::size_t(row * H + u)] = product(
          compute, T(0), O, [&](Index k) { return p.dy[std::size_t(row * O + k)]; },
          [&](Index k) { return w_out[k * H + u]; });
  }
  const auto gradient = [&](const Parameter* q, Index at) -> T& {
    return r.gradients[std::size_t(q->offset + at)];
  };
  const Parameter* const out = find("decoder.weight");
  for (Index o = 0; o < O; ++o) {
    const auto dy = [&](Index k) { return p.dy[std::size_t(k * O + o)]; };
    for (Index u = 0; u < H; ++u)
      gradient(out, o * H + u) = row_products<T>(
          compute, rows, dy, [&](Index k) { return r.hidden[std::size_t(k * H + u)]; });
    if (const Parameter* q = find("decoder.bias")) gradient(q, o) = row_sums<T>(rows, dy);
  }

  // ---- backward
  for (Index l = L - 1; l >= 0; --l) {
    const std::string suffix = "_l" + std::to_string(l);
    const LayerRun& run = layers[static_cast<std::size_t>(l)];
    const Index I = l == 0 ? p.c.input_size : H, GH = G * H;
    const bool gather = l == 0 && p.c.tokens;
    const T* const w_hh = values(find("weight_hh" + suffix));
    const Parameter* const own = find(std::string("weight_") + Cell::params_name + suffix);
    std::vector<T> dgates(static_cast<std::size_t>(rows * GH));  // of the recurrent term
    std::vector<T> dgx(dgates.size());                           // of the input term
    std::vector<T> dparams_of(static_cast<std::size_t>(rows * P * H + 1));
    T* dstate[S];
    for (int s = 0; s < S; ++s) dstate[s] = r.dstate_0.data() + (s * L + l) * BH;
    const auto recurrent = [&](Index t, Index b, Index u, T start) {
      return product(
          compute, start, GH, [&](Index k) { return dgates[std::size_t((t * B + b) * GH + k)]; },
          [&](Index k) { return w_hh[k * H + u]; });
    };
    for (Index t = steps - 1; t >= 0; --t)
      for (Index b = 0; b < B; ++b)
        for (Index u = 0; u < H; ++u) {
          const Index row = t * B + b, at = b * H + u;
          T start = dh[std::size_t(row * H + u)];
          if (Cell::h_bypass || t == steps - 1) start = start + dstate[0][at];
          if (t + 1 < steps) start = recurrent(t + 1, b, u, start);
          V saved[num_saved + 1], params[P + 1], prev[S], next[S], dnext[S], d[G],
              d_split[split + 1], dparams[P + 1], dprev[S];
          for (int i = 0; i < P; ++i) params[i] = V(values(own)[i * H + u]);
          for (int i = 0; i < num_saved; ++i)
            saved[i] = V(run.saved[std::size_t((row * num_saved + i) * H + u)]);
          for (int s = 0; s < S; ++s) {
            prev[s] = V(run.states[s][std::size_t(row * H + u)]);
            next[s] = V(run.states[s][std::size_t(BH + row * H + u)]);
            dnext[s] = V(s == 0 ? start : dstate[s][at]);
          }
          Cell::backward(
              CellBackward<V>{saved, params, prev, next, dnext, d, d_split, dparams, dprev});
          for (int g = 0; g < G; ++g) {
            dgates[std::size_t(row * GH + g * H + u)] = d[g].v;
            dgx[std::size_t(row * GH + g * H + u)] = g < summed ? d[g].v : d_split[g - summed].v;
          }
          for (int i = 0; i < P; ++i) dparams_of[std::size_t((row * P + i) * H + u)] = dparams[i].v;
          for (int s = 0; s < S; ++s)
            if (s > 0 || Cell::h_bypass) dstate[s][at] = dprev[s].v;
        }
    for (Index b = 0; b < B; ++b)
      for (Index u = 0; u < H; ++u) {
        T& d = dstate[0][b * H + u];
        d = recurrent(0, b, u, Cell::h_bypass ? d : T(0));
      }

    const Parameter *const ih = find("weight_ih" + suffix), *const hh = find("weight_hh" + suffix);
    for (Index j = 0; j < GH; ++j) {
      const auto d_hh = [&](Index k) { return dgates[std::size_t(k * GH + j)]; };
      const auto d_ih = [&](Index k) { return dgx[std::size_t(k * GH + j)]; };
      for (Index u = 0; u < H; ++u)
        gradient(hh, j * H + u) = row_products<T>(
            compute, rows, d_hh, [&](Index k) { return run.states[0][std::size_t(k * H + u)]; });
      for (Index i = 0; i < I; ++i)
        gradient(ih, l == 0 ? i * GH + j : j * I + i) =
            row_products<T>(compute, rows, d_ih, [&](Index k) {
              return gather ? T(p.tokens[std::size_t(k)] == i) : run.input[std::size_t(k * I + i)];
            });
      if (const Parameter* q = find("bias_ih" + suffix)) gradient(q, j) = row_sums<T>(rows, d_ih);
      if (const Parameter* q = find("bias_hh" + suffix)) gradient(q, j) = row_sums<T>(rows, d_hh);
    }
    for (Index j = 0; j < P * H; ++j)
      gradient(own, j) =
          row_sums<T>(rows, [&](Index k) { return dparams_of[std::size_t(k * P * H + j)]; });
    if (gather) continue;
    std::vector<T> below(static_cast<std::size_t>(rows * I));
    for (Index row = 0; row < rows; ++row)
      for (Index i = 0; i < I; ++i)
        // Split gates are a product of their own.
        for (const Range gates : {Range{0, summed}, Range{summed, G}})
          below[std::size_t(row * I + i)] = product(
              compute, below[std::size_t(row * I + i)], (gates.end - gates.begin) * H,
              [&](Index k) { return dgx[std::size_t(row * GH + gates.begin * H + k)]; },
              [&](Index k) { return weight_ih(l, gates.begin * H + k, i); });
    (l > 0 ? dh : r.dx) = below;
  }
  return r;
}

template <class Cell, class T>
void check_network(Compute compute) {
  const Case cases[] = {
      // more than one block of the weight gradients' depth and several tiles of every kind
      {15, 23, 5, 33, 7, 1, true, Bias::both},
      {3, 13, 9, 50, 20, 2, false, Bias::both},
      {4, 2, 3, 65, 33, 2, true, Bias::single},
      {6, 1, 17, 16, 1, 1, false, Bias::none},
      {1, 4, 1, 1, 3, 3, true, Bias::both},
      {2, 7, 31, 8, 64, 1, false, Bias::single},
      // several chains of every product
      {2, 3, 140, 131, 150, 1, false, Bias::both},
      // so many rows that the errors of sums count
      {210, 20, 3, 5, 2, 1, true, Bias::both},
      {830, 5, 2, 4, 3, 2, false, Bias::single},
  };
  for (Case c : cases) {
    c.compute = compute;
    const Problem<T> problem(cell_info<Cell>(), c);
    const Result<T> expected = by_hand<Cell>(problem);
    for (const int threads : {1, 3}) {
      set_num_threads(threads);
      const Result<T> found = by_kernels(problem);
      const auto compare = [&](const char* name, const std::vector<T>& a, const std::vector<T>& b) {
        CHECK(same_bits(a, b), "%s of %s in %s%s, H %d, %d threads", name, Cell::name,
              type_name<T>(), compute == Compute::bfloat16 ? " with bfloat16 products" : "",
              static_cast<int>(c.hidden_size), threads);
      };
      compare("hidden", found.hidden, expected.hidden);
      compare("y", found.y, expected.y);
      compare("state_n", found.state_n, expected.state_n);
      compare("dstate_0", found.dstate_0, expected.dstate_0);
      compare("dx", found.dx, expected.dx);
      compare("gradients", found.gradients, expected.gradients);
    }
  }
}

template <class T, class... C>
void check_networks(CellList<C...>) {
  (check_network<C, T>(Compute::float32), ...);
  if (sizeof(T) == 4) (check_network<C, T>(Compute::bfloat16), ...);
}

// The nearest number whose last 16 bits are zero, of two the one with an even last bit.
float rounded_to_bfloat16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits += 0x7fff + (bits >> 16 & 1);
  bits &= 0xffff0000;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// A row of weights as int8: the integers, and their scale.
struct Int8Row {
  std::vector<float> integers;
  float scale;

  Int8Row(const float* row, Index n) : integers(row, row + n) {
    float most = 0;
    for (const float x : integers) most = std::max(most, std::abs(x));
    int exponent = 0;  // of 16 significant bits, and no bits below 2^-141: scale = integer * unit
    std::frexp(most / 127, &exponent);
    const int unit = std::max(exponent - 16, -141);
    scale = std::ldexp(std::floor(std::ldexp(most / 127, -unit)), unit);
    for (float& x : integers)
      x = scale > 0 ? std::clamp(std::nearbyint(x / scale), -127.0f, 127.0f) : 0;
  }
};

// start + x [n] times a row of int8 weights. In each part of 512, x becomes 22 bits and a sign, in
// units of a power of two; the sum of products is exact; its float is added.
float int8_product(const float* x, const float* integers, float scale, Index n, float start) {
  for (Index first = 0; first < n; first += 512) {
    const Index end = std::min<Index>(first + 512, n);
    float most = 0;
    bool finite = true;
    for (Index k = first; k < end; ++k) {
      most = std::max(most, std::abs(x[k]));
      finite = finite && std::isfinite(x[k]);
    }
    int exponent = 0;  // most < 2^exponent
    std::frexp(most, &exponent);
    if (most == 0 || exponent < -100) exponent = -100;
    std::int64_t sum = 0;
    for (Index k = first; k < end && finite; ++k)
      sum += std::llrint(std::ldexp(double(x[k]), 22 - exponent)) * std::llrint(integers[k]);
    const float unit = finite ? std::ldexp(1.0f, exponent - 22) : std::nanf("");
    start =
        fma(Lane<float>(scale), Lane<float>(static_cast<float>(sum) * unit), Lane<float>(start)).v;
  }
  return start;
}

// Weights stored as int8: the decoder bit for bit. Rows of zeros, and of zeros but one, too; rows
// of h of all sizes, and with infinity and NaN.
void check_int8_decoder() {
  for (const Index depth : {1, 2, 3, 4, 5, 127, 128, 131, 260, 511, 512, 513, 1030})
    for (const Index outputs : {1, 7, 19, 50, 140})
      for (const Index rows : {1, 2, 6, 7, 30, 61}) {
        const Network<float> n({"rnn", 3, depth, outputs});
        std::vector<float> parameters = random_values<float>(n.parameter_elements(), 3);
        const auto offset_of = [&](const char* name) {
          for (const Parameter& p : n.parameters())
            if (p.name == name) return p.offset;
          return Index(-1);
        };
        float* const w = parameters.data() + offset_of("decoder.weight");
        const float* const bias = parameters.data() + offset_of("decoder.bias");
        std::fill_n(w, depth, 0.0f);
        if (outputs > 1) std::fill_n(w + depth, depth - 1, 0.0f);
        std::vector<float> h = random_values<float>(rows * depth, 4);
        const auto set = [&](Index row, Index k, float value) {
          if (row < rows && k < depth) h[static_cast<std::size_t>(row * depth + k)] = value;
        };
        for (Index k = 0; k < depth; ++k) {
          set(2, k, 0.0f);
          set(3, k, std::ldexp(h[static_cast<std::size_t>(k)], -130));  // subnormal ones among them
          set(4, k, k % 2 == 0 ? 0x1.fffffep0f : -0x1.fffffep0f);  // rounds up to the next power
        }
        set(1, 0, 1e30f);
        set(5, depth / 2, std::numeric_limits<float>::infinity());
        set(6, depth - 1, std::nanf(""));
        std::vector<float> expected(static_cast<std::size_t>(rows * outputs));
        for (Index j = 0; j < outputs; ++j) {
          const Int8Row row(w + j * depth, depth);
          for (Index r = 0; r < rows; ++r) {
            const float total =
                int8_product(h.data() + r * depth, row.integers.data(), row.scale, depth, bias[j]);
            expected[static_cast<std::size_t>(r * outputs + j)] = total;
          }
        }
        PackedCopies<float> packed(n, parameters.data());
        for (const int threads : {1, 3}) {
          set_num_threads(threads);
          std::vector<float> got(expected.size());
          n.decode(packed.get(Packing::decoder, Storage::int8), h.data(), rows, got.data(),
                   Storage::int8);
          CHECK(same_bits(got, expected), "%d rows, depth %d, %d outputs, %d threads",
                static_cast<int>(rows), static_cast<int>(depth), static_cast<int>(outputs),
                threads);
        }
      }
}

// A product of int8 weights with the largest sums of the longest rows, and with numbers at the ends
// of float's range, bit for bit. Weights and numbers alternate between two values. NaN: a row of
// weights that are not all finite, or a part of h that is not.
void check_int8_extremes() {
  constexpr float infinity = std::numeric_limits<float>::infinity(), nan = NAN;
  constexpr float least = std::numeric_limits<float>::denorm_min();
  using Pair = std::array<float, 2>;
  const std::vector<Pair> weights{
      {1, 1},           {1, -1},
      {-1, -1},         {0.3f, -1},
      {-0.0f, 0},       {FLT_MAX, FLT_MAX},
      {FLT_MIN, -1},    {1e-36f, -3e-37f},
      {1e-40f, 4e-41f}, {253 * 0x1p-141f, 0x1p-135f},  // beyond 127 scales
      {least, -least},  {infinity, 1},
      {1, -infinity},   {nan, 1}};
  // Integers of 22 bits whose lower digits are the lowest and the highest: of 12 and of 8 bits.
  constexpr float low = 0x3ff800p-22f, high = 0x3ff7ffp-22f, low8 = 0x3f7f80p-22f;
  const std::vector<Pair> numbers{{low, low},
                                  {-high, high},
                                  {low8, low8},
                                  {0x3f7f7fp-22f, -low8},
                                  {0x1.fffffep0f, 0x1.fffffep0f},  // rounds up to the next power
                                  {-0.0f, 0},
                                  {least, -FLT_MIN},
                                  {0x1p-100f, -0x1.8p-122f},
                                  {0x1.cp-102f, 0},
                                  {0x1p111f, 0x1p111f},
                                  {FLT_MAX, -FLT_MAX},
                                  {FLT_MAX, 1},
                                  {infinity, 0},
                                  {0, -infinity},
                                  {nan, 1}};
  const auto alternating = [](const std::vector<Pair>& rows, Index depth) {
    std::vector<float> all;
    for (const Pair& pair : rows)
      for (Index k = 0; k < depth; ++k) all.push_back(pair[static_cast<std::size_t>(k % 2)]);
    return all;
  };
  const Kernels<float>& k = kernels<float>();
  const auto M = static_cast<Index>(numbers.size()), N = static_cast<Index>(weights.size());
  const Index panels = (N + k.gemm_units - 1) / k.gemm_units;
  for (const Index depth : {Index(2), Index(510), Index(1021), k.int8_depth - 3, k.int8_depth}) {
    const std::vector<float> w = alternating(weights, depth), a = alternating(numbers, depth);
    const Index steps = 1 + (depth + 3) / 4;
    std::vector<float> packed(static_cast<std::size_t>(panels * k.gemm_units * steps));
    k.pack({w.data(), depth, 1, 1, N, depth, packed.data(), Storage::int8}, {0, panels});
    std::vector<float> got(static_cast<std::size_t>(M * N), 7);
    k.gemm({a.data(),
            depth,
            {packed.data(), k.gemm_units, k.gemm_units * steps, Storage::int8},
            nullptr,
            false,
            N,
            depth,
            got.data(),
            N},
           {0, M}, {0, panels});
    for (Index i = 0; i < M; ++i)
      for (Index j = 0; j < N; ++j) {
        const float* const row = w.data() + j * depth;
        float expected = nan;
        if (std::all_of(row, row + depth, [](float x) { return std::isfinite(x); })) {
          const Int8Row stored(row, depth);
          expected =
              int8_product(a.data() + i * depth, stored.integers.data(), stored.scale, depth, 0);
        }
        const float found = got[static_cast<std::size_t>(i * N + j)];
        CHECK(std::isnan(expected) ? std::isnan(found) : same_bits(&found, &expected, 1),
              "depth %d, numbers %d, weights %d: %g, not %g", static_cast<int>(depth),
              static_cast<int>(i), static_cast<int>(j), static_cast<double>(found),
              static_cast<double>(expected));
      }
  }
}

// Weights stored as bfloat16 give what rounded weights give. Biases and peepholes are not rounded,
// nor are the input weights of layer 0 where tokens pick their rows. As int8 they give what weights
// rounded to it give, as int8 to the bit and as floats but for rounding.
void check_small_weights(const CellInfo& cell) {
  for (const Case& c :
       {Case{5, 23, 6, 33, 7, 2, true, Bias::both}, Case{3, 4, 19, 50, 20, 2, false, Bias::both},
        Case{2, 1, 5, 1, 40, 1, false, Bias::none}}) {
    const Problem<float> problem(cell, c);
    const Network<float>& n = problem.network;
    const Index rows = c.seq_len * c.batch;
    std::vector<float> rounded = problem.parameters, rounded_to_int8 = rounded;
    for (const Parameter& p : n.parameters())
      if (p.cols > 0 && !(c.tokens && p.name == "weight_ih_l0") &&
          p.name.find("peephole") == std::string::npos)
        for (Index i = 0; i < p.elements(); ++i) {
          float& x = rounded[static_cast<std::size_t>(p.offset + i)];
          x = rounded_to_bfloat16(x);
          // Element (row, k): layer 0's input weights lie transposed.
          const Index rows = p.rows, row = p.transposed ? i % rows : i / p.cols;
          std::vector<float> whole(static_cast<std::size_t>(p.cols));
          for (Index k = 0; k < p.cols; ++k)
            whole[static_cast<std::size_t>(k)] = problem.parameters[static_cast<std::size_t>(
                p.offset + (p.transposed ? k * rows + row : row * p.cols + k))];
          const Int8Row small(whole.data(), p.cols);
          const Index k = p.transposed ? i / rows : i % p.cols;
          rounded_to_int8[static_cast<std::size_t>(p.offset + i)] =
              small.integers[static_cast<std::size_t>(k)] * small.scale;
        }
    const auto run = [&](const std::vector<float>& parameters, Storage storage) {
      PackedCopies<float> packed(n, parameters.data());
      const PackedWeights<float> weights{packed.get(Packing::forward, storage),
                                         packed.get(Packing::forward_dense, storage), storage};
      AlignedBuffer<float> tape, workspace;
      tape.reserve(n.tape_elements(problem.in, false));
      workspace.reserve(n.forward_elements(problem.in));
      std::vector<float> results(problem.state_0.size() + problem.dy.size());
      n.forward(parameters.data(), weights, problem.in, problem.state_0.data(), false, tape.get(),
                results.data(), workspace.get());
      n.decode(packed.get(Packing::decoder, storage), n.hidden(problem.in, false, tape.get()), rows,
               results.data() + problem.state_0.size(), storage);
      return results;
    };
    for (const int threads : {1, 3}) {
      set_num_threads(threads);
      CHECK(same_bits(run(problem.parameters, Storage::bfloat16), run(rounded, Storage::full)),
            "%s, H %d, %d threads", cell.name, static_cast<int>(c.hidden_size), threads);
      const std::vector<float> small = run(problem.parameters, Storage::int8);
      CHECK(same_bits(small, run(rounded_to_int8, Storage::int8)), "int8 %s, H %d, %d threads",
            cell.name, static_cast<int>(c.hidden_size), threads);
      const std::vector<float> as_floats = run(rounded_to_int8, Storage::full);
      for (std::size_t i = 0; i < small.size(); ++i)
        CHECK(std::abs(small[i] - as_floats[i]) < 1e-5f * (1 + std::abs(small[i])),
              "int8 %s, H %d: %g, as floats %g", cell.name, static_cast<int>(c.hidden_size),
              static_cast<double>(small[i]), static_cast<double>(as_floats[i]));
    }
  }
}

template <class T>
void check_products() {
  for (const Index rows : {1, 2, 5, 6, 7, 13, 24, 25})
    for (const Index cols : {1, 3, 16, 31, 70})
      for (const Index depth : {0, 1, 37, 128, 129, 300}) {
        const auto a = random_values<T>(rows * depth, 1), b = random_values<T>(depth * cols, 2);
        std::vector<T> found(static_cast<std::size_t>(rows * cols)), expected;
        multiply(a.data(), b.data(), rows, cols, depth, found.data());
        for (Index r = 0; r < rows; ++r)
          for (Index c = 0; c < cols; ++c)
            expected.push_back(product(
                Compute::float32, T(0), depth,
                [&](Index k) { return a[std::size_t(r * depth + k)]; },
                [&](Index k) { return b[std::size_t(k * cols + c)]; }));
        CHECK(same_bits(found, expected), "%d x %d x %d", int(rows), int(cols), int(depth));
      }
}

// C [rows, cols] = C + A [rows, depth] @ B [depth, cols]; with bfloat16.
void multiply_rounded(const std::vector<float>& a, const std::vector<float>& b, Index rows,
                      Index cols, Index depth, std::vector<float>& c) {
  const Kernels<float>& k = kernels<float>();
  const Index units = k.gemm_units, panels = (cols + units - 1) / units, words = (depth + 1) / 2;
  AlignedBuffer<float> packed;
  packed.reserve(panels * units * words + 1);
  k.pack({b.data(), 1, cols, 1, cols, depth, packed.get(), Storage::bfloat16, Compute::bfloat16},
         {0, panels});
  const Weights<float> weights{packed.get(), units, units * words, Storage::bfloat16,
                               Compute::bfloat16};
  k.gemm({a.data(), depth, weights, nullptr, true, cols, depth, c.data(), cols}, {0, rows},
         {0, panels});
}

// Products of all kinds of numbers: near the smallest and the largest, subnormal, infinite, NaN.
void check_rounded_products() {
  unsigned state = 1;
  const auto numbers = [&](Index n, int range, bool special) {
    std::vector<float> values = random_values<float>(n, ++state);
    for (std::size_t i = 0; i < values.size(); ++i) {
      state = state * 1664525U + 1013904223U;
      const int pick = static_cast<int>(state >> 20);
      values[i] = std::ldexp(values[i], pick % (2 * range + 1) - range);
      if (!special) continue;
      constexpr float inf = std::numeric_limits<float>::infinity();
      const float others[] = {0,       -0.0F,    1e-40F,    -1e-42F, FLT_MIN,
                              FLT_MAX, -FLT_MIN, 1.17e-38F, inf,     std::nanf("")};
      if (pick % 61 < 8 + (pick % 7 == 0 ? 2 : 0)) values[i] = others[pick % 61];
    }
    return values;
  };
  const auto same = [](float a, float b) {
    return (std::isnan(a) && std::isnan(b)) || same_bits(&a, &b, 1);
  };
  for (const int range : {0, 10, 62, 120})
    for (const bool special : {false, true})
      for (const Index rows : {1, 5, 49})
        for (const Index depth : {0, 1, 2, 37, 129, 300}) {
          const Index cols = 37;
          const auto a = numbers(rows * depth, range, special);
          const auto b = numbers(depth * cols, range, special);
          auto found = numbers(rows * cols, range, special), expected = found;
          multiply_rounded(a, b, rows, cols, depth, found);
          for (Index r = 0; r < rows; ++r)
            for (Index c = 0; c < cols; ++c) {
              float& value = expected[std::size_t(r * cols + c)];
              value = product(
                  Compute::bfloat16, value, depth,
                  [&](Index k) { return a[std::size_t(r * depth + k)]; },
                  [&](Index k) { return b[std::size_t(k * cols + c)]; });
            }
          for (std::size_t i = 0; i < found.size(); ++i)
            if (!same(found[i], expected[i])) {
              CHECK(false, "range %d, special %d, %d x %d, element %d: %a, expected %a", range,
                    int(special), int(rows), int(depth), int(i), double(found[i]),
                    double(expected[i]));
              return;
            }
        }
}

// ---- functions ----------------------------------------------------------------------------

long double softplus(long double x) {
  return std::max(x, 0.0L) + std::log1p(std::exp(-std::fabs(x)));
}

template <class T>
void check_functions() {
  constexpr T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  std::vector<T> x = {0,    T(-0.0), 1,     -1,   inf,       -inf, nan,
                      1000, -1000,   T(88), -100, T(1e-300), -20,  20};
  for (const T spread : {T(1e-4), T(1), T(10), T(100), T(800)})
    for (T v : random_values<T>(1000, 1)) x.push_back(v * spread);
  const Index n = static_cast<Index>(x.size());
  const Kernels<T>& k = kernels<T>();
  const auto check = [&](const char* name, auto&& kernel, auto&& by_lane, auto&& exact) {
    std::vector<T> found(x.size()), alone(x.size());
    kernel(x.data(), found.data(), n);
    bool same = true, placeless = true;
    double worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      kernel(x.data() + i, alone.data() + i, 1);
      placeless &= same_bits(&alone[i], &found[i], 1) || std::isnan(x[i]);
      const T expected = by_lane(Lane<T>(x[i])).v;
      same &= std::isnan(x[i]) ? std::isnan(found[i]) : same_bits(&expected, &found[i], 1);
      const long double truth = exact(static_cast<long double>(x[i]));
      if (std::fabs(truth) >= std::numeric_limits<T>::min() &&
          std::fabs(truth) <= std::numeric_limits<T>::max())
        worst = std::max(worst, double(std::fabs((found[i] - truth) / truth)));
    }
    CHECK(same, "%s of %s: not what the scalar code gives", name, type_name<T>());
    CHECK(placeless, "%s of %s depends on its place in a vector", name, type_name<T>());
    CHECK(worst <= 4 * double(std::numeric_limits<T>::epsilon()), "%s of %s: error %g", name,
          type_name<T>(), worst);
  };
  check(
      "exp", k.exp, [](Lane<T> v) { return math::exp(v); },
      [](long double v) { return std::exp(v); });
  check(
      "sigmoid", k.sigmoid, [](Lane<T> v) { return math::sigmoid(v); },
      [](long double v) { return 1 / (1 + std::exp(-v)); });
  check(
      "tanh", k.tanh, [](Lane<T> v) { return math::tanh(v); },
      [](long double v) { return std::tanh(v); });
  check("softplus", k.softplus, [](Lane<T> v) { return math::softplus(v); }, softplus);
}

// Every float of a sample is as near to the truth as math.hpp states.
void check_ulps() {
  constexpr std::uint64_t stride = 1000003, count = (std::uint64_t(1) << 32) / stride;
  for (const char* function : {"exp", "sigmoid", "tanh", "softplus"}) {
    const auto [everywhere, at] = math_max_ulp(function, 0, count, stride);
    // Where gates live: 2^-10 to 16, of either sign.
    const auto [positive, at_positive] = math_max_ulp(function, 0x3a800000, 3000, 39119);
    const auto [negative, at_negative] = math_max_ulp(function, 0xba800000, 3000, 39119);
    const double worst = std::max({everywhere, positive, negative}),
                 bound = math_ulp_bound(function);
    CHECK(worst <= bound, "%s: %g ulp, near %g, %g or %g", function, worst, at, at_positive,
          at_negative);
    CHECK(worst > bound / 2, "%s: %g ulp, %g are stated", function, worst, bound);
  }
}

// ---- losses, optimizers, sampling ---------------------------------------------------------

// Weights, some of them 0, and what each counts in the sum or the mean of the losses that `counts`.
template <class T>
std::vector<T> random_weights(Index n, unsigned seed) {
  auto weights = random_values<T>(n, seed);
  for (T& w : weights) w = w < T(-0.5) ? T(0) : w + T(0.5);
  return weights;
}
template <class T, class F>
std::vector<T> shares_of(const std::vector<T>& weights, bool mean, F&& counts) {
  auto shares = weights;
  double sums[8] = {}, total = 0;
  for (std::size_t i = 0; i < weights.size(); ++i)
    if (counts(i)) sums[i % 8] += double(weights[i]);
  for (const double sum : sums) total += sum;
  if (mean)
    for (T& share : shares) share = T(double(share) / total);
  return shares;
}

template <class T>
void check_cross_entropy() {
  const Index lanes = kernels<T>().lanes;
  for (const Index classes : {1, 2, 5, 16, 33, 65, 100}) {
    const Index rows = 20;
    auto logits = random_values<T>(rows * classes, 1);
    for (T& x : logits) x *= 20;
    const auto targets = random_tokens(rows, classes, 2, true);
    std::vector<T> found(logits.size()), expected(logits.size());
    const double loss =
        cross_entropy(logits.data(), targets.data(), rows, classes, false, found.data());
    // A row's loss, and its gradient times a share.
    const auto row = [&](Index r, T share) {
      const T* const x = logits.data() + r * classes;
      T* const d = expected.data() + r * classes;
      const Token target = targets[std::size_t(r)];
      const T most = *std::max_element(x, x + classes);
      std::vector<T> sums(static_cast<std::size_t>(lanes), T(0));
      for (Index j = 0; j < classes; ++j) {
        d[j] = math::exp(Lane<T>(x[j] - most)).v;
        sums[std::size_t(j % lanes)] += d[j];
      }
      for (Index width = lanes / 2; width > 0; width /= 2)
        for (Index i = 0; i < width; ++i) sums[std::size_t(i)] += sums[std::size_t(i + width)];
      for (Index j = 0; j < classes; ++j) d[j] *= share / sums[0];
      d[target] -= share;
      return double(T(std::log(double(sums[0])) - (double(x[target]) - double(most))));
    };
    double by_hand = 0;
    long double truth = 0;
    for (Index r = 0; r < rows; ++r) {
      const T* const x = logits.data() + r * classes;
      const Token target = targets[std::size_t(r)];
      if (target < 0) continue;
      by_hand += row(r, T(1));
      const long double most = *std::max_element(x, x + classes);
      long double sum = 0;
      for (Index j = 0; j < classes; ++j) sum += std::exp(static_cast<long double>(x[j]) - most);
      truth += std::log(sum) - (static_cast<long double>(x[target]) - most);
    }
    CHECK(same_bits(&loss, &by_hand, 1), "loss in %s, %d classes", type_name<T>(), int(classes));
    CHECK(same_bits(found, expected), "gradient in %s, %d classes", type_name<T>(), int(classes));
    // e^x carries the rounding of the logit, which is at most 20 in size.
    const double allowed = double(std::numeric_limits<T>::epsilon()) *
                           (std::sqrt(double(classes)) + 24) * double(rows);
    CHECK(std::fabs(double(truth) - loss) <= allowed, "loss %.17g, true is %.17g", loss,
          double(truth));

    const auto weights = random_weights<T>(rows, 3);
    for (const bool mean : {false, true}) {
      const auto shares = shares_of(weights, mean, [&](std::size_t r) { return targets[r] >= 0; });
      const double weighted = cross_entropy(logits.data(), targets.data(), rows, classes, mean,
                                            found.data(), weights.data());
      std::fill(expected.begin(), expected.end(), T(0));
      double sum = 0;
      for (Index r = 0; r < rows; ++r) {
        const T share = shares[std::size_t(r)];
        if (targets[std::size_t(r)] >= 0 && share > T(0)) sum += double(share) * row(r, share);
      }
      CHECK(same_bits(&weighted, &sum, 1), "weighted loss in %s, %d classes", type_name<T>(),
            int(classes));
      CHECK(same_bits(found, expected), "weighted gradient in %s, %d classes", type_name<T>(),
            int(classes));
    }
  }
}

// A loss of single elements: terms by `step`, summed in double in blocks of interleaved sums.
template <class T, class Loss, class Step, class Value, class Exact>
void check_element_loss(const char* name, Loss&& loss_of, Step&& step, Value&& value,
                        Exact&& exact) {
  constexpr Index width = 64;
  for (const Index n : {0, 1, 7, 64, 511, 512, 513, 1500})
    for (const bool mean : {false, true})
      for (const bool weighted : {false, true}) {
        auto x = random_values<T>(n, 1), z = random_values<T>(n, 2);
        for (T& v : x) v *= 20;
        for (T& v : z) v = v < T(-0.8) ? T(0) : v > T(0.8) ? T(1) : (v + 1) / 2;
        const auto weights = random_weights<T>(n, 3);
        const auto shares = shares_of(weights, mean, [](std::size_t) { return true; });
        const double factor = mean && !weighted && n > 0 ? 1.0 / double(n) : 1.0;
        std::vector<T> found(x.size(), T(7)), expected(x.size());
        const double loss =
            loss_of(x.data(), z.data(), n, mean, found.data(), weighted ? weights.data() : nullptr);
        double by_hand = 0;
        long double truth = 0;
        for (Index first = 0; first < n; first += loss_block) {
          double sums[width] = {};
          for (Index j = 0; first + j < n && j < loss_block; ++j) {
            const std::size_t i = std::size_t(first + j);
            const T share = weighted ? shares[i] : T(factor);
            if (weighted && share == T(0)) continue;
            Lane<T> term;
            expected[i] = step(Lane<T>(x[i]), Lane<T>(z[i]), Lane<T>(share), term).v;
            const double count = weighted ? double(share) : 1.0;
            sums[j % width] += count * value(double(term.v));
            truth += static_cast<long double>(weighted ? count : factor) * exact(x[i], z[i]);
          }
          for (Index half = width / 2; half > 0; half /= 2)
            for (Index i = 0; i < half; ++i) sums[i] += sums[i + half];
          by_hand += sums[0];
        }
        by_hand *= factor;
        CHECK(same_bits(&loss, &by_hand, 1), "%s in %s, %d elements", name, type_name<T>(), int(n));
        CHECK(same_bits(found, expected), "gradient of %s in %s, %d elements", name, type_name<T>(),
              int(n));
        // Relative: no digits are lost. Some ulp of each element, and the sum's own.
        const double allowed = 4 * double(std::numeric_limits<T>::epsilon()) +
                               double(n) * std::numeric_limits<double>::epsilon();
        CHECK(std::fabs(double(truth) - loss) <= allowed * double(truth),
              "%s of %d elements in %s is %.17g, true is %.17g", name, int(n), type_name<T>(), loss,
              double(truth));
      }
}

template <class T>
void check_element_losses() {
  using V = Lane<T>;
  using Wide = long double;
  check_element_loss<T>(
      "binary cross-entropy", [](auto... a) { return binary_cross_entropy<T>(a...); },
      [](V x, V z, V weight, V& term) {
        const V distance = x.v < 0 ? z : V(1) - z;
        term = fma(abs(x), distance, math::softplus(-abs(x)));
        return (math::sigmoid(x) - z) * weight;
      },
      [](double loss) { return loss; },
      [](T x, T z) { return softplus(Wide(x)) - Wide(x) * Wide(z); });
  check_element_loss<T>(
      "mean square", [](auto... a) { return mean_square<T>(a...); },
      [](V x, V z, V weight, V& term) {
        term = x - z;
        return term * weight + term * weight;
      },
      [](double difference) { return difference * difference; },
      [](T x, T z) { return (Wide(x) - Wide(z)) * (Wide(x) - Wide(z)); });
}

// Decoder, loss and their backward in one call give what the calls one by one give.
template <class T>
void check_head(Compute compute) {
  struct Size {
    Index rows, classes;
  };
  // Within a block, past its end, past many; and of a vocabulary whose logits fill smaller blocks.
  for (const auto [rows, classes] : {Size{3, 37}, Size{520, 37}, Size{4200, 3}, Size{530, 20000}}) {
    const Case c{rows, 1, 4, classes > 37 ? 2 : 24, classes, 1, true, Bias::both, compute};
    const Problem<T> p(cell_info<Gru>(), c);
    const Network<T>& n = p.network;
    const auto h = random_values<T>(rows * c.hidden_size, 7);
    const auto targets = random_tokens(rows, c.output_size, 8, true);
    AlignedBuffer<T> workspace;
    PackedCopies<T> packed(n, p.parameters.data());
    std::vector<T> logits(std::size_t(rows * c.output_size)), dlogits(logits.size());
    n.decode(packed[Packing::decoder], h.data(), rows, logits.data());
    const double loss =
        cross_entropy(logits.data(), targets.data(), rows, c.output_size, false, dlogits.data());
    std::vector<T> dh(h.size()), gradients(p.parameters.size(), T(0));
    workspace.reserve(n.decode_backward_elements(1));
    n.decode_backward(p.parameters.data(), h.data(), dlogits.data(), rows, dh.data(),
                      gradients.data(), 1, workspace.get());
    std::vector<T> losses(static_cast<std::size_t>(rows)), dh_head(h.size()),
        gradients_head(p.parameters.size(), T(0));
    workspace.reserve(n.head_elements(rows, 1));
    n.head(p.parameters.data(), h.data(), targets.data(), rows, T(1), losses.data(), dh_head.data(),
           gradients_head.data(), 1, workspace.get());
    double sum = 0;
    for (const T x : losses) sum += double(x);
    CHECK(
        same_bits(&sum, &loss, 1) && same_bits(dh, dh_head) && same_bits(gradients, gradients_head),
        "%s, %d rows of %d", type_name<T>(), int(rows), int(classes));
    n.head(p.parameters.data(), h.data(), targets.data(), rows, T(1), losses.data(), nullptr,
           nullptr, 1, workspace.get());
    sum = 0;
    for (const T x : losses) sum += double(x);
    CHECK(same_bits(&sum, &loss, 1), "losses alone, %s, %d rows", type_name<T>(), int(rows));
  }
}

template <class Rule, class T>
void check_rule(const OptimizerOptions& o, double scale, double limit) {
  using V = Lane<T>;
  constexpr Index n = 131;
  Optimizer<T> optimizer(Rule::name, o, n);
  CHECK(optimizer.slot_names().size() == Rule::num_slots, "%s: another rule", Rule::name);
  auto found = random_values<T>(n, 1), expected = found;
  std::vector<V> slots(std::size_t(n * max_slots), V(static_cast<T>(o.initial_accumulator_value)));
  for (Index step = 1; step <= 4; ++step) {
    const auto gradients = random_values<T>(n, unsigned(1 + step));
    optimizer.step(found.data(), gradients.data(), o.learning_rate, scale, limit);
    double hyper[max_hyper] = {};
    Rule::prepare(o, step, hyper);
    for (Index i = 0; i < n; ++i) {
      V p(expected[std::size_t(i)]);
      const V bound(static_cast<T>(limit));
      const V g = min(bound, max(-bound, V(gradients[std::size_t(i)]) * V(static_cast<T>(scale))));
      Rule::update(p, g, &slots[std::size_t(i * max_slots)],
                   [&](int h) { return V(static_cast<T>(hyper[h])); });
      expected[std::size_t(i)] = p.v;
    }
    CHECK(same_bits(found, expected), "%s in %s, step %d", Rule::name, type_name<T>(), int(step));
  }
}

template <class T>
void check_optimizers() {
  constexpr double inf = std::numeric_limits<double>::infinity();
  OptimizerOptions plain;
  plain.learning_rate = 0.01;
  OptimizerOptions momentum = plain;
  momentum.momentum = 0.9, momentum.weight_decay = 0.01;
  OptimizerOptions nesterov = momentum;
  nesterov.nesterov = true;
  OptimizerOptions centered = plain;
  centered.centered = true;
  OptimizerOptions centered_momentum = momentum;
  centered_momentum.centered = true;
  OptimizerOptions adagrad = plain;
  adagrad.lr_decay = 0.1, adagrad.weight_decay = 0.01, adagrad.initial_accumulator_value = 0.5;
  check_rule<Sgd, T>(plain, 0.7, inf);
  check_rule<SgdMomentum, T>(momentum, 1, 0.5);
  check_rule<SgdMomentum, T>(nesterov, 1, inf);
  check_rule<Rmsprop<false, false>, T>(plain, 1, inf);
  check_rule<Rmsprop<false, true>, T>(momentum, 0.7, inf);
  check_rule<Rmsprop<true, false>, T>(centered, 1, 0.5);
  check_rule<Rmsprop<true, true>, T>(centered_momentum, 1, inf);
  check_rule<Adagrad, T>(adagrad, 1, inf);
  OptimizerOptions adam = plain;
  adam.weight_decay = 0.01;
  check_rule<Adam, T>(adam, 0.7, inf);
  check_rule<AdamW, T>(adam, 1, 0.5);
  for (OptimizerOptions* o : {&centered, &centered_momentum, &adam}) o->alpha = o->beta1 = 0.3;
  check_rule<Rmsprop<true, false, true>, T>(centered, 1, inf);
  check_rule<Rmsprop<true, true, true>, T>(centered_momentum, 1, 0.5);
  check_rule<AdamRule<false, true>, T>(adam, 1, 0.5);
  check_rule<AdamRule<true, true>, T>(adam, 0.7, inf);
}

template <class T>
void check_sums() {
  for (const Index n : {0, 1, 15, 100, 20000}) {
    auto x = random_values<T>(n, 1);
    long double squares = 0;
    for (const T v : x) squares += static_cast<long double>(v) * static_cast<long double>(v);
    CHECK(std::fabs(sum_of_squares(x.data(), n) - double(squares)) <= 1e-13 * double(squares),
          "%d elements", int(n));
    auto scaled = x, clipped = x;
    scale(scaled.data(), n, T(0.3));
    clip_value(clipped.data(), n, T(0.25));
    bool same = true;
    for (std::size_t i = 0; i < x.size(); ++i)
      same &= scaled[i] == x[i] * T(0.3) && clipped[i] == std::clamp(x[i], T(-0.25), T(0.25));
    CHECK(same, "scale or clip_value of %d elements in %s", int(n), type_name<T>());
  }
}

template <class T>
void check_draws() {
  const Index V = 50, batch = 40;
  auto logits = random_values<T>(batch * V, 1);
  for (T& x : logits) x *= 5;
  std::vector<std::uint64_t> seeds(static_cast<std::size_t>(batch));
  std::iota(seeds.begin(), seeds.end(), std::uint64_t(1) << 40);
  std::vector<T> workspace(static_cast<std::size_t>(draw_elements<T>(V)));
  std::vector<Token> drawn(static_cast<std::size_t>(batch)), expected(drawn.size());
  for (const SamplingOptions& o :
       {SamplingOptions{0, 0, 1}, SamplingOptions{1, 0, 1}, SamplingOptions{0.6, 5, 1},
        SamplingOptions{2, 0, 0.7}, SamplingOptions{1, 20, 0.5}, SamplingOptions{1, 1, 1}}) {
    const std::uint64_t position = 3;
    draw_tokens(logits.data(), batch, V, seeds.data(), position, o, drawn.data(), workspace.data());
    for (Index b = 0; b < batch; ++b) {
      const T* const x = logits.data() + b * V;
      std::vector<std::pair<double, Token>> p;
      const T most = *std::max_element(x, x + V);
      for (Index j = 0; j < V; ++j)
        p.push_back({o.temperature == 0 ? double(x[j] == most)
                                        : std::exp(double(x[j] - most) / o.temperature),
                     Token(j)});
      if (o.top_k > 0 || o.top_p < 1)
        std::stable_sort(p.begin(), p.end(), [](auto& l, auto& r) { return l.first > r.first; });
      if (o.top_k > 0) p.resize(static_cast<std::size_t>(o.top_k));
      const auto total = [&] {
        double sum = 0;
        for (const auto& [probability, token] : p) sum += probability;
        return sum;
      };
      double sum = 0;
      const double nucleus = o.top_p * total();
      std::size_t kept = 0;
      while (kept < p.size() && (o.top_p == 1 || sum < nucleus)) sum += p[kept++].first;
      p.resize(kept);
      // None of these draws lies within rounding of the border between two tokens.
      const double u = (philox(seeds[std::size_t(b)], position, 0)[0] >> 8) * 0x1p-24 * total();
      sum = 0;
      for (const auto& [probability, token] : p)
        if ((sum += probability) > u) {
          expected[std::size_t(b)] = token;
          break;
        }
    }
    CHECK(drawn == expected, "%s, temperature %g, top_k %d, top_p %g", type_name<T>(),
          o.temperature, int(o.top_k), o.top_p);
  }
}

// The multiplier at (stream, unit), by the scalar generator.
template <class T>
T mask_at(const MaskArgs<T>& p, Index stream, Index unit) {
  const auto words = philox(p.key, {static_cast<std::uint32_t>(unit / 64 * 16 + unit % 16),
                                    static_cast<std::uint32_t>(stream), p.time, p.site});
  return words[std::size_t(unit % 64 / 16)] < p.threshold ? p.dropped : p.kept;
}

template <class T>
void check_masks() {
  constexpr Index rows = 37;  // more than two groups of rows, and odd
  const std::uint64_t seed = 0xfedcba9876543210;
  std::vector<Index> streams(rows);
  for (Index r = 0; r < rows; ++r) streams[std::size_t(r)] = r * r * 0x3fffff1;  // past 32 bits
  enum class Operand { none, in_place, separate };
  for (const Index cols : {1, 15, 16, 17, 63, 64, 65, 100, 130, 256})
    for (const Range range : {Range{0, rows}, Range{3, 4}, Range{1, 35}, Range{5, 5}})
      for (const bool listed : {false, true})
        for (const Operand operand : {Operand::none, Operand::in_place, Operand::separate}) {
          const bool zoneout = listed != (operand == Operand::none);
          MaskArgs<T> p = mask_args<T>(zoneout ? MaskKind::zoneout : MaskKind::dropout,
                                       cols == 64 ? 0 : 0.3, seed, 0x80000005);
          const auto x = random_values<T>(rows * (cols + 3), 1);
          auto found = random_values<T>(rows * (cols + 5), 2);
          if (operand == Operand::in_place) found.assign(x.begin(), x.end());
          auto expected = found;
          p.time = 0xfffffff0 + static_cast<std::uint32_t>(cols % 7);
          p.streams = listed ? streams.data() : nullptr;
          p.x_stride = cols + 3;
          p.out_stride = cols + (operand == Operand::in_place ? 3 : 5);
          p.cols = cols;
          p.out = found.data();
          p.x = operand == Operand::none       ? nullptr
                : operand == Operand::in_place ? found.data()
                                               : x.data();
          for (Index r = range.begin; r < range.end; ++r)
            for (Index j = 0; j < cols; ++j) {
              const T m = mask_at(p, listed ? streams[std::size_t(r)] : r, j);
              expected[std::size_t(r * p.out_stride + j)] =
                  operand == Operand::none ? m : m * x[std::size_t(r * p.x_stride + j)];
            }
          kernels<T>().mask(p, range);
          CHECK(same_bits(found, expected), "%s, %d columns, rows %d to %d, %s, operand %d",
                type_name<T>(), int(cols), int(range.begin), int(range.end),
                listed ? "streams" : "no streams", int(operand));
        }

  constexpr Index classes = 200;
  const auto units = random_tokens(rows, classes, 3);
  for (const bool listed : {false, true}) {
    MaskArgs<T> p = mask_args<T>(MaskKind::dropout, 0.5, seed, 7);
    std::vector<T> found(rows, T(-1)), expected = found;
    p.time = 9;
    p.streams = listed ? streams.data() : nullptr;
    p.out = found.data();
    for (Index r = 2; r < rows - 1; ++r)
      expected[std::size_t(r)] =
          mask_at(p, listed ? streams[std::size_t(r)] : r, units[std::size_t(r)]);
    kernels<T>().mask_elements(p, units.data(), {2, rows - 1});
    CHECK(same_bits(found, expected), "single elements in %s", type_name<T>());
  }

  const auto dropout = mask_args<T>(MaskKind::dropout, 0.1, 1, 2);
  CHECK(dropout.threshold == 429496729 && dropout.dropped == 0 && dropout.kept == T(1 / 0.9), "%s",
        type_name<T>());
  const auto zoneout = mask_args<T>(MaskKind::zoneout, 0.1, 1, 2);
  CHECK(zoneout.threshold == 429496729 && zoneout.dropped == 1 && zoneout.kept == 0, "%s",
        type_name<T>());
  CHECK(mask_args<T>(MaskKind::dropout, 1 - 0x1p-53, 1, 2).threshold == 0xffffffff, "%s",
        type_name<T>());
}

// Rows of sequences of lengths 3, 1, 4 and 0, and of four whole ones: masks of each step, sorting,
// states at the begin and at the end, sums of losses.
template <class T>
void check_sequences() {
  constexpr Index steps = 4, B = 4, cols = 5;
  const Kernels<T>& k = kernels<T>();
  const std::vector<Index> lengths{3, 1, 4, 0}, order{2, 0, 1, 3}, ranks{1, 2, 0, 3};
  const std::vector<Index> offsets{0, 3, 5, 7, 8};
  for (const bool ragged : {false, true})
    for (const bool reverse : {false, true}) {
      const Steps s{steps, B, ragged ? offsets.data() : nullptr, reverse};
      const auto length = [&](Index row) {  // of the network's row of the batch
        return ragged ? lengths[std::size_t(order[std::size_t(row)])] : steps;
      };
      const Index N = first_row(s, steps);

      // (step, row of the batch) of each row of the sequence
      std::vector<std::pair<Index, Index>> places;
      for (Index t = 0; t < steps; ++t)
        for (Index r = 0; r < B; ++r)
          if (t < length(r)) places.emplace_back(t, r);
      CHECK(Index(places.size()) == N, "%d rows", int(N));

      const auto x = random_values<T>(N * cols, 1);
      const auto units = random_tokens(N, 100, 2);
      for (const bool one_time : {false, true}) {
        MaskArgs<T> p = mask_args<T>(MaskKind::dropout, 0.5, 11, 7);
        std::vector<T> found(x.size(), T(-1)), expected = found, elements(std::size_t(N), T(-1));
        p.streams = order.data(), p.x = x.data(), p.out = found.data();
        p.x_stride = p.out_stride = p.cols = cols;
        p.steps = s, p.one_time = one_time, p.time = 3;
        for (const Range rows : {Range{0, 2}, Range{2, N - 1}}) k.mask(p, rows);
        p.out = elements.data(), p.out_stride = 1;
        k.mask_elements(p, units.data(), {1, N});
        for (Index n = 0; n < N; ++n) {
          const auto [t, r] = places[std::size_t(n)];
          p.time = one_time ? 3 : static_cast<std::uint32_t>(t);
          const Index stream = order[std::size_t(r)];
          for (Index j = 0; j < cols && n < N - 1; ++j)
            expected[std::size_t(n * cols + j)] =
                mask_at(p, stream, j) * x[std::size_t(n * cols + j)];
          const T element = n == 0 ? T(-1) : mask_at(p, stream, units[std::size_t(n)]);
          CHECK(elements[std::size_t(n)] == element, "mask of element %d", int(n));
        }
        CHECK(same_bits(found, expected), "masks, ragged %d, one time %d", ragged, one_time);
      }

      const auto given = random_values<T>(steps * B * cols, 3);
      std::vector<T> sorted(std::size_t(N * cols)), back(given.size(), T(-1)), zeros = given;
      k.sort_rows({s, order.data(), cols, given.data(), sorted.data()}, {0, steps});
      for (Index n = 0; n < N; ++n) {
        const auto [t, r] = places[std::size_t(n)];
        CHECK(same_bits(sorted.data() + n * cols,
                        given.data() + (t * B + order[std::size_t(r)]) * cols, cols),
              "row %d sorted", int(n));
      }
      for (const Range part : {Range{0, 1}, Range{1, steps}})
        k.unsort_rows({s, order.data(), cols, sorted.data(), back.data()}, part);
      for (Index t = 0; t < steps; ++t)
        for (Index b = 0; b < B; ++b)
          if (ragged && t >= lengths[std::size_t(b)])
            std::fill_n(zeros.begin() + (t * B + b) * cols, cols, T(0));
      CHECK(same_bits(back, zeros), "rows as they were, ragged %d", ragged);

      double sum = -1, again = -1, expected_sum = 0;
      std::vector<double> of_streams(std::size_t(B), -1.0), expected_of(std::size_t(B), 0.0);
      k.sum_losses({s, ranks.data(), x.data(), &sum, of_streams.data()});
      k.sum_losses({s, ranks.data(), x.data(), &again, nullptr});
      for (Index t = 0; t < steps; ++t)
        for (Index b = 0; b < B; ++b)
          for (Index n = 0; n < N; ++n)
            if (places[std::size_t(n)] == std::pair{t, ranks[std::size_t(b)]}) {
              expected_sum += static_cast<double>(x[std::size_t(n)]);
              expected_of[std::size_t(b)] += static_cast<double>(x[std::size_t(n)]);
            }
      CHECK(sum == expected_sum && again == sum, "%g, %g, expected %g", sum, again, expected_sum);
      CHECK(of_streams == expected_of, "losses of streams, ragged %d", ragged);

      // Two states, of widths 3 and 2: one with a place for every step, one in place.
      const auto begin = random_values<T>(B * 5, 4);
      std::vector<T> initial(std::size_t(B * 4), T(-1)), rows = random_values<T>(N * 4, 5);
      std::vector<T> in_place(std::size_t(B * 2), T(-1)), end(begin.size(), T(-1));
      const States<T> states{
          {{initial.data(), rows.data(), 4, false}, {in_place.data(), in_place.data(), 2, true}}};
      StatesArgs<T> p{s, 2, states, {3, 2}, {}};
      k.begin_states(p, {0, B});
      for (Index r = 0; r < B; ++r)
        CHECK(initial[std::size_t(r * 4 + 2)] == 0 && in_place[std::size_t(r * 2)] == 0 &&
                  initial[std::size_t(r * 4 + 3)] == -1,
              "zeros of row %d", int(r));
      auto from = begin;  // which kernels only read
      p.at[0] = from.data(), p.at[1] = from.data() + B * 3;
      for (const Range part : {Range{0, 3}, Range{3, B}}) k.begin_states(p, part);
      p.at[0] = end.data(), p.at[1] = end.data() + B * 3;
      for (const Range part : {Range{0, 1}, Range{1, B}}) k.end_states(p, part);
      for (Index r = 0; r < B; ++r) {
        const T* last = begin.data() + r * 3;
        for (Index n = 0; n < N; ++n)
          if (places[std::size_t(n)] == std::pair{reverse ? Index(0) : length(r) - 1, r})
            last = rows.data() + n * 4;
        CHECK(same_bits(end.data() + r * 3, last, 3), "last h of row %d, ragged %d, reverse %d",
              int(r), ragged, reverse);
      }
      CHECK(same_bits(end.data() + B * 3, begin.data() + B * 3, B * 2), "states in place");
    }

  const auto x = random_values<T>(2 * square_chunk + 7, 6);
  const auto n = static_cast<Index>(x.size());
  double sums[3], sum;
  k.sums_of_squares(x.data(), n, {1, 3}, sums);
  k.sums_of_squares(x.data(), n, {0, 1}, sums);
  k.add_up(sums, 3, &sum);
  CHECK(sum == sum_of_squares(x.data(), n) && sum == (sums[0] + sums[1]) + sums[2], "%g", sum);
  std::vector<T> to(9, T(1));
  k.fill(to.data(), T(2), {2, 8});
  k.add(x.data(), {0, 3}, to.data());
  CHECK(to[0] == T(1) + x[0] && to[2] == T(2) + x[2] && to[7] == 2 && to[8] == 1, "fill and add");
}

template <class T>
void check_all() {
  check_products<T>();
  check_networks<T>(Cells());
  check_functions<T>();
  check_cross_entropy<T>();
  check_element_losses<T>();
  check_head<T>(Compute::float32);
  if (sizeof(T) == 4) check_head<T>(Compute::bfloat16);
  check_optimizers<T>();
  check_sums<T>();
  check_draws<T>();
  check_masks<T>();
  check_sequences<T>();
}

}  // namespace

int main() {
  sharing_limits() = {0, 0};  // small cases shall run on all threads too
  set_num_threads(1);
  std::printf("instruction set %s\n", isa_in_use().c_str());
  fused = isa_in_use() != "x86-64-v2";
  // The known answer of Random123 for a counter and a key of zeros.
  CHECK((philox(0, 0, 0) ==
         std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}),
        "philox");
  // Those of a counter and a key of ones, and of the digits of pi.
  constexpr std::uint32_t ones = 0xffffffff;
  CHECK((philox(~std::uint64_t{0}, {ones, ones, ones, ones}) ==
         std::array<std::uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}),
        "philox");
  CHECK((philox(0x299f31d0a4093822, {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}) ==
         std::array<std::uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}),
        "philox");
  check_all<float>();
  check_all<double>();
  for (int i = 0; i < kernels<float>().num_cells; ++i)
    check_small_weights(kernels<float>().cells[i]);
  check_int8_decoder();
  check_int8_extremes();
  check_rounded_products();
  check_ulps();
  return report();
}
