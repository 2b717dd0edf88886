#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "groups.hpp"
#include "pair_kernels.hpp"
#include "tiles.hpp"

namespace headcodes {

/// What to do about the groups of one first component, for tiles of one layout.
struct Plan {
  Groups groups;
  std::vector<CompareProgram::Segment> segments;
  std::vector<std::uint32_t> compares;
  std::vector<CompareProgram::Segment> negative_segments;  // for `explained`: conflicts with negatives only
  std::vector<std::uint32_t> negative_compares;
  std::size_t n_always = 0;  // positives without conflict
  std::size_t n_always_explained = 0;
  std::vector<std::uint32_t> spreads;
  std::size_t n_spread = 0;
  std::vector<std::uint32_t> stamped;  // indices of groups

  void make(const Layout& layout, const PairKernels& kernels, bool explained);

 private:
  /// Sorts the entries of all compared groups by their number of conflicts; returns how many can have none.
  std::size_t write(std::uint32_t row, bool any_dead, bool negatives_only,
                    std::vector<CompareProgram::Segment>& out_segments, std::vector<std::uint32_t>& out);

  std::vector<std::uint32_t> compared_;
  std::vector<std::uint32_t> counts_;
  std::vector<std::uint32_t> starts_;
};

}  // namespace headcodes
