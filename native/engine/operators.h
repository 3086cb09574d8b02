// The operators of a plan, one by one: what each kind accepts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "engine/json.h"
#include "engine/plan.h"
#include "engine/safetensors.h"

namespace headgate {

class Attributes;

class OperatorReader {
 public:
  // `file` and `values` must outlive this; `where` is the file's name.
  OperatorReader(const Safetensors& file, const std::vector<Shape>& values, int input, std::string where);

  // Reads and checks the next operator. Throws PlanError.
  Op read(const Json& json);

  // Throws PlanError if there is a value that no operator has written.
  void finish() const;

 private:
  void data_flow(Attributes& attributes, Op& op);
  void convolution(Attributes& attributes, Op& op);
  void gating(Attributes& attributes, Op& op);
  void count_listed(Attributes& attributes, const std::string& name, std::size_t more);
  InputLists input_lists(Attributes& attributes, std::string_view key, int in_channels);
  void convolution_window(Attributes& attributes, Op& op) const;
  void pool(Attributes& attributes, Op& op) const;
  void adaptive_pool(Attributes& attributes, const Op& op) const;
  void concat(Attributes& attributes, const Op& op) const;
  void shaped_as_output(Attributes& attributes, const Op& op, std::size_t i) const;

  const StoredTensor& stored(Attributes& attributes, std::string_view key, std::string_view dtype,
                             const std::vector<std::int64_t>& shape) const;
  FloatTensor floats(Attributes& attributes, std::string_view key, const std::vector<std::int64_t>& shape);

  const Shape& input(const Op& op, std::size_t i = 0) const { return values_[static_cast<std::size_t>(op.inputs[i])]; }
  const Shape& output(const Op& op) const { return values_[static_cast<std::size_t>(op.output)]; }

  const Safetensors& file_;
  const std::vector<Shape>& values_;
  std::string where_;
  int ops_ = 0;  // that were begun
  static constexpr int kUnwritten = -1, kPlanInput = -2;
  std::vector<int> writer_;               // of every value: the operator's index, or one of these two
  std::set<const StoredTensor*> finite_;  // tensors that were looked through: operators may share them
  std::size_t listed_ = 0;                // numbers, and rows, in the lists of input channels of all operators so far
  std::size_t rows_ = 0;
  std::vector<std::size_t> row_of_;  // of every channel: the last of these rows that had it, counted from 1
};

}  // namespace headgate
