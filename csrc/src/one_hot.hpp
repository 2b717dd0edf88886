#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "parallel.hpp"
#include "tiles.hpp"

namespace headcodes {

/// Codes of second components as one-hot bits, for the tiles a thread works on: [chunk][prompt +
/// 1][chunk_bytes] each. The row after the last prompt holds the dead bit, which no pair may use.
class OneHot {
 public:
  /// Made when first asked for. Tiles first, first + 1, ... are asked for in turn, again and again: where the
  /// budget does not hold them all, the last place serves the rest.
  const std::byte* rows(const Tiles& tiles, std::size_t tile, std::size_t first, int threads, Poll& poll);

 private:
  struct Place {
    std::size_t tile = 0;
    std::vector<std::uint64_t> rows;
  };
  std::vector<Place> places_;
  std::size_t first_ = 0;
};

}  // namespace headcodes
