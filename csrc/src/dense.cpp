#include "dense.hpp"

#include <algorithm>

namespace headcodes {
namespace {

// One cache line of int32 codes: row-major input is read a line at a time.
constexpr std::size_t block_width = 16;

void read_block(const Codes& side, std::size_t first, std::size_t width, std::size_t stride,
                std::int32_t* out) {
  for (std::size_t prompt = 0; prompt < side.n_prompt; ++prompt) {
    const std::int32_t* row = side.data + static_cast<std::ptrdiff_t>(prompt) * side.prompt_stride +
                              static_cast<std::ptrdiff_t>(first) * side.component_stride;
    for (std::size_t k = 0; k < width; ++k) {
      out[k * stride + prompt] = row[static_cast<std::ptrdiff_t>(k) * side.component_stride];
    }
  }
}

class Renumber {
 public:
  Renumber(const std::optional<std::int32_t>& dead, Ids which)
      : dead_(dead), which_(which), id_of_(max_code + 1, 0) {}

  /// codes: positives, then negatives, of one component.
  void operator()(std::span<const std::int32_t> codes, Dense& dense, std::size_t component) {
    std::uint32_t* ids = dense.ids.data() + component * dense.n_prompt;
    std::uint32_t next = 1;
    bool any_dead = false;
    std::size_t prompt = 0;
    for (; prompt < dense.n_positive; ++prompt) {
      const std::int32_t code = codes[prompt];
      if (dead_ && code == *dead_) {
        ids[prompt] = 0;
        any_dead = true;
        continue;
      }
      check(code, true, prompt, component);
      std::uint32_t& id = id_of_[static_cast<std::size_t>(code)];
      if (id == 0) id = next++;
      ids[prompt] = id;
    }
    for (; prompt < dense.n_prompt; ++prompt) {
      const std::int32_t code = codes[prompt];
      if (dead_ && code == *dead_) {
        ids[prompt] = 0;
        continue;
      }
      check(code, false, prompt - dense.n_positive, component);
      std::uint32_t& id = id_of_[static_cast<std::size_t>(code)];
      if (id == 0 && which_ == Ids::of_all) id = next++;
      ids[prompt] = id == 0 ? next : id;
    }
    for (std::size_t p = 0; p < dense.n_prompt; ++p) {
      if (ids[p] != 0) id_of_[static_cast<std::size_t>(codes[p])] = 0;
    }
    dense.n_ids[component] = next;
    dense.any_dead[component] = any_dead;
  }

 private:
  static void check(std::int32_t code, bool positive, std::size_t prompt, std::size_t component) {
    if (code < 0 || code > max_code) throw BadCode(code, positive, prompt, component);
  }
  std::optional<std::int32_t> dead_;
  Ids which_;
  std::vector<std::uint32_t> id_of_;
};

}  // namespace

Dense make_dense(const Codes& positive, const Codes& negative, const Options& options, Ids which) {
  Dense dense;
  dense.n_positive = positive.n_prompt;
  dense.n_prompt = positive.n_prompt + negative.n_prompt;
  dense.n_component = positive.n_component;
  dense.ids.resize(dense.n_component * dense.n_prompt);
  dense.n_ids.resize(dense.n_component);
  dense.any_dead.resize(dense.n_component);
  const std::size_t n_block = (dense.n_component + block_width - 1) / block_width;
  run_workers(options.threads, options.cancelled, [&](int worker, Poll& poll) {
    std::vector<std::int32_t> codes(block_width * dense.n_prompt);
    Renumber renumber(options.dead, which);
    const std::size_t end = share_begin(n_block, worker + 1, options.threads);
    for (std::size_t block = share_begin(n_block, worker, options.threads); block < end; ++block) {
      const std::size_t first = block * block_width;
      const std::size_t width = std::min(block_width, dense.n_component - first);
      read_block(positive, first, width, dense.n_prompt, codes.data());
      read_block(negative, first, width, dense.n_prompt, codes.data() + positive.n_prompt);
      for (std::size_t k = 0; k < width; ++k) {
        poll(Poll::per_prompt * dense.n_prompt);
        renumber({codes.data() + k * dense.n_prompt, dense.n_prompt}, dense, first + k);
      }
    }
  });
  return dense;
}

}  // namespace headcodes
