#pragma once

namespace headcodes {

/// Variants of the inner loops, by their vectors. `simd128`: 16 bytes, which every x86-64 (SSE2) and AArch64
/// (NEON) has; `avx2`: 32; `avx512`: 64.
enum class Isa { simd128, avx2, avx512 };

/// Whether this machine and its operating system run the variant. avx512 means F, BW, VL, DQ, VPOPCNTDQ and
/// BITALG: Intel from Ice Lake on, AMD from Zen 4 on.
bool supported(Isa isa);
Isa best_isa();

}  // namespace headcodes
