// Vectors of vector_bytes bytes in the compiler's own vector language: what an instruction set without masks
// needs. Included before pair_kernels_impl.hpp, which says what must be defined.

#include "vector_impl.hpp"

/// Lanes whose id has differed from all others so far.
template <class T>
struct Alive {
  Vec<T> equal{};
  [[gnu::always_inline]] void differ(const Vec<T>& a, const Vec<T>& b) {
    equal |= reinterpret_cast<Vec<T>>(a == b);
  }
  // A lane of ones is -1: the counter counts the dead, which costs one operation less.
  [[gnu::always_inline]] void count(Vec<T>& counter) const { counter -= equal; }
  static std::int32_t total(T counter, std::uint32_t counted) {
    return static_cast<std::int32_t>(counted) - static_cast<std::int32_t>(counter);
  }
};

/// Sums of set bits, kept per byte; lane_sums adds up the bytes of a lane.
template <class T>
struct BitCounter {
  static constexpr std::uint32_t most = 31;  // 31 * 8 < 256
  [[gnu::always_inline]] static Vec<T> add(const Vec<T>& counter, const Vec<T>& bits) {
    return reinterpret_cast<Vec<T>>(reinterpret_cast<Vec<std::uint8_t>>(counter) +
                                    popcount_bytes(reinterpret_cast<Vec<std::uint8_t>>(bits)));
  }
  [[gnu::always_inline]] static Vec<T> lane_sums(Vec<T> x) {
    x = (x & static_cast<T>(0x00ff00ff00ff00ffU)) + ((x >> 8) & static_cast<T>(0x00ff00ff00ff00ffU));
    if constexpr (sizeof(T) >= 4) {
      x = (x & static_cast<T>(0x0000ffff0000ffffU)) + ((x >> 16) & static_cast<T>(0x0000ffff0000ffffU));
    }
    if constexpr (sizeof(T) == 8) x = (x & static_cast<T>(0xffffffffU)) + (x >> 32);
    return x;
  }
};
