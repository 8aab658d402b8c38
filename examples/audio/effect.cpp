// A trained guitar effect on a WAV file, block by block, as an audio program runs it.
//
//   effect MODEL IN.wav OUT.wav [BLOCK]
//
// MODEL is the model.txt of train.py; the WAV files have one channel of 32-bit floating point.
// Prints how long the slowest block took beside the time that it lasts.
#include <charrnn_fast/stream.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

using namespace charrnn_fast;

// The sizes come from the file: nothing of the network is known to the compiler.
Stream<float> load_model(const std::string& path) {
  std::ifstream file(path);
  NetworkShape shape;
  file >> shape.cell >> shape.input_size >> shape.hidden_size >> shape.output_size;
  if (!file) throw std::runtime_error(path + " is no model");
  const Network<float> network(shape);
  std::vector<float> flat(static_cast<std::size_t>(network.parameter_elements()), 0.0f);
  for (const Parameter& p : network.parameters()) {
    std::string name;
    Index rows = 0, cols = 0;
    file >> name >> rows;
    if (p.cols > 0) file >> cols;
    if (!file || name != p.name || rows != p.rows || cols != p.cols)
      throw std::runtime_error(path + " must have " + p.name + " here, got " + name);
    for (Index r = 0; r < rows; ++r)
      for (Index c = 0; c < std::max<Index>(1, cols); ++c) {
        const Index at = p.transposed ? c * rows + r : r * std::max<Index>(1, cols) + c;
        file >> flat[static_cast<std::size_t>(p.offset + at)];
      }
    if (!file) throw std::runtime_error(path + " must have more numbers for " + p.name);
  }
  return Stream<float>(shape, flat.data());
}

struct Wav {
  std::uint32_t rate = 0;
  std::vector<float> samples;
};

template <class T>
T number_at(const std::vector<char>& bytes, std::size_t at) {
  T value;
  if (at + sizeof value > bytes.size()) throw std::runtime_error("the WAV file is cut off");
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

Wav read_wav(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const auto is = [&](std::size_t at, const char* name) {
    return at + 4 <= bytes.size() && std::memcmp(bytes.data() + at, name, 4) == 0;
  };
  if (!is(0, "RIFF") || !is(8, "WAVE")) throw std::runtime_error(path + " must be a WAV file");
  Wav wav;
  for (std::size_t at = 12; at + 8 <= bytes.size();) {
    const std::size_t size = number_at<std::uint32_t>(bytes, at + 4), data = at + 8;
    if (is(at, "fmt ")) {
      if (number_at<std::uint16_t>(bytes, data) != 3 ||
          number_at<std::uint16_t>(bytes, data + 2) != 1 ||
          number_at<std::uint16_t>(bytes, data + 14) != 32)
        throw std::runtime_error(path + " must have one channel of 32-bit floating point");
      wav.rate = number_at<std::uint32_t>(bytes, data + 4);
    } else if (is(at, "data") && wav.rate > 0) {
      if (data + size > bytes.size()) throw std::runtime_error("the WAV file is cut off");
      wav.samples.resize(size / sizeof(float));
      std::memcpy(wav.samples.data(), bytes.data() + data, wav.samples.size() * sizeof(float));
      return wav;
    }
    at = data + size + size % 2;
  }
  throw std::runtime_error(path + " must have samples");
}

void write_wav(const std::string& path, const Wav& wav) {
  std::ofstream file(path, std::ios::binary);
  const auto put = [&](auto value) {
    file.write(reinterpret_cast<const char*>(&value), sizeof value);
  };
  const auto size = static_cast<std::uint32_t>(wav.samples.size() * sizeof(float));
  file << "RIFF", put(36 + size), file << "WAVEfmt ", put(std::uint32_t(16));
  put(std::uint16_t(3)), put(std::uint16_t(1)), put(wav.rate), put(wav.rate * 4);
  put(std::uint16_t(4)), put(std::uint16_t(32)), file << "data", put(size);
  file.write(reinterpret_cast<const char*>(wav.samples.data()), size);
  if (!file.flush()) throw std::runtime_error(path + " cannot be written");
}

// What the sound card would call for every block: no memory, no lock, no file.
void process(Stream<float>& effect, float* samples, Index n) { effect.run(samples, n, samples); }

int main(int count, char** arguments) try {
  const Index block = count > 4 ? std::atol(arguments[4]) : 64;
  if (count < 4 || block < 1)
    throw std::runtime_error("usage: effect MODEL IN.wav OUT.wav [BLOCK]");
  Stream<float> effect = load_model(arguments[1]);
  if (effect.input_size() != 1 || effect.output_size() != 1)
    throw std::runtime_error("the model must have one input and one output");
  Wav wav = read_wav(arguments[2]);

  using Clock = std::chrono::steady_clock;
  const Index n = static_cast<Index>(wav.samples.size());
  double slowest = 0;
  const auto begin = Clock::now();
  for (Index t = 0; t < n; t += block) {
    const auto block_begin = Clock::now();
    process(effect, wav.samples.data() + t, std::min(block, n - t));
    const std::chrono::duration<double> passed = Clock::now() - block_begin;
    slowest = std::max(slowest, passed.count());
  }
  const std::chrono::duration<double> passed = Clock::now() - begin;
  write_wav(arguments[3], wav);
  std::printf("%lld samples in blocks of %lld: %.0f ns each; ", static_cast<long long>(n),
              static_cast<long long>(block), passed.count() * 1e9 / static_cast<double>(n));
  std::printf("the slowest block took %.1f us of its %.0f\n", slowest * 1e6,
              static_cast<double>(block) * 1e6 / wav.rate);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
