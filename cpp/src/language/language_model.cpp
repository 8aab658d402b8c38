#include "charrnn_fast/language_model.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <type_traits>
#include <utility>
#include <variant>

#include "charrnn_fast/registry.hpp"
#include "errors.hpp"
#include "language/beam.hpp"
#include "language/drawing.hpp"
#include "language/drawn_text.hpp"
#include "language/scoring.hpp"
#include "network_common.hpp"
#include "storage/checkpoint.hpp"
#include "text/utf8.hpp"

namespace charrnn_fast {
namespace {

constexpr Index block = 1024;  // tokens drawn at once: bounds the memory
constexpr Index stop_block =
    64;  // with stop strings: tokens drawn beyond the text's end are wasted
constexpr Index most_streams = 64;          // texts drawn together: more are hardly faster
constexpr Index together = Index(1) << 24;  // symbols of these texts, in memory until all are drawn

// ---- weights ------------------------------------------------------------------------------

// The floats of a parameter of a file of small weights. Throws std::invalid_argument for numbers
// that rounding cannot give.
std::vector<float> read_small(const Checkpoint& file, const Parameter& p) {
  std::vector<float> values(static_cast<std::size_t>(p.elements()));
  const std::string name = tensor_name(p.name);
  const unsigned char* from = file.of(*file.header.find(name));
  if (file.weights == Storage::bfloat16) {
    for (float& value : values) {
      std::uint16_t half;
      std::memcpy(&half, from, sizeof half);
      from += sizeof half;
      const std::uint32_t bits = std::uint32_t(half) << 16;
      std::memcpy(&value, &bits, sizeof value);
      require(std::isfinite(value), "the tensor ", shown(name), " is not finite");
    }
    return values;
  }
  const std::string scales = scales_name(p.name);
  const unsigned char* const scale_at = file.of(*file.header.find(scales));
  for (Index r = 0; r < p.rows; ++r) {
    float scale;
    std::uint32_t bits;
    std::memcpy(&scale, scale_at + r * Index(sizeof scale), sizeof scale);
    std::memcpy(&bits, &scale, sizeof bits);
    require(std::isfinite(scale) && !std::signbit(scale) && (bits & 0xFF) == 0, "the tensor ",
            shown(scales), " must have floats of 16 significant bits, at least 0");
    int largest = 0;
    for (Index k = 0; k < p.cols; ++k, ++from) {
      const int integer = static_cast<signed char>(*from);
      largest = std::max(largest, std::abs(integer));
      float& value = values[static_cast<std::size_t>(r * p.cols + k)];
      value = scale * static_cast<float>(integer);
      require(std::isfinite(value), "the tensor ", shown(name), " is not finite, times its scales");
    }
    require(largest == (scale > 0 ? 127 : 0), "the tensor ", shown(name),
            " must reach 127 or -127 in each row, and be 0 where the scale is");
  }
  return values;
}

template <class T>
std::shared_ptr<Model<T>> read_model(const Checkpoint& file, Device& device) {
  std::shared_ptr<Model<T>> model;
  std::map<std::string, std::vector<float>> small;
  try {
    Network<T> network(file.shape, device);
    std::vector<Index> widths;
    for (Index s = 0; s < network.num_states(); ++s) widths.push_back(network.state_width(s));
    check_tensors(file, network.parameters(), file.shape.num_layers, widths);
    if (file.weights != Storage::full)
      for (const Parameter& p : network.parameters())
        if (is_rounded(p)) small[p.name] = read_small(file, p);
    model = std::make_shared<Model<T>>(std::move(network));
  } catch (const std::invalid_argument& error) {
    throw CheckpointError(file.name +
                          " does not hold the model that it describes: " + error.what());
  }
  model->change_parameters([&](T* parameters) {
    for (const Parameter& p : model->network().parameters()) {
      const auto rounded = small.find(p.name);
      const unsigned char* from =
          rounded == small.end() ? file.of(*file.header.find(tensor_name(p.name)))
                                 : reinterpret_cast<const unsigned char*>(rounded->second.data());
      T* const to = parameters + p.offset;
      if (!p.transposed) {
        std::memcpy(to, from, static_cast<std::size_t>(p.elements()) * sizeof(T));
        continue;
      }
      for (Index r = 0; r < p.rows; ++r)
        for (Index c = 0; c < p.cols; ++c, from += sizeof(T))
          std::memcpy(to + c * p.rows + r, from, sizeof(T));
    }
  });
  return model;
}

// The nearest bfloat16, ties to even. Weights are finite.
float rounded_to_bfloat16(float weight) {
  std::uint32_t bits;
  std::memcpy(&bits, &weight, sizeof bits);
  bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000;
  std::memcpy(&weight, &bits, sizeof bits);
  return weight;
}

// Rounds a row of n weights to integers -127 to 127 times a scale: its absolute maximum / 127, cut
// to 16 significant bits, so that the products are exact. Ties to even.
void round_to_int8(float* row, Index n) {
  float most = 0;
  for (Index i = 0; i < n; ++i) most = std::max(most, std::abs(row[i]));
  float scale = most / 127;
  std::uint32_t bits;
  std::memcpy(&bits, &scale, sizeof bits);
  bits &= 0xFFFFFF00;
  std::memcpy(&scale, &bits, sizeof scale);
  for (Index i = 0; i < n; ++i)
    row[i] = scale > 0 ? scale * std::clamp(std::nearbyint(row[i] / scale), -127.0f, 127.0f) : 0;
}

// The model whose weights sampling with bfloat16 or int8 uses.
std::shared_ptr<Model<float>> read_as(Model<float>& model, Storage weights) {
  Device& device = model.network().device();
  auto rounded = std::make_shared<Model<float>>(model.network().shape(), device);
  std::vector<float> flat(static_cast<std::size_t>(model.network().parameter_elements()));
  model.read_parameters([&](const float* parameters) {
    device.download(parameters, static_cast<Index>(flat.size()), flat.data());
  });
  for (const Parameter& p : model.network().parameters())
    if (is_rounded(p))
      for (Index r = 0; r < p.rows; ++r) {
        float* const row = flat.data() + p.offset + r * p.cols;
        if (weights == Storage::int8)
          round_to_int8(row, p.cols);
        else
          std::transform(row, row + p.cols, row, rounded_to_bfloat16);
      }
  rounded->change_parameters(
      [&](float* parameters) { std::copy(flat.begin(), flat.end(), parameters); });
  return rounded;
}

// ---- options ------------------------------------------------------------------------------

void check_valid_utf8(const std::string& name, std::string_view text) {
  Utf8Decoder decoder(true);
  const auto invalid = [&] { fail(name, " must be valid UTF-8"); };
  for (const char c : text)
    decoder.next(static_cast<unsigned char>(c), [](std::uint32_t) {}, invalid);
  if (decoder.unfinished() > 0) invalid();
}

// Checked options.
struct Request {
  std::vector<Token> prime, read;  // read: what the network reads before the first draw
  Index length;
  SamplingOptions sampling;
  std::vector<std::string> stops;
  Storage weights;
};

Token first_id(const Vocabulary& vocabulary) { return std::max(vocabulary.id_of('\n'), 0); }

const char* storage_name(Storage weights) {
  return weights == Storage::full ? "full" : weights == Storage::int8 ? "int8" : "bfloat16";
}

// The weights to use. own: those that the file holds alone, or full.
Storage checked_weights(Storage weights, Storage own, bool is_float32, const NetworkShape& shape,
                        const Device& device) {
  const bool int8 = weights == Storage::int8 || own == Storage::int8;
  require(!int8 || device.is_host, "weights on ", device.name,
          " must be full or bfloat16, got int8");
  if (own != Storage::full) {
    require(weights == Storage::full || weights == own, "weights of a model that holds ",
            storage_name(own), " weights alone must be full or ", storage_name(own), ", got ",
            storage_name(weights));
    return own;
  }
  require(weights == Storage::full || is_float32, "weights of a float64 model must be full, got ",
          storage_name(weights));
  require(weights != Storage::int8 || shape.compute == Compute::float32,
          "weights of a model that rounds its operands must be full or bfloat16, got int8");
  return weights;
}

// weights: checked.
Request checked(const TextOptions& options, const Vocabulary& vocabulary, Storage weights) {
  require(options.length >= 0, "length must be >= 0, got ", options.length);
  SamplingOptions sampling{options.temperature, options.top_k, options.top_p,
                           options.repetition_penalty, options.repetition_window};
  check(sampling);
  sampling.top_k = std::min(options.top_k, vocabulary.size());
  std::vector<Token> prime = vocabulary.encode(options.prime, "prime");
  for (std::size_t i = 0; i < options.stop.size(); ++i) {
    const std::string name = "stop[" + std::to_string(i) + "]";
    require(!options.stop[i].empty(), name, " must have one character or more, got none");
    check_valid_utf8(name, options.stop[i]);
    vocabulary.encode(options.stop[i], name.c_str());
  }
  std::vector<Token> read = prime.empty() ? std::vector<Token>{first_id(vocabulary)} : prime;
  return {std::move(prime), std::move(read), options.length, sampling, options.stop, weights};
}

// The texts of a drawing; a stream whose text has ended is drawn no further.
template <class T>
void draw_texts(Drawing<T>& drawing, const Vocabulary& vocabulary, const Request& request,
                std::vector<std::string>& to) {
  const auto streams = static_cast<std::size_t>(drawing.count());
  std::vector<DrawnText> drawn(streams, DrawnText(vocabulary, request.stops));
  std::vector<std::string> texts;
  for (DrawnText& text : drawn) texts.push_back(text.begin(request.prime));
  std::vector<std::size_t> going(streams);
  for (std::size_t b = 0; b < streams; ++b) going[b] = b;
  const Index most = request.stops.empty() ? block : stop_block;
  for (Index position = 0; position < request.length && !going.empty(); position += most) {
    const Index steps = std::min(most, request.length - position), count = drawing.count();
    const Token* const tokens = drawing.draw(steps);
    std::vector<Index> kept;
    std::vector<std::size_t> going_on;
    for (Index stream = 0; stream < count; ++stream) {
      const std::size_t b = going[static_cast<std::size_t>(stream)];
      texts[b] += drawn[b].extend(tokens + stream, steps, count);
      if (drawn[b].ended()) continue;
      kept.push_back(stream);
      going_on.push_back(b);
    }
    if (kept.size() < going.size() && !kept.empty()) drawing.keep(kept);
    going = std::move(going_on);
  }
  for (std::size_t b = 0; b < streams; ++b) to.push_back(std::move(texts[b]) + drawn[b].finish());
}

}  // namespace

// ---- the model ----------------------------------------------------------------------------

struct LanguageModel::State {
  std::shared_ptr<const Vocabulary> vocabulary;
  NetworkShape shape;
  std::variant<std::shared_ptr<Model<float>>, std::shared_ptr<Model<double>>> model;
  // With the weights of a storage, and the version of the model that it is of.
  struct Rounded {
    std::shared_ptr<Model<float>> model;
    Index version = 0;
  };
  mutable ForkSafeMutex mutex;
  mutable Rounded rounded[num_storages];

  Storage own = Storage::full;  // not full: the weights that the file holds alone
  Device* device = nullptr;

  bool is_float32() const { return model.index() == 0; }
  Storage checked(Storage weights) const {
    const Storage found = checked_weights(weights, own, is_float32(), shape, *device);
    std::visit([&](const auto& network) { network->network().check_storage(found); }, model);
    return found;
  }

  static std::shared_ptr<const State> of(Checkpoint file, std::optional<Compute> compute,
                                         Device& device) {
    if (compute) {
      check_compute(*compute, file.dtype == "float64", device);
      require(file.weights != Storage::int8 || *compute == Compute::float32,
              "compute_dtype of a model that holds int8 weights alone must be 'float32', got ",
              quoted(name_of(*compute)));
      file.shape.compute = *compute;
    }
    if (!can_compute(device, file.shape.compute))
      throw CheckpointError(file.name + " computes in " + quoted(name_of(file.shape.compute)) +
                            ", which the CPU cannot: load it with another compute_dtype");
    auto state = std::make_shared<State>();
    state->device = &device;
    state->vocabulary = file.vocabulary;
    state->shape = file.shape;
    state->own = file.weights;
    if (file.dtype == "float32")
      state->model = read_model<float>(file, device);
    else
      state->model = read_model<double>(file, device);
    return state;
  }

  // Calls f(model) with the one whose weights `sample` reads.
  template <class F>
  auto with(Storage weights, F&& f) const {
    weights = checked(weights);
    if (weights == Storage::full || own != Storage::full)
      return std::visit([&](const auto& network) { return f(*network); }, model);
    Model<float>& full = *std::get<0>(model);
    std::shared_ptr<Model<float>> as_read;
    {
      const std::lock_guard<ForkSafeMutex> lock(mutex);
      const Index version = full.version();
      Rounded& found = rounded[static_cast<int>(weights)];
      if (found.version != version) found = {read_as(full, weights), version};
      as_read = found.model;
    }
    return f(*as_read);
  }
};

LanguageModel::LanguageModel(std::shared_ptr<const State> state) : state_(std::move(state)) {}

LanguageModel LanguageModel::load(const std::string& path, std::optional<Compute> compute,
                                  Device& device) {
  return LanguageModel(State::of(read_checkpoint(path), compute, device));
}

LanguageModel LanguageModel::from_memory(const void* checkpoint, std::size_t bytes,
                                         std::optional<Compute> compute, Device& device) {
  return LanguageModel(State::of(read_checkpoint(checkpoint, bytes), compute, device));
}

const Vocabulary& LanguageModel::vocabulary() const { return *state_->vocabulary; }

const NetworkShape& LanguageModel::shape() const { return state_->shape; }

const char* LanguageModel::dtype() const { return state_->is_float32() ? "float32" : "float64"; }

Index LanguageModel::num_parameters() const {
  return std::visit(
      [](const auto& model) {
        Index n = 0;
        for (const Parameter& p : model->network().parameters()) n += p.elements();
        return n;
      },
      state_->model);
}

template <class T>
std::shared_ptr<Model<T>> LanguageModel::network() const {
  const auto* const model = std::get_if<std::shared_ptr<Model<T>>>(&state_->model);
  return model ? *model : nullptr;
}
template std::shared_ptr<Model<float>> LanguageModel::network() const;
template std::shared_ptr<Model<double>> LanguageModel::network() const;

std::string LanguageModel::sample(const TextOptions& options, std::uint64_t seed) const {
  return sample(options, std::vector<std::uint64_t>{seed})[0];
}

std::vector<std::string> LanguageModel::sample(const TextOptions& options,
                                               const std::vector<std::uint64_t>& seeds) const {
  const Request request = checked(options, vocabulary(), state_->checked(options.weights));
  return std::visit(
      [&](const auto& model) {
        const auto start = read_tokens(*model, request.read, request.weights);
        const auto count = static_cast<std::size_t>(std::max<Index>(
            1, std::min(most_streams, together / std::max<Index>(1, request.length))));
        std::vector<std::string> texts;
        for (std::size_t begin = 0; begin < seeds.size(); begin += count) {
          const auto from = seeds.begin() + static_cast<std::ptrdiff_t>(begin);
          const auto n = static_cast<std::ptrdiff_t>(std::min(count, seeds.size() - begin));
          Drawing drawing(*model, start, request.prime, std::vector<std::uint64_t>(from, from + n),
                          request.sampling, request.weights);
          draw_texts(drawing, vocabulary(), request, texts);
        }
        return texts;
      },
      state_->model);
}

Likeliest LanguageModel::beam_search(const TextOptions& options, Index beam) const {
  require(beam >= 1 && beam <= 10000, "beam must be in 1 to 10000, got ", beam);
  const TextOptions defaults;
  require(options.temperature == defaults.temperature && options.top_k == defaults.top_k &&
              options.top_p == defaults.top_p &&
              options.repetition_penalty == defaults.repetition_penalty,
          "temperature, top_k, top_p and repetition_penalty of a beam search must have their "
          "defaults, got others");
  const Request request = checked(options, vocabulary(), state_->checked(options.weights));
  check_candidates(beam, request.length, vocabulary().size());
  std::vector<std::vector<Token>> stops;
  for (const std::string& stop : request.stops) stops.push_back(vocabulary().encode(stop));
  const LikeliestTokens found = std::visit(
      [&](const auto& model) {
        return find_likeliest(*model, read_tokens(*model, request.read, request.weights),
                              request.length, stops, request.weights, beam);
      },
      state_->model);
  const std::vector<std::string> none;  // the stop string is cut already
  DrawnText drawn(vocabulary(), none);
  std::string text = drawn.begin(request.prime);
  text += drawn.extend(found.tokens.data(), static_cast<Index>(found.tokens.size()), 1);
  return {text + drawn.finish(), found.log_probability};
}

std::vector<double> LanguageModel::next_probabilities(const std::string& prime,
                                                      Storage weights) const {
  TextOptions options;
  options.prime = prime;
  const Request request = checked(options, vocabulary(), state_->checked(weights));
  return std::visit(
      [&](const auto& model) {
        auto [state, token] = read_tokens(*model, request.read, request.weights);
        auto nats = std::vector(static_cast<std::size_t>(vocabulary().size()), state[0]);
        model->next(1, &token, state.data(), nats.data(), request.weights);
        std::vector<double> shares;
        double sum = 0;
        for (const auto x : nats) {
          shares.push_back(std::exp(static_cast<double>(x)));
          sum += shares.back();
        }
        for (double& share : shares) share /= sum;
        return shares;
      },
      state_->model);
}

double LanguageModel::evaluate(std::string_view text, Storage weights) const {
  const std::vector<Token> ids = vocabulary().encode(text);
  require(ids.size() > 1, "text must have two symbols or more, got ", ids.size());
  return state_->with(weights, [&](auto& model) { return mean_loss(model, ids); });
}

std::vector<double> LanguageModel::score(const std::vector<std::string>& texts,
                                         Storage weights) const {
  std::vector<std::vector<Token>> ids;
  for (std::size_t i = 0; i < texts.size(); ++i)
    ids.push_back(vocabulary().encode(texts[i], ("texts[" + std::to_string(i) + "]").c_str()));
  const Token first = first_id(vocabulary());
  return state_->with(weights, [&](auto& model) { return log_probabilities(model, first, ids); });
}

// ---- streams ------------------------------------------------------------------------------

struct TextStream::State {
  template <class T>
  State(std::shared_ptr<const LanguageModel::State> owner, Model<T>& model, Request given,
        std::uint64_t seed)
      : owner(std::move(owner)),
        request(std::move(given)),
        text(*this->owner->vocabulary, request.stops),
        drawing(std::in_place_type<Drawing<T>>, model,
                read_tokens(model, request.read, request.weights), request.prime,
                std::vector<std::uint64_t>{seed}, request.sampling, request.weights) {}

  std::shared_ptr<const LanguageModel::State> owner;
  Request request;
  DrawnText text;
  std::variant<Drawing<float>, Drawing<double>> drawing;
  Index position = -1;  // symbols drawn; -1: the prime is to come
  bool done = false;

  // The next piece, which may be empty.
  std::string piece() {
    if (position < 0) {
      position = 0;
      return text.begin(request.prime);
    }
    if (position == request.length) {
      done = true;
      return text.finish();
    }
    const Token token = std::visit([](auto& d) { return *d.draw(1); }, drawing);
    ++position;
    std::string result = text.extend(&token, 1, 1);
    done = text.ended();
    return result;
  }
};

TextStream::TextStream(std::unique_ptr<State> state) : state_(std::move(state)) {}
TextStream::TextStream(TextStream&&) noexcept = default;
TextStream& TextStream::operator=(TextStream&&) noexcept = default;
TextStream::~TextStream() = default;

bool TextStream::next(std::string& piece) {
  while (!state_->done) {
    piece = state_->piece();
    if (!piece.empty()) return true;
  }
  return false;
}

TextStream LanguageModel::stream(const TextOptions& options, std::uint64_t seed) const {
  Request request = checked(options, vocabulary(), state_->checked(options.weights));
  return std::visit(
      [&](const auto& model) {
        return TextStream(
            std::make_unique<TextStream::State>(state_, *model, std::move(request), seed));
      },
      state_->model);
}

void LanguageModel::stream(const TextOptions& options, std::uint64_t seed,
                           const std::function<bool(std::string_view piece)>& write) const {
  TextStream pieces = stream(options, seed);
  for (std::string piece; pieces.next(piece);)
    if (!write(piece)) return;
}

std::uint64_t fresh_seed() {
  std::random_device source;
  const std::uint64_t high = source();
  return high << 32 | source();
}

}  // namespace charrnn_fast
