// Checked access to the members of a JSON object of a plan. Every error says where the object is, which attribute is
// wrong, what is accepted, and what was given.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/json.h"

namespace headgate {

struct IntRange {
  int first, last;
};

struct Count {
  std::size_t min, max;
  std::string_view text;  // "two integers"
};

class Attributes {
 public:
  // `json` must outlive this. Throws PlanError if it is no object.
  Attributes(const Json& json, std::string where);

  // For an operator, once its name and kind are known.
  void set_where(std::string where) { where_ = std::move(where); }

  bool has(std::string_view key) const { return json_.find(key) != nullptr; }
  const Json& any(std::string_view key, const std::string& accepted);
  bool boolean(std::string_view key);
  int integer(std::string_view key, IntRange range);
  float number(std::string_view key);
  const std::string& text(std::string_view key);
  const Json::Array& list(std::string_view key);
  std::vector<int> integers(std::string_view key, const Count& count, IntRange range);
  std::array<int, 2> pair(std::string_view key, IntRange range);
  std::size_t one_of(std::string_view key, std::span<const std::string_view> names);  // its index

  // Throws if there are attributes that nobody asked for.
  void finish() const;

  [[noreturn]] void fail(const std::string& what) const;                              // "{where}: {what}"
  [[noreturn]] void reject(std::string_view key, const std::string& accepted) const;  // "… must be …, got …"

 private:
  const Json& json_;
  std::string where_;
  std::vector<std::string_view> asked_;  // views of the keys that were given: literals, which outlive this
};

}  // namespace headgate
