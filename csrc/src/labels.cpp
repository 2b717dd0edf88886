#include "labels.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "parallel.hpp"
#include "random.hpp"

namespace headcodes {

namespace {

/// floor(random * n / 2^64) for n < 2^32, without a 128-bit type.
std::size_t scaled(std::uint64_t random, std::uint64_t n) {
  return ((random >> 32) * n + ((random & 0xffffffffU) * n >> 32)) >> 32;
}

}  // namespace

void LabelBlock::fill(std::size_t block, std::uint64_t* words) {
  if (permutations_.paired) {
    fill_swaps(block, words);
  } else {
    fill_choices(block, words);
  }
}

/// One random bit a pair decides whether its two sides are swapped.
void LabelBlock::fill_swaps(std::size_t block, std::uint64_t* words) const {
  for (std::size_t pair = 0; pair < n_positive_; ++pair) {
    std::uint64_t* positive = words + pair * block_words;
    std::uint64_t* negative = words + (n_positive_ + pair) * block_words;
    for (std::size_t w = 0; w < block_words; w += 2) {
      const auto bits = philox({static_cast<std::uint32_t>(pair), static_cast<std::uint32_t>(block),
                                static_cast<std::uint32_t>(w), 0},
                               permutations_.seed);
      negative[w] = std::uint64_t{bits[1]} << 32 | bits[0];
      negative[w + 1] = std::uint64_t{bits[3]} << 32 | bits[2];
      positive[w] = ~negative[w];
      positive[w + 1] = ~negative[w + 1];
    }
  }
}

/// Chooses the smaller side by the first steps of a Fisher-Yates shuffle. A 64-bit number times the number
/// of choices left, its upper half: off an even chance by less than one part in 2^43, as there are at most
/// 2^20 prompts.
void LabelBlock::fill_choices(std::size_t block, std::uint64_t* words) {
  const bool choose_positives = n_positive_ <= n_prompt_ - n_positive_;
  const std::size_t n_choice = choose_positives ? n_positive_ : n_prompt_ - n_positive_;
  std::fill_n(words, n_prompt_ * block_words, choose_positives ? 0 : ~std::uint64_t{0});
  for (std::size_t k = 0; k < block_permutations; ++k) {
    const std::size_t permutation = block * block_permutations + k;
    std::iota(order_.begin(), order_.end(), std::uint32_t{0});
    std::array<std::uint32_t, 4> bits{};
    for (std::size_t step = 0; step < n_choice; ++step) {
      if (step % 2 == 0) {
        bits = philox({static_cast<std::uint32_t>(step / 2), static_cast<std::uint32_t>(permutation),
                       static_cast<std::uint32_t>(permutation >> 32), 1},
                      permutations_.seed);
      }
      const std::size_t half = step % 2 * 2;
      const auto random = std::uint64_t{bits[half + 1]} << 32 | bits[half];
      const std::size_t n_left = n_prompt_ - step;
      std::swap(order_[step], order_[step + scaled(random, n_left)]);
      words[order_[step] * block_words + k / 64] ^= std::uint64_t{1} << (k % 64);
    }
  }
}

std::size_t n_blocks(const Permutations& permutations) {
  return (permutations.n + block_permutations - 1) / block_permutations;
}

std::vector<std::uint64_t> make_labels(const Dense& dense, const Permutations& permutations,
                                       const Options& options) {
  const std::size_t block_size = dense.n_prompt * block_words;
  std::vector<std::uint64_t> labels(n_blocks(permutations) * block_size);
  run_workers(options.threads, options.cancelled, [&](int worker, Poll& poll) {
    LabelBlock filler(dense.n_positive, dense.n_prompt, permutations);
    const std::size_t end = share_begin(n_blocks(permutations), worker + 1, options.threads);
    for (std::size_t b = share_begin(n_blocks(permutations), worker, options.threads); b < end; ++b) {
      poll(block_permutations * dense.n_prompt);
      filler.fill(b, labels.data() + b * block_size);
    }
  });
  return labels;
}

void permuted_labels(std::size_t n_positive, std::size_t n_negative, const Permutations& permutations,
                     std::span<std::uint8_t> labels) {
  const std::size_t n_prompt = n_positive + n_negative;
  LabelBlock filler(n_positive, n_prompt, permutations);
  std::vector<std::uint64_t> words(n_prompt * block_words);
  for (std::size_t k = 0; k < permutations.n; ++k) {
    const std::size_t in_block = k % block_permutations;
    if (in_block == 0) filler.fill(k / block_permutations, words.data());
    for (std::size_t prompt = 0; prompt < n_prompt; ++prompt) {
      const std::uint64_t word = words[prompt * block_words + in_block / 64];
      labels[k * n_prompt + prompt] = static_cast<std::uint8_t>(word >> (in_block % 64) & 1);
    }
  }
}

}  // namespace headcodes
