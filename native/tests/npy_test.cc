// .npy files: what numpy writes is read, what headgate-run writes is a .npy file, and anything else is refused.
#include "tools/npy.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "tests/check.h"

namespace headgate {
namespace {

const std::string kDictionary = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";

std::string file_of(int version, std::string dictionary, std::size_t floats) {
  dictionary += '\n';
  std::string bytes = "\x93NUMPY";
  bytes += {static_cast<char>(version), '\0'};
  for (int digit = 0; digit < (version == 1 ? 2 : 4); ++digit) {
    bytes += static_cast<char>(dictionary.size() >> 8 * digit);
  }
  bytes += dictionary;
  for (std::size_t i = 0; i < floats; ++i) {
    const float value = static_cast<float>(i) + 0.5f;
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  return bytes;
}

NpyArray parse_dictionary(const std::string& dictionary, std::size_t floats = 6) {
  return parse_npy(file_of(1, dictionary, floats), "x.npy");
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  return text.replace(text.find(from), from.size(), to);
}

TEST(versions) {
  for (int version : {1, 2, 3}) {
    const NpyArray array = parse_npy(file_of(version, kDictionary, 6), "x.npy");
    CHECK((array.shape == std::vector<std::int64_t>{2, 3}));
    CHECK((array.values == std::vector<float>{0.5f, 1.5f, 2.5f, 3.5f, 4.5f, 5.5f}));
  }
  CHECK_THROWS(parse_npy(file_of(4, kDictionary, 6), "x.npy"), NpyError,
               "x.npy: must be .npy of version 1, 2 or 3, got version 4");
}

TEST(shapes) {
  CHECK(parse_dictionary(replaced(kDictionary, "(2, 3)", "()"), 1).shape.empty());
  CHECK((parse_dictionary(replaced(kDictionary, "(2, 3)", "(6,)")).shape == std::vector<std::int64_t>{6}));
  CHECK(parse_dictionary(replaced(kDictionary, "(2, 3)", "(0, 9223372036854775807, 9)"), 0).values.empty());
  CHECK_EQ(parse_dictionary(R"({"shape":(3,2),"fortran_order":False,"descr":"<f4"})").shape[0], 3);
}

TEST(wrong_headers) {
  struct Wrong {
    const char *from, *to, *message;
  };
  const Wrong cases[] = {
      {"<f4", "<f8", "must be float32 (<f4), got \"<f8\"; save array.astype('float32')"},
      {"<f4", ">f4", "must be float32 (<f4), got \">f4\"; save array.astype('float32')"},
      {"'<f4'", "[('a', '<f4')]", "must be float32, got a structured type; save array.astype('float32')"},
      {"False", "True", "must be in C order; save numpy.ascontiguousarray of it"},
      {"(2, 3)", "(2, 4)", "truncated: it has 24 bytes after the header, which is not what its shape takes"},
      {"(2, 3)", "(2, 2)", "too long: it has 24 bytes after the header, which is not what its shape takes"},
      {"(2, 3)", "(4611686018427387904, 4)",
       "truncated: it has 24 bytes after the header, which is not what its shape takes"},
      {"(2, 3)", "(2, -3)", "not a .npy file: its header is malformed"},
      {"(2, 3)", "(2, 99999999999999999999)", "not a .npy file: its header is malformed"},
      {"(2, 3)", "(2 3)", "not a .npy file: its header is malformed"},
      {"'shape': (2, 3)", "'shape': (2, 3), 'shape': (2, 3)", "not a .npy file: its header is malformed"},
      {"'shape': (2, 3), ", "", "not a .npy file: its header is malformed"},
      {"'descr'", "'descr", "not a .npy file: its header is malformed"},
      {"}", "} x", "not a .npy file: its header is malformed"}};
  for (const auto& [from, to, message] : cases) {
    CHECK_THROWS(parse_dictionary(replaced(kDictionary, from, to)), NpyError, std::string("x.npy: ") + message);
  }
}

TEST(any_bytes) {
  const std::string whole = file_of(2, kDictionary, 6);
  for (std::size_t length = 0; length < whole.size(); ++length) {
    try {
      static_cast<void>(parse_npy(std::string(whole, 0, length), "x.npy"));
      CHECK(false);
    } catch (const NpyError&) {
    }
  }
  std::mt19937 random(1);
  int accepted = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string bytes = whole;
    for (std::size_t n = 1 + random() % 3; n > 0; --n) bytes[random() % bytes.size()] = static_cast<char>(random());
    try {
      const NpyArray array = parse_npy(bytes, "x.npy");
      accepted += array.values.size() == 6 ? 1 : 0;
    } catch (const NpyError&) {
    }
  }
  CHECK(accepted > 0 && accepted < 15'000);
}

TEST(written_files) {
  std::string folder = "/tmp/headgate_npy_XXXXXX";
  CHECK(::mkdtemp(folder.data()) != nullptr);
  const std::string path = folder + "/x.npy";
  for (const std::vector<std::int64_t>& shape : {std::vector<std::int64_t>{6}, {2, 3}, {1, 2, 3, 1}, {0, 3}}) {
    std::vector<float> values;
    for (float i = 0; i < (shape[0] == 0 ? 0 : 6); ++i) values.push_back(i);
    write_npy(path, {shape, values});
    const NpyArray again = read_npy(path);
    CHECK(again.shape == shape && again.values == values);
  }
  struct stat status {};
  CHECK(::stat(path.c_str(), &status) == 0 && (status.st_mode & 0600) == 0600);
  CHECK_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
  CHECK_THROWS(write_npy(folder + "/no/x.npy", {{0}, {}}), NpyError,
               folder + "/no/x.npy: cannot write: No such file or directory");
  CHECK_THROWS(read_npy(folder), NpyError, folder + ": cannot open: Is a directory");
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace headgate
