// Where a plan's values live: the geometry of their maps, and one arena in which values whose lives do not meet overlap.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/plan.h"
#include "kernels/map.h"

namespace headgate {

class Layout {
 public:
  explicit Layout(const Plan& plan);

  // Size in floats of the arena for so many images.
  std::int64_t arena_size(std::int64_t images) const { return floats_per_image_ * images; }

  // A value's map in an arena for `images` images.
  Map map(int value, float* arena, std::int64_t images) const;

 private:
  struct Place {
    Map geometry;          // without data
    std::int64_t offset;   // floats per image
    int first, last;       // operators between which the value lives
  };

  void place_by_size();
  void place_in_order();

  std::vector<Place> places_;
  std::int64_t floats_per_image_ = 0;
};

}  // namespace headgate
