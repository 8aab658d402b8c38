// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) on one
// counter. Included inside the namespace of an instruction set or of a device.

CHARRNN_INLINE std::uint64_t multiply(std::uint32_t a, std::uint32_t b) {
  return std::uint64_t{a} * b;
}
CHARRNN_INLINE std::uint32_t low(std::uint64_t p) { return static_cast<std::uint32_t>(p); }
CHARRNN_INLINE std::uint32_t high(std::uint64_t p) { return static_cast<std::uint32_t>(p >> 32); }

struct Philox {
  static constexpr int rounds = 10;
  static constexpr std::uint32_t m0 = 0xD2511F53, m1 = 0xCD9E8D57;
  std::uint32_t keys[rounds][2];

  CHARRNN_INLINE explicit Philox(std::uint64_t key) {
    std::uint32_t first = low(key), second = high(key);
    for (auto& k : keys) {
      k[0] = first, k[1] = second;
      first += 0x9E3779B9, second += 0xBB67AE85;
    }
  }

  // c: the counter on entry, its random words on return.
  CHARRNN_INLINE void draw(std::uint32_t (&c)[4]) const {
    for (const auto& k : keys) {
      const std::uint64_t p0 = multiply(c[0], m0), p1 = multiply(c[2], m1);
      c[0] = high(p1) ^ c[1] ^ k[0], c[1] = low(p1);
      c[2] = high(p0) ^ c[3] ^ k[1], c[3] = low(p0);
    }
  }
};

// A mask's block: the units drawn by 16 counters of four words.
constexpr int mask_block = 64, mask_block_counters = 16;
