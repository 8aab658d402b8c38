#include "charrnn_fast/vocabulary.hpp"

#include <algorithm>
#include <cstdio>

#include "errors.hpp"
#include "text/text_decoder.hpp"

namespace charrnn_fast {
namespace {

// "the character 'x' (U+0078)"
std::string character(std::uint32_t point) {
  char code[16];
  std::snprintf(code, sizeof code, "U+%04X", static_cast<unsigned>(point));
  const bool printable = point >= 0x20 && point != 0x7F && !is_surrogate(point);
  std::string text;
  append_utf8(point, text);
  return printable ? "the character " + quoted(text) + " (" + code + ")"
                   : std::string("the character ") + code;
}

}  // namespace

Vocabulary::Vocabulary(std::vector<std::int32_t> symbols, Kind kind, bool has_unknown)
    : symbols_(std::move(symbols)), kind_(kind) {
  require(!symbols_.empty(), "symbols must have the shape [V], V >= 1, got [0]");
  require(symbols_.size() <= num_code_points, "symbols must be distinct");
  for (std::size_t i = 0; i < symbols_.size(); ++i) {
    require(symbols_[i] >= 0 && symbols_[i] < std::int32_t{num_code_points},
            "symbols must be in 0 to ", num_code_points - 1, ", got ", symbols_[i]);
    ids_.emplace_back(symbols_[i], static_cast<Token>(i));
  }
  std::sort(ids_.begin(), ids_.end());
  const auto same = [](const auto& a, const auto& b) { return a.first == b.first; };
  require(std::adjacent_find(ids_.begin(), ids_.end(), same) == ids_.end(),
          "symbols must be distinct");
  bool all_bytes = symbols_.size() == 256;
  for (std::size_t i = 0; all_bytes && i < 256; ++i)
    all_bytes = symbols_[i] == static_cast<std::int32_t>(i);
  require(kind == Kind::characters || all_bytes,
          "symbols of a vocabulary of bytes must be 0 to 255 in this order");
  if (!has_unknown) return;
  unknown_id_ = id_of(replacement_character);
  require(kind == Kind::characters && unknown_id_ >= 0,
          "an unknown symbol takes a vocabulary of characters and U+FFFD in symbols");
}

Token Vocabulary::id_of(std::uint32_t symbol) const {
  const auto at =
      std::lower_bound(ids_.begin(), ids_.end(), symbol, [](const auto& entry, std::uint32_t s) {
        return static_cast<std::uint32_t>(entry.first) < s;
      });
  return at != ids_.end() && static_cast<std::uint32_t>(at->first) == symbol ? at->second : -1;
}

std::vector<Token> Vocabulary::encode(std::string_view text, const char* name) const {
  std::vector<Token> ids;
  if (kind_ == Kind::bytes) {
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  Utf8Decoder decoder(true);
  const auto add = [&](std::uint32_t point) {
    const Token id = id_of(point);
    require(id >= 0 || unknown_id_ >= 0, name, " has ", character(point), " at position ",
            ids.size(), ", which is not among the vocabulary's ", size(), " characters");
    ids.push_back(id >= 0 ? id : unknown_id_);
  };
  const auto invalid = [&] {
    fail(name, " must be valid UTF-8, got invalid bytes behind ", ids.size(), " characters");
  };
  for (const char c : text) decoder.next(static_cast<unsigned char>(c), add, invalid);
  if (decoder.unfinished() > 0) invalid();
  return ids;
}

std::string Vocabulary::decode(const Token* ids, Index n) const {
  std::string text;
  TextDecoder decoder(*this);
  for (Index i = 0; i < n; ++i) {
    require(ids[i] >= 0 && ids[i] < size(), "ids must be in 0 to ", size() - 1, ", got ", ids[i]);
    decoder.decode(ids[i], text);
  }
  decoder.finish(text);
  return text;
}

}  // namespace charrnn_fast
