// Nanoseconds per sample of charrnn_fast::Stream: in blocks of 64, and step by step.
#include <algorithm>

#include "charrnn_fast/stream.hpp"
#include "timing.hpp"

using namespace charrnn_fast;

int main(int count, char** arguments) {
  const Case c = read_case(count, arguments);
  const NetworkShape shape{c.cell, 1, c.hidden_size, 1};
  const Network<float> network(shape);
  std::vector<float> flat(static_cast<std::size_t>(network.parameter_elements()), 0.0f);
  const std::vector<float>* const arrays[] = {&c.weight_ih, &c.weight_hh,      &c.bias_ih,
                                              &c.bias_hh,   &c.decoder_weight, &c.decoder_bias};
  // In the order of the parameters. weight_ih is stored transposed: with one column, the same.
  for (std::size_t i = 0; i < network.parameters().size(); ++i)
    std::copy(arrays[i]->begin(), arrays[i]->end(), flat.begin() + network.parameters()[i].offset);
  Stream<float> stream(shape, flat.data());

  constexpr long block = 64;
  const long n = static_cast<long>(c.signal.size());
  std::vector<float> y(c.signal.size());
  for (long t = 0; t < n; t += block)
    stream.run(c.signal.data() + t, std::min(block, n - t), y.data() + t);
  write_outputs(c, y);

  const double blocks = time_of(c, block, [&] { stream.run(c.signal.data(), block, y.data()); });
  const double steps = time_of(c, block, [&] {
    for (long t = 0; t < block; ++t) stream.step(c.signal.data() + t, y.data() + t);
  });
  std::printf("%.9g %.9g\n", blocks, steps);
}
