#include "plan.hpp"

#include <algorithm>
#include <limits>

namespace headcodes {
namespace {

// A longer list of conflicts would be the costlier way anyway, and lists are sorted by their length.
constexpr std::size_t max_compared = 128;

/// What each way costs for a group of p positives and n negatives against one tile, in steps. A step reads
/// step_bytes of a tile and does one operation on them: the ids of 64 components in one byte each, or a share
/// of a row of one-hot bits. Only the choice between ways depends on this, never a count.
class CostModel {
 public:
  CostModel(const Layout& layout, const PairKernels& kernels, bool explained)
      : id_steps_(layout.id_bytes),
        row_steps_(layout.can_spread ? static_cast<double>(layout.row_bytes()) / step_bytes
                                     : std::numeric_limits<double>::infinity()),
        column_steps_(static_cast<double>(tile_width) * kernels.stamp_steps),
        explained_(explained),
        any_dead_(layout.any_dead),
        least_(std::min(spread_fixed * row_steps_, stamps_fixed * column_steps_)) {}

  /// Each positive is read, and compared with the negatives and with the positives before it; for `explained`
  /// read and compared with the negatives once more; where codes may be dead, compared with those.
  [[nodiscard]] double compare(double p, double n) const {
    const double others = p * n + p * (p - 1) / 2 + p;
    return static_cast<double>(id_steps_) * (others + (explained_ ? p * n + p : 0) + (any_dead_ ? p : 0));
  }
  /// Every prompt's bits are read once, the positives' twice for `explained`.
  [[nodiscard]] double spread(double p, double n) const {
    return row_steps_ * (p + n + (explained_ ? p : 0) + spread_fixed);
  }
  /// Every prompt's code is looked up, for one component after the other.
  [[nodiscard]] double stamps(double p, double n) const { return column_steps_ * (p + n + stamps_fixed); }

  [[nodiscard]] bool compare_is_cheapest(std::size_t p, std::size_t n) const {
    // In whole numbers, and no less than compare(p, n): settles nearly all groups of uniform codes.
    const std::size_t bound = (explained_ ? 2 : 1) * id_steps_ * p * (n + p / 2 + 2);
    if (static_cast<double>(bound) <= least_) return true;
    const auto a = static_cast<double>(p);
    const auto b = static_cast<double>(n);
    return compare(a, b) <= std::min(spread(a, b), stamps(a, b));
  }

 private:
  // What a group costs beside its prompts, in prompts: for spread the dead bits, the population count and its
  // sum; for stamps a new epoch; for both the ends of their loops. `measure_core costs` finds 1 to 6.5
  // and 1.3 where groups are of one size; sizes that the processor cannot foresee, as in real codes, cost a
  // mispredicted branch or two more (docs/performance.md).
  static constexpr double spread_fixed = 10;
  static constexpr double stamps_fixed = 4;

  std::size_t id_steps_;  // of a tile's row of ids: id_bytes * tile_width / step_bytes
  double row_steps_;      // of a tile's row of one-hot bits
  double column_steps_;   // of one prompt in a tile's columns, looked up one by one
  bool explained_;
  bool any_dead_;
  double least_;  // no group costs the other ways less
};

}  // namespace

void Plan::make(const Layout& layout, const PairKernels& kernels, bool explained) {
  spreads.clear();
  n_spread = 0;
  stamped.clear();
  compared_.clear();
  const CostModel cost(layout, kernels, explained);
  const auto chunk = static_cast<std::uint32_t>(chunk_bytes(layout.lane_bytes));
  for (std::uint32_t g = 0; g < groups.groups.size(); ++g) {
    const auto& group = groups.groups[g];
    const std::size_t p = group.n_positive();
    const std::size_t n = group.n_negative();
    if (p + n <= max_compared && cost.compare_is_cheapest(p, n)) {
      compared_.push_back(g);
    } else if (cost.spread(p, n) <= cost.stamps(p, n)) {
      ++n_spread;
      spreads.push_back(static_cast<std::uint32_t>(group.n_negative()));
      spreads.push_back(static_cast<std::uint32_t>(group.n_positive()));
      for (std::uint32_t k = group.middle; k < group.end; ++k) spreads.push_back(groups.prompts[k] * chunk);
      for (std::uint32_t k = group.begin; k < group.middle; ++k) spreads.push_back(groups.prompts[k] * chunk);
    } else {
      stamped.push_back(g);
    }
  }
  const auto row = static_cast<std::uint32_t>(tile_width * layout.id_bytes);
  n_always = write(row, layout.any_dead, false, segments, compares);
  if (explained) n_always_explained = write(row, layout.any_dead, true, negative_segments, negative_compares);
}

std::size_t Plan::write(std::uint32_t row, bool any_dead, bool negatives_only,
                        std::vector<CompareProgram::Segment>& out_segments, std::vector<std::uint32_t>& out) {
  counts_.clear();
  for (const std::uint32_t g : compared_) {
    const auto& group = groups.groups[g];
    const std::size_t n = group.n_negative();
    const std::size_t p = group.n_positive();
    const std::size_t most = negatives_only ? n : n + p - 1;
    if (counts_.size() <= most) counts_.resize(most + 1, 0);
    if (negatives_only) {
      counts_[n] += static_cast<std::uint32_t>(p);
    } else {
      for (std::size_t k = 0; k < p; ++k) ++counts_[n + k];
    }
  }
  out_segments.clear();
  // Without a dead id, an entry without conflicts is known to count.
  const std::size_t least = any_dead ? 0 : 1;
  const std::size_t n_always_here = any_dead || counts_.empty() ? 0 : counts_[0];
  starts_.resize(counts_.size());
  std::uint32_t size = 0;
  for (std::size_t k = least; k < counts_.size(); ++k) {
    starts_[k] = size;
    if (counts_[k] == 0) continue;
    out_segments.push_back({counts_[k], static_cast<std::uint32_t>(k)});
    size += counts_[k] * static_cast<std::uint32_t>(k + 1);
  }
  out.resize(size);
  for (const std::uint32_t g : compared_) {
    const auto& group = groups.groups[g];
    const std::uint32_t n = group.end - group.middle;
    for (std::uint32_t own = group.begin; own < group.middle; ++own) {
      const std::uint32_t n_before = negatives_only ? 0 : own - group.begin;
      const std::uint32_t k = n + n_before;
      if (k < least) continue;
      std::uint32_t* at = out.data() + starts_[k];
      starts_[k] += k + 1;
      *at++ = groups.prompts[own] * row;
      for (std::uint32_t other = group.middle; other < group.end; ++other)
        *at++ = groups.prompts[other] * row;
      for (std::uint32_t other = group.begin; other < group.begin + n_before; ++other) {
        *at++ = groups.prompts[other] * row;
      }
    }
  }
  return n_always_here;
}

}  // namespace headcodes
