#include "pair_counter.hpp"

#include <algorithm>

namespace headcodes {
namespace {

// With many prompts fewer first components are planned at once, and the longest lists are left to the other
// ways.
constexpr std::size_t max_prompts_planned = 32768;
// A tile's one-hot rows and ids are read once for so many first components at least, ...
constexpr std::size_t min_firsts_together = 8;
// ... and so many units a thread make their static partition even to about an eighth of a share.
constexpr std::size_t units_per_thread = 8;

}  // namespace

std::vector<Unit> make_units(const Tiles& tiles, int threads) {
  const std::size_t n = tiles.n_component();
  // Enough units for an even partition, yet each long enough to repay its plans.
  std::size_t n_first = max_firsts_together;
  while (n_first > 1 && n_first * tiles.dense().n_prompt > max_prompts_planned) n_first /= 2;
  while (n_first > min_firsts_together &&
         n / n_first < units_per_thread * static_cast<std::size_t>(threads)) {
    n_first /= 2;
  }
  std::vector<Unit> units;
  std::size_t begin = 0;
  while (begin < tiles.size()) {
    std::size_t end = begin + 1;
    while (end < tiles.size() && tiles.layout(end) == tiles.layout(begin)) ++end;
    const std::size_t last_first = tiles.last(end - 1);
    for (std::size_t i = 0; i < last_first; i += n_first) {
      const std::size_t last = std::min(i + n_first, last_first);
      const std::size_t from = std::max(begin, i / tile_width);
      units.push_back({begin, from, end, i, last, (last - i) * (end - from)});
    }
    begin = end;
  }
  return units;
}

void PairCounter::operator()(const Unit& unit, Poll& poll) {
  const Layout& layout = tiles_.layout(unit.first_tile);
  const std::size_t n_first = unit.last_component - unit.first_component;
  for (std::size_t f = 0; f < n_first; ++f) {
    poll(2 * Poll::per_prompt * tiles_.dense().n_prompt);
    plans_[f].groups.make(tiles_.dense(), tiles_.component(unit.first_component + f));
    plans_[f].make(layout, kernels_, !explained_.empty());
  }
  for (std::size_t tile = unit.first_tile; tile < unit.last_tile; ++tile) {
    count_tile(tile, n_first, unit.run_begin, poll);
    for (std::size_t f = 0; f < n_first; ++f) {
      give(unit.first_component + f, tile, unique_counts_[f].data(), unique_);
      if (!explained_.empty()) give(unit.first_component + f, tile, explained_counts_[f].data(), explained_);
    }
  }
}

void PairCounter::count_tile(std::size_t tile, std::size_t n_first, std::size_t run_begin, Poll& poll) {
  const Layout& layout = tiles_.layout(tile);
  const bool explained = !explained_.empty();
  bool any_spread = false;
  for (std::size_t f = 0; f < n_first; ++f) {
    const Plan& plan = plans_[f];
    poll(layout.id_bytes * (plan.compares.size() + plan.negative_compares.size()));
    unique_counts_[f].fill(static_cast<std::int32_t>(plan.n_always));
    kernels_.compare({plan.segments.data(), plan.segments.size(), plan.compares.data()}, tiles_.ids(tile),
                     layout.id_bytes, layout.any_dead, unique_counts_[f].data());
    any_spread = any_spread || plan.n_spread != 0;
    if (explained) {
      explained_counts_[f].fill(static_cast<std::int32_t>(plan.n_always_explained));
      kernels_.compare(
          {plan.negative_segments.data(), plan.negative_segments.size(), plan.negative_compares.data()},
          tiles_.ids(tile), layout.id_bytes, layout.any_dead, explained_counts_[f].data());
    }
    if (!plan.stamped.empty()) stamp(plan, tile, f, poll);
  }
  if (any_spread) spread(tile, n_first, run_begin, poll);
}

void PairCounter::stamp(const Plan& plan, std::size_t tile, std::size_t f, Poll& poll) {
  for (std::size_t k = tiles_.first(tile); k < tiles_.last(tile); ++k) {
    poll(Poll::per_prompt * tiles_.dense().n_prompt);
    const Counts counts =
        stamps_.count(plan.groups, plan.stamped, tiles_.dense().column(tiles_.component(k)));
    unique_counts_[f][k - tiles_.first(tile)] += counts.unique;
    explained_counts_[f][k - tiles_.first(tile)] += counts.explained;
  }
}

void PairCounter::spread(std::size_t tile, std::size_t n_first, std::size_t run_begin, Poll& poll) {
  const Layout& layout = tiles_.layout(tile);
  const std::byte* rows = one_hot_.rows(tiles_, tile, run_begin, threads_, poll);
  const std::size_t n_prompt = tiles_.dense().n_prompt;
  const std::size_t chunk = chunk_bytes(layout.lane_bytes);
  const auto dead_offset = static_cast<std::uint32_t>(n_prompt * chunk);
  std::array<std::int32_t, tile_width> hits;
  for (std::size_t c = 0; c < layout.n_chunk(); ++c) {
    const std::size_t first_lane = c * (chunk / layout.lane_bytes) % tile_width;
    // Only the first word of a component has the dead bit.
    for (std::size_t f = 0; f < n_first; ++f) {
      const Plan& plan = plans_[f];
      if (plan.n_spread == 0) continue;
      poll(chunk / step_bytes * plan.spreads.size());
      hits.fill(0);
      kernels_.spread({plan.n_spread, plan.spreads.data(), dead_offset}, rows + c * (n_prompt + 1) * chunk,
                      layout.lane_bytes, unique_counts_[f].data() + first_lane,
                      explained_.empty() ? nullptr : hits.data());
      if (explained_.empty()) continue;
      // A positive has one bit in all the words of a component: what is not hit in any of them is
      // explained.
      for (std::size_t k = 0; k < chunk / layout.lane_bytes; ++k)
        explained_counts_[f][first_lane + k] -= hits[k];
    }
  }
  if (explained_.empty()) return;
  for (std::size_t f = 0; f < n_first; ++f) {
    std::size_t n_positive = 0;
    std::size_t at = 0;
    for (std::size_t g = 0; g < plans_[f].n_spread; ++g) {
      n_positive += plans_[f].spreads[at + 1];
      at += 2 + plans_[f].spreads[at] + plans_[f].spreads[at + 1];
    }
    for (auto& count : explained_counts_[f]) count += static_cast<std::int32_t>(n_positive);
  }
}

void PairCounter::give(std::size_t i, std::size_t tile, const std::int32_t* counts,
                       std::span<std::int32_t> out) const {
  const std::size_t begin = std::max(i + 1, tiles_.first(tile));
  const std::size_t end = tiles_.last(tile);
  if (begin >= end) return;
  std::int32_t* row = out.data() + tiles_.component(i) * tiles_.n_component();
  counts += begin - tiles_.first(tile);
  if (tiles_.neighbours(begin, end - 1)) {
    std::copy_n(counts, end - begin, row + tiles_.component(begin));
  } else {
    for (std::size_t k = begin; k < end; ++k) row[tiles_.component(k)] = *counts++;
  }
}

}  // namespace headcodes
