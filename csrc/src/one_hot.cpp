#include "one_hot.hpp"

#include <algorithm>

namespace headcodes {

namespace {

void fill(const Tiles& tiles, std::size_t tile, std::vector<std::uint64_t>& rows, Poll& poll) {
  const Layout& layout = tiles.layout(tile);
  const Dense& dense = tiles.dense();
  const std::size_t chunk = chunk_bytes(layout.lane_bytes);
  const std::size_t lanes = chunk / layout.lane_bytes;
  const std::size_t n_row = dense.n_prompt + 1;
  rows.assign(n_row * layout.row_bytes() / sizeof(std::uint64_t), 0);
  auto* bytes = reinterpret_cast<unsigned char*>(rows.data());
  const auto bits_per_lane = layout.lane_bytes * 8;
  const auto set = [&](std::size_t k, std::size_t prompt, std::uint32_t id) {
    // Chunks run over the words of all components: word 0 of lanes 0.., then word 1, ...
    const std::size_t lane = id / bits_per_lane * tile_width + k;
    const std::size_t bit = id % bits_per_lane;
    bytes[(lane / lanes * n_row + prompt) * chunk + lane % lanes * layout.lane_bytes + bit / 8] |=
        static_cast<unsigned char>(1U << (bit % 8));
  };
  for (std::size_t k = 0; k < tiles.last(tile) - tiles.first(tile); ++k) {
    poll(dense.n_prompt);
    const std::size_t component = tiles.component(tiles.first(tile) + k);
    const auto ids = dense.column(component);
    for (std::size_t prompt = 0; prompt < dense.n_prompt; ++prompt) {
      if (ids[prompt] < dense.n_ids[component]) set(k, prompt, ids[prompt]);
    }
    set(k, dense.n_prompt, 0);
  }
}

}  // namespace

const std::byte* OneHot::rows(const Tiles& tiles, std::size_t tile, std::size_t first, int threads,
                              Poll& poll) {
  const std::size_t tile_bytes = (tiles.dense().n_prompt + 1) * tiles.layout(tile).row_bytes();
  const std::size_t n_fit = spread_budget_bytes / static_cast<std::size_t>(threads) / tile_bytes;
  if (first_ != first) places_.clear();
  first_ = first;
  const std::size_t at = std::min(tile - first, n_fit - 1);
  if (places_.size() <= at) places_.resize(at + 1);
  if (places_[at].rows.empty() || places_[at].tile != tile) {
    fill(tiles, tile, places_[at].rows, poll);
    places_[at].tile = tile;
  }
  return reinterpret_cast<const std::byte*>(places_[at].rows.data());
}

}  // namespace headcodes
