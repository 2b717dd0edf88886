#include "headcodes/isa.hpp"

namespace headcodes {

bool supported(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::simd128:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") != 0;
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
             __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
             __builtin_cpu_supports("avx512vpopcntdq") != 0 && __builtin_cpu_supports("avx512bitalg") != 0;
  }
  return false;
#else
  return isa == Isa::simd128;
#endif
}

Isa best_isa() {
  if (supported(Isa::avx512)) return Isa::avx512;
  if (supported(Isa::avx2)) return Isa::avx2;
  return Isa::simd128;
}

}  // namespace headcodes
