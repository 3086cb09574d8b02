#include "engine/layout.h"

#include <algorithm>
#include <numeric>

namespace headgate {
namespace {

// The frame that a value's readers need: pools cut their windows instead.
int border_of(const Plan& plan, int value) {
  int border = 0;
  for (const Op& op : plan.ops) {
    const bool convolves = op.kind == OpKind::conv || op.kind == OpKind::gated_conv;
    if (!convolves || op.inputs[0] != value) continue;
    border = std::max({border, op.window.padding[0], op.window.padding[1]});
  }
  return border;
}

Map geometry_of(const Shape& shape, int border) {
  Map map{nullptr, 0, 0, shape.channels, shape.height, shape.width, border};
  map.row_stride = (shape.width + 2 * std::int64_t{border}) * map.pixel_stride();
  map.image_stride = (shape.height + 2 * std::int64_t{border}) * map.row_stride;
  return map;
}

}  // namespace

Layout::Layout(const Plan& plan) {
  const int ops = static_cast<int>(plan.ops.size());
  for (int value = 0; value < static_cast<int>(plan.values.size()); ++value) {
    places_.push_back({geometry_of(plan.values[value], border_of(plan, value)), 0, -1, -1});
  }
  for (int i = 0; i < ops; ++i) {
    places_[plan.ops[i].output].first = i;
    for (int value : plan.ops[i].inputs) places_[value].last = i;
  }
  for (Place& place : places_) place.last = std::max(place.last, place.first);
  places_[plan.output].last = ops;
  place_all();
}

// Largest first, each at the lowest offset that is free throughout its life.
void Layout::place_all() {
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

Map Layout::map(int value, float* arena, std::int64_t images) const {
  const Place& place = places_[value];
  Map map = place.geometry;
  map.data = arena + place.offset * images + map.border * (map.row_stride + map.pixel_stride());
  return map;
}

}  // namespace headgate
