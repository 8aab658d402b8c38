// Ids that arrive in pieces become text.
#pragma once

#include <string>

#include "charrnn_fast/vocabulary.hpp"
#include "text/utf8.hpp"

namespace charrnn_fast {

// Does not split a character of several bytes. Invalid UTF-8 becomes U+FFFD, as Python's decoder
// writes it: one for each longest beginning of a character, and for each other byte.
class TextDecoder {
 public:
  explicit TextDecoder(const Vocabulary& vocabulary) : vocabulary_(&vocabulary) {}

  // Appends what an id completes.
  void decode(Token id, std::string& text) {
    const auto symbol =
        static_cast<std::uint32_t>(vocabulary_->symbols()[static_cast<std::size_t>(id)]);
    const auto append = [&](std::uint32_t point) { append_utf8(point, text); };
    if (vocabulary_->kind() == Vocabulary::Kind::characters)
      append(symbol);
    else
      decoder_.next(static_cast<unsigned char>(symbol), append,
                    [&] { append(replacement_character); });
  }
  // At the end: a character that has begun is invalid.
  void finish(std::string& text) {
    for (int n = decoder_.unfinished(); n > 0; --n) append_utf8(replacement_character, text);
    decoder_.reset();
  }

 private:
  const Vocabulary* vocabulary_;
  Utf8Decoder decoder_;
};

}  // namespace charrnn_fast
