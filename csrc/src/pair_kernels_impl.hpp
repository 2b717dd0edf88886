// Included once per instruction set, after every standard header and under that set's target pragma, by a
// file that defines in its own namespace: vector_bytes, Vec<T>, Alive<T>, popcount_lanes<T> or
// popcount_bytes.

constexpr std::size_t n_vector = step_bytes / vector_bytes;

template <class T>
[[gnu::always_inline]] inline Vec<T> load(const std::byte* at) {
  Vec<T> vector;
  __builtin_memcpy(&vector, at, vector_bytes);
  return vector;
}

/// Conflicts: how many each entry has, or -1 where only n_conflict knows.
template <class T, int Conflicts, bool AnyDead>
[[gnu::always_inline]] inline const std::uint32_t* compare_entries(const std::uint32_t* at,
                                                                   std::uint32_t n_entry,
                                                                   std::uint32_t n_conflict,
                                                                   const std::byte* rows, Vec<T>* counters) {
  for (std::uint32_t entry = 0; entry < n_entry; ++entry) {
    const std::byte* own = rows + at[0];
    ++at;
    const std::uint32_t n = Conflicts < 0 ? n_conflict : static_cast<std::uint32_t>(Conflicts);
    for (std::size_t v = 0; v < n_vector; ++v) {
      const Vec<T> ids = load<T>(own + v * vector_bytes);
      Alive<T> alive;
      if constexpr (AnyDead) alive.differ(ids, Vec<T>{});
      for (std::uint32_t k = 0; k < n; ++k) alive.differ(ids, load<T>(rows + at[k] + v * vector_bytes));
      alive.count(counters[v]);
    }
    at += n;
  }
  return at;
}

/// compare_entries with the number of conflicts known to the compiler, where it is one of the usual ones.
template <class T, bool AnyDead, int Conflicts = 0>
[[gnu::always_inline]] inline const std::uint32_t* compare_segment(const std::uint32_t* at,
                                                                   std::uint32_t n_entry,
                                                                   std::uint32_t n_conflict,
                                                                   const std::byte* rows, Vec<T>* counters) {
  if constexpr (Conflicts > 4) {
    return compare_entries<T, -1, AnyDead>(at, n_entry, n_conflict, rows, counters);
  } else if (n_conflict == Conflicts) {
    return compare_entries<T, Conflicts, AnyDead>(at, n_entry, n_conflict, rows, counters);
  } else {
    return compare_segment<T, AnyDead, Conflicts + 1>(at, n_entry, n_conflict, rows, counters);
  }
}

template <class T, bool AnyDead>
void compare_step(const CompareProgram& program, const std::byte* rows, std::int32_t* counts) {
  constexpr std::uint32_t most = sizeof(T) == 1 ? 0xff : 0xffff;  // before a lane could overflow
  const std::uint32_t* at = program.offsets;
  Vec<T> counters[n_vector] = {};
  std::uint32_t counted = 0;
  const auto flush = [&] {
    for (std::size_t v = 0; v < n_vector; ++v) {
      constexpr std::size_t lanes = vector_bytes / sizeof(T);
      T counter[lanes];
      __builtin_memcpy(counter, &counters[v], vector_bytes);
      for (std::size_t lane = 0; lane < lanes; ++lane) {
        counts[v * lanes + lane] += Alive<T>::total(counter[lane], counted);
      }
      counters[v] = Vec<T>{};
    }
    counted = 0;
  };
  for (std::size_t s = 0; s < program.n_segment; ++s) {
    const std::uint32_t n_conflict = program.segments[s].n_conflict;
    std::uint32_t left = program.segments[s].n_entry;
    while (left > 0) {
      const std::uint32_t n = left < most - counted ? left : most - counted;
      at = compare_segment<T, AnyDead>(at, n, n_conflict, rows, counters);
      counted += n;
      left -= n;
      if (counted == most) flush();
    }
  }
  flush();
}

template <class T>
void compare_rows(const CompareProgram& program, const std::byte* rows, bool any_dead, std::int32_t* counts) {
  for (std::size_t step = 0; step < sizeof(T); ++step) {
    const auto run = any_dead ? compare_step<T, true> : compare_step<T, false>;
    run(program, rows + step * step_bytes, counts + step * (step_bytes / sizeof(T)));
  }
}

void compare(const CompareProgram& program, const std::byte* rows, unsigned id_bytes, bool any_dead,
             std::int32_t* counts) {
  const auto run = id_bytes == 1   ? compare_rows<std::uint8_t>
                   : id_bytes == 2 ? compare_rows<std::uint16_t>
                                   : compare_rows<std::uint32_t>;
  run(program, rows, any_dead, counts);
}

template <class T>
[[gnu::always_inline]] inline void add_lanes(const Vec<T>& vector, std::int32_t* sums) {
  constexpr std::size_t lanes = vector_bytes / sizeof(T);
  T lane_of[lanes];
  __builtin_memcpy(lane_of, &vector, vector_bytes);
  for (std::size_t lane = 0; lane < lanes; ++lane) sums[lane] += static_cast<std::int32_t>(lane_of[lane]);
}

/// What the narrowest lane counts.
constexpr std::uint32_t most_hits = 0xffff;

/// n_wide neighbouring vectors of every row at once, so that a group's offsets are read once for all of them.
template <class T, std::size_t n_wide, bool Hits>
void spread_vectors(const SpreadProgram& program, const std::byte* rows, std::int32_t* counts,
                    std::int32_t* hits) {
  constexpr std::size_t lanes = vector_bytes / sizeof(T);
  Vec<T> dead[n_wide];
  Vec<T> bits[n_wide] = {};
  Vec<T> hit[n_wide] = {};
  for (std::size_t v = 0; v < n_wide; ++v) dead[v] = load<T>(rows + program.dead_offset + v * vector_bytes);
  const std::uint32_t* at = program.words;
  std::uint32_t since_flush = 0;
  std::uint32_t hit_since_flush = 0;
  const auto flush = [&] {
    for (std::size_t v = 0; v < n_wide; ++v) {
      add_lanes<T>(BitCounter<T>::lane_sums(bits[v]), counts + v * lanes);
      bits[v] = Vec<T>{};
    }
    since_flush = 0;
  };
  const auto flush_hits = [&] {
    for (std::size_t v = 0; v < n_wide; ++v) {
      add_lanes<T>(hit[v], hits + v * lanes);
      hit[v] = Vec<T>{};
    }
    hit_since_flush = 0;
  };
  for (std::size_t g = 0; g < program.n_group; ++g) {
    const std::uint32_t n_negative = at[0];
    const std::uint32_t n_positive = at[1];
    at += 2;
    Vec<T> negative[n_wide];
    Vec<T> positive[n_wide] = {};
    for (std::size_t v = 0; v < n_wide; ++v) negative[v] = dead[v];
    for (std::uint32_t k = 0; k < n_negative; ++k) {
      for (std::size_t v = 0; v < n_wide; ++v) negative[v] |= load<T>(rows + at[k] + v * vector_bytes);
    }
    at += n_negative;
    for (std::uint32_t k = 0; k < n_positive; ++k) {
      for (std::size_t v = 0; v < n_wide; ++v) {
        const Vec<T> row = load<T>(rows + at[k] + v * vector_bytes);
        positive[v] |= row;
        if constexpr (Hits) hit[v] -= reinterpret_cast<Vec<T>>((row & negative[v]) != Vec<T>{});
      }
      if constexpr (Hits) {
        if (++hit_since_flush == most_hits) flush_hits();
      }
    }
    at += n_positive;
    for (std::size_t v = 0; v < n_wide; ++v)
      bits[v] = BitCounter<T>::add(bits[v], positive[v] & ~negative[v]);
    if (++since_flush == BitCounter<T>::most) flush();
  }
  flush();
  if constexpr (Hits) flush_hits();
}

template <class T>
void spread_chunk(const SpreadProgram& program, const std::byte* rows, std::int32_t* counts,
                  std::int32_t* hits) {
  constexpr std::size_t row_vectors = chunk_bytes(sizeof(T)) / vector_bytes;
  constexpr std::size_t n_wide = row_vectors < 4 ? row_vectors : 4;
  const auto run = hits != nullptr ? spread_vectors<T, n_wide, true> : spread_vectors<T, n_wide, false>;
  for (std::size_t v = 0; v < row_vectors; v += n_wide) {
    const std::size_t first_lane = v * vector_bytes / sizeof(T);
    run(program, rows + v * vector_bytes, counts + first_lane, hits != nullptr ? hits + first_lane : nullptr);
  }
}

void spread(const SpreadProgram& program, const std::byte* rows, unsigned lane_bytes, std::int32_t* counts,
            std::int32_t* hits) {
  const auto run = lane_bytes == 2   ? spread_chunk<std::uint16_t>
                   : lane_bytes == 4 ? spread_chunk<std::uint32_t>
                                     : spread_chunk<std::uint64_t>;
  run(program, rows, counts, hits);
}
