// Checkpoints: docs/format.md has the format. Read as storage/checkpoint.py and
// storage/configuration.py read them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "charrnn_fast/checkpoint_error.hpp"
#include "charrnn_fast/network.hpp"
#include "charrnn_fast/vocabulary.hpp"
#include "storage/json.hpp"
#include "storage/safetensors.hpp"

namespace charrnn_fast {

// A checkpoint whose checksum fits, whose numbers are finite and whose configuration is valid. Of
// the training's part of that only has_state and averaged have been looked at.
struct Checkpoint {
  std::string name;  // for messages: the file's
  SafetensorsHeader header;
  std::unique_ptr<unsigned char[]> owned;  // null: data is the caller's
  const unsigned char* data = nullptr;     // header.data_bytes

  NetworkShape shape;  // input_size and output_size are the vocabulary's
  std::string dtype;   // "float32" or "float64"
  std::shared_ptr<const Vocabulary> vocabulary;
  bool has_training = false, has_state = false, has_average = false;
  // Not full: the file holds these weights alone, see is_rounded.
  Storage weights = Storage::full;

  // [elements] of T, at any address.
  const unsigned char* of(const Tensor& tensor) const { return data + tensor.begin; }
};

// Both throw CheckpointError if the file is no checkpoint, is damaged, or is of a newer version
// that this one does not understand. No memory is asked for by a size that the file itself does not
// have. The first throws std::system_error if the file cannot be read.
Checkpoint read_checkpoint(const std::string& path);
// The bytes must outlive the result.
Checkpoint read_checkpoint(const void* bytes, std::size_t size);

// Throws std::invalid_argument unless the tensors are exactly those of a network with these
// parameters, and of the training.
void check_tensors(const Checkpoint& checkpoint, const std::vector<Parameter>& parameters,
                   Index num_layers, const std::vector<Index>& state_widths);

// Whether small weights round a parameter: matrices, but not layer 0's input weights, of which a
// token reads one row, nor peephole weights, which are vectors.
bool is_rounded(const Parameter& parameter);

// The name of a parameter's scales [rows] beside its integers, in a checkpoint of int8 weights.
std::string scales_name(const std::string& parameter);

// The name of a parameter in a checkpoint.
std::string tensor_name(const std::string& parameter);

// The checksum: of the configuration, then of each tensor.
std::string checkpoint_digest(const SafetensorsHeader& header, const unsigned char* data,
                              JsonValue config);

}  // namespace charrnn_fast
