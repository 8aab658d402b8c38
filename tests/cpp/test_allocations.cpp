// Memory grows at first use of a size and stays: after one call of a kind, no further call of it
// allocates. Every `new` of the program is counted here, on all threads.
#include <atomic>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "charrnn_fast/model.hpp"
#include "charrnn_fast/threads.hpp"
#include "check.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/thread_pool.hpp"
#include "values.hpp"

namespace {

std::atomic<long> allocations{0};

void* allocate(std::size_t size, std::size_t alignment) {
  ++allocations;
  const std::size_t whole = (size + alignment - 1) / alignment * alignment;
  void* const p = std::aligned_alloc(alignment, whole > 0 ? whole : alignment);
  if (!p) std::abort();
  return p;
}
// Not inline, lest the compiler see new and free as a mismatch.
__attribute__((noinline)) void release(void* p) { std::free(p); }

}  // namespace

void* operator new(std::size_t size) { return allocate(size, alignof(std::max_align_t)); }
void* operator new[](std::size_t size) { return allocate(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return allocate(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment) {
  return allocate(size, static_cast<std::size_t>(alignment));
}
// Those that take std::nothrow_t and those for arrays call one of these.
void operator delete(void* p) noexcept { release(p); }
void operator delete[](void* p) noexcept { release(p); }
void operator delete(void* p, std::size_t) noexcept { release(p); }
void operator delete[](void* p, std::size_t) noexcept { release(p); }
void operator delete(void* p, std::align_val_t) noexcept { release(p); }
void operator delete[](void* p, std::align_val_t) noexcept { release(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { release(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { release(p); }

using namespace charrnn_fast;

namespace {

#if defined(CHARRNN_EMULATED)
constexpr int further_calls = 1;
#else
constexpr int further_calls = 3;
#endif

template <class T>
void check_cell(const CellInfo& cell, int threads) {
  constexpr Index steps = 6, B = 13, V = 11, H = 40, L = 2;
  set_num_threads(threads);
  NetworkShape shape{cell.name, V, H, V, L, Bias::both};
  shape.nonlinearity = cell.nonlinearity;
  shape.regularization = {.input_dropout = 0.1,
                          .dropout = 0.2,
                          .output_dropout = 0.3,
                          .recurrent_dropout = 0.4,
                          .weight_drop = 0.1,
                          .zoneout = {0.1, 0}};
  Model<T> model(shape);
  model.change_parameters([&](T* p) {
    const auto values = random_values<T>(model.network().parameter_elements(), 1);
    for (const Parameter& q : model.network().parameters())
      for (Index i = q.offset; i < q.offset + q.elements(); ++i)
        p[i] = T(0.2) * values[static_cast<std::size_t>(i)];
  });
  OptimizerOptions options;
  Optimizer<T> optimizer("adam", options, model.network().parameter_elements());
  const auto inputs = random_tokens(steps * B, V, 2), targets = random_tokens(steps * B, V, 3);
  const auto x = random_values<T>(steps * B * V, 4), dy = random_values<T>(steps * B * V, 5);
  const auto n_state = static_cast<std::size_t>(model.state_elements(B));
  std::vector<T> state(n_state, T(0)), state_n(n_state), dstate(n_state, T(0));
  std::vector<T> y(x.size()), dx(x.size());
  std::vector<T> gradients(static_cast<std::size_t>(model.network().parameter_elements()));
  std::vector<std::uint64_t> seeds(B, 7);
  std::vector<Token> drawn(static_cast<std::size_t>(steps * B));
  const SequenceInput<T> tokens{steps, B, inputs.data(), nullptr},
      dense{steps, B, nullptr, x.data()};
  using Batch = typename Model<T>::Batch;
  const Batch tokens_batch{steps, B, inputs.data(), nullptr},
      dense_batch{steps, B, nullptr, x.data()};
  const TrainOptions train{1e-3, 5.0, 1.0, true};

  const auto check = [&](const char* call, auto&& f) {
    f();
    const long before = allocations;
    for (int i = 0; i < further_calls; ++i) f();
    const long after = allocations;
    CHECK(after == before, "%s of %s on %d threads allocates: %ld times in %d calls", call,
          cell.name, threads, after - before, further_calls);
  };
  const auto teams = ThreadPool::instance().teams();
  check("train_step",
        [&] { model.train_step(tokens_batch, targets.data(), state.data(), optimizer, train); });
  check("train_step of vectors",
        [&] { model.train_step(dense_batch, targets.data(), state.data(), optimizer, train); });
  std::vector<double> of_streams(B);
  check("evaluate",
        [&] { model.evaluate(tokens_batch, targets.data(), state.data(), of_streams.data()); });
  check("read", [&] { model.read(tokens_batch, state.data()); });
  const SequenceInput<T> step{1, B, inputs.data(), nullptr}, step_x{1, B, nullptr, x.data()};
  check("step", [&] { model.step(step, state.data(), y.data()); });
  check("step of vectors", [&] { model.step(step_x, state.data(), y.data()); });
  const auto sample = [&](const SamplingOptions& o, Storage storage = Storage::full) {
    model.sample(steps, B, inputs.data(), state.data(), seeds.data(), 0, o, drawn.data(), storage);
  };
  check("sample", [&] { sample({1, 0, 1}); });
  check("sample by top_k", [&] { sample({0.8, 4, 1}); });
  check("sample by top_p", [&] { sample({0.8, 0, 0.9}); });
  check("sample of the likeliest", [&] { sample({0, 0, 1}); });
  if (sizeof(T) == 4) {
    check("sample by bfloat16", [&] { sample({1, 0, 1}, Storage::bfloat16); });
    check("sample by int8", [&] { sample({1, 0, 1}, Storage::int8); });
    check("read by int8", [&] { model.read(tokens_batch, state.data(), Storage::int8); });
  }
  check("forward and backward", [&] {
    for (const SequenceInput<T>& in : {tokens, dense}) {
      model.forward({steps, B, in.tokens, in.x}, state.data(), true, y.data(), state_n.data());
      model.backward(model.kept(), dy.data(), dstate.data(), in.x ? dx.data() : nullptr,
                     gradients.data());
    }
  });
  const std::uint64_t mask_seed = 3;
  std::vector<Index> lengths;
  for (Index b = 0; b < B; ++b) lengths.push_back(b * 5 % (steps + 1));
  check("forward and backward of different lengths, with masks", [&] {
    for (const SequenceInput<T>& in : {tokens, dense}) {
      model.forward({steps, B, in.tokens, in.x, lengths.data(), &mask_seed}, state.data(), true,
                    y.data(), state_n.data());
      model.backward(model.kept(), dy.data(), dstate.data(), in.x ? dx.data() : nullptr,
                     gradients.data());
    }
  });
  Batch masked = tokens_batch;
  masked.mask_seed = &mask_seed;
  check("train_step with masks",
        [&] { model.train_step(masked, targets.data(), state.data(), optimizer, train); });
  for (Batch ragged : {masked, dense_batch}) {
    ragged.lengths = lengths.data();
    check("train_step of different lengths",
          [&] { model.train_step(ragged, targets.data(), state.data(), optimizer, train); });
    check("evaluate of different lengths",
          [&] { model.evaluate(ragged, targets.data(), state.data(), of_streams.data()); });
    check("accumulate and update", [&] {
      Batch numbered = ragged;
      numbered.streams = lengths.data();
      for (const Batch& part : {ragged, numbered})
        model.accumulate(part, targets.data(), state.data(), state_n.data());
      model.update(optimizer, train);
    });
  }
  const long before = allocations;
  const Index told = model.memory({1 << 20, 1 << 20, inputs.data(), nullptr}, true);
  const long after = allocations;
  CHECK(after == before && told > Index(1) << 40, "memory of %s allocates", cell.name);
  check("update", [&] { model.update(optimizer, gradients.data(), 1e-3); });
  CHECK((ThreadPool::instance().teams() > teams) == (threads > 1), "%d threads", threads);
}

template <class T>
void check_all() {
  const Kernels<T>& k = kernels<T>();
  for (int i = 0; i < k.num_cells; ++i)
    for (const int threads : {1, 2}) check_cell<T>(k.cells[i], threads);
}

}  // namespace

int main() {
  sharing_limits() = {0, 0};  // small cases shall run on all threads too
  std::printf("instruction set %s\n", isa_in_use().c_str());
  const long before = allocations;
  std::vector<char>(100).swap(*std::make_unique<std::vector<char>>());
  CHECK(allocations - before == 2, "allocations are not counted");
  check_all<float>();
  check_all<double>();
  return report();
}
