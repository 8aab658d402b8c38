#include "storage/checkpoint.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <system_error>

#include "charrnn_fast/registry.hpp"
#include "errors.hpp"
#include "storage/sha256.hpp"
#include "text/utf8.hpp"

namespace charrnn_fast {
namespace {

using Kind = JsonValue::Kind;

constexpr std::string_view key = "charrnn_fast";
constexpr std::uint64_t format = 1;

// ---- the configuration --------------------------------------------------------------------

[[noreturn]] void wrong(const std::string& name, const std::string& takes, JsonValue value) {
  fail(name, " must be ", takes, ", got ", shown(value.source()));
}

// An object, each of whose keys has to be asked for.
class Table {
 public:
  // name: of the object with a dot, or empty.
  Table(std::string name, JsonValue value) : name_(std::move(name)) {
    if (!value.is(Kind::object))
      wrong(name_.empty() ? "it" : name_.substr(0, name_.size() - 1), "an object", value);
    value.each_entry([&](std::string k, JsonValue v) { values_.emplace(std::move(k), v); });
  }

  std::optional<JsonValue> find(const std::string& k) {
    const auto found = values_.find(k);
    if (found == values_.end()) return std::nullopt;
    const JsonValue value = found->second;
    values_.erase(found);
    return value;
  }
  bool has(const std::string& k) const { return values_.count(k) > 0; }
  JsonValue take(const std::string& k) {
    const auto found = find(k);
    require(found.has_value(), name_, k, " is missing");
    return *found;
  }
  void end() const {
    if (!values_.empty()) fail(name_, shown(values_.begin()->first), " is unknown to this version");
  }

  std::uint64_t integer(const std::string& k, std::uint64_t least, std::uint64_t most) {
    const JsonValue value = take(k);
    const auto number = value.unsigned_integer();
    // Python's -0 is the integer 0.
    const bool zero = value.is(Kind::integer) && value.source() == "-0";
    if (!(number && *number >= least && *number <= most) && !(zero && least == 0))
      wrong(name_ + k, "an integer in " + std::to_string(least) + " to " + std::to_string(most),
            value);
    return number.value_or(0);
  }
  Index size(const std::string& k, std::uint64_t least,
             std::uint64_t most = std::numeric_limits<std::int32_t>::max()) {
    return static_cast<Index>(integer(k, least, most));
  }
  bool flag(const std::string& k) {
    const JsonValue value = take(k);
    if (!value.is(Kind::boolean)) wrong(name_ + k, "true or false", value);
    return value.boolean();
  }
  std::string text(const std::string& k, const std::vector<std::string>& choices) {
    const JsonValue value = take(k);
    const std::string text = value.is(Kind::string) ? value.string() : "";
    if (std::find(choices.begin(), choices.end(), text) == choices.end() || text.empty()) {
      std::string takes = "one of";
      for (const std::string& choice : choices) takes += ' ' + json_quoted(choice);
      wrong(name_ + k, takes, value);
    }
    return text;
  }
  double rate(const std::string& k) { return rate_of(name_ + k, take(k)); }
  static double rate_of(const std::string& name, JsonValue value) {
    const double number = real(name, value);
    if (!(number >= 0 && number < 1)) wrong(name, "at least 0, below 1", value);
    return number;
  }
  static double real(const std::string& name, JsonValue value) {
    if (!value.is(Kind::integer) && !value.is(Kind::number)) wrong(name, "a number", value);
    const double number = value.number();
    if (!std::isfinite(number)) wrong(name, "finite", value);
    return number;
  }

 private:
  std::string name_;
  std::map<std::string, JsonValue> values_;
};

Bias read_bias(Table& model) {
  const JsonValue value = model.take("bias");
  if (value.is(Kind::boolean)) return value.boolean() ? Bias::both : Bias::none;
  const std::string name = value.is(Kind::string) ? value.string() : "";
  if (name == "double") return Bias::both;
  if (name == "single") return Bias::single;
  if (name == "none") return Bias::none;
  wrong("model.bias", "true, \"double\", \"single\", false or \"none\"", value);
}

void read_model(JsonValue value, Checkpoint& to) {
  Table model("model.", value);
  std::vector<std::string> names, nonlinearities;
  const auto add = [](std::vector<std::string>& to, const char* name) {
    if (std::find(to.begin(), to.end(), name) == to.end()) to.emplace_back(name);
  };
  for (const CellInfo& cell : cells()) {
    add(names, cell.name);
    add(nonlinearities, cell.nonlinearity);
  }
  NetworkShape& shape = to.shape;
  constexpr std::uint64_t most_layers = 10'000;
  shape.hidden_size = model.size("hidden_size", 1);
  shape.num_layers = model.size("num_layers", 1, most_layers);
  shape.cell = model.text("cell", names);
  model.integer("seed", 0, std::numeric_limits<std::uint64_t>::max());
  to.dtype = model.text("dtype", {"float32", "float64"});
  shape.nonlinearity = model.text("nonlinearity", nonlinearities);
  shape.bias = read_bias(model);
  model.text("init", {"uniform", "lecun", "lecun_tokens"});
  const JsonValue forget_bias = model.take("forget_bias");
  if (!forget_bias.is(Kind::null)) Table::real("model.forget_bias", forget_bias);
  shape.proj_size = model.size("proj_size", 0);
  shape.layer_norm = model.flag("layer_norm");
  Regularization& rates = shape.regularization;
  for (const DropoutRate& rate : dropout_rates) rates.*rate.value = model.rate(rate.name);
  rates.variational = model.flag("variational");
  const JsonValue zoneout = model.take("zoneout");
  std::vector<double> of_states;
  if (zoneout.is(Kind::list))
    zoneout.each(
        [&](JsonValue rate) { of_states.push_back(Table::rate_of("model.zoneout", rate)); });
  if (of_states.size() != 2) wrong("model.zoneout", "a list [h, c]", zoneout);
  std::copy(of_states.begin(), of_states.end(), rates.zoneout);
  if (model.has("compute_dtype")) {
    std::vector<std::string> known;
    for (const ComputeInfo& info : compute_dtypes) known.emplace_back(info.name);
    shape.compute = compute_named(model.text("compute_dtype", known));
  }
  model.end();
}

void check_unknown(JsonValue value) {
  Table unknown("unknown.", value);
  unknown.integer("characters", 0, num_code_points);
  const double share = Table::real("unknown.share", unknown.take("share"));
  require(share >= 0 && share <= 1, "unknown.share must be at least 0, at most 1, got ", share);
  unknown.end();
}

struct VocabularyKind {
  bool bytes, unknown;
};

VocabularyKind read_configuration(JsonValue value, Checkpoint& to) {
  Table config("", value);
  const std::string kind = config.text("vocabulary", {"characters", "bytes"});
  read_model(config.take("model"), to);
  const auto unknown = config.find("unknown");
  if (unknown) check_unknown(*unknown);
  require(!unknown || kind == "characters", "unknown must be absent where vocabulary is \"bytes\"");
  // What else the training has does not concern the model, and its checksum fits.
  if (const auto training = config.find("training")) {
    Table table("training.", *training);
    to.has_training = true;
    to.has_state = table.flag("has_state");
    to.has_average = table.has("averaged");
  }
  if (config.has("weight_dtype")) {
    const std::string weights = config.text("weight_dtype", {"bfloat16", "int8"});
    to.weights = weights == "int8" ? Storage::int8 : Storage::bfloat16;
    require(!to.has_training, "training must be absent from a file of small weights");
    require(to.dtype == "float32", "model.dtype of a file of small weights must be \"float32\"");
    require(to.weights != Storage::int8 || to.shape.compute == Compute::float32,
            "model.compute_dtype of a file of int8 weights must be \"float32\"");
  }
  config.end();
  return {kind == "bytes", unknown.has_value()};
}

// ---- tensors ------------------------------------------------------------------------------

template <class T>
T element(const unsigned char* data, std::size_t i) {
  T value;
  std::memcpy(&value, data + i * sizeof(T), sizeof(T));
  return value;
}

template <class T>
bool all_finite(const unsigned char* data, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i)
    if (!std::isfinite(element<T>(data, i))) return false;
  return true;
}

// Other types are never those of a network.
bool is_finite(const Tensor& t, const unsigned char* data) {
  const std::string_view dtype = t.dtype;
  if (dtype == "float32") return all_finite<float>(data + t.begin, t.elements());
  if (dtype == "float64") return all_finite<double>(data + t.begin, t.elements());
  return true;
}

std::shared_ptr<const Vocabulary> read_vocabulary(const Checkpoint& file,
                                                  const VocabularyKind& kind) {
  const Tensor* const tensor = file.header.find("vocabulary");
  require(tensor, "the tensor \"vocabulary\" is missing");
  require(tensor->dtype == std::string_view("int32") && tensor->shape.size() == 1,
          "the tensor \"vocabulary\" must be int32 of the shape [V], got ", tensor->dtype, " of ",
          tensor->shape_text());
  std::vector<std::int32_t> symbols(tensor->elements());
  for (std::size_t i = 0; i < symbols.size(); ++i)
    symbols[i] = element<std::int32_t>(file.of(*tensor), i);
  return std::make_shared<const Vocabulary>(
      symbols, kind.bytes ? Vocabulary::Kind::bytes : Vocabulary::Kind::characters, kind.unknown);
}

// As the network is not larger than its tensors, these decide how much memory it takes.
void check_size(const Checkpoint& file) {
  const NetworkShape& shape = file.shape;
  const auto hidden = static_cast<double>(shape.hidden_size);
  const auto width = shape.proj_size > 0 ? static_cast<double>(shape.proj_size) : hidden;
  const auto symbols = static_cast<double>(shape.input_size);
  const auto check = [&](const std::string& name, double least) {
    const Tensor* const tensor = file.header.find(name);
    require(tensor, "the tensor ", shown(name), " is missing");
    require(static_cast<double>(tensor->elements()) >= least, "the tensor ", shown(name), " has ",
            tensor->elements(), " elements, too few for model.hidden_size ", shape.hidden_size,
            ", model.proj_size ", shape.proj_size, " and ", shape.input_size, " symbols");
  };
  check("decoder.weight", symbols * width);
  check("rnn.weight_ih_l0", hidden * symbols);
  for (Index l = 0; l < shape.num_layers; ++l)
    check("rnn.weight_hh_l" + std::to_string(l), hidden * width);
}

// ---- the file -----------------------------------------------------------------------------

[[noreturn]] void damaged(const std::string& name, const std::string& why) {
  throw CheckpointError(name + " is damaged: " + why);
}

[[noreturn]] void no_checkpoint(const std::string& name, std::uint64_t bytes,
                                const std::string& why) {
  throw CheckpointError(name + " is no charrnn_fast checkpoint, or its beginning is damaged (" +
                        std::to_string(bytes) + " bytes): " + why);
}

// Our entry of the metadata, an object.
Json read_entry(const SafetensorsHeader& header) {
  constexpr int depth = 32;
  constexpr Index free_values = 20'000, characters_per_value = 24;
  const auto found = std::find_if(header.metadata.begin(), header.metadata.end(),
                                  [](const auto& entry) { return entry.first == key; });
  require(found != header.metadata.end(), "its metadata must have the key \"", key, '"');
  const std::string& text = found->second;
  const auto characters =
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
  Json entry(text, {depth, free_values + characters / characters_per_value});
  require(entry.root().is(Kind::object), "its entry of the metadata must be an object");
  return entry;
}

void check_format(const std::string& name, JsonValue entry) {
  const auto number = entry.find("format");
  const std::string got = number ? shown(number->source()) : "none";
  if (!number || !number->is(Kind::integer) || number->source()[0] == '-' ||
      number->source() == "0")
    damaged(name, "its format must be an integer >= 1, got " + got);
  if (number->unsigned_integer().value_or(format + 1) > format)
    throw CheckpointError(name + " is of the checkpoint format " + std::string(number->source()) +
                          ", and this version of charrnn_fast reads formats up to " +
                          std::to_string(format) + "; a newer version reads it");
}

// The header's part of a checkpoint; the second: our entry of the metadata.
std::pair<SafetensorsHeader, Json> read_header(const std::string& name, std::string text,
                                               std::uint64_t file_bytes) {
  try {
    SafetensorsHeader header = read_safetensors_header(std::move(text), file_bytes);
    Json entry = read_entry(header);
    return {std::move(header), std::move(entry)};
  } catch (const std::invalid_argument& error) {
    no_checkpoint(name, file_bytes, error.what());
  }
}

// With name, header and data, adds the rest.
void complete(Checkpoint& file, JsonValue entry) {
  const auto config = entry.find("config"), sha256 = entry.find("sha256");
  if (!config || !config->is(Kind::object) || !sha256 || !sha256->is(Kind::string) ||
      sha256->string() != checkpoint_digest(file.header, file.data, *config))
    damaged(file.name, "its checksum does not fit its data");
  for (const Tensor& tensor : file.header.tensors)
    if (!is_finite(tensor, file.data))
      throw CheckpointError(file.name + ": the tensor " + shown(tensor.name) + " is not finite");
  VocabularyKind kind;
  try {
    kind = read_configuration(*config, file);
  } catch (const std::invalid_argument& error) {
    throw CheckpointError(file.name + ": " + error.what());
  }
  try {
    file.vocabulary = read_vocabulary(file, kind);
    require(file.vocabulary->size() > 1, "the vocabulary must have two symbols or more, got one");
    file.shape.input_size = file.shape.output_size = file.vocabulary->size();
    check_size(file);
  } catch (const std::invalid_argument& error) {
    throw CheckpointError(file.name +
                          " does not hold the model that it describes: " + error.what());
  }
}

class File {
 public:
  explicit File(const std::string& path) : descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor_ < 0) failed(path);
    struct stat status;
    if (fstat(descriptor_, &status) != 0) {
      const int error = errno;
      close(descriptor_);
      errno = error;
      failed(path);
    }
    is_device = S_ISBLK(status.st_mode) || S_ISCHR(status.st_mode);
    size = S_ISREG(status.st_mode) ? static_cast<std::uint64_t>(status.st_size) : 0;
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() { close(descriptor_); }

  // The next bytes, at most so many; fewer at the file's end.
  std::size_t read(const std::string& path, unsigned char* to, std::size_t most) {
    std::size_t got = 0;
    while (got < most) {
      const ssize_t n = ::read(descriptor_, to + got, std::min(most - got, std::size_t{1} << 30));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) failed(path);
      if (n == 0) break;
      got += static_cast<std::size_t>(n);
    }
    return got;
  }

  bool is_device;
  std::uint64_t size;  // 0: not known, of a pipe

 private:
  [[noreturn]] static void failed(const std::string& path) {
    throw std::system_error(errno, std::generic_category(), path);
  }

  int descriptor_;
};

struct Bytes {
  std::unique_ptr<unsigned char[]> data;
  std::size_t size;
};

// The next bytes of a file, at most so many. Takes no memory for bytes that are not there: a pipe,
// whose size is not known, is read in growing pieces.
Bytes read_at_most(File& file, const std::string& path, std::size_t most) {
  constexpr std::size_t first = std::size_t{1} << 16;
  std::size_t room = file.size > 0 ? most : std::min(most, first), got = 0;
  std::unique_ptr<unsigned char[]> data(new unsigned char[std::max<std::size_t>(1, room)]);
  while ((got += file.read(path, data.get() + got, room - got)) == room && room < most) {
    const std::size_t more = std::min(most, 2 * room);
    std::unique_ptr<unsigned char[]> larger(new unsigned char[more]);
    std::memcpy(larger.get(), data.get(), got);
    data = std::move(larger);
    room = more;
  }
  return {std::move(data), got};
}

}  // namespace

std::string tensor_name(const std::string& parameter) {
  return parameter.rfind("decoder.", 0) == 0 ? parameter : "rnn." + parameter;
}

std::string checkpoint_digest(const SafetensorsHeader& header, const unsigned char* data,
                              JsonValue config) {
  Sha256 digest;
  config.dump([&](std::string_view part) { digest.update(part); });
  for (const Tensor& tensor : header.tensors) {
    digest.update("\n" + tensor.name + " " + tensor.dtype + " " + tensor.shape_text() + "\n");
    digest.update(data + tensor.begin, tensor.end - tensor.begin);
  }
  return digest.digest();
}

bool is_rounded(const Parameter& parameter) {
  if (parameter.cols == 0 || parameter.name == "weight_ih_l0") return false;
  for (const CellInfo& cell : cells())
    if (cell.num_params > 0 &&
        parameter.name.rfind("weight_" + std::string(cell.params_name) + "_l", 0) == 0)
      return false;
  return true;
}

std::string scales_name(const std::string& parameter) { return tensor_name(parameter) + ".scales"; }

void check_tensors(const Checkpoint& file, const std::vector<Parameter>& parameters,
                   Index num_layers, const std::vector<Index>& state_widths) {
  std::map<std::string, std::vector<std::int64_t>> expected;
  std::map<std::string, std::string> small;  // dtypes that are not the model's
  for (const Parameter& p : parameters) {
    expected[tensor_name(p.name)] =
        p.cols > 0 ? std::vector<std::int64_t>{p.rows, p.cols} : std::vector<std::int64_t>{p.rows};
    if (file.weights == Storage::full || !is_rounded(p)) continue;
    small[tensor_name(p.name)] = file.weights == Storage::int8 ? "int8" : "uint16";
    if (file.weights == Storage::int8) expected[scales_name(p.name)] = {p.rows};
  }
  const auto shape_of = [&](const std::string& name) {
    const auto found = expected.find(name);
    return found == expected.end() ? nullptr : &found->second;
  };
  std::vector<std::pair<std::string, std::vector<std::int64_t>>> of_training;
  for (const Tensor& tensor : file.header.tensors) {
    // optimizer.SLOT.PARAMETER
    if (!file.has_training || tensor.name.rfind("optimizer.", 0) != 0) continue;
    const std::size_t slot_end = tensor.name.find('.', sizeof "optimizer." - 1);
    if (slot_end == std::string::npos) continue;
    if (const auto* shape = shape_of(tensor.name.substr(slot_end + 1)))
      of_training.emplace_back(tensor.name, *shape);
  }
  if (file.has_average) {  // then the model's own are rounded averages
    for (const Parameter& p : parameters) {
      const std::string name = tensor_name(p.name);
      of_training.emplace_back("trained." + name, *shape_of(name));
      of_training.emplace_back("average." + name, *shape_of(name));
      small["average." + name] = "float64";
    }
  }
  if (file.has_state) {
    const Tensor* const h = file.header.find("state.h");
    require(h && h->shape.size() == 3 && h->shape[1] > 0,
            "the tensor \"state.h\" must be there, of the shape [L, B, R]");
    for (std::size_t s = 0; s < state_widths.size(); ++s)
      of_training.emplace_back(s == 0 ? "state.h" : "state.c",
                               std::vector<std::int64_t>{num_layers, h->shape[1], state_widths[s]});
  }
  expected.insert(of_training.begin(), of_training.end());
  for (const auto& [name, shape] : expected)
    require(file.header.find(name), "the tensor ", shown(name), " is missing");
  for (const Tensor& tensor : file.header.tensors) {
    if (tensor.name == "vocabulary") continue;
    const auto* const shape = shape_of(tensor.name);
    require(shape, "the tensor ", shown(tensor.name), " is unknown to this version");
    const auto found = small.find(tensor.name);
    const std::string& dtype = found == small.end() ? file.dtype : found->second;
    require(tensor.dtype == dtype && tensor.shape == *shape, "the tensor ", shown(tensor.name),
            " must be ", dtype, " of the shape ", Tensor{{}, {}, *shape, 0, 0}.shape_text(),
            ", got ", tensor.dtype, " of ", tensor.shape_text());
  }
}

Checkpoint read_checkpoint(const std::string& path) {
  File file(path);
  if (file.is_device) throw CheckpointError(path + " is a device, not a file");
  unsigned char start[safetensors_start];
  const std::size_t begun = file.read(path, start, safetensors_start);
  if (begun < safetensors_start) no_checkpoint(path, begun, "it has no header");
  const std::uint64_t bytes = safetensors_header_bytes(start);
  // The header first: no more is read of other kinds of files.
  if (bytes > most_header_bytes || (file.size > 0 && file.size - begun < bytes))
    no_checkpoint(path, std::max<std::uint64_t>(file.size, begun),
                  "its header is cut off, or longer than one may be");
  Bytes text = read_at_most(file, path, static_cast<std::size_t>(bytes));
  const std::uint64_t there = std::max<std::uint64_t>(file.size, begun + text.size);
  if (text.size < bytes) no_checkpoint(path, there, "its header is cut off");
  auto [header, entry] = read_header(
      path, std::string(reinterpret_cast<const char*>(text.data.get()), text.size), there);
  text.data.reset();
  check_format(path, entry.root());
  Checkpoint checkpoint;
  checkpoint.name = path;
  if (file.size > 0 && file.size - begun - text.size != header.data_bytes)
    damaged(path, "its data have " + std::to_string(file.size - begun - text.size) +
                      " bytes, not " + std::to_string(header.data_bytes));
  Bytes data = read_at_most(file, path, header.data_bytes);
  unsigned char beyond;
  if (data.size < header.data_bytes) damaged(path, "its end is missing");
  if (file.read(path, &beyond, 1) > 0) damaged(path, "it goes on behind its data");
  checkpoint.owned = std::move(data.data);
  checkpoint.header = std::move(header);
  checkpoint.data = checkpoint.owned.get();
  complete(checkpoint, entry.root());
  return checkpoint;
}

Checkpoint read_checkpoint(const void* bytes, std::size_t size) {
  const std::string name = "the checkpoint in memory";
  const auto* const start = static_cast<const unsigned char*>(bytes);
  if (!start || size < safetensors_start) no_checkpoint(name, size, "it has no header");
  const std::uint64_t header_bytes = safetensors_header_bytes(start);
  const std::size_t rest = size - safetensors_start;
  if (header_bytes > most_header_bytes || header_bytes > rest)
    no_checkpoint(name, size, "its header is cut off, or longer than one may be");
  const auto* const text = reinterpret_cast<const char*>(start) + safetensors_start;
  auto [header, entry] =
      read_header(name, std::string(text, static_cast<std::size_t>(header_bytes)), size);
  check_format(name, entry.root());
  Checkpoint checkpoint;
  checkpoint.name = name;
  if (rest - header_bytes != header.data_bytes)
    damaged(name, "its data have " + std::to_string(rest - header_bytes) + " bytes, not " +
                      std::to_string(header.data_bytes));
  checkpoint.header = std::move(header);
  checkpoint.data = start + safetensors_start + header_bytes;
  complete(checkpoint, entry.root());
  return checkpoint;
}

}  // namespace charrnn_fast
