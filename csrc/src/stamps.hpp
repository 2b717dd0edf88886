#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "groups.hpp"

namespace headcodes {

struct Counts {
  std::int32_t unique = 0;
  std::int32_t explained = 0;
};

/// Which ids of the second component a group of the first has met: a stamp per id, never cleared.
class Stamps {
 public:
  explicit Stamps(std::size_t n_ids) : negative_(n_ids + 1, 0), positive_(n_ids + 1, 0) {}

  Counts count(const Groups& first, std::span<const std::uint32_t> which,
               std::span<const std::uint32_t> second) {
    Counts counts;
    for (const std::uint32_t g : which) {
      const auto& group = first.groups[g];
      if (epoch_ == std::numeric_limits<std::uint32_t>::max()) {
        std::ranges::fill(negative_, 0);
        std::ranges::fill(positive_, 0);
        epoch_ = 0;
      }
      ++epoch_;
      negative_[0] = epoch_;
      for (std::uint32_t k = group.middle; k < group.end; ++k) negative_[second[first.prompts[k]]] = epoch_;
      for (std::uint32_t k = group.begin; k < group.middle; ++k) {
        const std::uint32_t id = second[first.prompts[k]];
        if (negative_[id] == epoch_) continue;
        ++counts.explained;
        if (positive_[id] == epoch_) continue;
        positive_[id] = epoch_;
        ++counts.unique;
      }
    }
    return counts;
  }

 private:
  std::vector<std::uint32_t> negative_;
  std::vector<std::uint32_t> positive_;
  std::uint32_t epoch_ = 0;
};

}  // namespace headcodes
