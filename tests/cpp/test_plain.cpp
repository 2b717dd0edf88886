// What does not depend on a variant of the loops: random numbers, strides, refusals, threads, cancelling.

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "headcodes/overlap.hpp"
#include "headcodes/permutation.hpp"
#include "parallel.hpp"
#include "random.hpp"
#include "sides.hpp"

namespace headcodes::testing {
namespace {

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

}  // namespace

int run_plain() {
  check_philox();
  check_strides();
  check_bad_codes();
  check_threads();
  check_cancel();
  check_cancel_while_waiting();
  return failures == 0 ? 0 : 1;
}

}  // namespace headcodes::testing
