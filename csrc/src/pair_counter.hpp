#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels.hpp"
#include "one_hot.hpp"
#include "parallel.hpp"
#include "plan.hpp"
#include "stamps.hpp"
#include "tiles.hpp"

namespace headcodes {

/// A run of tiles of one layout, against a run of first components no later in the order.
struct Unit {
  std::size_t run_begin;  // the run's first tile, whether or not these components need it
  std::size_t first_tile;
  std::size_t last_tile;
  std::size_t first_component;
  std::size_t last_component;
  std::size_t cost;
};

std::vector<Unit> make_units(const Tiles& tiles, int threads);

inline constexpr std::size_t max_firsts_together = 64;

/// Counts the pairs of one unit after another, with working memory of its own: one a thread.
class PairCounter {
 public:
  PairCounter(const Tiles& tiles, const Options& options, std::size_t max_ids, std::span<std::int32_t> unique,
              std::span<std::int32_t> explained)
      : tiles_(tiles),
        kernels_(kernels_of(options.isa).pairs),
        threads_(options.threads),
        unique_(unique),
        explained_(explained),
        stamps_(max_ids),
        plans_(max_firsts_together) {}

  void operator()(const Unit& unit, Poll& poll);

 private:
  void count_tile(std::size_t tile, std::size_t n_first, std::size_t run_begin, Poll& poll);
  void stamp(const Plan& plan, std::size_t tile, std::size_t f, Poll& poll);
  /// Chunk by chunk, all first components in turn: a chunk's rows stay in cache meanwhile.
  void spread(std::size_t tile, std::size_t n_first, std::size_t run_begin, Poll& poll);
  /// Writes row `component(i)`: entries of the components that come later in the order.
  void give(std::size_t i, std::size_t tile, const std::int32_t* counts, std::span<std::int32_t> out) const;
  const Tiles& tiles_;
  const PairKernels& kernels_;
  int threads_;
  std::span<std::int32_t> unique_;
  std::span<std::int32_t> explained_;
  Stamps stamps_;
  OneHot one_hot_;
  std::vector<Plan> plans_;
  std::array<std::array<std::int32_t, tile_width>, max_firsts_together> unique_counts_;
  std::array<std::array<std::int32_t, tile_width>, max_firsts_together> explained_counts_;
};

}  // namespace headcodes
