// Shared by the programs of realtime.py: a network's arrays from a file, the timing, the answer.
//
//   PROGRAM CELL HIDDEN_SIZE FILE SAMPLES SECONDS...
//
// FILE holds float32: the signal [SAMPLES], weight_ih [G*H, 1], weight_hh [G*H, H], bias_ih [G*H],
// bias_hh [G*H], decoder.weight [1, H], decoder.bias [1], as in PyTorch. The answer is one line:
// nanoseconds per sample of each way to run; and FILE.out receives the outputs [SAMPLES].
#pragma once

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

struct Case {
  std::string cell;
  long gates, hidden_size;
  std::vector<float> signal, weight_ih, weight_hh, bias_ih, bias_hh, decoder_weight, decoder_bias;
  std::string out;
  double seconds;
};

[[noreturn]] inline void stop(const std::string& why) {
  std::fprintf(stderr, "%s\n", why.c_str());
  std::exit(1);
}

inline Case read_case(int count, char** arguments) {
  if (count != 6) stop("usage: PROGRAM CELL HIDDEN_SIZE FILE SAMPLES SECONDS");
  Case c;
  c.cell = arguments[1];
  c.gates = c.cell == "gru" ? 3 : 4;
  c.hidden_size = std::atol(arguments[2]);
  c.out = std::string(arguments[3]) + ".out";
  c.seconds = std::atof(arguments[5]);
  std::ifstream file(arguments[3], std::ios::binary);
  const auto take = [&](std::vector<float>& to, long n) {
    to.resize(static_cast<std::size_t>(n));
    file.read(reinterpret_cast<char*>(to.data()), n * long(sizeof(float)));
    if (!file) stop(std::string(arguments[3]) + " must hold more numbers");
  };
  const long G = c.gates * c.hidden_size;
  take(c.signal, std::atol(arguments[4]));
  take(c.weight_ih, G);
  take(c.weight_hh, G * c.hidden_size);
  take(c.bias_ih, G);
  take(c.bias_hh, G);
  take(c.decoder_weight, c.hidden_size);
  take(c.decoder_bias, 1);
  return c;
}

inline void write_outputs(const Case& c, const std::vector<float>& y) {
  std::ofstream file(c.out, std::ios::binary);
  file.write(reinterpret_cast<const char*>(y.data()), long(y.size() * sizeof(float)));
  if (!file.flush()) stop(c.out + " cannot be written");
}

// Nanoseconds per sample of run(), which handles `samples` of them, over about c.seconds.
template <class F>
double time_of(const Case& c, long samples, F&& run) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  long runs = 0;
  double passed = 0;
  do {
    for (int i = 0; i < 8; ++i) run();
    runs += 8;
    passed = std::chrono::duration<double>(Clock::now() - begin).count();
  } while (passed < c.seconds);
  return passed * 1e9 / (double(runs) * double(samples));
}
