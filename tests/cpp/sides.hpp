#pragma once

// What the tests of the core share: drawn codes, their counts from the definition, and a tally of failures.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "headcodes/overlap.hpp"

namespace headcodes::testing {

inline int failures = 0;

inline void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

/// Codes of both sides, prompts in rows.
struct Sides {
  std::size_t n_positive;
  std::size_t n_negative;
  std::size_t n_component;
  std::vector<std::int32_t> codes;

  [[nodiscard]] std::int32_t at(std::size_t prompt, std::size_t component) const {
    return codes[prompt * n_component + component];
  }
  [[nodiscard]] Codes positive() const { return view(0, n_positive); }
  [[nodiscard]] Codes negative() const { return view(n_positive, n_negative); }
  [[nodiscard]] Codes view(std::size_t first, std::size_t n) const {
    return {codes.data() + first * n_component, n, n_component, static_cast<std::ptrdiff_t>(n_component), 1};
  }
};

/// Each component draws from n_codes codes, some far more often than others (skew > 0), and is dead in a
/// share.
inline Sides draw(std::size_t n_positive, std::size_t n_negative, std::size_t n_component,
                  const std::vector<int>& n_codes, double skew, double dead, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(0, 1);
  Sides sides{n_positive, n_negative, n_component, {}};
  sides.codes.resize((n_positive + n_negative) * n_component);
  for (std::size_t c = 0; c < n_component; ++c) {
    const int n = n_codes[c % n_codes.size()];
    const int shift = static_cast<int>(uniform(random) * (65536 - n));
    for (std::size_t p = 0; p < n_positive + n_negative; ++p) {
      const int code = std::min(n - 1, static_cast<int>(n * std::pow(uniform(random), 1 + skew)));
      sides.codes[p * n_component + c] = uniform(random) < dead ? -1 : shift + code;
    }
  }
  return sides;
}

/// Every component has exactly n_codes codes among the positives; negatives share some of them.
inline Sides draw_all(std::size_t n_codes, std::size_t n_positive, std::size_t n_negative, unsigned seed) {
  std::mt19937 random(seed);
  constexpr std::size_t n_component = 3;
  Sides sides{n_positive, n_negative, n_component,
              std::vector<std::int32_t>((n_positive + n_negative) * n_component)};
  std::vector<std::int32_t> column(n_positive);
  for (std::size_t c = 0; c < n_component; ++c) {
    // Every code once, the first three for all that is left: both small and large groups.
    for (std::size_t p = 0; p < n_positive; ++p) {
      column[p] = static_cast<std::int32_t>(p < n_codes ? p : p % 3);
    }
    if (c == 1) std::ranges::reverse(column);
    if (c == 2) std::ranges::shuffle(column, random);
    for (std::size_t p = 0; p < n_positive; ++p) sides.codes[p * n_component + c] = column[p];
  }
  for (std::size_t p = n_positive; p < n_positive + n_negative; ++p) {
    const std::size_t like = random() % n_positive;
    for (std::size_t c = 0; c < n_component; ++c) {
      const auto drawn = random();
      sides.codes[p * n_component + c] = drawn % 3 == 0   ? static_cast<std::int32_t>(drawn % 65536)
                                         : drawn % 7 == 0 ? -1
                                                          : sides.codes[like * n_component + c];
    }
  }
  sides.codes[n_component * 5] = -1;
  return sides;
}

struct Expected {
  std::int32_t unique = 0;
  std::int32_t explained = 0;
};

/// From the definition. j = i means the node count. `positive` labels the prompts.
inline Expected expected(const Sides& sides, std::size_t i, std::size_t j,
                         const std::vector<std::uint8_t>& positive) {
  std::map<std::pair<int, int>, std::pair<int, int>> seen;
  for (std::size_t p = 0; p < sides.n_positive + sides.n_negative; ++p) {
    const std::pair<int, int> code{sides.at(p, i), sides.at(p, j)};
    if (code.first == -1 || code.second == -1) continue;
    auto& [in_positive, in_negative] = seen[code];
    ++(positive[p] != 0 ? in_positive : in_negative);
  }
  Expected result;
  for (const auto& [code, times] : seen) {
    if (times.second != 0 || times.first == 0) continue;
    ++result.unique;
    result.explained += times.first;
  }
  return result;
}

inline std::vector<std::uint8_t> given_labels(const Sides& sides) {
  std::vector<std::uint8_t> labels(sides.n_positive + sides.n_negative, 0);
  std::fill_n(labels.begin(), sides.n_positive, std::uint8_t{1});
  return labels;
}

/// More components than can be looked at in full: some pairs against sets.
inline void check_some_pairs(const Sides& sides, Isa isa, int threads, const std::string& name) {
  const std::size_t n = sides.n_component;
  std::vector<std::int32_t> pairs(n * n);
  std::vector<std::int32_t> explained(n * n);
  pair_unique_counts(sides.positive(), sides.negative(), {-1, threads, isa, {}}, {}, pairs, explained);
  const auto labels = given_labels(sides);
  bool good = true;
  for (std::size_t i = 0; i < n; i += 17) {
    for (std::size_t j = 1; j < n; j += 11) {
      const Expected pair = i == j ? Expected{} : expected(sides, i, j, labels);
      good = good && pairs[i * n + j] == pair.unique && explained[j * n + i] == pair.explained;
    }
  }
  expect(good, name);
}

}  // namespace headcodes::testing
