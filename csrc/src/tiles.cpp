#include "tiles.hpp"

#include <array>
#include <numeric>

namespace headcodes {

namespace {

Layout layout_for(std::uint32_t n_ids, bool any_dead, std::size_t n_prompt, int threads) {
  Layout layout;
  layout.id_bytes = n_ids <= 0xff ? 1 : n_ids <= 0xffff ? 2 : 4;
  layout.lane_bytes = n_ids <= 16 ? 2 : n_ids <= 32 ? 4 : 8;
  layout.n_word = n_ids <= 64 ? 1 : (n_ids + 63) / 64;
  layout.any_dead = any_dead;
  layout.can_spread =
      (n_prompt + 1) * layout.row_bytes() <= spread_budget_bytes / static_cast<std::size_t>(threads);
  return layout;
}

std::size_t width_class(std::uint32_t n_ids) {
  return n_ids <= 16 ? 0 : n_ids <= 32 ? 1 : 1 + (n_ids + 63) / 64;
}

}  // namespace

Tiles::Tiles(const Dense& dense, const Options& options) : dense_(dense) {
  const std::size_t n = dense.n_component;
  order_.resize(n);
  std::iota(order_.begin(), order_.end(), std::size_t{0});
  std::ranges::stable_sort(order_, [&](std::size_t a, std::size_t b) {
    return width_class(dense.n_ids[a]) > width_class(dense.n_ids[b]);
  });
  rank_.resize(n);
  breaks_.resize(n);
  for (std::size_t k = 0; k < n; ++k) {
    rank_[order_[k]] = k;
    if (k > 0) breaks_[k] = breaks_[k - 1] + (order_[k] == order_[k - 1] + 1 ? 0 : 1);
  }
  const std::size_t n_tile = (n + tile_width - 1) / tile_width;
  std::size_t bytes = 0;
  for (std::size_t t = 0; t < n_tile; ++t) {
    std::uint32_t n_ids = 1;
    bool any_dead = false;
    for (std::size_t k = first(t); k < last(t); ++k) {
      n_ids = std::max(n_ids, dense.n_ids[order_[k]]);
      any_dead = any_dead || dense.any_dead[order_[k]] != 0;
    }
    layouts_.push_back(layout_for(n_ids, any_dead, dense.n_prompt, options.threads));
    starts_.push_back(bytes);
    bytes += id_row_bytes(t) * dense.n_prompt;
  }
  // Rows on cache lines: a vector then never straddles two.
  storage_ = std::make_unique_for_overwrite<Line[]>(bytes / sizeof(Line) + 1);
  run_workers(options.threads, options.cancelled, [&](int worker, Poll& poll) {
    const std::size_t end = share_begin(n_tile, worker + 1, options.threads);
    for (std::size_t t = share_begin(n_tile, worker, options.threads); t < end; ++t) {
      if (layouts_[t].id_bytes == 1) {
        fill<std::uint8_t>(t, poll);
      } else if (layouts_[t].id_bytes == 2) {
        fill<std::uint16_t>(t, poll);
      } else {
        fill<std::uint32_t>(t, poll);
      }
    }
  });
}

template <class T>
void Tiles::fill(std::size_t tile, Poll& poll) {
  T* rows = reinterpret_cast<T*>(reinterpret_cast<std::byte*>(storage_.get()) + starts_[tile]);
  std::array<const std::uint32_t*, tile_width> columns;
  for (std::size_t k = 0; k < tile_width; ++k) {
    // A tile's last columns may lie beyond the last component: any valid ids do.
    columns[k] = dense_.column(order_[std::min(first(tile) + k, order_.size() - 1)]).data();
  }
  for (std::size_t prompt = 0; prompt < dense_.n_prompt; ++prompt) {
    poll(tile_width);
    for (std::size_t k = 0; k < tile_width; ++k)
      rows[prompt * tile_width + k] = static_cast<T>(columns[k][prompt]);
  }
}

}  // namespace headcodes
