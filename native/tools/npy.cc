#include "tools/npy.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <system_error>

#include "engine/json.h"
#include "engine/safetensors.h"

namespace headgate {
namespace {

static_assert(std::endian::native == std::endian::little, "values are copied as they lie in the file");

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::size_t kMaxHeader = 1 << 16, kMaxDimensions = 32;  // numpy has at most 64 dimensions

// The header: a Python dictionary of exactly descr, fortran_order and shape, in any order.
class HeaderReader {
 public:
  HeaderReader(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  std::vector<std::int64_t> shape() {
    bool descr = false, order = false, shape = false;
    expect("{");
    while (!take("}")) {
      const std::string_view key = string();
      expect(":");
      if (key == "descr" && !std::exchange(descr, true)) {
        check_type();
      } else if (key == "fortran_order" && !std::exchange(order, true)) {
        if (!take("False")) refuse("must be in C order; save numpy.ascontiguousarray of it");
      } else if (key == "shape" && !std::exchange(shape, true)) {
        lengths();
      } else {
        malformed();
      }
      if (!take(",")) {
        expect("}");
        break;
      }
    }
    skip_space();
    if (!text_.empty() || !descr || !order || !shape) malformed();
    return lengths_;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const { throw NpyError(where_ + ": " + what); }
  [[noreturn]] void malformed() const { refuse("not a .npy file: its header is malformed"); }

  void skip_space() {
    while (!text_.empty() && (text_[0] == ' ' || text_[0] == '\n')) text_.remove_prefix(1);
  }

  bool take(std::string_view expected) {
    skip_space();
    if (!text_.starts_with(expected)) return false;
    text_.remove_prefix(expected.size());
    return true;
  }

  void expect(std::string_view expected) {
    if (!take(expected)) malformed();
  }

  std::string_view string() {
    skip_space();
    const char quote = text_.empty() ? '\0' : text_[0];
    const std::size_t end = quote == '\'' || quote == '"' ? text_.find(quote, 1) : text_.npos;
    if (end == text_.npos) malformed();
    const std::string_view found = text_.substr(1, end - 1);
    text_.remove_prefix(end + 1);
    return found;
  }

  void check_type() {
    skip_space();
    if (text_.starts_with("[")) refuse("must be float32, got a structured type; save array.astype('float32')");
    const std::string_view type = string();
    if (type != "<f4") refuse("must be float32 (<f4), got " + shown(type) + "; save array.astype('float32')");
  }

  void lengths() {
    expect("(");
    while (!take(")")) {
      skip_space();
      std::int64_t length = 0;
      const auto [end, error] = std::from_chars(text_.data(), text_.data() + text_.size(), length);
      if (error != std::errc() || length < 0 || lengths_.size() == kMaxDimensions) malformed();
      text_.remove_prefix(static_cast<std::size_t>(end - text_.data()));
      lengths_.push_back(length);
      if (!take(",")) {
        expect(")");
        break;
      }
    }
  }

  std::string_view text_;
  const std::string& where_;
  std::vector<std::int64_t> lengths_;
};

// Splits the header's text off `bytes`.
std::string_view take_header(std::string_view& bytes, const std::string& where) {
  const auto refuse = [&](const std::string& what) -> std::string_view { throw NpyError(where + ": " + what); };
  constexpr std::size_t kVersion = kMagic.size(), kLength = kVersion + 2;
  if (bytes.size() < kLength + 2 || !bytes.starts_with(kMagic)) return refuse("not a .npy file");
  const int version = static_cast<unsigned char>(bytes[kVersion]);
  if (version < 1 || version > 3) {
    return refuse("must be .npy of version 1, 2 or 3, got version " + std::to_string(version));
  }
  const std::size_t digits = version == 1 ? 2 : 4;
  if (bytes.size() < kLength + digits) return refuse("truncated: it ends within its header");
  std::size_t length = 0;
  std::memcpy(&length, bytes.data() + kLength, digits);
  if (length > kMaxHeader) {
    return refuse("not a .npy file: its header would have " + std::to_string(length) + " bytes, and at most " +
                  std::to_string(kMaxHeader) + " are accepted");
  }
  bytes.remove_prefix(kLength + digits);
  if (length > bytes.size()) return refuse("truncated: it ends within its header");
  const std::string_view header = bytes.substr(0, length);
  bytes.remove_prefix(length);
  return header;
}

std::string header_of(const NpyArray& array) {
  std::string shape;
  for (std::int64_t length : array.shape) shape += std::to_string(length) + ", ";
  if (array.shape.size() > 1) shape.resize(shape.size() - 2);
  if (array.shape.size() == 1) shape.pop_back();
  std::string text = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + shape + "), }";
  constexpr std::size_t kAlignment = 64, kBefore = kMagic.size() + 4;
  text.append((kAlignment - (kBefore + text.size() + 1) % kAlignment) % kAlignment, ' ');
  text += '\n';
  std::string header(kMagic);
  header += {'\1', '\0', static_cast<char>(text.size()), static_cast<char>(text.size() >> 8)};
  return header + text;
}

// A new file that takes the place of another when it is whole. Until then it has no name, so that a process that is killed
// leaves nothing; where the file system knows no such files, it has one beside the target's.
class Temporary {
 public:
  explicit Temporary(const std::string& target) : target_(resolved(target)), path_(target_ + ".XXXXXX") {
    const std::size_t slash = target_.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : target_.substr(0, slash + 1);
    file_ = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
    if (file_ >= 0) return;
    file_ = ::mkstemp(path_.data());
    if (file_ < 0) fail();
    named_ = true;
  }
  ~Temporary() {
    if (file_ >= 0) ::close(file_);
    if (named_) ::unlink(path_.c_str());
  }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;

  void write(const char* bytes, std::size_t size) {
    while (size > 0) {
      const ssize_t done = ::write(file_, bytes, size);
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) fail();
      bytes += done, size -= static_cast<std::size_t>(done);
    }
  }

  void rename() {
    const mode_t mask = ::umask(0);  // mkstemp's files are for their owner alone
    ::umask(mask);
    if (::fchmod(file_, 0666 & ~mask) != 0 || ::fsync(file_) != 0) fail();
    if (!named_) {
      // Only a rename replaces a file, and only what has a name can be renamed: one that mkstemp finds free.
      const std::string unnamed = "/proc/self/fd/" + std::to_string(file_);
      const int taken = ::mkstemp(path_.data());
      if (taken < 0) fail();
      ::close(taken);
      named_ = true;
      if (::unlink(path_.c_str()) != 0 ||
          ::linkat(AT_FDCWD, unnamed.c_str(), AT_FDCWD, path_.c_str(), AT_SYMLINK_FOLLOW) != 0) {
        fail();
      }
    }
    if (::close(std::exchange(file_, -1)) != 0 || ::rename(path_.c_str(), target_.c_str()) != 0) fail();
    named_ = false;
  }

 private:
  // Through a link: what it points to is replaced, not the link. Devices and pipes cannot be.
  static std::string resolved(const std::string& target) {
    struct stat status {};
    if (::stat(target.c_str(), &status) != 0) return target;
    if (!S_ISREG(status.st_mode)) throw NpyError(target + ": cannot write: not a regular file");
    const std::unique_ptr<char, decltype(&std::free)> real(::realpath(target.c_str(), nullptr), &std::free);
    return real != nullptr ? std::string(real.get()) : target;
  }

  [[noreturn]] void fail() const {
    throw NpyError(target_ + ": cannot write: " + std::generic_category().message(errno));
  }

  const std::string target_;
  std::string path_;
  int file_ = -1;
  bool named_ = false;  // path_ is there, and must go
};

}  // namespace

NpyArray parse_npy(std::string_view bytes, const std::string& where) {
  const std::string_view header = take_header(bytes, where);
  NpyArray array{HeaderReader(header, where).shape(), {}};
  std::int64_t size = sizeof(float);
  bool overflow = false, empty = false;
  for (std::int64_t length : array.shape) {
    empty |= length == 0;
    overflow |= __builtin_mul_overflow(size, length, &size);
  }
  if (empty) size = 0, overflow = false;
  if (overflow || static_cast<std::uint64_t>(size) != bytes.size()) {
    throw NpyError(where + ": " + (overflow || static_cast<std::uint64_t>(size) > bytes.size() ? "truncated" : "too long") +
                   ": it has " + std::to_string(bytes.size()) + " bytes after the header, which is not what its shape takes");
  }
  array.values.resize(bytes.size() / sizeof(float));
  if (!bytes.empty()) std::memcpy(array.values.data(), bytes.data(), bytes.size());
  return array;
}

NpyArray read_npy(const std::string& path) {
  try {
    return parse_npy(MappedFile::open(path)->bytes(), path);
  } catch (const SafetensorsError& error) {
    throw NpyError(path + ": " + error.what());
  }
}

void write_npy(const std::string& path, const NpyArray& array) {
  Temporary file(path);
  const std::string header = header_of(array);
  file.write(header.data(), header.size());
  file.write(reinterpret_cast<const char*>(array.values.data()), array.values.size() * sizeof(float));
  file.rename();
}

}  // namespace headgate
