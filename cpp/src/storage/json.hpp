// JSON from files: a strict parser with limits, and Python's json.dumps of what it read.
//
// A document keeps its text and 16 bytes for each value: a hostile text takes a few times its size
// in memory.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "charrnn_fast/config.hpp"

namespace charrnn_fast {

class Json;

// A value of a document, which must outlive it.
class JsonValue {
 public:
  enum class Kind : std::uint8_t { null, boolean, integer, number, string, list, object };

  Kind kind() const;
  bool is(Kind wanted) const { return kind() == wanted; }
  // As it stands in the document.
  std::string_view source() const;
  // Each takes a value of its kind; `number` an integer too.
  bool boolean() const { return source()[0] == 't'; }
  double number() const;  // infinite if it is too large
  // UTF-8, where a lone surrogate is the three bytes of its code point.
  std::string string() const;
  // null if it is negative or above 2^64 - 1
  std::optional<std::uint64_t> unsigned_integer() const;

  // Calls f(element) for each element of a list.
  template <class F>
  void each(F&& f) const {
    for (std::uint32_t i = index_ + 1; i < next(); i = JsonValue(document_, i).next())
      f(JsonValue(document_, i));
  }
  // Calls f(key, value) for each entry of an object, in the order of the text.
  template <class F>
  void each_entry(F&& f) const {
    for (std::uint32_t i = index_ + 1; i < next(); i = JsonValue(document_, i + 1).next())
      f(JsonValue(document_, i).string(), JsonValue(document_, i + 1));
  }
  // null if the object has no such key.
  std::optional<JsonValue> find(std::string_view key) const;

  // Calls write(std::string_view) with the parts of what Python's json.dumps writes of the value,
  // keys sorted.
  template <class F>
  void dump(F&& write) const;

 private:
  friend class Json;
  JsonValue(const Json* document, std::uint32_t index) : document_(document), index_(index) {}
  std::uint32_t next() const;

  const Json* document_;
  std::uint32_t index_;
};

// std::string quoted as Python's json.dumps does: ASCII alone.
std::string json_quoted(std::string_view utf8);
// The beginning of a text for a message: quoted, ASCII, on one line.
std::string shown(std::string_view utf8);
// An integer or a number as Python's json.dumps writes it.
std::string json_number(JsonValue value);
// Entries of an object, sorted by key.
std::vector<std::pair<std::string, JsonValue>> sorted_entries(JsonValue object);

class Json {
 public:
  struct Limits {
    int depth;            // of lists and objects in each other
    Index values;         // strings (keys too), lists and objects
    bool strict = false;  // no lone surrogates, no numbers above the largest double
  };
  // Throws std::invalid_argument unless the text is JSON within these limits. Stricter than most
  // readers: UTF-8 must be valid, keys are unique in an object, no number is NaN or infinite by
  // name, integers have at most 4300 digits.
  Json(std::string text, const Limits& limits);

  JsonValue root() const { return {this, 0}; }

 private:
  friend class JsonValue;
  class Parser;
  // Values stand in the order of the text, elements behind their list, each key before its value.
  struct Node {
    std::uint32_t begin, end;  // in the text; of a string without the quotes
    std::uint32_t next;        // behind the value and all within it
    JsonValue::Kind kind;
  };

  std::string text_;
  std::vector<Node> nodes_;
};

template <class F>
void JsonValue::dump(F&& write) const {
  const char* separator = "";
  switch (kind()) {
    case Kind::null:
    case Kind::boolean:
      write(source());
      break;
    case Kind::integer:
    case Kind::number:
      write(std::string_view(json_number(*this)));
      break;
    case Kind::string:
      write(std::string_view(json_quoted(string())));
      break;
    case Kind::list:
      write(std::string_view("["));
      each([&](JsonValue element) {
        write(std::string_view(separator));
        element.dump(write);
        separator = ", ";
      });
      write(std::string_view("]"));
      break;
    case Kind::object:
      write(std::string_view("{"));
      for (const auto& [key, value] : sorted_entries(*this)) {
        write(std::string_view(separator));
        write(std::string_view(json_quoted(key)));
        write(std::string_view(": "));
        value.dump(write);
        separator = ", ";
      }
      write(std::string_view("}"));
      break;
  }
}

}  // namespace charrnn_fast
