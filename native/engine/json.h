// A small, strict JSON reader (RFC 8259) for text that is not trusted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace headgate {

// The text is not JSON, or more than the limits below; the message begins with the byte at which that shows.
class JsonError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A few bytes of text become a value of 40 to 72 bytes, so it is the values that have to be bounded.
inline constexpr int kMaxJsonDepth = 32;
inline constexpr int kMaxJsonValues = 1 << 21;

struct JsonMember;

struct Json {
  using Array = std::vector<Json>;
  using Object = std::vector<JsonMember>;  // sorted by key; keys are unique

  // Integers that fit are int64; other numbers are finite doubles. Strings are valid UTF-8.
  std::variant<std::nullptr_t, bool, std::int64_t, double, std::string, Array, Object> value;

  template <class T>
  const T* as() const {
    return std::get_if<T>(&value);
  }

  // The member's value; null if this is not an object, or lacks it.
  const Json* find(std::string_view key) const;
};

struct JsonMember {
  std::string key;
  Json value;
};

// Throws JsonError.
Json parse_json(std::string_view text);

// How error messages show what a file holds: as JSON on one line, cut short if it is long.
std::string shown(const Json& json);
std::string shown(std::string_view text);

}  // namespace headgate
