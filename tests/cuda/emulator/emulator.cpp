#include "emulator.hpp"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <limits>
#include <map>
#include <mutex>
#include <random>

#include "accesses.hpp"
#include "fiber.hpp"
#include "memory.hpp"

namespace cuda_emulator {

const Card a100{"A100", 80, 108, 2048, 32, 163 << 10, 164 << 10, 1};
const Card rtx_4090{"RTX 4090", 89, 128, 1536, 24, 99 << 10, 100 << 10, 1};
const Card h200{"H200", 90, 132, 2048, 32, 227 << 10, 228 << 10, 16};

const char* name_of(Kind kind) {
  switch (kind) {
    case Kind::deadlock:
      return "deadlock";
    case Kind::divergent_barrier:
      return "divergent barrier";
    case Kind::divergent_warp:
      return "divergent warp";
    case Kind::limits:
      return "launch refused";
    case Kind::unwritten:
      return "unwritten memory";
    case Kind::overrun:
      return "overrun";
    case Kind::ended_block:
      return "block not there";
    case Kind::misuse:
      return "misuse";
    case Kind::capture:
      return "stream capture";
  }
  return "";
}

namespace {

constexpr unsigned warp_size = 32, max_threads = 1024, max_barriers = 16;
constexpr std::size_t max_static_shared = 48 << 10;

struct Block;

// Threads that wait for one another. Whoever comes early to the next meeting must not order itself
// before those who have yet to leave this one: two generations never overlap by more than one.
struct Meeting {
  std::vector<struct Thread*> waiting;
  unsigned arrived = 0, expected = 0, generation = 0;
  Where where;
  const char* what = "";
  char order[2];

  const void* now() const { return &order[generation & 1]; }
};

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};

// What a lane brings to a collective of its warp.
struct Operands {
  std::uint64_t value = 0;
  unsigned operand = 0, width = warp_size;
  float* d = nullptr;
  const std::uint32_t *a = nullptr, *b = nullptr;
};

struct Thread {
  Thread(Block& its_block, unsigned its_number, Fiber::Entry entry)
      : fiber(entry), block(its_block), number(its_number) {}

  Fiber fiber;
  Block& block;
  const unsigned number;  // in its block
  uint3 index{};
  bool begun = false, done = false, cluster_arrived = false;
  const char* waits_for = nullptr;
  Where where;
  Operands operands;
  std::uint64_t result = 0;
  unsigned cluster_generation = 0;  // of its arrival
  std::vector<Copy> open_copies;
  std::vector<std::vector<Copy>> groups;  // the oldest first

  unsigned lane() const { return number % warp_size; }
};

struct Barrier {  // a kernel's mbarrier
  unsigned count = 0, pending = 0, phase = 0;
  std::int64_t bytes = 0;
  std::vector<Thread*> waiting;
  char order[2];
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  Meeting barrier;
  unsigned live_threads = 0;
};

struct Block {
  Block(Cluster& its_cluster, uint3 its_index, unsigned its_rank)
      : cluster(its_cluster), index(its_index), rank(its_rank) {}

  Cluster& cluster;
  const uint3 index;
  const unsigned rank;
  std::vector<std::unique_ptr<Thread>> threads;
  unsigned done = 0;
  std::array<unsigned, max_threads / warp_size> absent{};  // by warp: lanes not there, or done
  bool begun = false;
  std::unique_ptr<SharedArray> dynamic;
  std::map<const void*, std::unique_ptr<SharedArray>> arrays;  // static ones
  std::array<Meeting, max_barriers> barriers;
  std::map<std::pair<unsigned, unsigned>, Meeting> collectives;  // by warp and mask
  std::map<const Mbarrier*, Barrier> mbarriers;

  bool ended() const { return done == threads.size(); }
};

// 4, 8 or 16 bytes, by instructions that no sanitizer sees.
void copy_few(void* to, const void* from, std::size_t bytes) {
  if (bytes == 4) __builtin_memcpy(to, from, 4);
  if (bytes == 8) __builtin_memcpy(to, from, 8);
  if (bytes == 16) __builtin_memcpy(to, from, 16);
}

struct Pending {  // a store that is under way
  void* to;
  alignas(16) std::array<unsigned char, 16> data;
  std::size_t bytes;
  Mbarrier* barrier;
  Cluster* cluster;
  Where where;
  char order;
};

struct State {
  std::recursive_mutex mutex;
  Card card = h200;
  std::uint64_t order = 0;
  Statistics statistics{};
  std::mt19937_64 random;
  bool draining = false;

  // the launch that runs
  const Grid* grid = nullptr;
  const std::function<void()>* entry = nullptr;
  Where launched;
  std::deque<Thread*> ready;
  std::vector<std::unique_ptr<Cluster>> resident;
  std::vector<std::unique_ptr<Cluster>> ended;  // under the thread sanitizer, see run_grid
  std::size_t clusters_left = 0;
  std::vector<std::unique_ptr<Pending>> pending;
  std::uint64_t idle_polls = 0;
  std::unique_ptr<Finding> finding;
  std::unique_ptr<Fiber> host;
  Thread* current = nullptr;
};
State& state() {
  static State& it = *new State;
  return it;
}

uint3 thread_index{}, block_index{};
dim3 block_dim, grid_dim;

std::string at(const Where& where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line());
}
std::string place_of(const Block& block) {
  return "block (" + std::to_string(block.index.x) + ", " + std::to_string(block.index.y) + ", " +
         std::to_string(block.index.z) + ")";
}
std::string place_of(const Thread& thread) {
  return "thread " + std::to_string(thread.number) + " of " + place_of(thread.block);
}
std::string the_launch() { return " (kernel launched at " + at(state().launched) + ")"; }

// Ends the launch from within a thread, which never goes on.
[[noreturn]] void fail(Kind kind, const std::string& message) {
  State& s = state();
  s.finding = std::make_unique<Finding>(
      kind, (s.current ? place_of(*s.current) + " " : std::string()) + message + the_launch());
  s.host->switch_from(s.current->fiber, true);
  __builtin_unreachable();
}

Thread& current() { return *state().current; }

// The scheduler's own work within a thread.
struct Scheduling : Fiber::As {
  Scheduling() : As(*state().host, current().fiber) {}
};

bool random_order() { return state().order > 1; }

std::uint64_t draw(std::uint64_t below) { return state().random() % below; }

void make_ready(Thread& thread) {
  thread.waits_for = nullptr;
  state().ready.push_back(&thread);
}

void to_host() {
  State& s = state();
  Thread& self = current();
  s.host->switch_from(self.fiber);
}

// Until somebody makes this thread ready.
void wait(const char* what, const Where& where) {
  Thread& self = current();
  self.waits_for = what;
  self.where = where;
  to_host();
}

// Lets others go on.
void yield() {
  make_ready(current());
  to_host();
}

void maybe_yield() {
  if (random_order() && draw(4) == 0) yield();
}

void check_ended_block(Block& block) {
  State& s = state();
  const auto check = [&](const SharedArray& array, const char* what) {
    const long written = array.overrun();
    if (written >= 0 && !s.finding)
      s.finding = std::make_unique<Finding>(
          Kind::overrun, std::string(what) + " of " + place_of(block) + ", " +
                             std::to_string(array.size()) + " bytes, was written " +
                             std::to_string(written + 1) + " bytes past its end" + the_launch());
  };
  check(*block.dynamic, "dynamic shared memory");
  for (const auto& entry : block.arrays) check(*entry.second, "a shared array");
}

// Opens a meeting for those that leave it and closes it for those to come.
void end_meeting(Meeting& meeting, Thread* except) {
  meeting.arrived = 0;
  ++meeting.generation;
  for (Thread* thread : meeting.waiting)
    if (thread != except) make_ready(*thread);
  meeting.waiting.clear();
  progress();
}

void cluster_meets(Cluster& cluster) {
  if (cluster.barrier.arrived >= cluster.live_threads && cluster.barrier.arrived > 0)
    end_meeting(cluster.barrier, nullptr);
}

void thread_ends() {
  State& s = state();
  Thread& self = current();
  Block& block = self.block;
  order_release(&s.launched);
  const Scheduling scheduling;
  for (const Meeting& barrier : block.barriers)
    if (barrier.arrived > 0 && barrier.expected == block.threads.size())
      fail(Kind::divergent_barrier, "ends, and others of its block wait for it at " +
                                        std::string(barrier.what) + " at " + at(barrier.where));
  for (const auto& [key, meeting] : block.collectives)
    if (key.first == self.number / warp_size && (key.second >> self.lane() & 1) &&
        meeting.arrived > 0)
      fail(Kind::divergent_warp,
           "ends, and is in the mask of " + std::string(meeting.what) + " at " + at(meeting.where));
  self.done = true;
  block.absent[self.number / warp_size] |= 1u << self.lane();
  ++block.done;
  progress();
  Cluster& cluster = block.cluster;
  if (self.cluster_arrived && self.cluster_generation == cluster.barrier.generation)
    --cluster.barrier.arrived;
  --cluster.live_threads;
  cluster_meets(cluster);
  if (block.ended()) {
    check_ended_block(block);
    if (cluster.blocks.size() > 1) {
      block.dynamic->close();
      for (auto& array : block.arrays) array.second->close();
    }
  }
  s.host->switch_from(self.fiber, true);
}

void thread_begins() {
  Fiber::begin();
  State& s = state();
  order_acquire(&s.grid);
  order_acquire(current().block.dynamic.get());
  std::string thrown;
  try {
    (*s.entry)();
  } catch (const std::exception& error) {
    thrown = error.what();
  }
  if (!thrown.empty()) fail(Kind::misuse, "throws: " + thrown);
  thread_ends();
}

void begin_cluster(std::size_t number) {
  State& s = state();
  const Grid& grid = *s.grid;
  auto cluster = std::make_unique<Cluster>();
  const unsigned threads = grid.threads.x * grid.threads.y * grid.threads.z;
  for (unsigned rank = 0; rank < grid.cluster; ++rank) {
    const std::size_t n = number * grid.cluster + rank;
    const uint3 index{static_cast<unsigned>(n % grid.blocks.x),
                      static_cast<unsigned>(n / grid.blocks.x % grid.blocks.y),
                      static_cast<unsigned>(n / grid.blocks.x / grid.blocks.y)};
    auto block = std::make_unique<Block>(*cluster, index, rank);
    block->dynamic = std::make_unique<SharedArray>(grid.shared, 128, grid.cluster > 1);
    order_release(block->dynamic.get());
    if (grid.cluster > 1) block->dynamic->close();
    for (unsigned i = 0; i < threads; ++i) {
      auto thread = std::make_unique<Thread>(*block, i, thread_begins);
      thread->index = {i % grid.threads.x, i / grid.threads.x % grid.threads.y,
                       i / grid.threads.x / grid.threads.y};
      block->threads.push_back(std::move(thread));
    }
    if (threads % warp_size != 0) block->absent[threads / warp_size] = ~0u << threads % warp_size;
    cluster->blocks.push_back(std::move(block));
  }
  cluster->live_threads = threads * grid.cluster;
  s.statistics.threads += cluster->live_threads;
  std::vector<Thread*> all;
  for (auto& block : cluster->blocks)
    for (auto& thread : block->threads) all.push_back(thread.get());
  if (s.order == 1) std::reverse(all.begin(), all.end());
  s.ready.insert(s.ready.end(), all.begin(), all.end());
  s.resident.push_back(std::move(cluster));
}

void begin_block(Block& block) {
  block.begun = true;
  if (block.cluster.blocks.size() == 1) return;
  block.dynamic->open();
  for (auto& array : block.arrays) array.second->open();
}

Barrier* find_barrier(Cluster& cluster, const Mbarrier* address) {
  for (auto& block : cluster.blocks) {
    const auto found = block->mbarriers.find(address);
    if (found != block->mbarriers.end()) return &found->second;
  }
  return nullptr;
}

void end_phase(Barrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  barrier.pending = barrier.count;
  ++barrier.phase;
  std::vector<Thread*> waiting;
  waiting.swap(barrier.waiting);
  for (Thread* thread : waiting) make_ready(*thread);
  progress();
}

Block* block_holding(Cluster& cluster, const void* address) {
  for (auto& block : cluster.blocks) {
    if (block->dynamic->holds(address)) return block.get();
    for (auto& array : block->arrays)
      if (array.second->holds(address)) return block.get();
  }
  return nullptr;
}

#if defined(CUDA_EMULATOR_THREAD_SANITIZER)
// A store under way is a thread of its own to the sanitizer: ordered behind what came before the
// instruction, and before what waits for the barrier.
Pending* delivered;
Fiber* deliverer;
const void* delivered_order;
void deliver_in_fiber() {
  Fiber::begin();
  order_acquire(&delivered->order);
  alignas(16) unsigned char data[16];
  copy_few(data, delivered->data.data(), 16);
  access_copy(delivered->to, data, delivered->bytes);
  order_release(delivered_order);
  state().host->switch_from(*deliverer, true);
}
#endif

// Sets the finding if the store arrives nowhere.
void deliver(std::size_t which) {
  State& s = state();
  const std::unique_ptr<Pending> store = std::move(s.pending[which]);
  s.pending.erase(s.pending.begin() + static_cast<std::ptrdiff_t>(which));
  Block* const target = block_holding(*store->cluster, store->to);
  Barrier* const barrier = find_barrier(*store->cluster, store->barrier);
  if (!target || !barrier || target->ended()) {
    s.finding = std::make_unique<Finding>(Kind::ended_block,
                                          "an asynchronous store issued at " + at(store->where) +
                                              " arrives at a block that has ended" + the_launch());
    return;
  }
#if defined(CUDA_EMULATOR_THREAD_SANITIZER)
  Fiber fiber(deliver_in_fiber);
  delivered = store.get();
  deliverer = &fiber;
  delivered_order = &barrier->order[barrier->phase & 1];
  fiber.switch_from(*s.host);
#else
  access_copy(store->to, store->data.data(), store->bytes);
#endif
  barrier->bytes -= static_cast<std::int64_t>(store->bytes);
  end_phase(*barrier);
}

[[noreturn]] void report_deadlock() {
  State& s = state();
  // Threads of a block that wait for one thing at one place are told together.
  std::map<std::tuple<const Block*, std::string, std::string>, std::vector<unsigned>> groups;
  for (const auto& cluster : s.resident)
    for (const auto& block : cluster->blocks)
      for (const auto& thread : block->threads)
        if (!thread->done)
          groups[{block.get(), thread->waits_for ? thread->waits_for : "a value",
                  at(thread->where)}]
              .push_back(thread->number);
  std::string message = "nothing that is under way ends these waits:";
  std::size_t told = 0;
  for (const auto& [key, numbers] : groups) {
    if (told++ == 8) {
      message += "\n  and " + std::to_string(groups.size() - 8) + " more";
      break;
    }
    message += "\n  " + place_of(*std::get<0>(key)) + ": " + std::to_string(numbers.size()) +
               " threads, the first " + std::to_string(numbers.front()) + ", wait for " +
               std::get<1>(key) + " at " + std::get<2>(key);
  }
  if (s.clusters_left > 0)
    message += "\n  " + std::to_string(s.clusters_left * s.grid->cluster) +
               " blocks have not begun: only a cooperative launch has all blocks at once";
  throw Finding(Kind::deadlock, message + the_launch());
}

// Whether a thread was readied, or a store delivered.
bool deliver_one() {
  State& s = state();
  if (s.pending.empty()) return false;
  deliver(random_order() ? draw(s.pending.size()) : s.order == 1 ? s.pending.size() - 1 : 0);
  return true;
}

void run_grid(const Grid& grid, const std::function<void()>& entry) {
  State& s = state();
  ++s.statistics.launches;
  s.grid = &grid;
  s.entry = &entry;
  s.launched = grid.where;
  s.random.seed(s.order * 0x9E3779B97F4A7C15u + s.statistics.launches);
  s.idle_polls = 0;
  s.host = std::make_unique<Fiber>();
  grid_dim = grid.blocks;
  block_dim = grid.threads;
  struct CleanUp {
    State& s;
    ~CleanUp() {
      s.current = nullptr;
      s.ready.clear();
      s.pending.clear();
      s.resident.clear();
      s.ended.clear();
      s.grid = nullptr;
    }
  } clean_up{s};

  const std::size_t clusters =
      std::size_t(grid.blocks.x) * grid.blocks.y * grid.blocks.z / grid.cluster;
  std::vector<std::size_t> waiting(clusters);  // taken from the back
  for (std::size_t i = 0; i < clusters; ++i) waiting[i] = s.order == 1 ? i : clusters - 1 - i;
  if (random_order()) std::shuffle(waiting.begin(), waiting.end(), s.random);
  const std::size_t at_once = grid.cooperative ? clusters : random_order() ? 1 + draw(3) : 1;
  order_release(&s.grid);
  while (true) {
    for (std::size_t i = 0; i < s.resident.size();) {
      if (s.resident[i]->live_threads > 0) {
        ++i;
        continue;
      }
#if defined(CUDA_EMULATOR_THREAD_SANITIZER)
      // To free what threads have written, the host must be ordered behind them; and what it
      // allocates then for other blocks would be, too.
      s.ended.push_back(std::move(s.resident[i]));
#endif
      s.resident.erase(s.resident.begin() + static_cast<std::ptrdiff_t>(i));
    }
    while (s.resident.size() < at_once && !waiting.empty()) {
      begin_cluster(waiting.back());
      waiting.pop_back();
      progress();
    }
    s.clusters_left = waiting.size();
    if (s.resident.empty()) break;
    bool finished = false;  // a cluster
    while (!finished) {
      if (s.ready.empty()) {
        if (!deliver_one()) report_deadlock();
        if (s.finding) break;
        continue;
      }
      if (!s.pending.empty() && random_order() && draw(8) == 0) deliver_one();
      if (s.idle_polls > 64 * s.ready.size() + 4096) {
        if (!deliver_one()) report_deadlock();
        s.idle_polls = 0;
      }
      if (s.finding) break;
      if (random_order()) std::swap(s.ready.front(), s.ready[draw(s.ready.size())]);
      Thread& next = *s.ready.front();
      s.ready.pop_front();
      s.current = &next;
      thread_index = next.index;
      block_index = next.block.index;
      if (!next.block.begun) begin_block(next.block);
      ++s.statistics.switches;
      next.fiber.switch_from(*s.host);
      if (s.finding) break;
      finished = next.done && next.block.cluster.live_threads == 0;
      for (std::size_t i = 0; finished && !s.finding && i < s.pending.size();)
        s.pending[i]->cluster == &next.block.cluster ? deliver(i) : void(++i);
      if (s.finding) break;
    }
    if (s.finding) {
      const std::unique_ptr<Finding> finding = std::move(s.finding);
      throw Finding(*finding);
    }
  }
  order_acquire(&s.launched);
  check_device_memory();
}

void check_launch(const Grid& grid) {
  const Card& c = state().card;
  const auto refuse = [&](const std::string& message) {
    throw Finding(Kind::limits, message + " (" + c.name + ")");
  };
  const auto text = [](std::size_t n) { return std::to_string(n); };
  const std::size_t threads = std::size_t(grid.threads.x) * grid.threads.y * grid.threads.z;
  const std::size_t blocks = std::size_t(grid.blocks.x) * grid.blocks.y * grid.blocks.z;
  if (threads == 0 || threads > max_threads || grid.threads.z > 64)
    refuse("a block must have 1 to 1024 threads, at most 64 along z, got " + text(threads));
  if (blocks == 0 || grid.blocks.x > 0x7FFFFFFFu || grid.blocks.y > 65535 || grid.blocks.z > 65535)
    refuse("a grid must have 1 to 2147483647 x 65535 x 65535 blocks, got " + text(grid.blocks.x) +
           " x " + text(grid.blocks.y) + " x " + text(grid.blocks.z));
  if (grid.shared > c.shared_per_block)
    refuse("a block's shared memory must be at most " + text(c.shared_per_block) + " bytes, got " +
           text(grid.shared));
  if (grid.cluster == 0 || grid.cluster > static_cast<unsigned>(c.cluster_size))
    refuse("a cluster must have 1 to " + text(static_cast<std::size_t>(c.cluster_size)) +
           " blocks, got " + text(grid.cluster));
  if (grid.blocks.x % grid.cluster != 0)
    refuse("the grid's blocks along x must be a multiple of the cluster's " + text(grid.cluster) +
           ", got " + text(grid.blocks.x));
  if (grid.cooperative && blocks > static_cast<std::size_t>(resident_blocks(grid)))
    refuse("a cooperative launch must have at most " +
           text(static_cast<std::size_t>(resident_blocks(grid))) + " blocks of " + text(threads) +
           " threads and " + text(grid.shared) + " bytes, got " + text(blocks));
#if defined(CUDA_EMULATOR_THREAD_SANITIZER)
  const std::size_t at_once = threads * (grid.cooperative ? blocks : 3 * grid.cluster);
  if (at_once > 8000)
    refuse("the thread sanitizer takes 8,128 fibers at once; these would be " + text(at_once));
#endif
}

// ---- accesses that the memory refuses ------------------------------------------------------
struct sigaction earlier;

void say(const char* text) { (void)!write(2, text, std::strlen(text)); }

void on_segmentation_fault(int number, siginfo_t* info, void* context) {
  State& s = state();
  const void* const address = info->si_addr;
  const char* what = nullptr;
  if (is_device_memory(address)) {
    what = "the host accesses the device's memory outside of a copy";
  } else if (s.current) {
    if (s.current->fiber.owns(address)) what = "a thread's stack overflows";
    for (auto& cluster : s.resident)
      for (auto& block : cluster->blocks) {
        bool inside = block->dynamic->holds(address);
        for (auto& array : block->arrays) inside = inside || array.second->holds(address);
        if (inside)
          what = block->begun ? "shared memory of a block of the cluster that has ended is accessed"
                              : "shared memory of a block of the cluster that has not begun is "
                                "accessed";
      }
  }
  if (what) {
    say("cuda_emulator: ");
    say(what);
    if (s.current) {
      say(", by ");
      say(place_of(*s.current).c_str());
      say(the_launch().c_str());
    }
    say("\n");
  }
  sigaction(SIGSEGV, &earlier, nullptr);
  if (earlier.sa_flags & SA_SIGINFO && earlier.sa_sigaction)
    earlier.sa_sigaction(number, info, context);
}

void watch_accesses() {
  static bool watching = false;
  if (watching) return;
  watching = true;
  static char stack[64 << 10];
  stack_t other{};
  other.ss_sp = stack;
  other.ss_size = sizeof stack;
  sigaltstack(&other, nullptr);
  struct sigaction action{};
  action.sa_sigaction = on_segmentation_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &earlier);
}

std::vector<Stream*>& streams() {
  static auto& all = *new std::vector<Stream*>;
  return all;
}
int capturing = 0;

void not_while_capturing(const char* what) {
  if (capturing > 0)
    throw Finding(Kind::capture, std::string(what) + " while a stream is being captured");
}

}  // namespace

// ---- the host's side ----------------------------------------------------------------------
const Card& card() { return state().card; }
void set_card(const Card& card) { state().card = card; }
void set_order(std::uint64_t order) { state().order = order; }
Statistics statistics() { return state().statistics; }

void* allocate(std::size_t bytes) {
  const std::lock_guard lock(state().mutex);
  not_while_capturing("allocate()");
  watch_accesses();
  return allocate_memory(bytes);
}

void release(void* memory) {
  const std::lock_guard lock(state().mutex);
  not_while_capturing("release()");
  release_memory(memory);
}

std::size_t allocated_bytes() { return memory_in_use(); }
bool is_device(const void* address) { return is_allocated(address); }

Stream::Stream() {
  const std::lock_guard lock(state().mutex);
  streams().push_back(this);
}

Stream::~Stream() {
  const std::lock_guard lock(state().mutex);
  std::erase(streams(), this);
  if (capturing_) --capturing;
  for (const Work& work : queue_)
    if (work.reaches) work.reaches->stream = nullptr;
}

void Stream::enqueue(std::function<void()> work) {
  const std::lock_guard lock(state().mutex);
  queue_.push_back({std::move(work), nullptr, nullptr});
}

void Stream::not_while_captured(const char* what) const {
  if (capturing_)
    throw Finding(Kind::capture, std::string(what) + " of the stream that is being captured");
}

void Event::record(Stream& stream) {
  const std::lock_guard lock(state().mutex);
  stream.not_while_captured("an event");
  place_ = std::make_shared<Place>(Place{&stream});
  stream.queue_.push_back({[] {}, nullptr, place_});
}

void Stream::wait(const Event& event) {
  const std::lock_guard lock(state().mutex);
  not_while_captured("a wait");
  if (event.place_) queue_.push_back({[] {}, event.place_, nullptr});
}

// Before it, what it waits for in another stream: that was queued earlier, so this ends.
void Stream::run_first() {
  const Work work = std::move(queue_.front());
  queue_.pop_front();
  while (work.behind && !work.behind->reached) {
    if (!work.behind->stream)
      throw Finding(Kind::misuse, "a stream waits for an event of one that was destroyed before");
    work.behind->stream->run_first();
  }
  work.run();
  if (work.reaches) work.reaches->reached = true;
}

Stream& default_stream() {
  static Stream& it = *new Stream;
  return it;
}

void synchronize() {
  const std::lock_guard lock(state().mutex);
  not_while_capturing("synchronize()");
  for (std::size_t i = 0; i < streams().size(); ++i) streams()[i]->synchronize();
}

void Stream::upload(const void* from, std::size_t bytes, void* to) {
  enqueue([=] { std::memcpy(to, from, bytes); });
}

void Stream::copy(const void* from, std::size_t bytes, void* to) {
  enqueue([=] { std::memmove(to, from, bytes); });
}

void Stream::fill(void* to, int byte, std::size_t bytes) {
  enqueue([=] { std::memset(to, byte, bytes); });
}

void Stream::download(const void* from, std::size_t bytes, void* to, bool check) {
  enqueue([=] {
    std::memcpy(to, from, bytes);
    if (!check) return;
    for (std::size_t i = 0; i + 4 <= bytes; i += 4) {
      std::uint32_t word;
      std::memcpy(&word, static_cast<const char*>(to) + i, 4);
      if (word == unwritten_word)
        throw Finding(Kind::unwritten, "word " + std::to_string(i / 4) + " of " +
                                           std::to_string(bytes / 4) +
                                           " copied to the host was never written, or computed "
                                           "from memory that was not");
    }
  });
}

void Stream::synchronize() {
  const std::lock_guard lock(state().mutex);
  State& s = state();
  not_while_capturing("synchronize()");
  if (s.draining) throw Finding(Kind::misuse, "work of a stream waits for a stream");
  const OpenMemory open;
  struct Draining {
    bool& it;
    explicit Draining(bool& flag) : it(flag) { it = true; }
    ~Draining() { it = false; }
  } draining(s.draining);
  // Other streams may run as well, as far as they like; here, in random orders, one step before.
  try {
    while (!queue_.empty()) {
      if (random_order() && streams().size() > 1) {
        Stream* const other = streams()[s.random() % streams().size()];
        if (other != this && !other->queue_.empty() && !other->capturing_) other->run_first();
      }
      if (!queue_.empty()) run_first();
    }
  } catch (...) {
    queue_.clear();
    throw;
  }
}

void Stream::begin_capture() {
  synchronize();
  capturing_ = true;
  ++capturing;
}

std::vector<std::function<void()>> Stream::end_capture() {
  capturing_ = false;
  --capturing;
  std::vector<std::function<void()>> graph;
  for (Work& work : queue_) graph.push_back(std::move(work.run));
  queue_.clear();
  return graph;
}

void Stream::replay(const std::vector<std::function<void()>>& graph) {
  for (const auto& work : graph) enqueue(work);
}

void launch_function(const Grid& grid, Stream& stream, std::function<void()> thread) {
  check_launch(grid);
  stream.enqueue([grid, entry = std::move(thread)] { run_grid(grid, entry); });
}

int resident_blocks(const Grid& grid) {
  const Card& c = state().card;
  const int threads = static_cast<int>(
      (std::size_t(grid.threads.x) * grid.threads.y * grid.threads.z + warp_size - 1) / warp_size *
      warp_size);
  const int by_shared =
      static_cast<int>(c.shared_per_multiprocessor / (grid.shared + 1024));  // 1 KB for the system
  const int each =
      std::min({c.threads_per_multiprocessor / threads, by_shared, c.blocks_per_multiprocessor});
  return each * c.multiprocessors;
}

// ---- the kernels' side --------------------------------------------------------------------
void* dynamic_shared() { return current().block.dynamic->get(); }

namespace {

void* static_array(Block& block, const void* key, std::size_t bytes, std::size_t alignment) {
  auto& array = block.arrays[key];
  if (!array) {
    array = std::make_unique<SharedArray>(bytes, alignment, block.cluster.blocks.size() > 1);
    order_release(&block.arrays);
    if (!block.begun) array->close();
    std::size_t all = 0;
    for (const auto& entry : block.arrays) all += entry.second ? entry.second->size() : 0;
    if (all > max_static_shared)
      fail(Kind::limits, "has " + std::to_string(all) +
                             " bytes of static shared memory, 49152 is "
                             "the most");
    if (all + block.dynamic->size() > card().shared_per_block)
      fail(Kind::limits, "has " + std::to_string(all + block.dynamic->size()) +
                             " bytes of shared memory, " + std::to_string(card().shared_per_block) +
                             " is the most");
  }
  return array->get();
}

}  // namespace

void* static_shared(const void* key, std::size_t bytes, std::size_t alignment) {
  Block& block = current().block;
  void* array;
  {
    const Scheduling scheduling;
    array = static_array(block, key, bytes, alignment);
  }
  order_acquire(&block.arrays);
  return array;
}

void sync_threads(unsigned barrier, unsigned threads, Where where) {
  Thread& self = current();
  Block& block = self.block;
  const void* const order = block.barriers[barrier % max_barriers].now();
  order_release(order);
  {
    const Scheduling scheduling;
    if (barrier >= max_barriers) fail(Kind::misuse, "syncs at barrier " + std::to_string(barrier));
    const unsigned all = static_cast<unsigned>(block.threads.size());
    const unsigned expected = threads ? threads : all;
    if (expected > all || (threads && threads % warp_size != 0))
      fail(Kind::misuse, "is at a barrier of " + std::to_string(threads) +
                             " threads: must be a multiple of 32, at most the block's " +
                             std::to_string(all));
    Meeting& meeting = block.barriers[barrier];
    if (meeting.arrived == 0) {
      meeting.expected = expected;
      meeting.where = where;
      meeting.what = "the block's barrier";
    } else if (meeting.where.line() != where.line() ||
               (meeting.where.file_name() != where.file_name() &&
                std::strcmp(meeting.where.file_name(), where.file_name()) != 0) ||
               meeting.expected != expected) {
      fail(Kind::divergent_barrier, "is at the barrier at " + at(where) +
                                        ", others of its block at that at " + at(meeting.where));
    }
    if (expected == all && block.done > 0)
      fail(Kind::divergent_barrier, "is at the barrier at " + at(where) + ", and " +
                                        std::to_string(block.done) + " of its block have ended");
    ++meeting.arrived;
    meeting.waiting.push_back(&self);
    if (meeting.arrived == expected) {
      end_meeting(meeting, &self);
      maybe_yield();
    } else {
      wait("the block's barrier", where);
    }
  }
  order_acquire(order);
}

namespace {

// Waits until all lanes of the mask are here; the last calls `work` with them.
template <class F>
void meet(const char* what, unsigned mask, bool orders, Where where, F work) {
  Thread& self = current();
  Block& block = self.block;
  const unsigned warp = self.number / warp_size, lane = self.lane();
  Meeting* found;
  {
    const Scheduling scheduling;
    found = &block.collectives[{warp, mask}];
  }
  Meeting& meeting = *found;
  const void* const order = meeting.now();
  if (orders) order_release(order);
  {
    const Scheduling scheduling;
    if (!(mask >> lane & 1))
      fail(Kind::divergent_warp,
           "calls " + std::string(what) + " at " + at(where) + " with a mask that it is not in");
    if (const unsigned absent = mask & block.absent[warp])
      fail(Kind::divergent_warp, "calls " + std::string(what) + " at " + at(where) + " with lane " +
                                     std::to_string(__builtin_ctz(absent)) +
                                     " in its mask, which has ended or is "
                                     "not there");
    for (const auto& [key, other] : block.collectives)
      if (key.first == warp && other.arrived > 0 && (key.second >> lane & 1) &&
          (key.second != mask || other.what != what || other.where.line() != where.line()))
        fail(Kind::divergent_warp, "calls " + std::string(what) + " at " + at(where) +
                                       ", and other lanes wait for it in " + other.what + " at " +
                                       at(other.where));
    if (meeting.arrived == 0) {
      meeting.what = what;
      meeting.where = where;
    }
    ++meeting.arrived;
    meeting.waiting.push_back(&self);
    if (meeting.arrived == static_cast<unsigned>(__builtin_popcount(mask))) {
      std::array<Thread*, warp_size> lanes{};
      for (Thread* thread : meeting.waiting) lanes[thread->lane()] = thread;
      work(lanes);
      end_meeting(meeting, &self);
      maybe_yield();
    } else {
      wait(what, where);
    }
  }
  if (orders) order_acquire(order);
}

}  // namespace

void sync_warp(unsigned mask, Where where) {
  meet("the warp's barrier", mask, true, where, [](const auto&) {});
}

std::uint64_t shuffle(Shuffle how, unsigned mask, std::uint64_t value, unsigned operand,
                      unsigned width, Where where) {
  if (width == 0 || width > warp_size || (width & (width - 1)))
    fail(Kind::misuse, "shuffles with width " + std::to_string(width) + " at " + at(where));
  current().operands = {value, operand, width, nullptr, nullptr, nullptr};
  meet("a shuffle", mask, false, where, [how](const auto& lanes) {
    for (unsigned lane = 0; lane < warp_size; ++lane) {
      if (!lanes[lane]) continue;
      const Operands& o = lanes[lane]->operands;
      const unsigned begin = lane / o.width * o.width, place = lane - begin;
      unsigned from = place;
      switch (how) {
        case Shuffle::index:
          from = o.operand % o.width;
          break;
        case Shuffle::exclusive_or:
          from = place ^ o.operand;
          break;
        case Shuffle::up:
          from = place >= o.operand ? place - o.operand : place;
          break;
        case Shuffle::down:
          from = place + o.operand < o.width ? place + o.operand : place;
          break;
      }
      if (from >= o.width) from = place;
      // A lane that is not in the mask gives an undefined value.
      lanes[lane]->result = lanes[begin + from]
                                ? lanes[begin + from]->operands.value
                                : std::uint64_t(unwritten_word) << 32 | unwritten_word;
    }
  });
  return current().result;
}

unsigned ballot(unsigned mask, bool predicate, Where where) {
  current().operands = {predicate ? 1u : 0u, 0, warp_size, nullptr, nullptr, nullptr};
  meet("a ballot", mask, false, where, [](const auto& lanes) {
    std::uint64_t votes = 0;
    for (unsigned lane = 0; lane < warp_size; ++lane)
      if (lanes[lane] && lanes[lane]->operands.value) votes |= std::uint64_t(1) << lane;
    for (Thread* lane : lanes)
      if (lane) lane->result = votes;
  });
  return static_cast<unsigned>(current().result);
}

unsigned cluster_rank() { return current().block.rank; }
unsigned cluster_blocks() { return static_cast<unsigned>(current().block.cluster.blocks.size()); }

void cluster_arrive(Where where) {
  Thread& self = current();
  Meeting& meeting = self.block.cluster.barrier;
  order_release(meeting.now());
  const Scheduling scheduling;
  if (self.cluster_arrived)
    fail(Kind::misuse, "arrives twice at the cluster's barrier without waiting, at " + at(where));
  self.cluster_arrived = true;
  self.cluster_generation = meeting.generation;
  ++meeting.arrived;
  if (meeting.arrived == self.block.cluster.live_threads) end_meeting(meeting, nullptr);
  maybe_yield();
}

void cluster_wait(Where where) {
  Thread& self = current();
  Meeting& meeting = self.block.cluster.barrier;
  if (!self.cluster_arrived)
    fail(Kind::misuse, "waits at the cluster's barrier without having arrived, at " + at(where));
  const unsigned generation = self.cluster_generation;
  if (meeting.generation == generation) {
    const Scheduling scheduling;
    meeting.waiting.push_back(&self);
    wait("the cluster's barrier", where);
  }
  self.cluster_arrived = false;
  order_acquire(&meeting.order[generation & 1]);
}

namespace {

void* place_in(void* own, unsigned rank, const Where& where) {
  Block& block = current().block;
  Cluster& cluster = block.cluster;
  if (rank >= cluster.blocks.size())
    fail(Kind::misuse, "names block " + std::to_string(rank) + " of a cluster of " +
                           std::to_string(cluster.blocks.size()) + " at " + at(where));
  Block& other = *cluster.blocks[rank];
  if (block.dynamic->holds(own))
    return other.dynamic->get() + (static_cast<char*>(own) - block.dynamic->get());
  for (const auto& [key, array] : block.arrays)
    if (array->holds(own))
      return static_cast<char*>(static_array(other, key, array->size(), 128)) +
             (static_cast<char*>(own) - array->get());
  fail(Kind::misuse, "maps an address that is not its block's shared memory, at " + at(where));
}

}  // namespace

void* remote(void* own, unsigned rank, Where where) {
  void* there;
  {
    const Scheduling scheduling;
    there = place_in(own, rank, where);
  }
  order_acquire(&current().block.cluster.blocks[rank]->arrays);
  order_acquire(current().block.cluster.blocks[rank]->dynamic.get());
  return there;
}

void poll(Where where) {
  Thread& self = current();
  ++state().idle_polls;
  if (random_order() && draw(2) == 0) return;
  const Scheduling scheduling;
  self.where = where;
  yield();
}

void progress() { state().idle_polls = 0; }

// The copy is made when it is waited for: until then the place holds unwritten words, and the
// source must stay.
void copy_async(void* shared, const void* global, std::size_t bytes, Where where) {
  Thread& self = current();
  if ((bytes != 4 && bytes != 8 && bytes != 16) ||
      reinterpret_cast<std::uintptr_t>(shared) % bytes ||
      reinterpret_cast<std::uintptr_t>(global) % bytes)
    fail(Kind::misuse, "copies " + std::to_string(bytes) +
                           " bytes asynchronously: must be 4, 8 or 16, both addresses aligned to "
                           "them, at " +
                           at(where));
  bool own = self.block.dynamic->holds(shared);
  for (const auto& array : self.block.arrays) own = own || array.second->holds(shared);
  if (!own) fail(Kind::misuse, "copies to what is not its block's shared memory, at " + at(where));
  access_fill(shared, unwritten_word, bytes);
  const Scheduling scheduling;
  self.open_copies.push_back({shared, global, bytes});
}

void commit_copies() {
  Thread& self = current();
  const Scheduling scheduling;
  self.groups.push_back(std::move(self.open_copies));
  self.open_copies.clear();
}

void wait_copies(int groups_left) {
  Thread& self = current();
  while (self.groups.size() > static_cast<std::size_t>(groups_left)) {
    for (const Copy& copy : self.groups.front()) access_copy(copy.to, copy.from, copy.bytes);
    const Scheduling scheduling;
    self.groups.erase(self.groups.begin());
  }
}

namespace {

Barrier& barrier_at(const Mbarrier* address, const Where& where) {
  Barrier* const found = find_barrier(current().block.cluster, address);
  if (!found) fail(Kind::misuse, "uses an mbarrier that was not initialised, at " + at(where));
  return *found;
}

}  // namespace

void mbarrier_init(Mbarrier* barrier, unsigned count, Where where) {
  Block& block = current().block;
  if (count == 0 || count >= 1u << 20 || reinterpret_cast<std::uintptr_t>(barrier) % 8 != 0 ||
      block_holding(block.cluster, barrier) != &block)
    fail(Kind::misuse,
         "initialises an mbarrier: must be for 1 to 1048575 arrivals, aligned to 8 "
         "bytes, in its block's shared memory, at " +
             at(where));
  const Scheduling scheduling;
  *barrier = 0;
  Barrier& it = block.mbarriers[barrier];
  it.count = it.pending = count;
  it.phase = 0;
  it.bytes = 0;
}

void mbarrier_arrive(Mbarrier* barrier, std::uint32_t expected_bytes, Where where) {
  Barrier& it = barrier_at(barrier, where);
  if (it.pending == 0)
    fail(Kind::misuse, "arrives at an mbarrier at which all " + std::to_string(it.count) +
                           " have arrived, at " + at(where));
  order_release(&it.order[it.phase & 1]);
  const Scheduling scheduling;
  it.bytes += expected_bytes;
  --it.pending;
  end_phase(it);
  maybe_yield();
}

void mbarrier_wait(Mbarrier* barrier, unsigned parity, Where where) {
  Barrier& it = barrier_at(barrier, where);
  {
    const Scheduling scheduling;
    if ((it.phase & 1) == (parity & 1)) {
      it.waiting.push_back(&current());
      wait("an mbarrier", where);
    } else {
      maybe_yield();
    }
  }
  order_acquire(&it.order[parity & 1]);
}

void store_async(void* to, const void* value, std::size_t bytes, Mbarrier* barrier, Where where) {
  State& s = state();
  Block& block = current().block;
  Cluster& cluster = block.cluster;
  Block* const target = block_holding(cluster, to);
  if (!target || target != block_holding(cluster, barrier) ||
      (bytes != 4 && bytes != 8 && bytes != 16) || reinterpret_cast<std::uintptr_t>(to) % bytes)
    fail(Kind::misuse,
         "stores asynchronously: must be 4, 8 or 16 bytes, aligned to them, to the "
         "shared memory of the block whose mbarrier it names, at " +
             at(where));
  if (!target->begun || target->ended())
    fail(Kind::ended_block, "stores to " + place_of(*target) + ", which has " +
                                (target->begun ? "ended" : "not begun") + ", at " + at(where));
  barrier_at(barrier, where);
  Pending* pending;
  {
    const Scheduling scheduling;
    auto store = std::make_unique<Pending>();
    store->to = to;
    copy_few(store->data.data(), value, bytes);
    store->bytes = bytes;
    store->barrier = barrier;
    store->cluster = &cluster;
    store->where = where;
    pending = store.get();
    s.pending.push_back(std::move(store));
  }
  order_release(&pending->order);
}

namespace {

float as_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
// The unit reads the upper 19 bits of a register.
float tf32(std::uint32_t bits) { return as_float(bits & 0xFFFFE000u); }
float bf16(std::uint32_t bits, unsigned half) {
  return as_float(half ? bits & 0xFFFF0000u : bits << 16);
}

float flushed(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}
// Products are exact; a sum is rounded after each.
float add_tf32(float sum, float a, float b) { return sum + a * b; }
float add_bf16(float sum, float a, float b) {
  return flushed(flushed(sum) + flushed(a) * flushed(b));
}

// step(i): the depth that is added i-th. add(sum, a, b): sum + a * b.
template <class A, class B, class Step, class Add>
void multiply(const std::array<Thread*, warp_size>& lanes, unsigned depth, A a_of, B b_of,
              Step step, Add add) {
  std::array<std::array<float, 16>, 16> a;
  std::array<std::array<float, 8>, 16> b;
  for (unsigned row = 0; row < 16; ++row)
    for (unsigned k = 0; k < depth; ++k) a[row][k] = a_of(lanes, row, k);
  for (unsigned k = 0; k < depth; ++k)
    for (unsigned column = 0; column < 8; ++column) b[k][column] = b_of(lanes, k, column);
  for (unsigned row = 0; row < 16; ++row)
    for (unsigned column = 0; column < 8; ++column) {
      float* const d = &lanes[row % 8 * 4 + column / 2]->operands.d[row / 8 * 2 + column % 2];
      float sum = *d;
      for (unsigned i = 0; i < depth; ++i) sum = add(sum, a[row][step(i)], b[step(i)][column]);
      *d = sum;
    }
}

}  // namespace

void mma_m16n8k8_tf32(float* d, const std::uint32_t* a, const std::uint32_t* b, Where where) {
  current().operands = {0, 0, warp_size, d, a, b};
  meet("a product of matrices", full_warp, false, where, [](const auto& lanes) {
    multiply(
        lanes, 8,
        [](const auto& l, unsigned row, unsigned k) {
          return tf32(l[row % 8 * 4 + k % 4]->operands.a[row / 8 + k / 4 * 2]);
        },
        [](const auto& l, unsigned k, unsigned column) {
          return tf32(l[column * 4 + k % 4]->operands.b[k / 4]);
        },
        [](unsigned i) { return i; }, add_tf32);
  });
}

void mma_m16n8k16_bf16(float* d, const std::uint32_t* a, const std::uint32_t* b, Where where) {
  current().operands = {0, 0, warp_size, d, a, b};
  meet("a product of matrices", full_warp, false, where, [](const auto& lanes) {
    multiply(
        lanes, 16,
        [](const auto& l, unsigned row, unsigned k) {
          return bf16(l[row % 8 * 4 + k % 8 / 2]->operands.a[row / 8 + k / 8 * 2], k % 2);
        },
        [](const auto& l, unsigned k, unsigned column) {
          return bf16(l[column * 4 + k % 8 / 2]->operands.b[k / 8], k % 2);
        },
        [](unsigned i) { return i ^ 1u; }, add_bf16);
  });
}

}  // namespace cuda_emulator

const uint3 &threadIdx = cuda_emulator::thread_index, &blockIdx = cuda_emulator::block_index;
const dim3 &blockDim = cuda_emulator::block_dim, &gridDim = cuda_emulator::grid_dim;
