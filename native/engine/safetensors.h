// Reads safetensors files, the container of plans: https://github.com/huggingface/safetensors#format
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace headgate {

// The file cannot be read, or is not a (whole) safetensors file. The message does not name the file.
class SafetensorsError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The bytes of a file: mapped, or in a buffer. The bytes of a mapped file must not change while this lives.
class MappedFile {
 public:
  static std::shared_ptr<const MappedFile> open(const std::string& path);  // throws SafetensorsError
  static std::shared_ptr<const MappedFile> copy_of(std::string_view bytes);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::string_view bytes() const { return bytes_; }

  // Gives back the memory of what was read so far; what is read again comes from the file.
  void let_go() const noexcept;

 private:
  MappedFile(std::string_view bytes, std::unique_ptr<char[]> buffer) : buffer_(std::move(buffer)), bytes_(bytes) {}

  std::unique_ptr<char[]> buffer_;  // null if mapped
  std::string_view bytes_;
};

struct StoredTensor {
  std::string dtype;  // "F32", "I32", …
  std::vector<std::int64_t> shape;
  std::string_view bytes;  // in the file; F32 and I32 are aligned, and as long as the shape says

  std::size_t size() const { return bytes.size() / 4; }  // of F32 and I32
};

struct Safetensors {
  std::shared_ptr<const MappedFile> file;
  std::map<std::string, std::string, std::less<>> metadata;
  std::map<std::string, StoredTensor, std::less<>> tensors;
};

// Reads and checks the header. Tensors of other types than F32 and I32 are listed, but only their place is checked.
// Throws SafetensorsError.
Safetensors parse_safetensors(std::shared_ptr<const MappedFile> file);

}  // namespace headgate
