// Arrays in numpy's .npy files: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace headgate {

// The file cannot be read or written, or holds something else; the message names it.
class NpyError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct NpyArray {
  std::vector<std::int64_t> shape;
  std::vector<float> values;  // in C order
};

// Reads float32 in C order, of format versions 1 to 3. The file is not trusted: it must be as long as its header says.
// Throws NpyError.
NpyArray read_npy(const std::string& path);

// The same for a file's bytes; `where` is what error messages call them.
NpyArray parse_npy(std::string_view bytes, const std::string& where);

// Writes format version 1, to a temporary file that then takes the name: whole or not at all. Throws NpyError.
void write_npy(const std::string& path, const NpyArray& array);

}  // namespace headgate
