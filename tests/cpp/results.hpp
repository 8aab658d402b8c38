// What calls gave, to be compared from one run to the next.
#pragma once

#include <vector>

#include "charrnn_fast/config.hpp"

namespace charrnn_fast {

inline std::size_t count(Index n) { return static_cast<std::size_t>(n); }

class Results {
 public:
  template <class T>
  void add(const T* data, Index n) {
    const char* const p = reinterpret_cast<const char*>(data);
    bytes_.insert(bytes_.end(), p, p + count(n) * sizeof(T));
    for (Index i = 0; i < n; ++i) finite_ &= data[i] - data[i] == T(0);
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
  bool finite_ = true;  // what was never written is not
};

}  // namespace charrnn_fast
