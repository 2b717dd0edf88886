#pragma once

#include <cstdint>
#include <span>

#include "tiles.hpp"

namespace headcodes {

/// Each pair was written once, in the row of the component that comes first in the order: copy to where it is
/// missing, clear what is not wanted. By squares of one cache line's width, each line read and written whole:
/// rows may lie a power of two apart, and then few of them fit the cache together.
void mirror(const Tiles& tiles, std::span<const std::int32_t> layers, const Options& options,
            std::span<std::int32_t> out);

}  // namespace headcodes
