// Streams: the bits of Network, for every option of the layers and any division into blocks; and
// what real time asks for. Every allocation, lock and use of the thread pool is counted, and a
// process that may no longer make system calls runs a stream to its end.
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include <dlfcn.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "charrnn_fast/model.hpp"
#include "charrnn_fast/stream.hpp"
#include "charrnn_fast/threads.hpp"
#include "check.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/thread_pool.hpp"
#include "guarded.hpp"
#include "results.hpp"
#include "values.hpp"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(CHARRNN_EMULATED)
constexpr bool intercepts = false;  // sanitizers and emulators have a malloc and locks of their own
#else
constexpr bool intercepts = true;
#endif

namespace {
std::atomic<long> allocations{0}, locks{0};
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(CHARRNN_EMULATED)
extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t n, std::size_t size);
void* __libc_realloc(void* p, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);
void __libc_free(void* p);

void* malloc(std::size_t size) {
  ++allocations;
  return __libc_malloc(size);
}
void* calloc(std::size_t n, std::size_t size) {
  ++allocations;
  return __libc_calloc(n, size);
}
void* realloc(void* p, std::size_t size) {
  ++allocations;
  return __libc_realloc(p, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  ++allocations;
  return __libc_memalign(alignment, size);
}
void free(void* p) {
  if (p) ++allocations;  // a call of the allocator, too
  __libc_free(p);
}

// clang-format off
#define CHARRNN_COUNT_LOCKS(name, type)                                        \
  int name(type* object) {                                                     \
    static const auto real = reinterpret_cast<int (*)(type*)>(dlsym(RTLD_NEXT, #name)); \
    ++locks;                                                                   \
    return real(object);                                                       \
  }
// clang-format on
CHARRNN_COUNT_LOCKS(pthread_mutex_lock, pthread_mutex_t)
CHARRNN_COUNT_LOCKS(pthread_mutex_trylock, pthread_mutex_t)
CHARRNN_COUNT_LOCKS(pthread_rwlock_rdlock, pthread_rwlock_t)
CHARRNN_COUNT_LOCKS(pthread_rwlock_wrlock, pthread_rwlock_t)
}
#endif

// Those of AlignedBuffer: a Stream's own memory. The alignment is only for speed.
void* operator new(std::size_t size, std::align_val_t, const std::nothrow_t&) noexcept {
  ++allocations;
  return charrnn_fast::GuardedMemory::instance().allocate(size);
}
void operator delete(void* p, std::align_val_t) noexcept {
  charrnn_fast::GuardedMemory::instance().release(p);
}

using namespace charrnn_fast;

namespace {

struct Case {
  Index I, H, O, L;
  Bias bias = Bias::both;
  Index projection = 0;
  bool layer_norm = false;
  double zoneout = 0;
};
// Sizes about vectors, panels, chains and the widest input that the step multiplies itself.
constexpr Case cases[] = {
    {1, 16, 1, 1},
    {1, 32, 1, 1, Bias::single},
    {1, 64, 1, 1, Bias::none},
    {1, 12, 1, 2},
    {2, 8, 2, 2, Bias::single},
    {8, 19, 1, 1},
    {9, 7, 3, 1},
    {1, 1, 1, 1},
    {3, 129, 1, 1},
    {150, 140, 5, 2, Bias::none},
    {1, 257, 1, 1, Bias::single},
    {4, 40, 0, 3},
    {1, 20, 1, 1, Bias::both, 7},
    {5, 130, 2, 2, Bias::none, 129},
    {1, 24, 1, 1, Bias::both, 0, true},
    {6, 33, 1, 2, Bias::none, 0, true},
    {2, 18, 0, 2, Bias::single, 5, true},
    {1, 17, 1, 2, Bias::both, 0, false, 0.2},
};

template <class T>
std::vector<T> parameters_of(const Network<T>& network) {
  std::vector<T> flat(count(network.parameter_elements()), T(0));
  for (const Parameter& p : network.parameters()) {
    const auto values = random_values<T>(p.elements(), static_cast<unsigned>(p.offset));
    for (Index i = 0; i < p.elements(); ++i) flat[count(p.offset + i)] = T(0.3) * values[count(i)];
  }
  return flat;
}

NetworkShape shape_of(const CellInfo& cell, const Case& c) {
  NetworkShape shape{cell.name, c.I, c.H, c.O, c.L, c.bias};
  shape.nonlinearity = cell.nonlinearity;
  shape.proj_size = c.projection;
  shape.layer_norm = c.layer_norm;
  shape.regularization.zoneout[0] = c.projection > 0 ? 0 : c.zoneout;
  shape.regularization.zoneout[1] = cell.num_states > 1 ? c.zoneout : 0;
  shape.regularization.dropout = 0.5;  // without a seed of masks nothing is dropped
  return shape;
}

// The lengths of blocks: many steps, one, none, more than the kernels take at once.
constexpr Index blocks[] = {5, 1, 1, 0, 64, 2, 17, 1, 16, 33, 3};
constexpr Index steps = 143;

template <class T>
void check_case(const CellInfo& cell, const Case& c) {
  const NetworkShape shape = shape_of(cell, c);
  const std::string name = std::string(cell.name) + " " + cell.nonlinearity + ", I " +
                           std::to_string(c.I) + ", H " + std::to_string(c.H) + ", L " +
                           std::to_string(c.L) + (c.projection > 0 ? ", projection" : "") +
                           (c.layer_norm ? ", layer norm" : "") +
                           (c.zoneout > 0 ? ", zoneout" : "");
  name_guarded_case(name);
  Model<T> model(shape);
  const auto flat = parameters_of(model.network());
  model.change_parameters([&](T* p) { std::copy(flat.begin(), flat.end(), p); });
  const Index O = model.output_size();
  const Guarded<T> x(random_values<T>(steps * c.I, 1));
  const Guarded<T> first(random_values<T>(model.state_elements(1), 2));
  Guarded<T> expected(count(steps * O)), y(expected.size());
  Guarded<T> expected_last(first.size()), last(first.size());
  // The model's forward and step agree; so one serves as the reference.
  model.forward({steps, 1, nullptr, x.data()}, first.data(), false, expected.data(),
                expected_last.data());

  auto given = std::make_unique<Guarded<T>>(flat);
  Stream<T> stream(shape, given->data());
  given.reset();  // the stream has its own
  CHECK(stream.input_size() == c.I && stream.output_size() == O &&
            stream.state_elements() == model.state_elements(1) && stream.shape().cell == cell.name,
        "%s", name.c_str());
  stream.set_state(first.data());
  const long allocations_before = allocations, locks_before = locks;
  const auto teams = ThreadPool::instance().teams();
  Index t = 0;
  for (const Index n : blocks) {
    stream.run(x.data() + t * c.I, n, y.data() + t * O);
    t += n;
  }
  stream.get_state(last.data());
  const long allocated = allocations - allocations_before, locked = locks - locks_before;
  CHECK(t == steps, "the blocks have %ld steps", long(t));
  CHECK(allocated == 0 && locked == 0 && ThreadPool::instance().teams() == teams,
        "%s: %ld allocations, %ld locks", name.c_str(), allocated, locked);
  CHECK(same_bits(y.data(), expected.data(), steps * O), "%s: y", name.c_str());
  CHECK(same_bits(last.data(), expected_last.data(), stream.state_elements()), "%s: state",
        name.c_str());

  // Steps one by one, by copies that take turns.
  stream.set_state(first.data());
  Stream<T> other = stream;
  bool same = true;
  for (t = 0; t < 20; ++t)
    for (Stream<T>* s : {&stream, &other}) {
      s->step(x.data() + t * c.I, y.data());
      same &= same_bits(y.data(), expected.data() + t * O, O);
    }
  CHECK(same, "%s: steps", name.c_str());

  // From zero, by the model's own steps.
  stream = Stream<T>(other);
  stream.reset();
  std::vector<T> state(first.size(), T(0)), out(count(O));
  same = true;
  for (t = 0; t < 20; ++t) {
    const SequenceInput<T> in{1, 1, nullptr, x.data() + t * c.I};
    model.step(in, state.data(), out.data());
    stream.step(x.data() + t * c.I, y.data());
    same &= same_bits(y.data(), out.data(), O);
  }
  stream.get_state(last.data());
  CHECK(same && same_bits(last.data(), state.data(), stream.state_elements()), "%s: from zero",
        name.c_str());

  if (c.I != O) return;
  std::vector<T> in_place(x.data(), x.data() + steps * c.I);
  stream.set_state(first.data());
  stream.run(in_place.data(), steps, in_place.data());
  CHECK(same_bits(in_place.data(), expected.data(), steps * O), "%s: in place", name.c_str());
}

// Arrays begin, and then end, at pages without access; under an emulator, which is slow, a case has
// one of the two, the next cell the other.
template <class T>
void check_all() {
#if defined(CHARRNN_EMULATED)
  constexpr bool both = false;
#else
  constexpr bool both = true;
#endif
  const Kernels<T>& k = kernels<T>();
  for (int i = 0; i < k.num_cells; ++i)
    for (std::size_t number = 0; number < std::size(cases); ++number)
      for (const Side side : {Side::begin, Side::end}) {
        const Case& c = cases[number];
        if (c.projection > 0 && !k.cells[i].takes_projection()) continue;
        if (!both && (std::size_t(i) + number) % 2 != (side == Side::begin ? 0 : 1)) continue;
        guarded_side = side;
        check_case<T>(k.cells[i], c);
      }
}

// Runs streams in a process that ends at any system call but read, write and exit.
template <class T>
void check_system_calls(const CellInfo& cell, const Case& c) {
  const NetworkShape shape = shape_of(cell, c);
  const auto flat = parameters_of(Network<T>(shape));
  const pid_t child = fork();
  if (child == 0) {
    set_num_threads(1);  // the only exit that is left ends one thread
    Stream<T> stream(shape, flat.data());
    std::vector<T> x(count(100 * c.I), T(0.5)), y(count(100 * stream.output_size()));
    std::vector<T> state(count(stream.state_elements()));
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) _exit(3);
    for (int i = 0; i < 3; ++i) {
      stream.run(x.data(), 100, y.data());
      for (int j = 0; j < 20; ++j) stream.step(x.data(), y.data());
      stream.get_state(state.data());
      stream.reset();
      stream.set_state(state.data());
    }
    syscall(SYS_exit, 0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s with H %ld: status %d", cell.name,
        long(c.H), status);
}

template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "none";
}

void check_errors() {
  NetworkShape shape{"lstm", 1, 4, 1};
  const std::vector<float> flat(count(Network<float>(shape).parameter_elements()));
  Stream<float> stream(shape, flat.data());
  float x = 0, y = 7;
  CHECK(error_of([&] { stream.run(&x, -1, &y); }) == "n must be >= 0, got -1" && y == 7, "%g", y);
  shape.bidirectional = true;
  CHECK(error_of([&] { Stream<float>(shape, flat.data()); }) ==
            "bidirectional of a stream must be false, got true",
        "bidirectional");
  shape.cell = "transformer";
  CHECK(error_of([&] { Stream<float>(shape, flat.data()); }).find("cell must be one of") == 0,
        "cell");
}

}  // namespace

int main() {
  watch_accesses();
  sharing_limits() = {0, 0};  // small cases would run on all threads
  set_num_threads(2);
  std::printf("instruction set %s\n", isa_in_use().c_str());
  if (intercepts) {
    const long allocated = allocations, locked = locks;
    std::mutex mutex;
    mutex.lock();
    mutex.unlock();
    std::vector<char>(100).swap(*std::make_unique<std::vector<char>>());
    AlignedBuffer<float>().reserve(1);
    CHECK(allocations - allocated >= 4 && locks - locked >= 1,
          "%ld allocations and %ld locks are counted", allocations - allocated, locks - locked);
  }
  std::fflush(stdout);
  check_errors();
  check_all<float>();
  check_all<double>();
  if (intercepts)
    for (const Case& c : cases) {
      if (c.projection > 0) continue;
      check_system_calls<float>(kernels<float>().cells[2], c);
      check_system_calls<double>(kernels<double>().cells[3], c);
    }
  return report();
}
