// LanguageModel: a trained character-level language model, read from a checkpoint, that writes and
// scores text.
//
//   const auto model = charrnn_fast::LanguageModel::load("m.safetensors");
//   charrnn_fast::TextOptions options;
//   options.length = 500;
//   options.prime = "The ";
//   std::cout << model.sample(options, 1);
//
// For the same checkpoint, options and seed the text is the one that CharLM.sample gives in Python,
// on the same instruction set. Texts are UTF-8; see Vocabulary.
//
// Several threads may use one LanguageModel: its network's lock (Model) serializes each call of the
// network. A TextStream belongs to one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "charrnn_fast/checkpoint_error.hpp"
#include "charrnn_fast/model.hpp"
#include "charrnn_fast/vocabulary.hpp"

namespace charrnn_fast {

// What is drawn. Symbols are characters, or the bytes of a vocabulary of bytes.
struct TextOptions {
  Index length = 0;        // the most symbols to draw
  std::string prime;       // the text begins with it; empty: the model reads a newline first
  double temperature = 1;  // divides the logits; 0: always the most probable symbol
  Index top_k = 0;         // draw from the k most probable symbols; 0: from all
  double top_p = 1;        // draw from the fewest symbols that reach this probability together
  // The text ends before the stop string that is completed first (the longest, if one draw
  // completes several). Stop strings are not searched for in prime.
  std::vector<std::string> stop;
  // bfloat16 and int8 round the weights; a step then reads half and a quarter of the memory. For
  // float32 models; int8 for rows of at most 12,288 weights. A file of such weights alone
  // (docs/format.md) has no others: full stands for them.
  Storage weights = Storage::full;
  // Lowers the logits of the last repetition_window symbols of the text, prime included, before all
  // else: see SamplingOptions. 1: none.
  double repetition_penalty = 1;
  Index repetition_window = 64;
};

// A text and its log-probability in nats.
struct Likeliest {
  std::string text;
  double log_probability;
};

// A text, each piece as soon as it is drawn. The first piece is the prime, and no piece is empty. A
// character of several bytes is never split. A possible beginning of a stop string is held back
// until it is known not to be one.
class TextStream {
 public:
  TextStream(TextStream&&) noexcept;
  TextStream& operator=(TextStream&&) noexcept;
  ~TextStream();

  // Draws until there is a piece, and moves it to `piece`; false: the text has ended.
  bool next(std::string& piece);

 private:
  friend class LanguageModel;
  struct State;
  explicit TextStream(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

class LanguageModel {
 public:
  // Of a checkpoint written by CharLM.save or by a training. compute: how it shall compute; none:
  // as the file says, which the device must be able to. Throws CheckpointError, std::system_error
  // if the file cannot be read, and std::invalid_argument for a `compute` that it cannot have.
  static LanguageModel load(const std::string& path, std::optional<Compute> compute = {},
                            Device& device = cpu_device());
  // Of a checkpoint's bytes, which are not needed afterwards.
  static LanguageModel from_memory(const void* checkpoint, std::size_t bytes,
                                   std::optional<Compute> compute = {},
                                   Device& device = cpu_device());

  const Vocabulary& vocabulary() const;
  const NetworkShape& shape() const;
  // "float32" or "float64"
  const char* dtype() const;
  // The number of weights and biases.
  Index num_parameters() const;
  // The network, shared with this model. Null if its dtype is not T. Changing its parameters
  // changes this model.
  template <class T>
  std::shared_ptr<Model<T>> network() const;

  // prime and a continuation. Throws std::invalid_argument for options out of range, for a prime
  // and stop strings that the vocabulary does not have, and for empty stop strings.
  std::string sample(const TextOptions& options, std::uint64_t seed) const;
  // One text for each seed, drawn as one batch: the same texts as one by one, in less time.
  std::vector<std::string> sample(const TextOptions& options,
                                  const std::vector<std::uint64_t>& seeds) const;
  // The text of `sample`, in pieces. The stream keeps the model alive.
  TextStream stream(const TextOptions& options, std::uint64_t seed) const;
  // The same, calling write(piece) for each piece until it returns false.
  void stream(const TextOptions& options, std::uint64_t seed,
              const std::function<bool(std::string_view piece)>& write) const;

  // The likeliest continuation of prime that beam search finds: at each symbol the `beam` likeliest
  // beginnings are kept, 1 to 10,000, as the streams of one batch. The log-probability is that of
  // the symbols behind prime, and of the stop string that ends the text; texts of different lengths
  // compete by it. Of equals the text that ended first wins, then the one whose beginning was
  // likelier at the step before, then the lower id. Options other than length, prime, stop and
  // weights must have their defaults. Throws std::invalid_argument as `sample`, and if a step has
  // more than 2^28 candidates: the beam times the size of the vocabulary.
  Likeliest beam_search(const TextOptions& options, Index beam) const;
  // The probability of each symbol to come next behind prime: [V], by id, of the sum 1.
  std::vector<double> next_probabilities(const std::string& prime,
                                         Storage weights = Storage::full) const;

  // The mean loss of a text in nats per symbol, from the zero state: the mean of -ln p(next | all
  // before), the first symbol not predicted. weights: of the model that `sample` draws from,
  // whose rounded weights are multiplied as floats. Throws
  // std::invalid_argument for fewer than two symbols, and for those that the vocabulary does not
  // have.
  double evaluate(std::string_view text, Storage weights = Storage::full) const;
  // The log-probability of each text in nats [N]: that `sample` with length N gives this text. An
  // empty text scores 0. Other texts change nothing.
  std::vector<double> score(const std::vector<std::string>& texts,
                            Storage weights = Storage::full) const;

 private:
  friend class TextStream;
  struct State;
  explicit LanguageModel(std::shared_ptr<const State> state);
  std::shared_ptr<const State> state_;
};

// A seed from the system's source of randomness.
std::uint64_t fresh_seed();

}  // namespace charrnn_fast
