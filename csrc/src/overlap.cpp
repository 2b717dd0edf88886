#include "headcodes/overlap.hpp"

#include "dense.hpp"
#include "groups.hpp"
#include "parallel.hpp"

namespace headcodes {

void unique_counts(const Codes& positive, const Codes& negative, const Options& options,
                   std::span<std::int32_t> unique, std::span<std::int32_t> explained) {
  const Dense dense = make_dense(positive, negative, options);
  run_workers(options.threads, options.cancelled, [&](int worker, Poll& poll) {
    Groups groups;
    const std::size_t end = share_begin(dense.n_component, worker + 1, options.threads);
    for (std::size_t c = share_begin(dense.n_component, worker, options.threads); c < end; ++c) {
      poll(Poll::per_prompt * dense.n_prompt);
      groups.make(dense, c);
      std::int32_t n_unique = 0;
      std::size_t n_explained = 0;
      for (const auto& group : groups.groups) {
        if (group.n_negative() != 0) continue;
        ++n_unique;
        n_explained += group.n_positive();
      }
      unique[c] = n_unique;
      if (!explained.empty()) explained[c] = static_cast<std::int32_t>(n_explained);
    }
  });
}

}  // namespace headcodes
