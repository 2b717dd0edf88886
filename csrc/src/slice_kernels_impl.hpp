// Included once per instruction set, like pair_kernels_impl.hpp. Counters are bit-sliced: plane k holds bit k
// of the counts of many permutations, so that one logic operation counts for all of them (Harley's carry-save
// adders, as in Mula, Kurz, Lemire 2018).

using Bits = Vec<std::uint64_t>;
constexpr std::size_t words_per_vector = vector_bytes / sizeof(std::uint64_t);

[[gnu::always_inline]] inline Bits load_bits(const std::uint64_t* at) {
  Bits bits;
  __builtin_memcpy(&bits, at, vector_bytes);
  return bits;
}

/// sum += a + b; returns the carry.
[[gnu::always_inline]] inline Bits add(Bits& sum, const Bits& a, const Bits& b) {
  const Bits either = sum ^ a;
  const Bits carry = (sum & a) | (either & b);
  sum = either ^ b;
  return carry;
}

void slices(const CodeGroups& groups, const std::uint64_t* labels, std::size_t n_plane,
            std::uint64_t* planes) {
  if (n_plane == 0)
    return;  // no code to count, and labels may then be a null pointer: there may be no prompts
  for (std::size_t v = 0; v < block_words; v += words_per_vector) {
    const std::uint64_t* column = labels + v;
    const auto label = [&](std::uint32_t prompt) { return load_bits(column + prompt * block_words); };
    Bits plane[32] = {};
    const auto carry_into = [&](Bits carry, std::size_t k) {
      for (; k < n_plane; ++k) {
        const Bits next = plane[k] & carry;
        plane[k] ^= carry;
        carry = next;
      }
    };
    const auto add_eight = [&](const Bits* x) {
      const Bits two_a = add(plane[0], x[0], x[1]);
      const Bits two_b = add(plane[0], x[2], x[3]);
      const Bits four_a = add(plane[1], two_a, two_b);
      const Bits two_c = add(plane[0], x[4], x[5]);
      const Bits two_d = add(plane[0], x[6], x[7]);
      const Bits four_b = add(plane[1], two_c, two_d);
      carry_into(add(plane[2], four_a, four_b), 3);
    };

    std::size_t g = 0;
    Bits eight[8];
    for (; g + 8 <= groups.n_single; g += 8) {
      for (std::size_t k = 0; k < 8; ++k) eight[k] = label(groups.singles[g + k]);
      add_eight(eight);
    }
    for (; g < groups.n_single; ++g) carry_into(label(groups.singles[g]), 0);

    const std::uint32_t* at = groups.multiples;
    std::size_t n_waiting = 0;
    for (g = 0; g < groups.n_multiple; ++g) {
      const std::uint32_t size = *at++;
      Bits all = label(at[0]) & label(at[1]);
      for (std::uint32_t k = 2; k < size; ++k) {
        all &= label(at[k]);
        // Large groups are hardly ever on one side: most are settled after a few prompts.
        if (k % 8 == 7) {
          std::uint64_t any = 0;
          for (std::size_t w = 0; w < words_per_vector; ++w) any |= all[w];
          if (any == 0) break;
        }
      }
      at += size;
      eight[n_waiting++] = all;
      if (n_waiting == 8) {
        add_eight(eight);
        n_waiting = 0;
      }
    }
    for (std::size_t k = 0; k < n_waiting; ++k) carry_into(eight[k], 0);
    for (std::size_t k = 0; k < n_plane; ++k)
      __builtin_memcpy(planes + k * block_words + v, &plane[k], vector_bytes);
  }
}
