// Where a plan's values live: the geometry of their maps, and one arena in which values whose lives do not meet overlap.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/held.h"
#include "engine/plan.h"
#include "kernels/map.h"
#include "kernels/narrow/narrow.h"

namespace headgate {

class Layout {
 public:
  Layout(const Plan& plan, std::vector<Held> held);

  // Size in floats of the arena for so many images.
  std::int64_t arena_size(std::int64_t images) const { return floats_per_image_ * images; }

  const Held& held(int value) const { return held_[value]; }

  // A value's map in an arena for `images` images; without data if the value is not held in floats.
  Map map(int value, float* arena, std::int64_t images) const;

  // The same of a value that is held rounded, with its frame.
  NarrowMap rounded(int value, float* arena, std::int64_t images) const;

 private:
  struct Place {
    std::int64_t size, offset;  // floats per image
    int first, last;            // operators between which it is needed
  };
  static constexpr int kNowhere = -1;
  struct Places {
    int floats = kNowhere, rounded = kNowhere;
  };

  void place_by_size();
  void place_in_order();

  std::vector<Held> held_;
  std::vector<Map> maps_;  // without data
  std::vector<Places> of_value_;

  std::vector<Place> places_;
  std::int64_t floats_per_image_ = 0;
};

}  // namespace headgate
