#include "kernels.hpp"

namespace headcodes {

const Kernels& kernels_of(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return avx512::kernels;
  if (isa == Isa::avx2) return avx2::kernels;
#else
  static_cast<void>(isa);
#endif
  return simd128::kernels;
}

}  // namespace headcodes
