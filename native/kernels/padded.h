// Per-channel constants as the kernels read them.
#pragma once

#include <cstddef>
#include <vector>

namespace headgate {

// `arrays` arrays of `channels` values, each padded with zeros to full vectors of any width.
template <class T>
class Padded {
 public:
  Padded(int arrays, int channels) : stride_(padded(channels)), values_(static_cast<std::size_t>(arrays) * stride_) {}
  T* operator[](int i) { return values_.data() + static_cast<std::size_t>(i) * stride_; }
  static int padded(int channels) { return (channels + 15) / 16 * 16; }

 private:
  int stride_;
  std::vector<T> values_;
};

}  // namespace headgate
