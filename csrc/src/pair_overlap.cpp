// Pair counts. For every first component i its prompts are grouped by code; a pair (i, j) is then a question
// about each group on its own: which codes of j do its positives have that its negatives lack? Three ways to
// answer it, for a tile of 64 components j at once, the cheapest taken group by group:
//   compare  every positive of the group with its negatives and its earlier positives, 64 codes of j in one
//   vector:
//            quadratic in the group, unbeatable for small ones;
//   spread   codes of j as one-hot bits, OR-ed over the group's positives and negatives: linear, wide for
//   many codes; stamps   a table of the codes met, one j after the other: linear, for large groups of many
//   codes.
// Components are taken in descending order of how many codes they have, so that i splits the prompts finely
// while j needs few bits. Each thread's share is settled beforehand.

#include <algorithm>
#include <vector>

#include "dense.hpp"
#include "headcodes/overlap.hpp"
#include "mirror.hpp"
#include "pair_counter.hpp"
#include "parallel.hpp"
#include "tiles.hpp"

namespace headcodes {

void pair_unique_counts(const Codes& positive, const Codes& negative, const Options& given,
                        std::span<const std::int32_t> layers, std::span<std::int32_t> unique,
                        std::span<std::int32_t> explained) {
  if (positive.n_component == 0) return;
  Options options = given;
  options.threads = useful_threads(
      options.threads, positive.n_component * positive.n_component * (positive.n_prompt + negative.n_prompt));
  const Dense dense = make_dense(positive, negative, options);
  const Tiles tiles(dense, options);
  const std::size_t max_ids = *std::ranges::max_element(dense.n_ids);
  const std::vector<Unit> units = make_units(tiles, options.threads);
  std::vector<std::size_t> cost_before{0};
  for (const Unit& unit : units) cost_before.push_back(cost_before.back() + unit.cost);
  const auto unit_at = [&](int worker) {
    const std::size_t cost = share_begin(cost_before.back(), worker, options.threads);
    return static_cast<std::size_t>(std::ranges::lower_bound(cost_before, cost) - cost_before.begin());
  };
  run_workers(options.threads, options.cancelled, [&](int worker, Poll& poll) {
    const std::size_t end = unit_at(worker + 1);
    if (unit_at(worker) == end) return;
    PairCounter counter(tiles, options, max_ids, unique, explained);
    for (std::size_t u = unit_at(worker); u < end; ++u) counter(units[u], poll);
  });
  mirror(tiles, layers, options, unique);
  if (!explained.empty()) mirror(tiles, layers, options, explained);
}

}  // namespace headcodes
