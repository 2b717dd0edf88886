#include "pair_kernels.hpp"
#include "slice_kernels.hpp"

namespace headcodes {

const PairKernels& kernels_of(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return avx512::kernels;
  if (isa == Isa::avx2) return avx2::kernels;
#else
  static_cast<void>(isa);
#endif
  return simd128::kernels;
}

SlicesFunction slices_of(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return avx512::count_slices;
  if (isa == Isa::avx2) return avx2::count_slices;
#else
  static_cast<void>(isa);
#endif
  return simd128::count_slices;
}

}  // namespace headcodes
