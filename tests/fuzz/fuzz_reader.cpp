// What is fuzzed: C++'s reading of a checkpoint, and sampling from its model.
//
// A file is tried as it is and, where it gets as far as that, with the checksum that it needs. The
// result is a model, or one of the errors that files have; whatever else is thrown is a finding,
// and so is what the sanitizers see. `python tests/fuzz/fuzz_reader.py` builds and runs it.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "charrnn_fast/language_model.hpp"
#include "storage/checkpoint.hpp"

using namespace charrnn_fast;

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace {

using Bytes = std::vector<std::uint8_t>;

std::optional<std::size_t> header_size(const std::uint8_t* data, std::size_t size) {
  if (size < safetensors_start) return std::nullopt;
  const std::uint64_t bytes = safetensors_header_bytes(data);
  if (bytes > size - safetensors_start) return std::nullopt;
  return static_cast<std::size_t>(bytes);
}

// The file with the right checksum in place of its own.
std::optional<Bytes> sealed(const std::uint8_t* data, std::size_t size) {
  const auto bytes = header_size(data, size);
  if (!bytes) return std::nullopt;
  const std::string text(reinterpret_cast<const char*>(data) + safetensors_start, *bytes);
  try {
    const SafetensorsHeader header = read_safetensors_header(text, size);
    const std::uint8_t* const tensors = data + safetensors_start + *bytes;
    if (header.data_bytes != size - safetensors_start - *bytes) return std::nullopt;
    for (const auto& [key, value] : header.metadata) {
      const Json entry(value, {32, Index(size)});
      if (!entry.root().is(JsonValue::Kind::object)) continue;
      const auto config = entry.root().find("config"), sha256 = entry.root().find("sha256");
      if (!config || !sha256 || !sha256->is(JsonValue::Kind::string)) continue;
      const std::string old = sha256->string(),
                        digest = checkpoint_digest(header, tensors, *config);
      const std::size_t at = text.find(old);
      if (old.size() != digest.size() || at == std::string::npos) continue;
      Bytes file(data, data + size);
      std::memcpy(file.data() + safetensors_start + at, digest.data(), digest.size());
      return file;
    }
  } catch (const std::invalid_argument&) {
  }
  return std::nullopt;
}

void read(const std::uint8_t* data, std::size_t size) {
  try {
    const LanguageModel model = LanguageModel::from_memory(data, size);
    TextOptions options;
    options.length = 2;
    model.sample(options, 1);
  } catch (const CheckpointError&) {
  } catch (const std::bad_alloc&) {
  } catch (const std::invalid_argument& error) {
    if (!std::strstr(error.what(), "the weights are damaged")) throw;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  read(data, size);
  if (const auto file = sealed(data, size)) read(file->data(), file->size());
  return 0;
}

// Mostly changes the header alone, and writes the length that it has then.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed) {
  const auto bytes = header_size(data, size);
  if (!bytes || seed % 8 == 0) return LLVMFuzzerMutate(data, size, most);
  Bytes header(data + safetensors_start, data + safetensors_start + *bytes);
  const Bytes rest(data + safetensors_start + *bytes, data + size);
  const std::size_t room = most > safetensors_start + rest.size()
                               ? most - safetensors_start - rest.size()
                               : header.size();
  header.resize(std::max(room, header.size()));
  header.resize(LLVMFuzzerMutate(header.data(), *bytes, header.size()));
  const std::size_t whole = safetensors_start + header.size() + rest.size();
  if (whole > most) return LLVMFuzzerMutate(data, size, most);
  for (std::size_t i = 0; i < safetensors_start; ++i)
    data[i] = static_cast<std::uint8_t>(std::uint64_t{header.size()} >> 8 * i);
  std::copy(header.begin(), header.end(), data + safetensors_start);
  std::copy(rest.begin(), rest.end(), data + safetensors_start + header.size());
  return whole;
}
