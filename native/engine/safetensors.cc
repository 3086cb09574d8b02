#include "engine/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "engine/json.h"

namespace headgate {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are read in place, and the file is little-endian");

constexpr std::size_t kPrefix = 8;                        // the header's length, before the header
constexpr std::size_t kMaxHeader = std::size_t{1} << 26;  // thousands of operators take a few MiB

struct Descriptor {
  explicit Descriptor(int opened) : fd(opened) {}
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  const int fd;
};

[[noreturn]] void fail_to_open(int error) {
  throw SafetensorsError("cannot open: " + std::generic_category().message(error));
}

std::string_view header_of(std::string_view file) {
  const std::string not_safetensors = "not a safetensors file: ";
  const std::string size = std::to_string(file.size());
  if (file.size() < kPrefix + 2) throw SafetensorsError(not_safetensors + "it has only " + size + " bytes");
  if (file[kPrefix] != '{') throw SafetensorsError(not_safetensors + "it does not begin with a header");
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  if (length > kMaxHeader) {
    throw SafetensorsError(not_safetensors + "its header would have " + std::to_string(length) +
                           " bytes, and at most " + std::to_string(kMaxHeader) + " are accepted");
  }
  if (length > file.size() - kPrefix) {
    throw SafetensorsError("truncated: its header has " + std::to_string(length) + " bytes, the whole file " + size);
  }
  return file.substr(kPrefix, length);
}

Json parse_header(std::string_view header) {
  try {
    return parse_json(header);
  } catch (const JsonError& error) {
    throw SafetensorsError(std::string("not a safetensors file: its header is not JSON: ") + error.what());
  }
}

class Header {
 public:
  explicit Header(std::string_view data) : data_(data) {}

  std::map<std::string, std::string, std::less<>> metadata(const Json& json) const {
    std::map<std::string, std::string, std::less<>> strings;
    const auto* members = json.as<Json::Object>();
    if (members == nullptr) throw SafetensorsError("__metadata__ must be an object of strings, got " + shown(json));
    for (const auto& [key, value] : *members) {
      const auto* text = value.as<std::string>();
      if (text == nullptr) {
        throw SafetensorsError("__metadata__ " + shown(key) + " must be a string, got " + shown(value));
      }
      strings.emplace_hint(strings.end(), key, *text);
    }
    return strings;
  }

  StoredTensor tensor(const std::string& name, const Json& json) const {
    const std::string where = "tensor " + shown(name) + ": ";
    const Json *dtype = json.find("dtype"), *shape = json.find("shape"), *offsets = json.find("data_offsets");
    const auto* members = json.as<Json::Object>();
    if (dtype == nullptr || shape == nullptr || offsets == nullptr || members->size() != 3) {
      throw SafetensorsError(where + "must be an object of dtype, shape and data_offsets, got " + shown(json));
    }
    const auto* type = dtype->as<std::string>();
    if (type == nullptr) throw SafetensorsError(where + "dtype must be a string, got " + shown(*dtype));

    StoredTensor tensor{*type, lengths(where + "shape", *shape), {}};
    const std::vector<std::int64_t> range = lengths(where + "data_offsets", *offsets);
    if (range.size() != 2 || range[0] > range[1]) {
      throw SafetensorsError(where + "data_offsets must be two ascending integers, got " + shown(*offsets));
    }
    const auto begin = static_cast<std::uint64_t>(range[0]), end = static_cast<std::uint64_t>(range[1]);
    if (end > data_.size()) {
      throw SafetensorsError("truncated: " + where + "ends at byte " + std::to_string(end) +
                             " of the data, of which the file has " + std::to_string(data_.size()));
    }
    tensor.bytes = data_.substr(begin, end - begin);
    if (tensor.dtype == "F32" || tensor.dtype == "I32") check_elements(where, tensor);
    return tensor;
  }

  // The format leaves no holes between tensors; so every byte of the file means one thing.
  void check_layout(const Safetensors& parsed) const {
    std::vector<std::pair<std::string_view, const std::string*>> places;
    for (const auto& [name, tensor] : parsed.tensors) places.emplace_back(tensor.bytes, &name);
    // An empty tensor may lie between two others.
    std::sort(places.begin(), places.end(), [](const auto& a, const auto& b) {
      return std::pair(a.first.data(), a.first.size()) < std::pair(b.first.data(), b.first.size());
    });
    const char* free = data_.data();
    for (const auto& [bytes, name] : places) {
      if (bytes.data() != free) {
        throw SafetensorsError("tensor " + shown(*name) + ": data_offsets " +
                               (bytes.data() < free ? "overlap another tensor" : "leave a hole before the tensor"));
      }
      free += bytes.size();
    }
    const auto left = data_.data() + data_.size() - free;
    if (left != 0) throw SafetensorsError(std::to_string(left) + " bytes follow the last tensor");
  }

 private:
  static std::vector<std::int64_t> lengths(const std::string& what, const Json& json) {
    std::vector<std::int64_t> numbers;
    const auto* items = json.as<Json::Array>();
    for (std::size_t i = 0; items != nullptr && i < items->size(); ++i) {
      const auto* number = (*items)[i].as<std::int64_t>();
      if (number != nullptr && *number >= 0) numbers.push_back(*number);
    }
    if (items == nullptr || numbers.size() != items->size()) {
      throw SafetensorsError(what + " must be a list of integers that are not negative, got " + shown(json));
    }
    return numbers;
  }

  static void check_elements(const std::string& where, const StoredTensor& tensor) {
    std::int64_t bytes = 4;
    bool overflow = false;
    for (std::int64_t length : tensor.shape) overflow |= __builtin_mul_overflow(bytes, length, &bytes);
    if (overflow || static_cast<std::uint64_t>(bytes) != tensor.bytes.size()) {
      throw SafetensorsError(where + "data_offsets span " + std::to_string(tensor.bytes.size()) +
                             " bytes, which is not what the shape takes");
    }
    if (reinterpret_cast<std::uintptr_t>(tensor.bytes.data()) % 4 != 0) {
      throw SafetensorsError(where + "is not aligned to 4 bytes; pad the header with spaces to a multiple of 8 bytes");
    }
  }

  std::string_view data_;
};

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::string& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));  // to open a pipe must not block
  if (file.fd < 0) fail_to_open(errno);
  struct stat status {};
  if (::fstat(file.fd, &status) != 0) fail_to_open(errno);
  if (S_ISDIR(status.st_mode)) fail_to_open(EISDIR);
  if (!S_ISREG(status.st_mode)) throw SafetensorsError("cannot open: not a regular file");
  if (status.st_size == 0) return copy_of({});  // mmap refuses it
  const auto size = static_cast<std::size_t>(status.st_size);
  void* mapped = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (mapped == MAP_FAILED) fail_to_open(errno);
  return std::shared_ptr<const MappedFile>(new MappedFile({static_cast<const char*>(mapped), size}, nullptr));
}

std::shared_ptr<const MappedFile> MappedFile::copy_of(std::string_view bytes) {
  auto buffer = std::make_unique<char[]>(bytes.size());
  std::copy(bytes.begin(), bytes.end(), buffer.get());
  const std::string_view copied(buffer.get(), bytes.size());
  return std::shared_ptr<const MappedFile>(new MappedFile(copied, std::move(buffer)));
}

MappedFile::~MappedFile() {
  if (buffer_ == nullptr) ::munmap(const_cast<char*>(bytes_.data()), bytes_.size());
}

void MappedFile::let_go() const noexcept {
  if (buffer_ == nullptr) ::madvise(const_cast<char*>(bytes_.data()), bytes_.size(), MADV_DONTNEED);
}

Safetensors parse_safetensors(std::shared_ptr<const MappedFile> file) {
  const std::string_view bytes = file->bytes(), text = header_of(bytes);
  const Header header(bytes.substr(kPrefix + text.size()));
  const Json json = parse_header(text);
  Safetensors parsed{std::move(file), {}, {}};
  for (const auto& [name, value] : *json.as<Json::Object>()) {  // it begins with a brace
    if (name == "__metadata__") {
      parsed.metadata = header.metadata(value);
    } else {
      parsed.tensors.emplace_hint(parsed.tensors.end(), name, header.tensor(name, value));
    }
  }
  header.check_layout(parsed);
  return parsed;
}

}  // namespace headgate
