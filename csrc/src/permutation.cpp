#include "headcodes/permutation.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "code_groups.hpp"
#include "dense.hpp"
#include "groups.hpp"
#include "labels.hpp"
#include "parallel.hpp"
#include "tester.hpp"

namespace headcodes {

void node_permutations(const Codes& positive, const Codes& negative, const Options& options,
                       const Permutations& permutations, const PermutationResult& result) {
  const Dense dense = make_dense(positive, negative, options, Ids::of_all);
  const std::vector<std::uint64_t> labels = make_labels(dense, permutations, options);
  Furthest furthest(permutations.n);
  run_workers(options.threads, options.cancelled, [&](int worker, Poll& poll) {
    Tester tester(dense, permutations, labels, options.isa);
    Groups groups;
    GroupList list;
    const std::size_t end = share_begin(dense.n_component, worker + 1, options.threads);
    for (std::size_t c = share_begin(dense.n_component, worker, options.threads); c < end; ++c) {
      groups.make(dense, c);
      list.clear();
      for (const auto& group : groups.groups) {
        list.add({groups.prompts.data() + group.begin, group.end - group.begin}, dense.n_positive);
      }
      const auto outcome = tester.test(list, poll);
      result.unique[c] = outcome.unique;
      result.at_least[c] = outcome.at_least;
      result.distance[c] = outcome.distance;
    }
    furthest.merge(tester.furthest());
  });
  furthest.sort();
  for (std::size_t c = 0; c < dense.n_component; ++c) {
    result.at_least_anywhere[c] = furthest.at_least(result.distance[c]);
  }
}

void pair_permutations(const Codes& positive, const Codes& negative, const Options& options,
                       const Permutations& permutations, std::span<const std::int32_t> layers,
                       const PermutationResult& result) {
  const Dense dense = make_dense(positive, negative, options, Ids::of_all);
  const std::vector<std::uint64_t> labels = make_labels(dense, permutations, options);
  const std::size_t n = dense.n_component;
  const std::size_t max_ids = n == 0 ? 0 : *std::ranges::max_element(dense.n_ids);
  const auto all = static_cast<std::int32_t>(permutations.n);
  const auto wanted = [&](std::size_t i, std::size_t j) {
    return layers.empty() ? i != j : layers[i] < layers[j];
  };
  Furthest furthest(permutations.n);
  // Rows in turn: early rows have more pairs than late ones.
  run_workers(options.threads, options.cancelled, [&](int worker, Poll& poll) {
    Tester tester(dense, permutations, labels, options.isa);
    Splitter splitter(max_ids);
    Groups groups;
    GroupList list;
    for (std::size_t i = static_cast<std::size_t>(worker); i < n;
         i += static_cast<std::size_t>(options.threads)) {
      groups.make(dense, i);
      for (std::size_t j = i; j < n; ++j) {
        Tester::Outcome outcome{0, all, 0};
        if (wanted(i, j) || wanted(j, i)) {
          poll(2 * Poll::per_prompt * dense.n_prompt);
          splitter.split(dense, groups, j, list);
          outcome = tester.test(list, poll);
        }
        for (const auto& [a, b] : {std::pair{i, j}, std::pair{j, i}}) {
          result.unique[a * n + b] = wanted(a, b) ? outcome.unique : 0;
          result.at_least[a * n + b] = wanted(a, b) ? outcome.at_least : all;
          result.distance[a * n + b] = wanted(a, b) ? outcome.distance : 0;
        }
      }
    }
    furthest.merge(tester.furthest());
  });
  furthest.sort();
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      result.at_least_anywhere[i * n + j] =
          wanted(i, j) ? furthest.at_least(result.distance[i * n + j]) : all;
    }
  }
}

}  // namespace headcodes
