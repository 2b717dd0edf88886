#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "dense.hpp"
#include "groups.hpp"
#include "slice_kernels.hpp"

namespace headcodes {

/// What one statistic counts over: filled anew for every component or pair.
class GroupList {
 public:
  void clear() {
    singles_.clear();
    multiples_.clear();
    n_multiple_ = 0;
    observed_ = 0;
  }

  /// prompts in ascending order, positives as given first.
  void add(std::span<const std::uint32_t> prompts, std::size_t n_positive) {
    if (prompts.back() < n_positive) ++observed_;
    if (prompts.size() == 1) {
      singles_.push_back(prompts[0]);
      return;
    }
    ++n_multiple_;
    multiples_.push_back(static_cast<std::uint32_t>(prompts.size()));
    multiples_.insert(multiples_.end(), prompts.begin(), prompts.end());
  }

  [[nodiscard]] CodeGroups view() const {
    return {singles_.data(), singles_.size(), multiples_.data(), n_multiple_};
  }
  [[nodiscard]] std::size_t n_code() const { return singles_.size() + n_multiple_; }
  [[nodiscard]] std::int32_t observed() const { return observed_; }

 private:
  std::vector<std::uint32_t> singles_;
  std::vector<std::uint32_t> multiples_;
  std::size_t n_multiple_ = 0;
  std::int32_t observed_ = 0;
};

/// Splits the groups of a first component by the ids of a second.
class Splitter {
 public:
  explicit Splitter(std::size_t max_ids) : local_(max_ids, 0) {}

  void split(const Dense& dense, const Groups& first, std::size_t second, GroupList& out) {
    const auto ids = dense.column(second);
    out.clear();
    for (const auto& group : first.groups) {
      // Members by id: sizes first, then places. Ids of this group are renumbered 1, 2, ... as they come.
      const std::uint32_t* prompts = first.prompts.data() + group.begin;
      const std::size_t size = group.end - group.begin;
      starts_.assign(1, 0);
      for (std::size_t k = 0; k < size; ++k) {
        const std::uint32_t id = ids[prompts[k]];
        if (id == 0) continue;
        if (local_[id] == 0) {
          local_[id] = static_cast<std::uint32_t>(starts_.size());
          starts_.push_back(0);
        }
        ++starts_[local_[id]];
      }
      if (starts_.size() == 1) continue;
      for (std::size_t k = 1; k < starts_.size(); ++k) starts_[k] += starts_[k - 1];
      members_.resize(starts_.back());
      places_.assign(starts_.begin(), starts_.end() - 1);
      for (std::size_t k = 0; k < size; ++k) {
        const std::uint32_t id = ids[prompts[k]];
        if (id != 0) members_[places_[local_[id] - 1]++] = prompts[k];
      }
      for (std::size_t k = 0; k < size; ++k) local_[ids[prompts[k]]] = 0;
      for (std::size_t k = 0; k + 1 < starts_.size(); ++k) {
        out.add({members_.data() + starts_[k], starts_[k + 1] - starts_[k]}, dense.n_positive);
      }
    }
  }

 private:
  std::vector<std::uint32_t> local_;
  std::vector<std::uint32_t> starts_;
  std::vector<std::uint32_t> places_;
  std::vector<std::uint32_t> members_;
};

}  // namespace headcodes
