#pragma once

#include <cstddef>
#include <cstdint>

namespace headcodes {

/// Permutations are counted this many at a time: one bit each, 64 bytes a prompt.
inline constexpr std::size_t block_permutations = 512;
inline constexpr std::size_t block_words = block_permutations / 64;

/// Prompts that share a code, of everything one statistic counts. A code is unique to the positives where all
/// its prompts are positive.
struct CodeGroups {
  const std::uint32_t* singles;  // prompts alone with their code
  std::size_t n_single;
  const std::uint32_t* multiples;  // [size, prompt, prompt, ...] each
  std::size_t n_multiple;
};

/// planes[k][w]: bit k of the number of codes all of whose prompts are labelled, for each permutation of the
/// block. labels: [prompt][block_words]; n_plane must hold the number of codes.
using SlicesFunction = void (*)(const CodeGroups& groups, const std::uint64_t* labels, std::size_t n_plane,
                                std::uint64_t* planes);

}  // namespace headcodes
