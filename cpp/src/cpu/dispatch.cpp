#include "cpu/dispatch.hpp"

#include <cstdlib>

#include "errors.hpp"

namespace charrnn_fast {

// Each set's namespace has kernels(float) and kernels(double). CHARRNN_FOR_EACH_ISA is the build's
// list, best first: X(namespace, "name", test of the processor).
#if defined(__x86_64__)
#define CHARRNN_CPU(feature) (__builtin_cpu_supports(feature) != 0)
#define CHARRNN_RUNS_X86_64_V4                                                     \
  (CHARRNN_CPU("avx512f") && CHARRNN_CPU("avx512bw") && CHARRNN_CPU("avx512cd") && \
   CHARRNN_CPU("avx512dq") && CHARRNN_CPU("avx512vl") && CHARRNN_CPU("fma"))
// A build for tests only may omit some.
#if defined(CHARRNN_WITHOUT_x86_64_v4_bf16)
#define CHARRNN_X86_64_V4_BF16(X)
#else
#define CHARRNN_X86_64_V4_BF16(X)     \
  X(x86_64_v4_bf16, "x86-64-v4-bf16", \
    CHARRNN_RUNS_X86_64_V4&& CHARRNN_CPU("avx512bf16") && CHARRNN_CPU("avx512vnni"))
#endif
#if defined(CHARRNN_WITHOUT_x86_64_v4)
#define CHARRNN_X86_64_V4(X)
#else
#define CHARRNN_X86_64_V4(X) X(x86_64_v4, "x86-64-v4", CHARRNN_RUNS_X86_64_V4)
#endif
#if defined(CHARRNN_WITHOUT_x86_64_v3)
#define CHARRNN_X86_64_V3(X)
#else
#define CHARRNN_X86_64_V3(X)                                                                  \
  X(x86_64_v3, "x86-64-v3",                                                                   \
    CHARRNN_CPU("avx2") && CHARRNN_CPU("fma") && CHARRNN_CPU("bmi") && CHARRNN_CPU("bmi2") && \
        CHARRNN_CPU("f16c") && CHARRNN_CPU("lzcnt") && CHARRNN_CPU("movbe"))
#endif
#if defined(CHARRNN_WITHOUT_x86_64_v2)
#define CHARRNN_X86_64_V2(X)
#else
#define CHARRNN_X86_64_V2(X) \
  X(x86_64_v2, "x86-64-v2", CHARRNN_CPU("sse4.2") && CHARRNN_CPU("popcnt"))
#endif
#define CHARRNN_FOR_EACH_ISA(X) \
  CHARRNN_X86_64_V4_BF16(X) CHARRNN_X86_64_V4(X) CHARRNN_X86_64_V3(X) CHARRNN_X86_64_V2(X)
#elif defined(__aarch64__)
#define CHARRNN_FOR_EACH_ISA(X) X(neon, "neon", true)
#else
#error "charrnn_fast is built for x86-64 and 64-bit Arm"
#endif

#define X(space, name, runs)              \
  namespace space {                       \
  const Kernels<float>& kernels(float);   \
  const Kernels<double>& kernels(double); \
  }
CHARRNN_FOR_EACH_ISA(X)
#undef X
#if defined(__x86_64__) && !defined(CHARRNN_WITHOUT_x86_64_v4_bf16)
// bfloat16 is for products of float alone.
namespace x86_64_v4 {
const Kernels<double>& kernels(double);
}
const Kernels<double>& x86_64_v4_bf16::kernels(double x) { return x86_64_v4::kernels(x); }
#endif

namespace {

struct Isa {
  const char* name;
  bool runs;
  const Kernels<float>& (*f32)(float);
  const Kernels<double>& (*f64)(double);
};

const std::vector<Isa>& isas() {
  static const std::vector<Isa> list = {
#define X(space, name, runs) {name, runs, &space::kernels, &space::kernels},
      CHARRNN_FOR_EACH_ISA(X)
#undef X
  };
  return list;
}

std::string names_of(const std::vector<std::string>& names) {
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
  return all;
}

const Isa& choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  const char* wanted = std::getenv("CHARRNN_ISA");
  for (const Isa& isa : isas())
    if (isa.runs && (!wanted || !*wanted || isa.name == std::string(wanted))) return isa;
  fail("CHARRNN_ISA must be one of ", names_of(runnable_isas()), " on this machine, got '",
       wanted ? wanted : "", "'");
}

const Isa& chosen() {
  static const Isa& isa = choose();
  return isa;
}

}  // namespace

template <>
const Kernels<float>& kernels<float>() {
  return chosen().f32(0);
}
template <>
const Kernels<double>& kernels<double>() {
  return chosen().f64(0);
}

std::string isa_in_use() { return chosen().name; }

std::vector<std::string> runnable_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas())
    if (isa.runs) names.push_back(isa.name);
  return names;
}

}  // namespace charrnn_fast
