// Pair counts of random codes without Python around them, for profilers, and the costs that the choice
// between the three ways of counting rests on: see docs/performance.md.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "headcodes/overlap.hpp"
#include "kernels.hpp"
#include "stamps.hpp"

namespace {

using namespace headcodes;

/// Seconds of one call, the best of several rounds.
template <class Call>
double seconds(Call&& call) {
  constexpr int n_call = 200;
  double best = std::numeric_limits<double>::infinity();
  for (int round = 0; round < 20; ++round) {
    const auto start = std::chrono::steady_clock::now();
    for (int k = 0; k < n_call; ++k) call();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best / n_call;
}

/// Each way over the same prompts in few and in many groups: what a prompt costs and what a group costs on
/// top, in steps. A step is one comparison of a row of 64 ids of one byte.
void print_costs(Isa isa) {
  constexpr std::size_t n_prompt = 512;
  const PairKernels& kernels = kernels_of(isa).pairs;
  std::mt19937 random(0);
  std::vector<std::uint32_t> order(n_prompt);
  for (std::size_t k = 0; k < n_prompt; ++k) order[k] = static_cast<std::uint32_t>(k);
  std::shuffle(order.begin(), order.end(), random);
  std::vector<std::int32_t> counts(tile_width);

  std::vector<std::byte> ids(n_prompt * tile_width);
  for (auto& id : ids) id = static_cast<std::byte>(1 + random() % 200);
  // An entry against 4 conflicts, twice as often as against 2: the difference is the cost of comparisons
  // alone.
  const auto compare = [&](std::uint32_t n_conflict) {
    std::vector<std::uint32_t> offsets;
    for (std::size_t k = 0; k < n_prompt * (n_conflict + 1); ++k) {
      offsets.push_back(order[(k + k / n_prompt * 7) % n_prompt] * static_cast<std::uint32_t>(tile_width));
    }
    const CompareProgram::Segment segment{n_prompt, n_conflict};
    return seconds(
        [&] { kernels.compare({&segment, 1, offsets.data()}, ids.data(), 1, false, counts.data()); });
  };
  const double step = (compare(4) - compare(2)) / (2 * n_prompt);

  const auto spread = [&](std::size_t n_group) {
    constexpr unsigned lane_bytes = 8;
    const std::size_t row = chunk_bytes(lane_bytes);
    std::vector<std::byte> bits((n_prompt + 1) * row);
    for (std::size_t at = 0; at < bits.size(); at += lane_bytes) bits[at + random() % 8] = std::byte{4};
    std::vector<std::uint32_t> words;
    const std::size_t size = n_prompt / n_group;
    for (std::size_t g = 0; g < n_group; ++g) {
      words.insert(words.end(), {static_cast<std::uint32_t>(size / 2), static_cast<std::uint32_t>(size / 2)});
      for (std::size_t k = 0; k < size; ++k)
        words.push_back(order[g * size + k] * static_cast<std::uint32_t>(row));
    }
    const auto dead = static_cast<std::uint32_t>(n_prompt * row);
    return seconds([&] {
             kernels.spread({n_group, words.data(), dead}, bits.data(), lane_bytes, counts.data(), nullptr);
           }) /
           (static_cast<double>(row) / step_bytes) / step;
  };

  std::vector<std::uint32_t> second(n_prompt);
  for (auto& id : second) id = 1 + random() % 200;
  Stamps stamps(201);
  const auto stamp = [&](std::size_t n_group) {
    Groups groups;
    groups.prompts = order;
    std::vector<std::uint32_t> which;
    const std::size_t size = n_prompt / n_group;
    for (std::size_t g = 0; g < n_group; ++g) {
      const auto begin = static_cast<std::uint32_t>(g * size);
      const auto half = static_cast<std::uint32_t>(size / 2);
      groups.groups.push_back({begin, begin + half, begin + 2 * half});
      which.push_back(static_cast<std::uint32_t>(g));
    }
    return seconds([&] { counts[0] += stamps.count(groups, which, second).unique; }) / step;
  };

  const auto print = [&](const char* way, double few, double many) {
    // 8 groups of 64 and 128 of 4: the same prompts, 120 groups more.
    const double per_group = (many - few) / 120;
    const double per_prompt = (few - 8 * per_group) / n_prompt;
    std::printf("%s: %.2f steps a prompt, a group as much as %.1f prompts\n", way, per_prompt,
                per_group / per_prompt);
  };
  std::printf("a step: %.2f ns\n", step * 1e9);
  print("spread", spread(8), spread(128));
  print("stamps", stamp(8), stamp(128));
}

Isa isa_named(const std::string& name) {
  return name == "avx512" ? Isa::avx512 : name == "avx2" ? Isa::avx2 : Isa::simd128;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && std::string(argv[1]) == "costs") {
    if (!supported(isa_named(argv[2]))) return 77;
    print_costs(isa_named(argv[2]));
    return 0;
  }
  if (argc != 6) {
    std::puts(
        "usage: measure_core n_component uniform|skewed n_repeat threads simd128|avx2|avx512\n"
        "       measure_core costs simd128|avx2|avx512");
    return 2;
  }
  const auto n = static_cast<std::size_t>(std::atoi(argv[1]));
  const bool skewed = std::string(argv[2]) == "skewed";
  const int n_repeat = std::atoi(argv[3]);
  const Isa isa = isa_named(argv[5]);
  if (!supported(isa)) return 77;
  constexpr std::size_t n_prompt = 500;
  std::mt19937 random(0);
  std::vector<double> weights;
  for (int rank = 1; rank <= 200; ++rank) weights.push_back(skewed ? std::pow(rank, -2.1) : 1.0);
  std::discrete_distribution<std::int32_t> code(weights.begin(), weights.end());
  std::vector<std::int32_t> codes(n_prompt * n);
  for (auto& value : codes) value = code(random);
  const auto width = static_cast<std::ptrdiff_t>(n);
  const Codes positive{codes.data(), n_prompt / 2, n, width, 1};
  const Codes negative{codes.data() + n_prompt / 2 * n, n_prompt / 2, n, width, 1};
  std::vector<std::int32_t> unique(n * n);
  double best = std::numeric_limits<double>::infinity();
  for (int repeat = 0; repeat < n_repeat; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    pair_unique_counts(positive, negative, {{}, std::atoi(argv[4]), isa, {}}, {}, unique);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::printf("%.6f s, %.4f ns per pair and prompt\n", best,
              best * 1e9 / (static_cast<double>(n) * static_cast<double>(n - 1) / 2 * n_prompt));
}
