// What bfloat16 products need besides packs: subnormal numbers as zeros, and rounded rows.

// While it lives, this thread's arithmetic treats subnormal operands as zeros and turns subnormal
// results into zeros, as the instruction vdpbf16ps does whatever the processor's settings, and
// rounds to nearest. 64-bit Arm looks at a result before it is rounded: one just below the smallest
// normal number becomes zero there, though it would round to that number.
class FlushSubnormals {
 public:
  CHARRNN_INLINE explicit FlushSubnormals(bool on) : on_(on) {
    if (!on_) return;
#if defined(__x86_64__)
    constexpr unsigned masked_exceptions = 0x1f80, flush_results = 0x8000, flush_operands = 0x0040;
    before_ = _mm_getcsr();
    set(masked_exceptions | flush_results | flush_operands);
#elif defined(__aarch64__)
    constexpr std::uint64_t flush = std::uint64_t(1) << 24, rounding = std::uint64_t(3) << 22;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
    set((before_ | flush) & ~rounding);
#endif
  }
  CHARRNN_INLINE ~FlushSubnormals() {
    if (on_) set(before_);
  }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  // The compiler moves no access to memory past it, and all arithmetic is on what is in memory.
#if defined(__x86_64__)
  using Control = unsigned;
  CHARRNN_INLINE static void set(Control c) { __asm__ volatile("ldmxcsr %0" ::"m"(c) : "memory"); }
#elif defined(__aarch64__)
  using Control = std::uint64_t;
  CHARRNN_INLINE static void set(Control c) {
    __asm__ volatile("msr fpcr, %0" ::"r"(c) : "memory");
  }
#endif

  bool on_;
  Control before_ = 0;
};

CHARRNN_INLINE Index even(Index n) { return n + n % 2; }

// The row of the batch in `rounded` of RecurrentForwardArgs or RecurrentBackwardArgs, at step t.
CHARRNN_INLINE Bfloat16* rounded_row(Bfloat16* rounded, const Steps& steps, Index t, Index row,
                                     Index width) {
  return rounded + (step_number(steps, t) % 2 * steps.batch + row) * even(width);
}

// to [even(n)] = from [n], rounded; a zero after an odd n.
template <class T>
CHARRNN_INLINE void round_row(const T* from, Index n, Bfloat16* to) {
  if constexpr (sizeof(T) == 4) {
    using V = Native<T>;
    for (Index j = 0; j < n; j += V::lanes) V::load(from + j, n - j).store_bfloat16(to + j, n - j);
    if (n % 2) to[n] = 0;
  }
}

// x for a product of the given kind.
template <class V>
CHARRNN_INLINE V operand(V x, Compute compute) {
  if constexpr (sizeof(Scalar<V>) == 4) {
    if (compute == Compute::bfloat16) return to_bfloat16(x);
  }
  return x;
}

// acc + a * b for operands as above.
template <class V>
CHARRNN_INLINE V add_product(V a, V b, V acc, Compute compute) {
  if constexpr (sizeof(Scalar<V>) == 4) {
    if (compute == Compute::bfloat16) return fma_bfloat16(a, b, acc);
  }
  return fma(a, b, acc);
}
