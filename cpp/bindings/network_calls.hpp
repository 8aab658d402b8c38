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

// The memory that a call of a device computes in, which is the caller's. If it has fewer elements
// than the call needs, the call does nothing. The CPU takes none.
struct Workspace {
  Address address = 0;
  Index elements = 0;
};

// Both return the elements of workspace that they need; on the CPU 0. Arrays are the device's,
// except offsets and streams, and there are no tokens on a device.
template <class T>
Index network_forward(const Network<T>& network, const Addresses& parameters, Address x,
                      Index seq_len, Index batch, const std::optional<Addresses>& state_0,
                      Address y, const std::optional<Addresses>& state_n, Address tape, bool tokens,
                      Address offsets, Address streams, const Seed& mask_seed, const Packed& packed,
                      const Workspace& workspace = {});

template <class T>
Index network_backward(const Network<T>& network, const Addresses& parameters, Address x,
                       Index seq_len, Index batch, Address tape, Address dy,
                       const std::optional<Addresses>& dstate_n, Address dx,
                       const std::optional<Addresses>& dstate_0, const Addresses& gradients,
                       bool tokens, Address offsets, Address streams, const Seed& mask_seed,
                       const Packed& packed, const Workspace& workspace = {});

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
