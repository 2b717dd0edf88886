#include "kernels.hpp"

#if defined(__x86_64__)

#include <immintrin.h>

#include <type_traits>

// Only what follows may use AVX-512; the headers above are compiled for every machine.
#if defined(__clang__)
#pragma clang attribute push(                                                                   \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vpopcntdq,avx512bitalg"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vpopcntdq,avx512bitalg")
#endif

namespace headcodes::avx512 {
namespace {

constexpr std::size_t vector_bytes = 64;

#include "vector_impl.hpp"

/// Lanes whose id has differed from all others so far: comparing under the mask costs nothing extra.
template <class T>
struct Alive {
  using Mask =
      std::conditional_t<sizeof(T) == 1, __mmask64, std::conditional_t<sizeof(T) == 2, __mmask32, __mmask16>>;
  Mask mask = static_cast<Mask>(~Mask{0});
  [[gnu::always_inline]] void differ(const Vec<T>& a, const Vec<T>& b) {
    const auto x = reinterpret_cast<__m512i>(a);
    const auto y = reinterpret_cast<__m512i>(b);
    if constexpr (sizeof(T) == 1) {
      mask = _mm512_mask_cmpneq_epi8_mask(mask, x, y);
    } else if constexpr (sizeof(T) == 2) {
      mask = _mm512_mask_cmpneq_epi16_mask(mask, x, y);
    } else {
      mask = _mm512_mask_cmpneq_epi32_mask(mask, x, y);
    }
  }
  [[gnu::always_inline]] void count(Vec<T>& counter) const {
    const auto x = reinterpret_cast<__m512i>(counter);
    if constexpr (sizeof(T) == 1) {
      counter = reinterpret_cast<Vec<T>>(_mm512_mask_add_epi8(x, mask, x, _mm512_set1_epi8(1)));
    } else if constexpr (sizeof(T) == 2) {
      counter = reinterpret_cast<Vec<T>>(_mm512_mask_add_epi16(x, mask, x, _mm512_set1_epi16(1)));
    } else {
      counter = reinterpret_cast<Vec<T>>(_mm512_mask_add_epi32(x, mask, x, _mm512_set1_epi32(1)));
    }
  }
  static std::int32_t total(T counter, std::uint32_t) { return static_cast<std::int32_t>(counter); }
};

template <class T>
struct BitCounter {
  static constexpr std::uint32_t most =
      sizeof(T) == 2
          ? 0xffff / 16
          : (std::uint32_t{1} << 31) / 64;  // bits that a lane or a count holds, by bits an addition
  [[gnu::always_inline]] static Vec<T> add(const Vec<T>& counter, const Vec<T>& bits) {
    const auto x = reinterpret_cast<__m512i>(bits);
    if constexpr (sizeof(T) == 2) {
      return counter + reinterpret_cast<Vec<T>>(_mm512_popcnt_epi16(x));
    } else if constexpr (sizeof(T) == 4) {
      return counter + reinterpret_cast<Vec<T>>(_mm512_popcnt_epi32(x));
    } else {
      return counter + reinterpret_cast<Vec<T>>(_mm512_popcnt_epi64(x));
    }
  }
  [[gnu::always_inline]] static Vec<T> lane_sums(const Vec<T>& counter) { return counter; }
};

#include "pair_kernels_impl.hpp"
//
#include "slice_kernels_impl.hpp"

}  // namespace

const Kernels kernels{{compare, spread, 3.0}, slices};

}  // namespace headcodes::avx512

#include "target_end.hpp"

#endif
