// Any bytes as codes of two sides, counted in every variant of the loops and by sets: libFuzzer's entry
// point, and what replay_core.cpp calls with inputs of its own.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "headcodes/overlap.hpp"
#include "headcodes/permutation.hpp"

namespace {

using namespace headcodes;

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "FAILED: %s\n", what);
  std::abort();
}

/// Numbers from the input, zeros behind its end.
struct Input {
  const std::uint8_t* at;
  const std::uint8_t* end;
  std::size_t next() { return at == end ? 0 : *at++; }
};

struct Counted {
  std::vector<std::int32_t> nodes, nodes_explained, pairs, pairs_explained, layered;
  bool operator==(const Counted&) const = default;
};

struct Problem {
  std::size_t n_positive, n_negative, n_component;
  std::vector<std::int32_t> codes;  // [n_positive + n_negative, n_component]
  std::vector<std::int32_t> layers;
  std::optional<std::int32_t> dead;

  [[nodiscard]] Codes side(std::size_t first, std::size_t n) const {
    return {codes.data() + first * n_component, n, n_component, static_cast<std::ptrdiff_t>(n_component), 1};
  }

  [[nodiscard]] Counted count(Isa isa, int threads) const {
    const std::size_t n = n_component;
    const Codes positive = side(0, n_positive);
    const Codes negative = side(n_positive, n_negative);
    const Options options{dead, threads, isa, {}};
    Counted counted;
    for (auto* out : {&counted.nodes, &counted.nodes_explained}) out->assign(n, -9);
    for (auto* out : {&counted.pairs, &counted.pairs_explained, &counted.layered}) out->assign(n * n, -9);
    unique_counts(positive, negative, options, counted.nodes, counted.nodes_explained);
    pair_unique_counts(positive, negative, options, {}, counted.pairs, counted.pairs_explained);
    pair_unique_counts(positive, negative, options, layers, counted.layered);
    return counted;
  }

  /// From the definition; j = i is a node.
  [[nodiscard]] std::pair<std::int32_t, std::int32_t> by_sets(std::size_t i, std::size_t j) const {
    std::map<std::pair<int, int>, std::pair<int, int>> seen;
    for (std::size_t p = 0; p < n_positive + n_negative; ++p) {
      const std::pair code{codes[p * n_component + i], codes[p * n_component + j]};
      if (dead && (code.first == *dead || code.second == *dead)) continue;
      auto& [in_positive, in_negative] = seen[code];
      ++(p < n_positive ? in_positive : in_negative);
    }
    std::pair<std::int32_t, std::int32_t> unique_explained{0, 0};
    for (const auto& [code, times] : seen) {
      if (times.first == 0 || times.second != 0) continue;
      ++unique_explained.first;
      unique_explained.second += times.first;
    }
    return unique_explained;
  }
};

Problem read(Input& input) {
  Problem problem;
  problem.n_component = input.next() % 70;
  problem.n_positive = input.next() % 48;
  problem.n_negative = input.next() % 48;
  if (input.next() % 2 == 0) problem.dead = -1;
  // Codes of a component are 0 .. n_codes - 1, times its stride: narrow and wide ones side by side.
  std::vector<std::size_t> n_codes(problem.n_component);
  for (auto& n : n_codes) n = 1 + input.next();
  for (auto n : n_codes) problem.layers.push_back(static_cast<std::int32_t>(n % 3));
  for (std::size_t p = 0; p < problem.n_positive + problem.n_negative; ++p) {
    for (std::size_t c = 0; c < problem.n_component; ++c) {
      const std::size_t drawn = input.next();
      const std::size_t stride = n_codes[c] % 2 == 0 ? 257 : 1;
      const bool is_dead = problem.dead && drawn % 16 == 15;
      problem.codes.push_back(is_dead ? -1 : static_cast<std::int32_t>(drawn % n_codes[c] * stride));
    }
  }
  // Now and then one that must be refused.
  if (!problem.codes.empty() && input.next() % 16 == 1) {
    problem.codes[input.next() % problem.codes.size()] = input.next() % 2 == 0 ? -2 : max_code + 1;
  }
  return problem;
}

void check_counts(const Problem& problem) {
  const bool bad = std::ranges::any_of(problem.codes, [&](std::int32_t code) {
    return (code < 0 || code > max_code) && !(problem.dead && code == *problem.dead);
  });
  const std::size_t n = problem.n_component;
  for (const Isa isa : {Isa::simd128, Isa::avx2, Isa::avx512}) {
    if (!supported(isa)) continue;
    Counted counted;
    try {
      counted = problem.count(isa, 2);
    } catch (const BadCode& error) {
      const std::size_t prompt = error.prompt + (error.positive ? 0 : problem.n_positive);
      require(bad && problem.codes[prompt * n + error.component] == error.value, "a bad code and its place");
      continue;
    }
    require(!bad, "bad codes are refused");
    require(counted == problem.count(isa, 1), "threads do not matter");
    for (std::size_t i = 0; i < n; ++i) {
      const auto node = problem.by_sets(i, i);
      require(counted.nodes[i] == node.first && counted.nodes_explained[i] == node.second, "nodes");
      for (std::size_t j = 0; j < n; ++j) {
        const auto pair = i == j ? std::pair{0, 0} : problem.by_sets(i, j);
        require(counted.pairs[i * n + j] == pair.first, "pairs");
        require(counted.pairs_explained[i * n + j] == pair.second, "explained by pairs");
        const bool wanted = problem.layers[i] < problem.layers[j];
        require(counted.layered[i * n + j] == (wanted ? pair.first : 0), "pairs between layers");
      }
    }
  }
}

/// Under the labels as given, a permutation test counts what unique_counts counts; all variants agree on the
/// rest.
void check_permutations(const Problem& problem) {
  const std::size_t n = problem.n_component;
  const bool paired = problem.n_positive == problem.n_negative;
  std::vector<std::vector<std::int32_t>> first;
  for (const Isa isa : {Isa::simd128, Isa::avx2, Isa::avx512}) {
    if (!supported(isa)) continue;
    std::vector<std::int32_t> unique(n), at_least(n), anywhere(n), nodes(n);
    std::vector<float> distance(n);
    const Options options{problem.dead, 1, isa, {}};
    const Codes positive = problem.side(0, problem.n_positive);
    const Codes negative = problem.side(problem.n_positive, problem.n_negative);
    try {
      unique_counts(positive, negative, options, nodes);
    } catch (const BadCode&) {
      return;
    }
    node_permutations(positive, negative, options, {70, 5, paired}, {unique, at_least, distance, anywhere});
    require(unique == nodes, "the count of the labels as given");
    const std::vector all{unique, at_least, anywhere};
    if (first.empty()) first = all;
    require(all == first, "variants agree on permutations");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input{data, data + size};
  const Problem problem = read(input);
  check_counts(problem);
  check_permutations(problem);
  return 0;
}
