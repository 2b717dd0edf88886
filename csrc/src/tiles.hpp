#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include "dense.hpp"
#include "pair_kernels.hpp"
#include "parallel.hpp"

namespace headcodes {

// One-hot rows of all threads together, the largest of the working memories.
inline constexpr std::size_t spread_budget_bytes = std::size_t{24} << 20;

/// How the components of a tile are stored.
struct Layout {
  unsigned id_bytes = 1;
  unsigned lane_bytes = 2;  // of the one-hot rows
  std::size_t n_word = 1;   // lanes per component
  bool any_dead = false;
  bool can_spread = false;  // its one-hot rows fit the budget

  [[nodiscard]] std::size_t row_bytes() const { return tile_width * lane_bytes * n_word; }
  [[nodiscard]] std::size_t n_chunk() const { return row_bytes() / chunk_bytes(lane_bytes); }
  bool operator==(const Layout&) const = default;
};

/// Components in the order they are worked in, cut into tiles, with their ids as the kernels read them.
class Tiles {
 public:
  Tiles(const Dense& dense, const Options& options);

  [[nodiscard]] std::size_t size() const { return layouts_.size(); }
  [[nodiscard]] std::size_t n_component() const { return order_.size(); }
  [[nodiscard]] std::size_t first(std::size_t tile) const { return tile * tile_width; }
  [[nodiscard]] std::size_t last(std::size_t tile) const {
    return std::min((tile + 1) * tile_width, order_.size());
  }
  [[nodiscard]] const Layout& layout(std::size_t tile) const { return layouts_[tile]; }
  [[nodiscard]] std::size_t id_row_bytes(std::size_t tile) const {
    return tile_width * layouts_[tile].id_bytes;
  }
  [[nodiscard]] const std::byte* ids(std::size_t tile) const {
    return reinterpret_cast<std::byte*>(storage_.get()) + starts_[tile];
  }
  /// The component that is k-th in working order, and the other way round.
  [[nodiscard]] std::size_t component(std::size_t k) const { return order_[k]; }
  [[nodiscard]] std::size_t rank(std::size_t component) const { return rank_[component]; }
  /// Whether positions first .. last of the working order are neighbours for the caller as well.
  [[nodiscard]] bool neighbours(std::size_t first, std::size_t last) const {
    return breaks_[first] == breaks_[last];
  }
  [[nodiscard]] const Dense& dense() const { return dense_; }

 private:
  struct alignas(64) Line {
    std::byte bytes[64];
  };

  template <class T>
  void fill(std::size_t tile, Poll& poll);

  const Dense& dense_;
  std::vector<std::size_t> order_;
  std::vector<std::size_t> rank_;
  std::vector<std::size_t> breaks_;  // up to here, how often order_ does not just count on
  std::vector<Layout> layouts_;
  std::vector<std::size_t> starts_;
  std::unique_ptr<Line[]> storage_;
};

}  // namespace headcodes
