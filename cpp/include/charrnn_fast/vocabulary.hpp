// Vocabularies: the symbols of a text, characters or bytes, and their ids, a language model's
// tokens.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "charrnn_fast/config.hpp"

namespace charrnn_fast {

// Distinct symbols with the ids 0 to size() - 1; immutable. Texts are UTF-8. Lone surrogates, which
// Python's strings may have, are the three bytes that UTF-8 would give their code points.
class Vocabulary {
 public:
  enum class Kind { characters, bytes };

  // symbols [V]: distinct code points, or the bytes 0 to 255 in this order; an index is an id.
  // has_unknown: U+FFFD, which must be among them, stands for all characters without an id. Throws
  // std::invalid_argument for other symbols.
  Vocabulary(std::vector<std::int32_t> symbols, Kind kind, bool has_unknown = false);

  Kind kind() const { return kind_; }
  // V
  Index size() const { return static_cast<Index>(symbols_.size()); }
  const std::vector<std::int32_t>& symbols() const { return symbols_; }
  // The id of the unknown symbol; -1: there is none.
  Token unknown_id() const { return unknown_id_; }
  // The id of a code point or byte; -1 if it has none of its own.
  Token id_of(std::uint32_t symbol) const;

  // The ids of a text [N], or of any bytes in a vocabulary of bytes. Throws std::invalid_argument,
  // which calls the text `name`, for invalid UTF-8 and for a character without an id, with its
  // position.
  std::vector<Token> encode(std::string_view text, const char* name = "text") const;
  // The text of ids [n]. Bytes that are not valid UTF-8 become U+FFFD. Throws std::invalid_argument
  // for a number that is no id.
  std::string decode(const Token* ids, Index n) const;

 private:
  std::vector<std::int32_t> symbols_;
  Kind kind_;
  Token unknown_id_ = -1;
  std::vector<std::pair<std::int32_t, Token>> ids_;  // sorted by symbol
};

}  // namespace charrnn_fast
