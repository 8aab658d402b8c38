// Nanoseconds per sample of RTNeural with sizes fixed when compiling. It has no blocks: both
// figures are of its forward, a sample at a time.
#include <RTNeural/RTNeural.h>

#include "timing.hpp"

namespace {

// rows [n, m] of PyTorch as columns [m][n], gates in the order given.
std::vector<std::vector<float>> columns(const std::vector<float>& rows, long n, long m,
                                        const std::vector<int>& order) {
  std::vector<std::vector<float>> out(static_cast<std::size_t>(m),
                                      std::vector<float>(static_cast<std::size_t>(n)));
  const long units = n / static_cast<long>(order.size());
  for (std::size_t g = 0; g < order.size(); ++g)
    for (long u = 0; u < units; ++u)
      for (long j = 0; j < m; ++j)
        out[static_cast<std::size_t>(j)]
           [g * static_cast<std::size_t>(units) + static_cast<std::size_t>(u)] =
               rows[static_cast<std::size_t>((order[g] * units + u) * m + j)];
  return out;
}

template <class Layer, int H>
void run(const Case& c) {
  static RTNeural::ModelT<float, 1, 1, Layer, RTNeural::DenseT<float, H, 1>> model;
  const long G = c.gates * c.hidden_size;
  const bool gru = c.gates == 3;
  // Its gates are those of Keras: z, r, n and i, f, g, o.
  const std::vector<int> order = gru ? std::vector<int>{1, 0, 2} : std::vector<int>{0, 1, 2, 3};
  auto& layer = model.template get<0>();
  layer.setWVals(columns(c.weight_ih, G, 1, order));
  layer.setUVals(columns(c.weight_hh, G, H, order));
  auto b_ih = columns(c.bias_ih, G, 1, order)[0], b_hh = columns(c.bias_hh, G, 1, order)[0];
  if constexpr (requires { layer.setBVals(std::vector<std::vector<float>>{}); }) {
    layer.setBVals(std::vector<std::vector<float>>{b_ih, b_hh});
  } else {
    for (std::size_t i = 0; i < b_ih.size(); ++i) b_ih[i] += b_hh[i];
    layer.setBVals(b_ih);
  }
  auto& dense = model.template get<1>();
  dense.setWeights(std::vector<std::vector<float>>{c.decoder_weight});
  dense.setBias(c.decoder_bias.data());
  model.reset();

  std::vector<float> y(c.signal.size());
  const auto step = [&](std::size_t t) {
    const float x[1] = {c.signal[t]};
    y[t] = model.forward(x);
  };
  for (std::size_t t = 0; t < y.size(); ++t) step(t);
  write_outputs(c, y);

  constexpr std::size_t block = 64;
  const auto steps = [&] {
    for (std::size_t t = 0; t < block; ++t) step(t);
  };
  const double first = time_of(c, block, steps), second = time_of(c, block, steps);
  std::printf("%.9g %.9g\n", first, second);
}

template <int H>
void run_size(const Case& c) {
  if (c.cell == "gru") return run<RTNeural::GRULayerT<float, 1, H>, H>(c);
  if (c.cell == "lstm") return run<RTNeural::LSTMLayerT<float, 1, H>, H>(c);
  stop("cell must be gru or lstm, got " + c.cell);
}

}  // namespace

int main(int count, char** arguments) {
  const Case c = read_case(count, arguments);
  switch (c.hidden_size) {
    case 16:
      run_size<16>(c);
      break;
    case 32:
      run_size<32>(c);
      break;
    case 64:
      run_size<64>(c);
      break;
    default:
      stop("hidden_size must be 16, 32 or 64");
  }
}
