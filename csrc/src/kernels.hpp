#pragma once

#include "headcodes/isa.hpp"
#include "pair_kernels.hpp"
#include "slice_kernels.hpp"

namespace headcodes {

/// Everything that is compiled once per instruction set.
struct Kernels {
  PairKernels pairs;
  SlicesFunction slices;
};

const Kernels& kernels_of(Isa isa);

namespace simd128 {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

}  // namespace headcodes
