// The text of a stream of tokens, piece by piece, up to the first stop string.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "text/text_decoder.hpp"

namespace charrnn_fast {

// Stop strings are searched for in drawn text, not in the prime. A possible beginning of one is
// held back until it is decided, and so are the first bytes of a character. As all strings are
// whole characters, comparing bytes compares characters.
class DrawnText {
 public:
  DrawnText(const Vocabulary& vocabulary, const std::vector<std::string>& stops)
      : decoder_(vocabulary), stops_(&stops) {}

  // Whether a stop string was drawn.
  bool ended() const { return ended_; }

  std::string begin(const std::vector<Token>& prime) {
    std::string text;
    for (const Token id : prime) decoder_.decode(id, text);
    return text;
  }
  // Of count tokens, each `stride` behind the one before.
  std::string extend(const Token* tokens, Index count, Index stride) {
    std::string text = std::move(held_);
    for (Index i = 0; i < count; ++i) decoder_.decode(tokens[i * stride], text);
    cut(text);
    const std::size_t held = ended_ ? 0 : beginning_of_stop(text);
    held_ = text.substr(text.size() - held);
    text.resize(text.size() - held);
    return text;
  }
  // The text held back, once drawing has ended.
  std::string finish() {
    if (ended_) return {};
    std::string text = std::move(held_);
    decoder_.finish(text);
    cut(text);
    return text;
  }

 private:
  // Keeps the text before the stop string that is completed first; if several are, the longest.
  void cut(std::string& text) {
    std::size_t end = std::string::npos, begin = std::string::npos;
    for (const std::string& stop : *stops_) {
      const std::size_t at = text.find(stop);
      if (at == std::string::npos) continue;
      if (!ended_ || std::pair(at + stop.size(), at) < std::pair(end, begin))
        end = at + stop.size(), begin = at;
      ended_ = true;
    }
    if (ended_) text.resize(begin);
  }
  // How many bytes at the end of text may be the beginning of a stop string.
  std::size_t beginning_of_stop(const std::string& text) const {
    std::size_t most = 0;
    for (const std::string& stop : *stops_)
      for (std::size_t n = std::min(stop.size() - 1, text.size()); n > most; --n)
        if (text.compare(text.size() - n, n, stop, 0, n) == 0) most = n;
    return most;
  }

  TextDecoder decoder_;
  const std::vector<std::string>* stops_;
  std::string held_;
  bool ended_ = false;
};

}  // namespace charrnn_fast
