#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dense.hpp"
#include "headcodes/permutation.hpp"
#include "slice_kernels.hpp"

namespace headcodes {

/// The labels of one block of permutations: bit k of words [prompt][block_words] belongs to permutation k.
class LabelBlock {
 public:
  LabelBlock(std::size_t n_positive, std::size_t n_prompt, const Permutations& permutations)
      : n_positive_(n_positive), n_prompt_(n_prompt), permutations_(permutations), order_(n_prompt) {}

  void fill(std::size_t block, std::uint64_t* words);

 private:
  void fill_swaps(std::size_t block, std::uint64_t* words) const;
  void fill_choices(std::size_t block, std::uint64_t* words);

  std::size_t n_positive_;
  std::size_t n_prompt_;
  Permutations permutations_;
  std::vector<std::uint32_t> order_;
};

std::size_t n_blocks(const Permutations& permutations);

/// The labels of all permutations: [block][prompt][block_words].
std::vector<std::uint64_t> make_labels(const Dense& dense, const Permutations& permutations,
                                       const Options& options);

}  // namespace headcodes
