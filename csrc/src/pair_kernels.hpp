#pragma once

#include <cstddef>
#include <cstdint>

namespace headcodes {

/// Components are counted against one first component in tiles of this many.
inline constexpr std::size_t tile_width = 64;

/// Which positives of the first component's groups must differ from which prompts, in byte offsets of a
/// tile's rows. Entries of one segment have equally many conflicts: [prompt, conflict, conflict, ...] each.
struct CompareProgram {
  struct Segment {
    std::uint32_t n_entry;
    std::uint32_t n_conflict;
  };
  const Segment* segments;
  std::size_t n_segment;
  const std::uint32_t* offsets;
};

/// Groups of the first component, in byte offsets of a chunk's rows: [n_negative, n_positive, negatives,
/// positives] each.
struct SpreadProgram {
  std::size_t n_group;
  const std::uint32_t* words;
  std::uint32_t dead_offset;  // row of the bits that no pair may use
};

/// The inner loops, once per instruction set.
struct PairKernels {
  /// counts[c] += entries whose id differs from those of all their conflicts (and from 0 where any_dead).
  /// rows: [prompt][tile_width] ids of id_bytes bytes (1, 2 or 4).
  void (*compare)(const CompareProgram& program, const std::byte* rows, unsigned id_bytes, bool any_dead,
                  std::int32_t* counts);
  /// counts[lane] += bits that some positive of a group has and no negative of it. Where hits is given,
  /// hits[lane] += positives whose bit some negative of their group has. rows: [prompt][chunk_bytes], lanes
  /// of lane_bytes bytes (2, 4 or 8); one bit at most per lane.
  void (*spread)(const SpreadProgram& program, const std::byte* rows, unsigned lane_bytes,
                 std::int32_t* counts, std::int32_t* hits);
  /// What one code looked up in the stamp table costs, in steps (see CostModel); chosen on whole counts,
  /// docs/performance.md has what `measure_core costs` finds.
  double stamp_steps;
};

/// Bytes that one step reads.
inline constexpr std::size_t step_bytes = 64;

/// Bytes of a chunk's row: four steps, but for lanes of two bytes, of which a tile only fills two.
constexpr std::size_t chunk_bytes(unsigned lane_bytes) { return (lane_bytes == 2 ? 2 : 4) * step_bytes; }

}  // namespace headcodes
