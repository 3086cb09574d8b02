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

// The same map of narrow numbers.
NarrowMap rounded_geometry(const Map& of) {
  NarrowMap map{};
  map.border = of.border, map.height = of.height, map.width = of.width;
  map.first_row = -of.border, map.last_row = of.height + of.border;
  map.pixel_stride = of.pixel_stride();
  map.row_stride = (of.width + 2 * std::int64_t{of.border}) * map.pixel_stride;
  map.image_stride = (map.last_row - map.first_row) * map.row_stride;
  return map;
}

// Of one image, a multiple of 64 bytes; with what may be read behind the last element.
std::int64_t rounded_floats(const Map& map, const Held::Rounded& rounded) {
  const std::int64_t bytes = rounded_geometry(map).image_stride * rounded.element_bytes + kNarrowSlack;
  return (bytes + 63) / 64 * kLanes;
}

}  // namespace

Layout::Layout(const Plan& plan, std::vector<Held> held) : held_(std::move(held)), of_value_(plan.values.size()) {
  const int ops = static_cast<int>(plan.ops.size()), values = static_cast<int>(plan.values.size());
  const std::vector<int> border = borders(plan);
  std::vector<int> first(values, -1), last(values, -1);
  for (int i = 0; i < ops; ++i) {
    first[plan.ops[i].output] = i;
    for (int value : plan.ops[i].inputs) last[value] = i;
  }
  last[plan.output] = ops;
  const auto place = [&](int value, std::int64_t size) {
    places_.push_back({size, 0, first[value], std::max(first[value], last[value])});
    return static_cast<int>(places_.size()) - 1;
  };
  for (int value = 0; value < values; ++value) {
    maps_.push_back(geometry_of(plan.values[value], border[value]));
    if (maps_.back().image_stride > kMaxMap) {
      throw PlanError("value " + std::to_string(value) + " needs more than 2^33 numbers with the padding of its readers");
    }
    if (held_[value].floats) of_value_[value].floats = place(value, maps_.back().image_stride);
    if (held_[value].rounded) of_value_[value].rounded = place(value, rounded_floats(maps_.back(), *held_[value].rounded));
  }
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
    return places_[a].size > places_[b].size;
  });
  std::vector<const Place*> placed;  // by offset
  for (int value : order) {
    Place& place = places_[value];
    const std::int64_t size = place.size;
    std::int64_t offset = 0;
    for (const Place* other : placed) {
      const bool meet = place.first <= other->last && other->first <= place.last;
      if (!meet) continue;
      if (offset + size <= other->offset) break;
      offset = std::max(offset, other->offset + other->size);
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
    for (; (*ended)->last < place->first; ++ended) holes.release((*ended)->offset, (*ended)->size);
    place->offset = holes.take(place->size);
  }
  floats_per_image_ = holes.end();
}

Map Layout::map(int value, float* arena, std::int64_t images) const {
  Map map = maps_[value];
  const int place = of_value_[value].floats;
  if (place == kNowhere) return map;
  map.data = arena + places_[place].offset * images + map.border * (map.row_stride + map.pixel_stride());
  return map;
}

NarrowMap Layout::rounded(int value, float* arena, std::int64_t images) const {
  NarrowMap map = rounded_geometry(maps_[value]);
  map.data = reinterpret_cast<std::byte*>(arena + places_[of_value_[value].rounded].offset * images);
  map.last_image = images;
  return map;
}

}  // namespace headgate
