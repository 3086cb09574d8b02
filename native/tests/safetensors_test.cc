// The container and its JSON header: what plan_test.cc does not reach through plans.
#include "engine/safetensors.h"

#include "engine/json.h"
#include "tests/check.h"
#include "tests/plan_file.h"

namespace headgate {
namespace {

Safetensors parse(std::string header, const std::string& data) {
  PlanFile file{""};
  file.data = data;
  header.resize((header.size() + 7) / 8 * 8, ' ');
  return parse_safetensors(MappedFile::copy_of(file.with_header(header)));
}

TEST(json_values) {
  const Json json = parse_json(R"( {"b": [1, -0, 2.5e1, 9223372036854775808], "a": {"x": null, "y": true}, "": "z"} )");
  const auto& numbers = *json.find("b")->as<Json::Array>();
  CHECK_EQ(*numbers[0].as<std::int64_t>(), 1);
  CHECK_EQ(*numbers[1].as<std::int64_t>(), 0);
  CHECK_EQ(*numbers[2].as<double>(), 25.0);
  CHECK_EQ(*numbers[3].as<double>(), 9223372036854775808.0);
  CHECK(*json.find("a")->find("y")->as<bool>());
  CHECK(json.find("c") == nullptr && numbers[0].find("c") == nullptr);
  CHECK_EQ(*json.find("")->as<std::string>(), "z");
  CHECK_EQ(shown(json), R"({"": "z", "a": {"x": null, "y": true}, "b": [1, 0, 25.0, 9223372036854775808.0]})");
}

TEST(json_strings) {
  const auto text = [](const std::string& json) { return *parse_json(json).as<std::string>(); };
  CHECK_EQ(text(R"("\"\\\/\b\f\n\r\t")"), "\"\\/\b\f\n\r\t");
  CHECK_EQ(text(R"("\u0041\u00e9\u20AC\ud83d\ude00")"), "Aé€😀");
  CHECK_EQ(text("\"é€😀\x7F\""), "é€😀\x7F");
  CHECK_EQ(text(R"("\u0000")"), std::string(1, '\0'));
  CHECK_EQ(shown(std::string_view("\"\n\xFF")), R"("\"\x0a\xff")");
  CHECK_EQ(shown(std::string(200, 'a')), "\"" + std::string(79, 'a') + "...");
}

TEST(json_errors) {
  const struct {
    std::string text, message;
  } cases[] = {{"", "byte 0: expected a value"},
               {"[1, 2", "byte 5: expected , or ]"},
               {"[1,]", "byte 3: expected a value"},
               {"{\"a\" 1}", "byte 5: expected :"},
               {"{\"a\": 1", "byte 7: expected , or }"},
               {"{a: 1}", "byte 1: expected a key in quotes"},
               {"{\"a\":1,\"b\":2,\"a\":3}", "byte 19: the object that ends here has the key \"a\" twice"},
               {"1 2", "byte 2: expected the end of the text"},
               {"01", "byte 1: expected the end of the text"},
               {"-", "byte 1: expected a digit"},
               {"1.", "byte 2: expected a digit"},
               {"1e+", "byte 3: expected a digit"},
               {"NaN", "byte 0: expected a value"},
               {"-Infinity", "byte 1: expected a digit"},
               {"1e999", "byte 5: the number that ends here does not fit a double"},
               {"\"a", "byte 2: the text ends within a string"},
               {"\"\n\"", "byte 1: a control character in a string must be escaped"},
               {"\"\\x\"", "byte 2: unknown escape"},
               {"\"\\", "byte 2: unknown escape"},
               {"\"\\u12", "byte 3: expected four hexadecimal digits"},
               {"\"\\u12g4\"", "byte 3: expected four hexadecimal digits"},
               {"\"\\ud800\"", "byte 7: half of a surrogate pair"},
               {"\"\\ud800\\u0041\"", "byte 13: half of a surrogate pair"},
               {"\"\\udc00\"", "byte 7: half of a surrogate pair"},
               {"\"\xC0\x80\"", "byte 1: not UTF-8"},
               {"\"\xED\xA0\x80\"", "byte 1: not UTF-8"},
               {"\"\xF0\x80\x80\x80\"", "byte 1: not UTF-8"},
               {"\"\xE2\x82\"", "byte 1: not UTF-8"},
               {std::string(100'000, '['), "byte 33: nested deeper than 32"},
               {"[" + std::string(2 * kMaxJsonValues, '0') + "]", "byte 2: expected , or ]"}};
  for (const auto& [text, message] : cases) CHECK_THROWS(parse_json(text), JsonError, message);

  std::string many = "[0";
  for (int i = 0; i < kMaxJsonValues; ++i) many += ",0";
  CHECK_THROWS(parse_json(many + "]"), JsonError, "byte 4194303: more than 2097152 values");
}

TEST(tensors) {
  const Safetensors file = parse(R"({"__metadata__": {"a": "b"},
"x": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
"y": {"dtype": "I32", "shape": [2, 0], "data_offsets": [4, 4]},
"z": {"dtype": "BF16", "shape": [3], "data_offsets": [4, 7]}})",
                                 std::string("\0\0\0\x3F\1\2\3", 7));
  CHECK_EQ(file.metadata.at("a"), "b");
  CHECK_EQ(*reinterpret_cast<const float*>(file.tensors.at("x").bytes.data()), 0.5F);
  CHECK_EQ(file.tensors.at("y").size(), 0U);
  CHECK_EQ(file.tensors.at("z").bytes, "\1\2\3");
}

TEST(wrong_tensors) {
  const struct {
    std::string entries, message;
  } cases[] = {
      {R"("x":1)", R"(tensor "x": must be an object of dtype, shape and data_offsets, got 1)"},
      {R"("x":{"dtype":1,"shape":[2],"data_offsets":[0,8]})", R"(tensor "x": dtype must be a string, got 1)"},
      {R"("x":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]})",
       R"(tensor "x": shape must be a list of integers that are not negative, got [-2])"},
      {R"("x":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]})",
       R"(tensor "x": data_offsets must be two ascending integers, got [0, 8, 8])"},
      {R"("x":{"dtype":"F32","shape":[2],"data_offsets":[8,0]})",
       R"(tensor "x": data_offsets must be two ascending integers, got [8, 0])"},
      {R"("x":{"dtype":"F32","shape":[2],"data_offsets":[0,9223372036854775807]})",
       R"(truncated: tensor "x": ends at byte 9223372036854775807 of the data, of which the file has 8)"},
      {R"("x":{"dtype":"F32","shape":[3],"data_offsets":[0,8]})",
       R"(tensor "x": data_offsets span 8 bytes, which is not what the shape takes)"},
      {R"("x":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]})",
       R"(tensor "x": data_offsets span 0 bytes, which is not what the shape takes)"},
      {R"("x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"y":{"dtype":"I32","shape":[1],"data_offsets":[4,8]})",
       R"(tensor "y": data_offsets overlap another tensor)"},
      {R"("x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]})",
       R"(tensor "x": data_offsets leave a hole before the tensor)"},
      {R"("x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})", "4 bytes follow the last tensor"},
      {R"("x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"F32","shape":[1],"data_offsets":[2,6]})",
       R"(tensor "y": is not aligned to 4 bytes; pad the header with spaces to a multiple of 8 bytes)"},
      {R"("__metadata__":[])", "__metadata__ must be an object of strings, got []"},
      {R"("__metadata__":{"a":1})", R"(__metadata__ "a" must be a string, got 1)"}};
  for (const auto& [entries, message] : cases) {
    CHECK_THROWS(parse("{" + entries + "}", std::string(8, '\0')), SafetensorsError, message);
  }
}

TEST(wrong_headers) {
  const auto parse_bytes = [](const std::string& bytes) { return parse_safetensors(MappedFile::copy_of(bytes)); };
  CHECK_THROWS(parse_bytes("PK"), SafetensorsError, "not a safetensors file: it has only 2 bytes");
  CHECK_THROWS(parse_bytes("\x93NUMPY and so on"), SafetensorsError,
               "not a safetensors file: it does not begin with a header");
  CHECK_THROWS(parse_bytes("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF{}"), SafetensorsError,
               "not a safetensors file: its header would have 18446744073709551615 bytes, "
               "and at most 67108864 are accepted");
  CHECK_THROWS(parse_bytes(std::string("\3\0\0\0\0\0\0\0{}", 10)), SafetensorsError,
               "truncated: its header has 3 bytes, the whole file 10");
  CHECK_THROWS(parse("{]", ""), SafetensorsError,
               "not a safetensors file: its header is not JSON: byte 1: expected a key in quotes");
}

}  // namespace
}  // namespace headgate
