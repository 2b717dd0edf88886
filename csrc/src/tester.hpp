#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>
#include <span>
#include <vector>

#include "code_groups.hpp"
#include "dense.hpp"
#include "kernels.hpp"
#include "labels.hpp"
#include "parallel.hpp"

namespace headcodes {

/// Byte b as eight bytes of its bits.
inline constexpr auto bytes_of_bits = [] {
  std::array<std::uint64_t, 256> table{};
  for (std::size_t byte = 0; byte < table.size(); ++byte) {
    for (std::size_t bit = 0; bit < 8; ++bit) table[byte] |= std::uint64_t{byte >> bit & 1} << (8 * bit);
  }
  return table;
}();

/// Counts one statistic under every permutation, and what follows from the counts.
class Tester {
 public:
  Tester(const Dense& dense, const Permutations& permutations, std::span<const std::uint64_t> labels, Isa isa)
      : dense_(dense),
        n_(permutations.n),
        labels_(labels),
        slices_(kernels_of(isa).slices),
        counts_(n_blocks(permutations) * block_permutations),
        furthest_(permutations.n, -std::numeric_limits<float>::infinity()) {}

  struct Outcome {
    std::int32_t unique;
    std::int32_t at_least;
    float distance;
  };

  Outcome test(const GroupList& groups, Poll& poll) {
    const auto n_plane = static_cast<std::size_t>(std::bit_width(groups.n_code()));
    const std::size_t n_block = counts_.size() / block_permutations;
    for (std::size_t b = 0; b < n_block; ++b) {
      poll(dense_.n_prompt);
      slices_(groups.view(), labels_.data() + b * dense_.n_prompt * block_words, n_plane, planes_.data());
      unslice(n_plane, counts_.data() + b * block_permutations);
    }
    const std::int32_t observed = groups.observed();
    std::int32_t at_least = 0;
    std::int64_t sum = observed;
    std::int64_t squares = std::int64_t{observed} * observed;
    for (std::size_t k = 0; k < n_; ++k) {
      const std::int32_t count = counts_[k];
      at_least += count >= observed;
      sum += count;
      squares += std::int64_t{count} * count;
    }
    const double n_all = static_cast<double>(n_) + 1;
    const double mean = static_cast<double>(sum) / n_all;
    const double variance = static_cast<double>(squares) / n_all - mean * mean;
    const auto centre = static_cast<float>(mean);
    const auto scale = static_cast<float>(1 / std::sqrt(std::max(variance, 1.0)));
    // Rises with the count whatever is rounded, so that equal counts stay equal and larger ones never fall
    // behind.
    const auto distance = [&](std::int32_t count) { return (static_cast<float>(count) - centre) * scale; };
    for (std::size_t k = 0; k < n_; ++k) furthest_[k] = std::max(furthest_[k], distance(counts_[k]));
    return {observed, at_least, distance(observed)};
  }

  [[nodiscard]] const std::vector<float>& furthest() const { return furthest_; }

 private:
  /// From bit planes to one count per permutation, eight permutations and eight planes at a time.
  void unslice(std::size_t n_plane, std::int32_t* counts) const {
    std::fill_n(counts, block_permutations, 0);
    for (std::size_t first = 0; first < n_plane; first += 8) {
      const std::size_t last = std::min(first + 8, n_plane);
      for (std::size_t eight = 0; eight < block_permutations / 8; ++eight) {
        const std::size_t shift = eight % 8 * 8;
        std::uint64_t sums = 0;
        for (std::size_t k = first; k < last; ++k) {
          sums |= bytes_of_bits[planes_[k * block_words + eight / 8] >> shift & 0xff] << (k - first);
        }
        for (std::size_t k = 0; k < 8; ++k) {
          counts[eight * 8 + k] |= static_cast<std::int32_t>(sums >> (8 * k) & 0xff) << first;
        }
      }
    }
  }

  const Dense& dense_;
  std::size_t n_;
  std::span<const std::uint64_t> labels_;
  SlicesFunction slices_;
  std::vector<std::int32_t> counts_;
  std::vector<float> furthest_;
  std::array<std::uint64_t, 32 * block_words> planes_;
};

/// The furthest distance of each permutation over all workers, ascending.
class Furthest {
 public:
  explicit Furthest(std::size_t n) : values_(n, -std::numeric_limits<float>::infinity()) {}
  void merge(const std::vector<float>& other) {
    const std::lock_guard lock(mutex_);
    for (std::size_t k = 0; k < values_.size(); ++k) values_[k] = std::max(values_[k], other[k]);
  }
  void sort() { std::ranges::sort(values_); }
  [[nodiscard]] std::int32_t at_least(float distance) const {
    return static_cast<std::int32_t>(values_.end() - std::ranges::lower_bound(values_, distance));
  }

 private:
  std::mutex mutex_;
  std::vector<float> values_;
};

}  // namespace headcodes
