#include "mirror.hpp"

#include <algorithm>

#include "parallel.hpp"

namespace headcodes {

void mirror(const Tiles& tiles, std::span<const std::int32_t> layers, const Options& options,
            std::span<std::int32_t> out) {
  constexpr std::size_t width = 16;
  const std::size_t n = tiles.n_component();
  const std::size_t n_block = (n + width - 1) / width;
  run_workers(options.threads, options.cancelled, [&](int worker, Poll& poll) {
    std::int32_t upper[width][width];
    std::int32_t lower[width][width];
    for (std::size_t a = static_cast<std::size_t>(worker); a < n_block;
         a += static_cast<std::size_t>(options.threads)) {
      const std::size_t i0 = a * width;
      const std::size_t n_i = std::min(width, n - i0);
      for (std::size_t b = a; b < n_block; ++b) {
        poll(width * width / 4);
        const std::size_t j0 = b * width;
        const std::size_t n_j = std::min(width, n - j0);
        for (std::size_t i = 0; i < n_i; ++i) std::copy_n(&out[(i0 + i) * n + j0], n_j, upper[i]);
        for (std::size_t j = 0; j < n_j; ++j) std::copy_n(&out[(j0 + j) * n + i0], n_i, lower[j]);
        for (std::size_t i = 0; i < n_i; ++i) {
          for (std::size_t j = 0; j < n_j; ++j) {
            const bool forth = tiles.rank(i0 + i) < tiles.rank(j0 + j);
            const std::int32_t count = i0 + i == j0 + j ? 0 : forth ? upper[i][j] : lower[j][i];
            upper[i][j] = layers.empty() || layers[i0 + i] < layers[j0 + j] ? count : 0;
            lower[j][i] = layers.empty() || layers[j0 + j] < layers[i0 + i] ? count : 0;
          }
        }
        for (std::size_t i = 0; i < n_i; ++i) std::copy_n(upper[i], n_j, &out[(i0 + i) * n + j0]);
        if (a == b) continue;
        for (std::size_t j = 0; j < n_j; ++j) std::copy_n(lower[j], n_i, &out[(j0 + j) * n + i0]);
      }
    }
  });
}

}  // namespace headcodes
