// The safetensors format: eight bytes with the header's length, the header (JSON), the tensors'
// data.
//
// What is accepted here, the safetensors package loads as the same NumPy arrays. It accepts a
// little more: keys that stand twice, entries written as lists, other limits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "charrnn_fast/config.hpp"

namespace charrnn_fast {

struct Tensor {
  std::string name;
  const char* dtype;  // NumPy's name: "float32"
  std::vector<std::int64_t> shape;
  std::size_t begin, end;  // of its data, row-major, little-endian, in bytes behind the header
  std::size_t elements() const;
  std::string shape_text() const;  // "[2, 3]"
};

struct SafetensorsHeader {
  std::vector<Tensor> tensors;  // sorted by name
  std::vector<std::pair<std::string, std::string>> metadata;
  std::size_t data_bytes = 0;  // exactly as many follow the header

  const Tensor* find(std::string_view name) const;  // null: there is none
};

constexpr std::size_t safetensors_start = 8;  // bytes before the header

// The header's length, of a file's first eight bytes.
std::uint64_t safetensors_header_bytes(const unsigned char* start);

// Reads a header, without the eight bytes before it. file_bytes: of all of the file, which limits
// how many values a header may have. Throws std::invalid_argument unless the tensors' entries are
// complete, their sizes fit their shapes, and their data follow one another without gaps.
SafetensorsHeader read_safetensors_header(std::string text, std::uint64_t file_bytes);

// Bytes that a header may have.
constexpr std::uint64_t most_header_bytes = 25'000'000;

}  // namespace charrnn_fast
