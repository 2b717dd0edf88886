// The core against sets of codes, in every variant of its loops. Built with or without sanitizers; see
// CMakeLists.txt.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "headcodes/overlap.hpp"
#include "headcodes/permutation.hpp"
#include "parallel.hpp"
#include "random.hpp"

namespace {

using namespace headcodes;

int failures = 0;

void expect(bool holds, const std::string& what) {
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
Sides draw(std::size_t n_positive, std::size_t n_negative, std::size_t n_component,
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
Sides draw_all(std::size_t n_codes, std::size_t n_positive, std::size_t n_negative, unsigned seed) {
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
Expected expected(const Sides& sides, std::size_t i, std::size_t j,
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

std::vector<std::uint8_t> given_labels(const Sides& sides) {
  std::vector<std::uint8_t> labels(sides.n_positive + sides.n_negative, 0);
  std::fill_n(labels.begin(), sides.n_positive, std::uint8_t{1});
  return labels;
}

void check_counts(const Sides& sides, Isa isa, int threads, const std::string& name) {
  const std::size_t n = sides.n_component;
  const Options options{-1, threads, isa, {}};
  const auto labels = given_labels(sides);
  std::vector<std::int32_t> layers(n);
  for (std::size_t c = 0; c < n; ++c) layers[c] = static_cast<std::int32_t>(c * 7 % 5);
  std::vector<std::int32_t> nodes(n, -9);
  std::vector<std::int32_t> nodes_explained(n, -9);
  unique_counts(sides.positive(), sides.negative(), options, nodes, nodes_explained);
  std::vector<std::int32_t> pairs(n * n, -9);
  std::vector<std::int32_t> pairs_explained(n * n, -9);
  std::vector<std::int32_t> alone(n * n, -9);
  std::vector<std::int32_t> layered(n * n, -9);
  pair_unique_counts(sides.positive(), sides.negative(), options, {}, pairs, pairs_explained);
  pair_unique_counts(sides.positive(), sides.negative(), options, {}, alone);
  pair_unique_counts(sides.positive(), sides.negative(), options, layers, layered);
  bool good = true;
  for (std::size_t i = 0; i < n; ++i) {
    const Expected node = expected(sides, i, i, labels);
    good = good && nodes[i] == node.unique && nodes_explained[i] == node.explained && pairs[i * n + i] == 0 &&
           pairs_explained[i * n + i] == 0;
    for (std::size_t j = i + 1; j < n; ++j) {
      const Expected pair = expected(sides, i, j, labels);
      for (const auto& [a, b] : {std::pair{i, j}, std::pair{j, i}}) {
        good = good && pairs[a * n + b] == pair.unique && pairs_explained[a * n + b] == pair.explained &&
               layered[a * n + b] == (layers[a] < layers[b] ? pair.unique : 0);
      }
    }
  }
  expect(good, name + ": counts against sets");
  expect(alone == pairs, name + ": counts without explained");
}

/// Every pair of n_first and n_second codes once among the positives, and once more the first n_negative of
/// them among the negatives. A tile of components has the first, one in a tile of its own the second.
void check_cross(std::size_t n_first, std::size_t n_second, std::size_t n_negative, Isa isa,
                 const std::string& name) {
  constexpr std::size_t n = 65;
  Sides sides{n_first * n_second, n_negative, n, {}};
  for (std::size_t p = 0; p < sides.n_positive + n_negative; ++p) {
    const std::size_t pair = p % sides.n_positive;
    for (std::size_t c = 0; c < n; ++c) {
      sides.codes.push_back(static_cast<std::int32_t>(c + 1 < n ? pair / n_second : pair % n_second));
    }
  }
  std::vector<std::int32_t> pairs(n * n);
  std::vector<std::int32_t> explained(n * n);
  pair_unique_counts(sides.positive(), sides.negative(), {-1, 1, isa, {}}, {}, pairs, explained);
  const auto want = static_cast<std::int32_t>(sides.n_positive - n_negative);
  bool good = true;
  for (std::size_t c = 0; c + 1 < n; ++c) {
    good = good && pairs[c * n + n - 1] == want && explained[(n - 1) * n + c] == want;
  }
  expect(good, name);
}

/// More components than can be looked at in full: some pairs against sets.
void check_some_pairs(const Sides& sides, Isa isa, int threads, const std::string& name) {
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

void check_permutations(const Sides& sides, Isa isa, bool paired, const std::string& name) {
  const std::size_t n = sides.n_component;
  const std::size_t n_prompt = sides.n_positive + sides.n_negative;
  const Permutations permutations{530, 11, paired};
  std::vector<std::uint8_t> labels(permutations.n * n_prompt);
  permuted_labels(sides.n_positive, sides.n_negative, permutations, labels);
  std::vector<std::int32_t> unique(n * n);
  std::vector<std::int32_t> at_least(n * n);
  std::vector<std::int32_t> anywhere(n * n);
  std::vector<float> distance(n * n);
  pair_permutations(sides.positive(), sides.negative(), {-1, 2, isa, {}}, permutations, {},
                    {unique, at_least, distance, anywhere});
  bool good = true;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = i + 1; j < n; ++j) {
      const std::int32_t given = expected(sides, i, j, given_labels(sides)).unique;
      std::int32_t b = 0;
      for (std::size_t k = 0; k < permutations.n; ++k) {
        const auto from = labels.begin() + static_cast<std::ptrdiff_t>(k * n_prompt);
        b += expected(sides, i, j, {from, from + static_cast<std::ptrdiff_t>(n_prompt)}).unique >= given;
      }
      good = good && unique[i * n + j] == given && at_least[i * n + j] == b && at_least[j * n + i] == b;
    }
  }
  expect(good, name + ": permutations against recounts");
}

int run_variant(Isa isa, const std::string& name) {
  if (!supported(isa)) {
    std::printf("this machine does not run %s\n", name.c_str());
    return 77;
  }
  // One kind of component at a time, so that a whole tile is narrow or wide; then all kinds together.
  const std::vector<std::vector<int>> kinds = {{1},        {4, 12}, {20},    {40},
                                               {150, 100}, {700},   {60000}, {1, 9, 30, 150, 60000}};
  unsigned seed = 1;
  for (const auto& kind : kinds) {
    for (const double dead : {0.0, 0.3}) {
      for (const double skew : {0.0, 3.0}) {
        const std::string label =
            name + ", " + std::to_string(kind[0]) + " codes, skew " + std::to_string(skew);
        check_counts(draw(90, 70, 70, kind, skew, dead, ++seed), isa, 2, label);
        check_counts(draw(400, 200, 13, kind, skew, dead, ++seed), isa, 1, label + ", more prompts");
      }
    }
  }
  // Numbers of codes just below, at and above what a lane, a byte and a 16-bit word hold, dead and alone
  // included.
  for (const std::size_t n_codes :
       {14, 15, 16, 17, 30, 31, 32, 33, 62, 63, 64, 65, 253, 254, 255, 256, 257}) {
    check_counts(draw_all(n_codes, 600, 90, ++seed), isa, 2,
                 name + ", exactly " + std::to_string(n_codes) + " codes");
  }
  for (const std::size_t n_codes : {65533, 65534, 65535, 65536}) {
    check_counts(draw_all(n_codes, 66000, 90, ++seed), isa, 2,
                 name + ", exactly " + std::to_string(n_codes) + " codes");
  }
  // More positives than a byte counts, more ids than it names.
  check_counts(draw(900, 300, 9, {900, 3}, 0, 0.02, 90), isa, 3, name + ", bytes overflow");
  check_counts(draw(70000, 60, 3, {65000, 2, 500}, 0, 0.01, 91), isa, 2, name + ", 16-bit words overflow");
  check_counts(draw(3000, 3000, 5, {2000}, 6, 0, 92), isa, 2, name + ", large groups of many codes");
  // More bits of one lane than its counter holds: every group has them all.
  check_cross(40, 31, 0, isa, name + ", byte counters overflow");
  check_cross(4500, 15, 0, isa, name + ", 16-bit counters overflow");
  check_cross(4500, 15, 67400, isa, name + ", 16-bit counters of hits overflow");
  // One-hot rows of all tiles together beyond their budget, of one tile within it.
  check_some_pairs(draw(2200, 1800, 140, {900}, 4, 0.1, 89), isa, 1,
                   name + ", places of one-hot rows reused");
  check_counts(draw(0, 5, 3, {3}, 0, 0, 93), isa, 2, name + ", no positives");
  check_counts(draw(5, 0, 3, {3}, 0, 0, 94), isa, 2, name + ", no negatives");
  check_counts(draw(1, 1, 65, {2}, 0, 0, 95), isa, 2, name + ", one prompt a side");
  check_counts(draw(6, 6, 1, {3}, 0, 0, 96), isa, 4, name + ", one component");
  check_counts(draw(6, 6, 0, {3}, 0, 0, 97), isa, 4, name + ", no component");
  check_permutations(draw(20, 20, 5, {5, 30, 2}, 1, 0.1, 98), isa, true, name + ", paired");
  check_permutations(draw(25, 12, 5, {5, 30, 2}, 1, 0.1, 99), isa, false, name + ", free");
  return failures == 0 ? 0 : 1;
}

void check_philox() {
  // Known answers of the Random123 library, kat_vectors.
  using Words = std::array<std::uint32_t, 4>;
  expect(philox({0, 0, 0, 0}, 0) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}, "philox of zeros");
  expect(philox({~0U, ~0U, ~0U, ~0U}, ~std::uint64_t{0}) ==
             Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
         "philox of ones");
  expect(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                std::uint64_t{0x299f31d0} << 32 | 0xa4093822) ==
             Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1},
         "philox of pi");
}

void check_strides() {
  const Sides sides = draw(30, 20, 12, {5}, 0, 0.1, 5);
  std::vector<std::int32_t> columns(sides.codes.size());
  for (std::size_t p = 0; p < 50; ++p) {
    for (std::size_t c = 0; c < 12; ++c) columns[c * 50 + (49 - p)] = sides.at(p, c);
  }
  std::vector<std::int32_t> rows_first(144);
  std::vector<std::int32_t> columns_first(144);
  pair_unique_counts(sides.positive(), sides.negative(), {-1, 1, best_isa(), {}}, {}, rows_first);
  pair_unique_counts({columns.data() + 49, 30, 12, -1, 50}, {columns.data() + 19, 20, 12, -1, 50},
                     {-1, 2, best_isa(), {}}, {}, columns_first);
  expect(rows_first == columns_first, "strides");
}

void check_bad_codes() {
  for (const std::int32_t bad : {-2, -1, max_code + 1, INT32_MIN, INT32_MAX}) {
    Sides sides = draw(4, 4, 40, {3}, 0, 0, 6);
    sides.codes[5 * 40 + 33] = bad;
    std::vector<std::int32_t> pairs(1600);
    try {
      pair_unique_counts(sides.positive(), sides.negative(), {{}, 3, best_isa(), {}}, {}, pairs);
      expect(false, "a bad code is refused");
    } catch (const BadCode& error) {
      expect(error.value == bad && !error.positive && error.prompt == 1 && error.component == 33,
             "bad code's place");
    }
  }
}

/// Large enough for several threads to be used, in tiles of every kind.
void check_threads() {
  const Sides sides = draw(260, 240, 620, {150, 9, 20, 40, 700}, 1, 0.05, 8);
  std::vector<std::int32_t> one(620 * 620);
  std::vector<std::int32_t> one_explained(620 * 620);
  pair_unique_counts(sides.positive(), sides.negative(), {-1, 1, best_isa(), {}}, {}, one, one_explained);
  for (const int threads : {2, 3, 8}) {
    std::vector<std::int32_t> many(620 * 620);
    std::vector<std::int32_t> many_explained(620 * 620);
    pair_unique_counts(sides.positive(), sides.negative(), {-1, threads, best_isa(), {}}, {}, many,
                       many_explained);
    expect(many == one && many_explained == one_explained,
           "the same for " + std::to_string(threads) + " threads");
  }
  check_some_pairs(sides, best_isa(), 2, "many components");
}

/// Stops every kind of count soon after the caller says so, whatever the threads are at.
void check_cancel() {
  const Sides sides = draw(3000, 3000, 700, {60000, 40, 500}, 1, 0, 7);
  const Permutations permutations{100000, 0, true};
  std::vector<std::int32_t> a(700 * 700);
  std::vector<std::int32_t> b(700 * 700);
  std::vector<std::int32_t> c(700 * 700);
  std::vector<float> d(700 * 700);
  int asked = 0;
  const Options options{-1, 3, best_isa(), [&] { return ++asked == 2; }};
  for (int kind = 0; kind < 2; ++kind) {
    asked = 0;
    try {
      if (kind == 0) {
        pair_unique_counts(sides.positive(), sides.negative(), options, {}, a);
      } else {
        pair_permutations(sides.positive(), sides.negative(), options, permutations, {}, {a, b, d, c});
      }
      expect(false, "a cancelled count does not return");
    } catch (const Cancelled&) {
      expect(asked == 2, "cancelled at once");
    }
  }
}

/// A caller whose own share is done still gets to stop the others.
void check_cancel_while_waiting() {
  int asked = 0;
  try {
    run_workers(
        2, [&] { return ++asked == 2; },
        [](int worker, Poll& poll) {
          while (worker == 1) poll(std::size_t{1} << 30);
        });
    expect(false, "a cancelled wait does not return");
  } catch (const Cancelled&) {
    expect(asked == 2, "cancelled while waiting");
  }
}

int run_plain() {
  check_philox();
  check_strides();
  check_bad_codes();
  check_threads();
  check_cancel();
  check_cancel_while_waiting();
  return failures == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string suite = argc > 1 ? argv[1] : "";
  if (suite == "simd128") return run_variant(Isa::simd128, suite);
  if (suite == "avx2") return run_variant(Isa::avx2, suite);
  if (suite == "avx512") return run_variant(Isa::avx512, suite);
  if (suite == "plain") return run_plain();
  std::puts("usage: test_core simd128|avx2|avx512|plain");
  return 2;
}
