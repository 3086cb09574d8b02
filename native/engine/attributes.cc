#include "engine/attributes.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "engine/plan.h"

namespace headgate {
namespace {

std::string in(IntRange range) {
  return " in [" + std::to_string(range.first) + ", " + std::to_string(range.last) + "]";
}

const std::int64_t* integer_in(const Json& json, IntRange range) {
  const auto* number = json.as<std::int64_t>();
  return number != nullptr && *number >= range.first && *number <= range.last ? number : nullptr;
}

std::string joined(std::span<const std::string_view> words) {
  std::string text;
  for (std::string_view word : words) (text += text.empty() ? "" : ", ") += word;
  return text;
}

}  // namespace

Attributes::Attributes(const Json& json, std::string where) : json_(json), where_(std::move(where)) {
  if (json.as<Json::Object>() == nullptr) fail("must be an object, got " + shown(json));
}

const Json& Attributes::any(std::string_view key, const std::string& accepted) {
  const Json* found = json_.find(key);
  if (found == nullptr) fail(std::string(key) + " is missing; it must be " + accepted);
  asked_.push_back(key);
  return *found;
}

bool Attributes::boolean(std::string_view key) {
  const std::string accepted = "true or false";
  const auto* truth = any(key, accepted).as<bool>();
  if (truth == nullptr) reject(key, accepted);
  return *truth;
}

int Attributes::integer(std::string_view key, IntRange range) {
  const std::string accepted = "an integer" + in(range);
  const auto* number = integer_in(any(key, accepted), range);
  if (number == nullptr) reject(key, accepted);
  return static_cast<int>(*number);
}

float Attributes::number(std::string_view key) {
  const std::string accepted = "a number that fits float32";
  const Json& json = any(key, accepted);
  double value = std::numeric_limits<double>::infinity();
  if (const auto* integer = json.as<std::int64_t>()) value = static_cast<double>(*integer);
  if (const auto* real = json.as<double>()) value = *real;
  if (std::abs(value) > std::numeric_limits<float>::max()) reject(key, accepted);
  return static_cast<float>(value);
}

const std::string& Attributes::text(std::string_view key) {
  const std::string accepted = "a string";
  const auto* text = any(key, accepted).as<std::string>();
  if (text == nullptr) reject(key, accepted);
  return *text;
}

const Json::Array& Attributes::list(std::string_view key) {
  const std::string accepted = "a list";
  const auto* items = any(key, accepted).as<Json::Array>();
  if (items == nullptr) reject(key, accepted);
  return *items;
}

std::vector<int> Attributes::integers(std::string_view key, const Count& count, IntRange range) {
  const std::string accepted = std::string(count.text) + in(range);
  const auto* items = any(key, accepted).as<Json::Array>();
  if (items == nullptr || items->size() < count.min || items->size() > count.max) reject(key, accepted);
  std::vector<int> numbers;
  for (const Json& item : *items) {
    const auto* number = integer_in(item, range);
    if (number == nullptr) reject(key, accepted);
    numbers.push_back(static_cast<int>(*number));
  }
  return numbers;
}

std::array<int, 2> Attributes::pair(std::string_view key, IntRange range) {
  const std::vector<int> numbers = integers(key, {2, 2, "two integers"}, range);
  return {numbers[0], numbers[1]};
}

std::size_t Attributes::one_of(std::string_view key, std::span<const std::string_view> names) {
  const std::string accepted = "one of " + joined(names);
  const auto* name = any(key, accepted).as<std::string>();
  const auto found = name == nullptr ? names.end() : std::find(names.begin(), names.end(), *name);
  if (found == names.end()) reject(key, accepted);
  return static_cast<std::size_t>(found - names.begin());
}

void Attributes::finish() const {
  for (const auto& [key, value] : *json_.as<Json::Object>()) {
    if (std::find(asked_.begin(), asked_.end(), key) == asked_.end()) {
      fail("unknown attribute " + shown(key) + ", got " + shown(value) + "; accepted are " + joined(asked_));
    }
  }
}

void Attributes::fail(const std::string& what) const { throw PlanError(where_ + ": " + what); }

void Attributes::reject(std::string_view key, const std::string& accepted) const {
  fail(std::string(key) + " must be " + accepted + ", got " + shown(*json_.find(key)));
}

}  // namespace headgate
