// What the C++ tests share beside check.hpp: numbers to compute with, their comparison, and packed
// weights.
#pragma once

#include <cstring>
#include <vector>

#include "charrnn_fast/network.hpp"
#include "charrnn_fast/sampling.hpp"

namespace charrnn_fast {

// Numbers in [-1, 1), the same for float and double.
template <class T>
std::vector<T> random_values(Index n, unsigned seed) {
  std::vector<T> values(static_cast<std::size_t>(n));
  for (Index i = 0; i < n; ++i)
    values[static_cast<std::size_t>(i)] = static_cast<T>(
        static_cast<float>(philox(seed, static_cast<std::uint64_t>(i), 0)[0] >> 8) * 0x1p-23f - 1);
  return values;
}

// Tokens from 0 to below `classes`; or from -1, where `ignored`.
inline std::vector<Token> random_tokens(Index n, Index classes, unsigned seed,
                                        bool ignored = false) {
  std::vector<Token> tokens(static_cast<std::size_t>(n));
  for (Index i = 0; i < n; ++i) {
    const Index word = philox(seed, static_cast<std::uint64_t>(i), 1)[0];
    tokens[static_cast<std::size_t>(i)] =
        static_cast<Token>(ignored ? word % (classes + 1) - 1 : word % classes);
  }
  return tokens;
}

template <class T>
bool same_bits(const T* a, const T* b, Index n) {
  return n == 0 || std::memcmp(a, b, static_cast<std::size_t>(n) * sizeof(T)) == 0;
}
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && same_bits(a.data(), b.data(), static_cast<Index>(a.size()));
}

// A network's weights, packed when they are asked for.
template <class T>
class PackedCopies {
 public:
  PackedCopies(const Network<T>& network, const T* parameters)
      : network_(network), parameters_(parameters) {}
  const T* operator[](Packing packing) { return get(packing, Storage::full); }
  const T* get(Packing packing, Storage storage) {
    AlignedBuffer<T>& to = copies_[static_cast<int>(packing)];
    to.reserve(network_.packed_elements(packing, storage));
    network_.pack(packing, parameters_, to.get(), storage);
    return to.get();
  }

 private:
  const Network<T>& network_;
  const T* parameters_;
  AlignedBuffer<T> copies_[num_packings];
};

}  // namespace charrnn_fast
