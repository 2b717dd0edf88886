#include "kernels.hpp"

#if defined(__x86_64__)

#include <immintrin.h>

// Only what follows may use AVX2; the headers above are compiled for every machine.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif

namespace headcodes::avx2 {
namespace {

constexpr std::size_t vector_bytes = 32;

typedef std::uint8_t ByteVector __attribute__((vector_size(vector_bytes)));

/// Mula, Kurz, Lemire 2018, Faster population counts using AVX2 instructions: a table of nibbles.
[[gnu::always_inline]] inline ByteVector popcount_bytes(ByteVector x) {
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2,
                                         3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i low = _mm256_set1_epi8(0x0f);
  const auto bits = reinterpret_cast<__m256i>(x);
  const __m256i below = _mm256_shuffle_epi8(table, _mm256_and_si256(bits, low));
  const __m256i above = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(bits, 4), low));
  return reinterpret_cast<ByteVector>(_mm256_add_epi8(below, above));
}

#include "vector_plain_impl.hpp"
//
#include "pair_kernels_impl.hpp"
//
#include "slice_kernels_impl.hpp"

}  // namespace

const Kernels kernels{{compare, spread, 1.5}, slices};

}  // namespace headcodes::avx2

#include "target_end.hpp"

#endif
