#include "storage/json.hpp"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <limits>

#include "errors.hpp"
#include "text/utf8.hpp"

namespace charrnn_fast {
namespace {

using Kind = JsonValue::Kind;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::uint32_t hex_digits(std::string_view text) {
  std::uint32_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value, 16);
  return value;
}

// Calls f(code point) for each character of a valid string, without its quotes. Two escapes that
// are a pair of surrogates are one character.
template <class F>
void each_character(std::string_view s, F&& f) {
  Utf8Decoder decoder;
  for (std::size_t i = 0; i < s.size(); ++i) {
    if (s[i] != '\\') {
      decoder.next(static_cast<unsigned char>(s[i]), f, [] {});
      continue;
    }
    const char c = s[++i];
    if (c != 'u') {
      constexpr std::string_view names = "\"\\/bfnrt", values = "\"\\/\b\f\n\r\t";
      f(static_cast<std::uint32_t>(values[names.find(c)]));
      continue;
    }
    std::uint32_t point = hex_digits(s.substr(i + 1, 4));
    i += 4;
    if (point >= 0xD800 && point < 0xDC00 && s.substr(i + 1, 2) == "\\u") {
      const std::uint32_t low = hex_digits(s.substr(i + 3, 4));
      if (low >= 0xDC00 && low < 0xE000) {
        point = 0x10000 + ((point - 0xD800) << 10 | (low - 0xDC00));
        i += 6;
      }
    }
    f(point);
  }
}

}  // namespace

// ---- the parser ---------------------------------------------------------------------------

class Json::Parser {
 public:
  Parser(Json& document, const Limits& limits)
      : document_(document), text_(document.text_), nodes_(document.nodes_), limits_(limits) {}

  void parse() {
    require(text_.size() < std::numeric_limits<std::uint32_t>::max(),
            "JSON is too long: ", text_.size(), " bytes");
    space();
    value(0);
    space();
    if (at_ != text_.size()) wrong("one value");
  }

 private:
  [[noreturn]] void wrong(const char* takes) const {
    fail("JSON must have ", takes, " at byte ", at_);
  }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  void space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t'))
      ++at_;
  }
  std::size_t begin(Kind kind) {
    nodes_.push_back({static_cast<std::uint32_t>(at_), 0, 0, kind});
    return nodes_.size() - 1;
  }
  void end(std::size_t node, std::size_t at) {
    nodes_[node].end = static_cast<std::uint32_t>(at);
    nodes_[node].next = static_cast<std::uint32_t>(nodes_.size());
  }
  void count() {
    require(++count_ <= limits_.values, "JSON must have at most ", limits_.values,
            " strings, lists and objects");
  }

  void value(int depth) {
    const char c = peek();
    if (c == '{' || c == '[') {
      require(depth < limits_.depth, "JSON must have lists and objects at most ", limits_.depth,
              " deep in each other");
      count();
      const std::size_t node = begin(c == '{' ? Kind::object : Kind::list);
      ++at_;
      c == '{' ? entries(node, depth + 1) : elements(depth + 1);
      end(node, at_);
    } else if (c == '"') {
      string();
    } else if (c == '-' || is_digit(c)) {
      number();
    } else {
      for (const std::string_view word : {"null", "true", "false"})
        if (text_.compare(at_, word.size(), word) == 0) {
          const std::size_t node = begin(word == "null" ? Kind::null : Kind::boolean);
          at_ += word.size();
          end(node, at_);
          return;
        }
      wrong("a value");
    }
  }

  void elements(int depth) {
    space();
    if (take(']')) return;
    do {
      space();
      value(depth);
      space();
    } while (take(','));
    if (!take(']')) wrong("a comma or the list's end");
  }

  void entries(std::size_t object, int depth) {
    space();
    if (take('}')) return;
    do {
      space();
      if (peek() != '"') wrong("a key");
      string();
      space();
      if (!take(':')) wrong("a colon");
      space();
      value(depth);
      space();
    } while (take(','));
    if (!take('}')) wrong("a comma or the object's end");
    check_unique(object);
  }

  // Escapes may write one key in several ways.
  void check_unique(std::size_t object) const {
    std::vector<std::string> keys;
    for (std::size_t i = object + 1; i < nodes_.size(); i = nodes_[i + 1].next) {
      std::string key;
      const std::string_view source = text_;
      each_character(source.substr(nodes_[i].begin, nodes_[i].end - nodes_[i].begin),
                     [&](std::uint32_t point) { append_utf8(point, key); });
      keys.push_back(std::move(key));
    }
    std::sort(keys.begin(), keys.end());
    require(std::adjacent_find(keys.begin(), keys.end()) == keys.end(),
            "JSON must have each key of an object once, got one twice");
  }

  void string() {
    count();
    ++at_;
    const std::size_t node = begin(Kind::string);
    Utf8Decoder decoder;
    while (peek() != '"' || at_ == text_.size()) {
      if (at_ == text_.size()) wrong("a string's end");
      const char c = text_[at_];
      if (static_cast<unsigned char>(c) < 0x20) wrong("no control character within a string");
      if (c == '\\' && decoder.unfinished() == 0) {
        escape();
        continue;
      }
      decoder.next(
          static_cast<unsigned char>(c), [](std::uint32_t) {}, [&] { wrong("valid UTF-8"); });
      ++at_;
    }
    if (decoder.unfinished() > 0) wrong("valid UTF-8");
    end(node, at_);
    ++at_;
    if (limits_.strict) check_surrogates(node);
  }

  void escape() {
    ++at_;
    if (take('u')) {
      for (int i = 0; i < 4; ++i, ++at_)
        if (!std::isxdigit(static_cast<unsigned char>(peek()))) wrong("four hexadecimal digits");
    } else if (at_ < text_.size() &&
               std::string_view("\"\\/bfnrt").find(peek()) != std::string_view::npos) {
      ++at_;
    } else {
      wrong("an escape of JSON");
    }
  }

  void check_surrogates(std::size_t node) const {
    const std::string_view source = text_;
    each_character(source.substr(nodes_[node].begin, nodes_[node].end - nodes_[node].begin),
                   [&](std::uint32_t point) {
                     if (is_surrogate(point)) wrong("no lone surrogate before");
                   });
  }

  void digits() {
    if (!is_digit(peek())) wrong("a digit");
    while (is_digit(peek())) ++at_;
  }

  void number() {
    constexpr std::size_t most_digits = 4300;
    const std::size_t node = begin(Kind::integer);
    take('-');
    const std::size_t first = at_;
    if (!take('0')) digits();
    if (take('.')) {
      nodes_[node].kind = Kind::number;
      digits();
    }
    if (take('e') || take('E')) {
      nodes_[node].kind = Kind::number;
      if (!take('-')) take('+');
      digits();
    }
    require(nodes_[node].kind == Kind::number || at_ - first <= most_digits,
            "JSON must have integers of at most ", most_digits, " digits");
    end(node, at_);
    require(!limits_.strict || std::isfinite(JsonValue(&document_, node_index(node)).number()),
            "JSON must have numbers that a double holds");
  }
  static std::uint32_t node_index(std::size_t node) { return static_cast<std::uint32_t>(node); }

  const Json& document_;
  const std::string& text_;
  std::vector<Node>& nodes_;
  const Limits& limits_;
  std::size_t at_ = 0;
  Index count_ = 0;
};

Json::Json(std::string text, const Limits& limits) : text_(std::move(text)) {
  Parser(*this, limits).parse();
}

// ---- values -------------------------------------------------------------------------------

JsonValue::Kind JsonValue::kind() const { return document_->nodes_[index_].kind; }

std::uint32_t JsonValue::next() const { return document_->nodes_[index_].next; }

std::string_view JsonValue::source() const {
  const Json::Node& node = document_->nodes_[index_];
  return std::string_view(document_->text_).substr(node.begin, node.end - node.begin);
}

double JsonValue::number() const {
  const std::string_view digits = source();
  double value = 0;
  const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (read.ec != std::errc::result_out_of_range) return value;
  // Too large or too small? The exponent of the first digit that is not zero says it.
  const std::size_t mark = std::min(digits.find_first_of("eE"), digits.size());
  const std::size_t point = std::min(digits.find('.'), mark);
  const auto first = static_cast<std::int64_t>(digits.find_first_of("123456789"));
  std::int64_t exponent = 0;
  if (mark < digits.size()) {
    const std::size_t from = mark + (digits[mark + 1] == '+' ? 2 : 1);
    const auto scale =
        std::from_chars(digits.data() + from, digits.data() + digits.size(), exponent);
    if (scale.ec != std::errc())
      exponent = (digits[from] == '-' ? -1 : 1) * (std::int64_t{1} << 40);
  }
  const bool large = static_cast<std::int64_t>(point) - first + exponent > 0;
  const double magnitude = large ? std::numeric_limits<double>::infinity() : 0;
  return digits[0] == '-' ? -magnitude : magnitude;
}

std::string JsonValue::string() const {
  std::string text;
  each_character(source(), [&](std::uint32_t point) { append_utf8(point, text); });
  return text;
}

std::optional<std::uint64_t> JsonValue::unsigned_integer() const {
  const std::string_view digits = source();
  std::uint64_t value = 0;
  const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (!is(Kind::integer) || read.ec != std::errc()) return std::nullopt;
  return value;
}

std::optional<JsonValue> JsonValue::find(std::string_view key) const {
  std::optional<JsonValue> found;
  each_entry([&](const std::string& name, JsonValue value) {
    if (name == key) found = value;
  });
  return found;
}

std::vector<std::pair<std::string, JsonValue>> sorted_entries(JsonValue object) {
  std::vector<std::pair<std::string, JsonValue>> entries;
  object.each_entry(
      [&](std::string key, JsonValue value) { entries.emplace_back(std::move(key), value); });
  // Bytes of UTF-8 sort as code points do.
  std::sort(entries.begin(), entries.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  return entries;
}

// ---- as Python writes it ------------------------------------------------------------------

std::string json_quoted(std::string_view utf8) {
  std::string quoted = "\"";
  const auto unit = [&](std::uint32_t value) {
    quoted += "\\u";
    for (int shift = 12; shift >= 0; shift -= 4) quoted += "0123456789abcdef"[value >> shift & 15];
  };
  const auto character = [&](std::uint32_t point) {
    constexpr std::string_view values = "\"\\\b\f\n\r\t", names = "\"\\bfnrt";
    const auto named = point < 0x80 ? values.find(static_cast<char>(point)) : values.npos;
    if (named != values.npos) {
      quoted += '\\';
      quoted += names[named];
    } else if (point >= ' ' && point <= '~') {
      quoted += static_cast<char>(point);
    } else if (point < 0x10000) {
      unit(point);
    } else {
      unit(0xD800 + ((point - 0x10000) >> 10));
      unit(0xDC00 + (point & 0x3FF));
    }
  };
  Utf8Decoder decoder(true);
  for (const char c : utf8) decoder.next(static_cast<unsigned char>(c), character, [] {});
  return quoted + '"';
}

std::string shown(std::string_view utf8) {
  constexpr std::size_t most = 60;
  return json_quoted(utf8.substr(0, most)) + (utf8.size() > most ? "..." : "");
}

// The shortest digits that give the number back; an exponent below 1e-4 and from 1e16 on.
std::string json_number(JsonValue value) {
  if (value.is(Kind::integer)) {
    const std::string_view digits = value.source();
    return std::string(digits == "-0" ? "0" : digits);
  }
  const double number = value.number();
  if (!std::isfinite(number)) return number > 0 ? "Infinity" : "-Infinity";
  char buffer[32];
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, number, std::chars_format::scientific);
  const std::string_view written(buffer, static_cast<std::size_t>(end.ptr - buffer));
  const std::size_t e = written.find('e'), sign = written[0] == '-' ? 1 : 0;
  int exponent = 0;
  const std::size_t first = e + (written[e + 1] == '+' ? 2 : 1);
  std::from_chars(written.data() + first, written.data() + written.size(), exponent);
  if (exponent < -4 || exponent >= 16) return std::string(written);
  std::string digits(written.substr(sign, e - sign));
  digits.erase(std::remove(digits.begin(), digits.end(), '.'), digits.end());
  const auto whole = static_cast<std::size_t>(exponent < 0 ? 0 : exponent + 1);
  std::string text(written.substr(0, sign));
  if (exponent < 0) {
    text += "0.";
    text.append(static_cast<std::size_t>(-exponent - 1), '0');
    return text + digits;
  }
  if (digits.size() <= whole) return text + digits + std::string(whole - digits.size(), '0') + ".0";
  return text + digits.substr(0, whole) + "." + digits.substr(whole);
}

}  // namespace charrnn_fast
