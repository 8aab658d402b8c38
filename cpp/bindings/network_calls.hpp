// Calls of networks on memory that is given by addresses, for every adapter. They touch no Python
// object and need no GIL. _core.pyi says what the arguments are. All throw std::invalid_argument.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "charrnn_fast/network.hpp"

namespace charrnn_fast::bindings {

using Address = std::uintptr_t;
using Addresses = std::vector<Address>;
using Packed = std::optional<std::pair<Address, Address>>;
using Seed = std::optional<std::uint64_t>;

template <class T>
void network_forward(const Network<T>& network, const Addresses& parameters, Address x,
                     Index seq_len, Index batch, const std::optional<Addresses>& state_0, Address y,
                     const std::optional<Addresses>& state_n, Address tape, bool tokens,
                     Address offsets, Address streams, const Seed& mask_seed, const Packed& packed);

template <class T>
void network_backward(const Network<T>& network, const Addresses& parameters, Address x,
                      Index seq_len, Index batch, Address tape, Address dy,
                      const std::optional<Addresses>& dstate_n, Address dx,
                      const std::optional<Addresses>& dstate_0, const Addresses& gradients,
                      bool tokens, Address offsets, Address streams, const Seed& mask_seed,
                      const Packed& packed);

// Elements of a tape: of what lies on it, and how its size depends on that.
template <class T>
TapeSize tape_size(const Network<T>& network, bool tokens, bool ragged, bool masked);

// Sequences of different lengths as networks take them: longest first, without padding.
struct SortedRows {
  std::vector<Index> order;    // [B] the caller's stream of each
  std::vector<Index> offsets;  // [T + 1]
  std::vector<Index> rows;     // [N] the caller's row of [T * B] of each
};
SortedRows sorted_rows(const std::vector<Index>& lengths, Index seq_len);

}  // namespace charrnn_fast::bindings
