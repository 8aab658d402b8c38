// Writes text by a model that `charrnn-fast train` has saved:
//
//   write_text MODEL [LENGTH [SEED [TEMPERATURE [PRIME]]]]
//
// For a seed it is the text of
//
//   charrnn-fast sample MODEL --length LENGTH --seed SEED --temperature TEMPERATURE --prime PRIME
#include <cstdint>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <string_view>

#include "charrnn_fast/language_model.hpp"

namespace cf = charrnn_fast;

namespace {

// A whole argument as a number: std::stoull would take "5x", and "-1" for a large one.
template <class T, class Convert>
T number(const char* name, const std::string& text, Convert convert) {
  try {
    std::size_t end = 0;
    const T value = convert(text, &end);
    if (end == text.size() && text[0] != '-') return value;
  } catch (const std::logic_error&) {  // no number at all, or out of range
  }
  throw std::invalid_argument(std::string(name) + " must be a number of at least 0, got '" + text +
                              "'");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 6) {
    std::cerr << "usage: write_text MODEL [LENGTH [SEED [TEMPERATURE [PRIME]]]]\n";
    return 2;
  }
  try {
    cf::TextOptions options;
    options.length = 500;
    std::uint64_t seed = cf::fresh_seed();
    const auto whole = [](const std::string& s, std::size_t* end) { return std::stoull(s, end); };
    const auto real = [](const std::string& s, std::size_t* end) { return std::stod(s, end); };
    if (argc > 2) options.length = number<cf::Index>("LENGTH", argv[2], whole);
    if (argc > 3) seed = number<std::uint64_t>("SEED", argv[3], whole);
    if (argc > 4) options.temperature = number<double>("TEMPERATURE", argv[4], real);
    if (argc > 5) options.prime = argv[5];

    const auto model = cf::LanguageModel::load(argv[1]);
    model.stream(options, seed, [](std::string_view piece) {
      std::cout << piece << std::flush;
      return std::cout.good();
    });
    std::cout << '\n';
    return std::cout.good() ? 0 : 1;
  } catch (const std::exception& error) {
    std::cerr << "write_text: error: " << error.what() << '\n';
    return 2;
  }
}
