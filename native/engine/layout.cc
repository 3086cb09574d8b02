#include "engine/layout.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <utility>

namespace headgate {
namespace {

// Of one framed map, and of all that live together, for one image. A plan's numbers are not to be trusted: with these
// bounds no size or offset overflows.
constexpr std::int64_t kMaxMap = std::int64_t{1} << 33, kMaxArena = std::int64_t{1} << 35;

// Lines of memory that are kSets apart share a set of the first-level cache. Images lie kApart sets apart, rows any odd
// number.
constexpr std::int64_t kSets = 64, kApart = 3;

// Up to so many values are placed largest first, which wastes the least but takes the square of their number in time.
constexpr std::size_t kMaxBySize = 4096;

// The free parts of an arena that grows at its end.
class Holes {
 public:
  // The smallest hole that is large enough, or new space at the end.
  std::int64_t take(std::int64_t size) {
    const auto found = by_size_.lower_bound({size, 0});
    if (found != by_size_.end()) {
      const auto [length, offset] = *found;
      remove(offset, length);
      if (length > size) add(offset + size, length - size);
      return offset;
    }
    std::int64_t offset = end_;
    if (!by_offset_.empty()) {
      const auto [last, length] = *by_offset_.rbegin();
      if (last + length == end_) remove(offset = last, length);
    }
    end_ = offset + size;
    return offset;
  }

  void release(std::int64_t offset, std::int64_t size) {
    const auto behind = by_offset_.find(offset + size);
    if (behind != by_offset_.end()) {
      const std::int64_t length = behind->second;
      remove(offset + size, length);
      size += length;
    }
    const auto next = by_offset_.lower_bound(offset);
    if (next != by_offset_.begin() && std::prev(next)->first + std::prev(next)->second == offset) {
      const auto [before, length] = *std::prev(next);
      remove(before, length);
      offset = before, size += length;
    }
    add(offset, size);
  }

  std::int64_t end() const { return end_; }

 private:
  void add(std::int64_t offset, std::int64_t size) {
    by_offset_.emplace(offset, size);
    by_size_.emplace(size, offset);
  }
  void remove(std::int64_t offset, std::int64_t size) {
    by_offset_.erase(offset);
    by_size_.erase({size, offset});
  }

  std::map<std::int64_t, std::int64_t> by_offset_;           // offset → size
  std::set<std::pair<std::int64_t, std::int64_t>> by_size_;  // (size, offset)
  std::int64_t end_ = 0;
};

// The frames that the values' readers need: pools cut their windows instead.
std::vector<int> borders(const Plan& plan) {
  std::vector<int> widest(plan.values.size(), 0);
  for (const Op& op : plan.ops) {
    if (op.kind != OpKind::conv && op.kind != OpKind::gated_conv) continue;
    int& border = widest[op.inputs[0]];
    border = std::max({border, op.window.padding[0], op.window.padding[1]});
  }
  return widest;
}

Map geometry_of(const Shape& shape, int border) {
  Map map{nullptr, 0, 0, shape.channels, shape.height, shape.width, border};
  // Kernels read pixels of several rows, or of several images, at once: a multiple of kSets apart, they would compete
  // for the same few lines of the cache.
  const std::int64_t row = (shape.width + 2 * std::int64_t{border}) * map.pixel_stride() / kLanes | 1;
  const std::int64_t image = (shape.height + 2 * std::int64_t{border}) * row;
  map.row_stride = row * kLanes;
  map.image_stride = (image < kSets ? image : image + (kSets + kApart - image % kSets) % kSets) * kLanes;
  return map;
}

}  // namespace

Layout::Layout(const Plan& plan) {
  const int ops = static_cast<int>(plan.ops.size());
  const std::vector<int> border = borders(plan);
  for (std::size_t value = 0; value < plan.values.size(); ++value) {
    places_.push_back({geometry_of(plan.values[value], border[value]), 0, -1, -1});
    if (places_.back().geometry.image_stride > kMaxMap) {
      throw PlanError("value " + std::to_string(value) + " needs more than 2^33 numbers with the padding of its readers");
    }
  }
  for (int i = 0; i < ops; ++i) {
    places_[plan.ops[i].output].first = i;
    for (int value : plan.ops[i].inputs) places_[value].last = i;
  }
  for (Place& place : places_) place.last = std::max(place.last, place.first);
  places_[plan.output].last = ops;
  if (places_.size() <= kMaxBySize) {
    place_by_size();
  } else {
    place_in_order();
  }
  if (floats_per_image_ > kMaxArena) throw PlanError("the values that live together need more than 2^35 numbers");
}

// Largest first, each at the lowest offset that is free throughout its life.
void Layout::place_by_size() {
  std::vector<int> order(places_.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [this](int a, int b) {
    return places_[a].geometry.image_stride > places_[b].geometry.image_stride;
  });
  std::vector<const Place*> placed;  // by offset
  for (int value : order) {
    Place& place = places_[value];
    const std::int64_t size = place.geometry.image_stride;
    std::int64_t offset = 0;
    for (const Place* other : placed) {
      const bool meet = place.first <= other->last && other->first <= place.last;
      if (!meet) continue;
      if (offset + size <= other->offset) break;
      offset = std::max(offset, other->offset + other->geometry.image_stride);
    }
    place.offset = offset;
    floats_per_image_ = std::max(floats_per_image_, offset + size);
    const auto behind = [](const Place* a, const Place* b) { return a->offset < b->offset; };
    placed.insert(std::upper_bound(placed.begin(), placed.end(), &place, behind), &place);
  }
}

// In order of execution, as an allocator would.
void Layout::place_in_order() {
  const auto by = [this](int Place::*when) {
    std::vector<Place*> order;
    for (Place& place : places_) order.push_back(&place);
    std::stable_sort(order.begin(), order.end(), [when](const Place* a, const Place* b) { return a->*when < b->*when; });
    return order;
  };
  Holes holes;
  const std::vector<Place*> ends = by(&Place::last);
  auto ended = ends.begin();
  for (Place* place : by(&Place::first)) {
    for (; (*ended)->last < place->first; ++ended) holes.release((*ended)->offset, (*ended)->geometry.image_stride);
    place->offset = holes.take(place->geometry.image_stride);
  }
  floats_per_image_ = holes.end();
}

Map Layout::map(int value, float* arena, std::int64_t images) const {
  const Place& place = places_[value];
  Map map = place.geometry;
  map.data = arena + place.offset * images + map.border * (map.row_stride + map.pixel_stride());
  return map;
}

}  // namespace headgate
