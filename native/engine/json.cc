#include "engine/json.h"

#include <algorithm>
#include <charconv>
#include <utility>

namespace headgate {
namespace {

constexpr std::size_t kShownBytes = 80;

bool by_key(const JsonMember& a, const JsonMember& b) { return a.key < b.key; }

// Length of the UTF-8 sequence at the front of `text`, or 0 if there is none.
std::size_t sequence_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0; };
  const int first = byte(0);
  if (first < 0x80) return text.empty() ? 0 : 1;
  // The second byte's range leaves out overlong forms, surrogates, and what is beyond U+10FFFF.
  int low = 0x80, high = 0xBF;
  std::size_t length = 0;
  if (first >= 0xC2 && first <= 0xDF) {
    length = 2;
  } else if (first >= 0xE0 && first <= 0xEF) {
    length = 3;
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
  } else if (first >= 0xF0 && first <= 0xF4) {
    length = 4;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
  }
  if (length == 0 || byte(1) < low || byte(1) > high) return 0;
  for (std::size_t i = 2; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  return length;
}

void append_utf8(unsigned code, std::string& out) {
  const auto put = [&](unsigned byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6), put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12), put(0x80 | (code >> 6 & 0x3F)), put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18), put(0x80 | (code >> 12 & 0x3F)), put(0x80 | (code >> 6 & 0x3F)), put(0x80 | (code & 0x3F));
  }
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json document() {
    Json json = value(0);
    skip_space();
    if (at_ != text_.size()) fail("expected the end of the text");
    return json;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw JsonError("byte " + std::to_string(at_) + ": " + what);
  }

  // The byte at the position; 0 at the end, which no rule accepts.
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool digit() const { return peek() >= '0' && peek() <= '9'; }

  bool take(std::string_view expected) {
    if (text_.substr(at_, expected.size()) != expected) return false;
    at_ += expected.size();
    return true;
  }

  void skip_space() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++at_;
  }

  Json value(int depth) {
    skip_space();
    if (depth > kMaxJsonDepth) fail("nested deeper than " + std::to_string(kMaxJsonDepth));
    if (++values_ > kMaxJsonValues) fail("more than " + std::to_string(kMaxJsonValues) + " values");
    if (take("{")) return {object(depth)};
    if (take("[")) return {array(depth)};
    if (take("\"")) return {string()};
    if (take("null")) return {nullptr};
    if (take("true")) return {true};
    if (take("false")) return {false};
    if (peek() == '-' || digit()) return number();
    fail("expected a value");
  }

  Json::Array array(int depth) {
    Json::Array items;
    skip_space();
    if (take("]")) return items;
    do {
      items.push_back(value(depth + 1));
      skip_space();
    } while (take(","));
    if (!take("]")) fail("expected , or ]");
    return items;
  }

  Json::Object object(int depth) {
    Json::Object members;
    skip_space();
    if (take("}")) return members;
    do {
      skip_space();
      if (!take("\"")) fail("expected a key in quotes");
      std::string key = string();
      skip_space();
      if (!take(":")) fail("expected :");
      members.push_back({std::move(key), value(depth + 1)});
      skip_space();
    } while (take(","));
    if (!take("}")) fail("expected , or }");
    std::sort(members.begin(), members.end(), by_key);
    const auto same_key = [](const JsonMember& a, const JsonMember& b) { return a.key == b.key; };
    const auto twice = std::adjacent_find(members.begin(), members.end(), same_key);
    if (twice != members.end()) fail("the object that ends here has the key " + shown(twice->key) + " twice");
    return members;
  }

  std::string string() {
    std::string out;
    while (!take("\"")) {
      if (take("\\")) {
        escape(out);
        continue;
      }
      const std::size_t length = sequence_length(text_.substr(at_));
      if (at_ == text_.size()) fail("the text ends within a string");
      if (length == 0) fail("not UTF-8");
      if (static_cast<unsigned char>(peek()) < 0x20) fail("a control character in a string must be escaped");
      out.append(text_, at_, length);
      at_ += length;
    }
    return out;
  }

  void escape(std::string& out) {
    constexpr std::string_view kNames = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
    if (take("u")) {
      unsigned code = code_unit();
      if (code >= 0xD800 && code < 0xDC00 && take("\\u")) {
        const unsigned low = code_unit();
        if (low < 0xDC00 || low > 0xDFFF) fail("half of a surrogate pair");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      }
      if (code >= 0xD800 && code <= 0xDFFF) fail("half of a surrogate pair");
      append_utf8(code, out);
      return;
    }
    const std::size_t which = at_ < text_.size() ? kNames.find(peek()) : std::string_view::npos;
    if (which == std::string_view::npos) fail("unknown escape");
    out.push_back(kMeant[which]);
    ++at_;
  }

  unsigned code_unit() {
    unsigned code = 0;
    const std::string_view digits = text_.substr(at_, 4);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    const bool four = digits.size() == 4 && error == std::errc() && end == digits.data() + 4;
    if (!four) fail("expected four hexadecimal digits");
    at_ += 4;
    return code;
  }

  void digits() {
    if (!digit()) fail("expected a digit");
    while (digit()) ++at_;
  }

  Json number() {
    const std::size_t begin = at_;
    take("-");
    if (!take("0")) digits();
    bool integer = true;
    if (take(".")) integer = false, digits();
    if (take("e") || take("E")) {
      integer = false;
      if (!take("+")) take("-");
      digits();
    }
    const char *first = text_.data() + begin, *last = text_.data() + at_;
    std::int64_t exact = 0;
    if (integer && std::from_chars(first, last, exact).ec == std::errc()) return {exact};
    double rounded = 0;
    const bool fits = std::from_chars(first, last, rounded).ec == std::errc();
    if (!fits) fail("the number that ends here does not fit a double");
    return {rounded};
  }

  std::string_view text_;
  std::size_t at_ = 0;
  int values_ = 0;
};

// Appends up to about kShownBytes; what is cut off is three dots.
class Writer {
 public:
  void write(const Json& json) {
    if (json.as<std::nullptr_t>()) put("null");
    if (const auto* truth = json.as<bool>()) put(*truth ? "true" : "false");
    if (const auto* number = json.as<std::int64_t>()) put(std::to_string(*number));
    if (const auto* number = json.as<double>()) put_number(*number);
    if (const auto* text = json.as<std::string>()) write(*text);
    if (const auto* items = json.as<Json::Array>()) {
      put("[");
      for (std::size_t i = 0; i < items->size() && !cut_; ++i) put(i == 0 ? "" : ", "), write((*items)[i]);
      put("]");
    }
    if (const auto* members = json.as<Json::Object>()) {
      put("{");
      for (std::size_t i = 0; i < members->size() && !cut_; ++i) {
        put(i == 0 ? "" : ", "), write((*members)[i].key), put(": "), write((*members)[i].value);
      }
      put("}");
    }
  }

  void write(std::string_view text) {
    put("\"");
    while (!text.empty() && !cut_) {
      const std::size_t length = std::max<std::size_t>(sequence_length(text), 1);
      const std::string_view one = text.substr(0, length);
      const unsigned char first = static_cast<unsigned char>(one[0]);
      if (first == '"' || first == '\\') {
        put("\\"), put(one);
      } else if (first < 0x20 || first == 0x7F || sequence_length(text) == 0) {
        constexpr std::string_view kHex = "0123456789abcdef";
        put("\\x"), put(kHex.substr(first >> 4, 1)), put(kHex.substr(first & 15, 1));
      } else {
        put(one);
      }
      text.remove_prefix(length);
    }
    put("\"");
  }

  std::string take() { return std::move(out_); }

 private:
  void put(std::string_view text) {
    if (cut_) return;
    cut_ = out_.size() + text.size() > kShownBytes;
    out_ += cut_ ? "..." : text;
  }

  void put_number(double number) {
    char digits[32];  // the shortest form of a double has at most 24
    const auto end = std::to_chars(digits, digits + sizeof digits, number).ptr;
    const std::string_view text(digits, static_cast<std::size_t>(end - digits));
    put(text), put(text.find_first_of(".e") == text.npos ? ".0" : "");  // who reads "got 3" thinks of an integer
  }

  std::string out_;
  bool cut_ = false;
};

}  // namespace

const Json* Json::find(std::string_view key) const {
  const auto* members = as<Object>();
  if (members == nullptr) return nullptr;
  const auto before = [](const JsonMember& member, std::string_view wanted) { return member.key < wanted; };
  const auto found = std::lower_bound(members->begin(), members->end(), key, before);
  return found != members->end() && found->key == key ? &found->value : nullptr;
}

Json parse_json(std::string_view text) { return Parser(text).document(); }

std::string shown(const Json& json) {
  Writer writer;
  writer.write(json);
  return writer.take();
}

std::string shown(std::string_view text) {
  Writer writer;
  writer.write(text);
  return writer.take();
}

}  // namespace headgate
