// UTF-8 (RFC 3629), byte by byte.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace charrnn_fast {

constexpr std::uint32_t replacement_character = 0xFFFD;  // U+FFFD, Unicode's unknown character
constexpr std::uint32_t num_code_points = 0x110000;

inline bool is_surrogate(std::uint32_t point) { return point >= 0xD800 && point < 0xE000; }

// Appends a code point. A surrogate becomes three bytes, which are no valid UTF-8.
inline void append_utf8(std::uint32_t point, std::string& text) {
  const auto byte = [&](std::uint32_t value) { text += static_cast<char>(value); };
  if (point < 0x80) return byte(point);
  if (point < 0x800) {
    byte(0xC0 | point >> 6);
  } else {
    if (point < 0x10000) {
      byte(0xE0 | point >> 12);
    } else {
      byte(0xF0 | point >> 18);
      byte(0x80 | (point >> 12 & 0x3F));
    }
    byte(0x80 | (point >> 6 & 0x3F));
  }
  byte(0x80 | (point & 0x3F));
}

// Decodes a stream of bytes. Each call of `next` takes one byte and calls, in this order,
// invalid() if the bytes before it begin no character, and then either point(p) for a character
// that the byte completes, invalid() for a byte that no character has there, or nothing. As
// Python's decoder, it waits for the third byte of a surrogate before it says invalid() of the
// first two.
class Utf8Decoder {
 public:
  // surrogates: takes them as characters of three bytes.
  explicit Utf8Decoder(bool surrogates = false) : surrogates_(surrogates) {}

  template <class Point, class Invalid>
  void next(unsigned char byte, Point&& point, Invalid&& invalid) {
    if (surrogate_) {
      surrogate_ = false;
      invalid();
      invalid();
    }
    if (missing_ > 0) {
      if (byte >= least_ && byte <= most_) {
        point_ = point_ << 6 | (byte & 0x3F);
        least_ = 0x80, most_ = 0xBF;
        if (--missing_ == 0) point(point_);
        return;
      }
      surrogate_ = missing_ == 2 && point_ == 0xD && byte >= 0xA0 && byte <= 0xBF;
      missing_ = 0;
      if (surrogate_) return;
      invalid();
    }
    least_ = 0x80, most_ = 0xBF;
    if (byte < 0x80) {
      point(byte);
    } else if (byte >= 0xC2 && byte <= 0xDF) {
      point_ = byte & 0x1F, missing_ = 1;
    } else if (byte >= 0xE0 && byte <= 0xEF) {
      point_ = byte & 0x0F, missing_ = 2;
      if (byte == 0xE0) least_ = 0xA0;                 // else it would be overlong
      if (byte == 0xED && !surrogates_) most_ = 0x9F;  // else a surrogate
    } else if (byte >= 0xF0 && byte <= 0xF4) {
      point_ = byte & 0x07, missing_ = 3;
      if (byte == 0xF0) least_ = 0x90;
      if (byte == 0xF4) most_ = 0x8F;  // else beyond U+10FFFF
    } else {
      invalid();
    }
  }
  // How often invalid() would be called if no more bytes came.
  int unfinished() const { return surrogate_ ? 2 : missing_ > 0 ? 1 : 0; }
  void reset() { surrogate_ = false, missing_ = 0; }

 private:
  bool surrogates_;
  bool surrogate_ = false;  // the first two bytes of one that is invalid have come
  int missing_ = 0;
  std::uint32_t point_ = 0;
  unsigned char least_ = 0x80, most_ = 0xBF;
};

}  // namespace charrnn_fast
