// What every machine of the target architecture runs: vectors of 16 bytes, which x86-64 and AArch64 always
// have.

#include "kernels.hpp"

namespace headcodes::simd128 {
namespace {

constexpr std::size_t vector_bytes = 16;

typedef std::uint8_t ByteVector __attribute__((vector_size(vector_bytes)));

[[gnu::always_inline]] inline ByteVector popcount_bytes(ByteVector x) {
  // Knuth, The Art of Computer Programming 7.1.3 (62), stopped at bytes.
  x = x - ((x >> 1) & 0x55);
  x = (x & 0x33) + ((x >> 2) & 0x33);
  return (x + (x >> 4)) & 0x0f;
}

#include "vector_plain_impl.hpp"
//
#include "pair_kernels_impl.hpp"
//
#include "slice_kernels_impl.hpp"

}  // namespace

const Kernels kernels{{compare, spread, 0.7}, slices};

}  // namespace headcodes::simd128
