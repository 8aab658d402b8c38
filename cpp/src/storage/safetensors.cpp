#include "storage/safetensors.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "errors.hpp"
#include "storage/json.hpp"

namespace charrnn_fast {
namespace {

using Kind = JsonValue::Kind;

// Of Python's reader (storage/checkpoint.py), which this one agrees with.
constexpr int header_depth = 3;  // of lists and objects: the header, a tensor, its shape
constexpr Index free_values = 100'000, bytes_per_value = 64;
constexpr std::size_t most_dimensions = 64;  // NumPy's

struct Dtype {
  const char *name, *numpy_name;
  std::size_t bytes;
};
constexpr Dtype dtypes[] = {
    {"BOOL", "bool", 1},     {"I8", "int8", 1},     {"U8", "uint8", 1},   {"I16", "int16", 2},
    {"U16", "uint16", 2},    {"F16", "float16", 2}, {"I32", "int32", 4},  {"U32", "uint32", 4},
    {"F32", "float32", 4},   {"I64", "int64", 8},   {"U64", "uint64", 8}, {"F64", "float64", 8},
    {"C64", "complex64", 8},
};

JsonValue entry(const std::string& tensor, JsonValue object, const char* key, Kind kind) {
  const auto found = object.find(key);
  require(found && found->is(kind), "the header's entry ", shown(tensor), " must have ",
          quoted(key));
  return *found;
}

std::vector<std::uint64_t> integers(const std::string& tensor, JsonValue list, std::size_t most) {
  std::vector<std::uint64_t> values;
  list.each([&](JsonValue element) {
    const auto value = element.unsigned_integer();
    require(value && *value <= std::uint64_t{std::numeric_limits<std::int64_t>::max()} &&
                values.size() < most,
            "the header's entry ", shown(tensor), " must have at most ", most,
            " integers in each list, each 0 to 2^63 - 1");
    values.push_back(*value);
  });
  return values;
}

Tensor read_tensor(const std::string& name, JsonValue object) {
  require(object.is(Kind::object), "the header's entry ", shown(name), " must be an object");
  const std::string dtype = entry(name, object, "dtype", Kind::string).string();
  const auto* const known = std::find_if(std::begin(dtypes), std::end(dtypes),
                                         [&](const Dtype& d) { return d.name == dtype; });
  require(known != std::end(dtypes), "the dtype of the tensor ", shown(name), ", ", shown(dtype),
          ", is unknown to this version");
  const auto shape = integers(name, entry(name, object, "shape", Kind::list), most_dimensions);
  const auto offsets = integers(name, entry(name, object, "data_offsets", Kind::list), 2);
  require(offsets.size() == 2, "the data_offsets of the tensor ", shown(name),
          " must be two integers, got ", offsets.size());
  std::uint64_t bits = 1;
  bool fits = true;
  for (const std::uint64_t n : shape) fits = fits && !__builtin_mul_overflow(bits, n, &bits);
  fits = fits && !__builtin_mul_overflow(bits, std::uint64_t{8 * known->bytes}, &bits);
  require(fits && offsets[0] <= offsets[1] && offsets[1] - offsets[0] == bits / 8,
          "the data_offsets of the tensor ", shown(name), " must fit its shape, got ", offsets[0],
          " to ", offsets[1]);
  return {name,
          known->numpy_name,
          {shape.begin(), shape.end()},
          static_cast<std::size_t>(offsets[0]),
          static_cast<std::size_t>(offsets[1])};
}

// Throws unless the data of all tensors, in the order of their offsets, have no gaps and no
// overlaps; returns where they end.
std::size_t end_of_data(const std::vector<Tensor>& tensors) {
  std::vector<std::pair<std::size_t, std::size_t>> ranges;
  for (const Tensor& t : tensors) ranges.emplace_back(t.begin, t.end);
  std::sort(ranges.begin(), ranges.end());
  std::size_t end = 0;
  for (const auto& [begin, next] : ranges) {
    require(begin == end, "the tensors' data must have no gap and no overlap, got one at byte ",
            end);
    end = next;
  }
  return end;
}

}  // namespace

std::size_t Tensor::elements() const {
  std::size_t n = 1;
  for (const std::int64_t size : shape) n *= static_cast<std::size_t>(size);
  return n;
}

std::string Tensor::shape_text() const {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i)
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

const Tensor* SafetensorsHeader::find(std::string_view name) const {
  const auto at = std::lower_bound(tensors.begin(), tensors.end(), name,
                                   [](const Tensor& t, std::string_view n) { return t.name < n; });
  return at != tensors.end() && at->name == name ? &*at : nullptr;
}

std::uint64_t safetensors_header_bytes(const unsigned char* start) {
  std::uint64_t bytes = 0;
  for (std::size_t i = safetensors_start; i-- > 0;) bytes = bytes << 8 | start[i];
  return bytes;
}

SafetensorsHeader read_safetensors_header(std::string text, std::uint64_t file_bytes) {
  require(text.size() <= most_header_bytes, "the header must have at most ", most_header_bytes,
          " bytes, got ", text.size());
  const Index values =
      free_values + static_cast<Index>(file_bytes / std::uint64_t{bytes_per_value});
  const Json document(std::move(text), {header_depth, values, true});
  const JsonValue root = document.root();
  require(root.is(Kind::object), "the header must be an object");
  SafetensorsHeader header;
  root.each_entry([&](const std::string& key, JsonValue value) {
    if (key != "__metadata__") {
      header.tensors.push_back(read_tensor(key, value));
    } else if (!value.is(Kind::null)) {
      require(value.is(Kind::object), "__metadata__ must be an object");
      value.each_entry([&](const std::string& name, JsonValue of_name) {
        require(of_name.is(Kind::string), "__metadata__ must have strings alone");
        header.metadata.emplace_back(name, of_name.string());
      });
    }
  });
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const Tensor& a, const Tensor& b) { return a.name < b.name; });
  header.data_bytes = end_of_data(header.tensors);
  return header;
}

}  // namespace charrnn_fast
