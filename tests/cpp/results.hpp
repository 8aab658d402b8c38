// What calls gave, to be compared from one run to the next.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "charrnn_fast/config.hpp"

namespace charrnn_fast {

inline std::size_t count(Index n) { return static_cast<std::size_t>(n); }

class Results {
 public:
  Results() = default;
  // subnormal: whether subnormal numbers count as they are, or as zeros, as does -0 then.
  explicit Results(bool subnormal) : subnormal_(subnormal) {}

  template <class T>
  void add(const T* data, Index n) {
    for (Index i = 0; i < n; ++i) {
      T x = data[i];
      finite_ &= x - x == T(0);
      if constexpr (std::is_floating_point_v<T>)
        if (!subnormal_ && std::fabs(x) < std::numeric_limits<T>::min()) x = T(0);
      const char* const p = reinterpret_cast<const char*>(&x);
      bytes_.insert(bytes_.end(), p, p + sizeof x);
    }
  }
  // A number, or an array with data() and size().
  template <class T>
  void add(const T& value) {
    if constexpr (requires { value.data(); })
      add(value.data(), static_cast<Index>(value.size()));
    else
      add(&value, 1);
  }
  bool operator==(const Results& other) const {
    return finite_ && other.finite_ && !bytes_.empty() && bytes_ == other.bytes_;
  }

 private:
  std::vector<char> bytes_;
  bool subnormal_ = true;
  bool finite_ = true;  // what was never written is not
};

}  // namespace charrnn_fast
