// Errors for bad arguments: all of this library's C++ code throws them here.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "charrnn_fast/config.hpp"

namespace charrnn_fast {

// A bad element of an array taken as flat. Code that knows the shape can name its place.
class BadElement : public std::invalid_argument {
 public:
  BadElement(const std::string& array, Index at, std::string is_bad)
      : std::invalid_argument(array + "[" + std::to_string(at) + "]" + is_bad),
        name(array),
        place(at),
        problem(std::move(is_bad)) {}

  const std::string name;
  const Index place;
  const std::string problem;  // " must be in 0 to 6, got 7"
};

inline std::string quoted(const std::string& text) { return "'" + text + "'"; }

// A number as messages show it: 0.5, 1e-08.
inline std::string text(double number) {
  std::ostringstream out;
  out << number;
  return out.str();
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (!holds) fail(parts...);
}

}  // namespace charrnn_fast
