// The core against sets of codes, in every variant of its loops. Built with or without sanitizers; see
// CMakeLists.txt.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "headcodes/overlap.hpp"
#include "headcodes/permutation.hpp"
#include "sides.hpp"

namespace headcodes::testing {

int run_plain();  // test_plain.cpp

namespace {

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

}  // namespace
}  // namespace headcodes::testing

int main(int argc, char** argv) {
  using namespace headcodes;
  using namespace headcodes::testing;
  const std::string suite = argc > 1 ? argv[1] : "";
  if (suite == "simd128") return run_variant(Isa::simd128, suite);
  if (suite == "avx2") return run_variant(Isa::avx2, suite);
  if (suite == "avx512") return run_variant(Isa::avx512, suite);
  if (suite == "plain") return run_plain();
  std::puts("usage: test_core simd128|avx2|avx512|plain");
  return 2;
}
