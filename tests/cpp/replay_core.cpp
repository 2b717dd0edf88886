// The fuzz target without a fuzzer: inputs drawn from a fixed seed, or the files named (what libFuzzer
// found).

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int main(int argc, char** argv) {
  for (int k = 1; k < argc; ++k) {
    std::ifstream file(argv[k], std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    if (!file) {
      std::fprintf(stderr, "replay_core: cannot read %s\n", argv[k]);
      return 2;
    }
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
  }
  if (argc > 1) return 0;
  std::mt19937 random(0);
  for (int k = 0; k < 100; ++k) {
    std::vector<std::uint8_t> bytes(random() % 4096);
    // Every fourth input repeats few values, as codes of real heads do.
    const unsigned n_value = k % 4 == 0 ? 4 : 256;
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random() % n_value);
    // The sizes come first: drawn from all values.
    for (std::size_t head = 0; head < bytes.size() && head < 4; ++head)
      bytes[head] = static_cast<std::uint8_t>(random());
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  return 0;
}
