#include "cpu/thread_pool.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <string>

#include "charrnn_fast/threads.hpp"
#include "cpu/cgroup.hpp"
#include "errors.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace charrnn_fast {
namespace {

// Longer than the gaps between a call's kernels and between calls in a loop, and too short for a
// person or a scheduler to notice. Waking a sleeper takes about half of it.
constexpr auto spin_time = std::chrono::microseconds(100);
constexpr int spins_per_look = 64;  // spins between reads of the clock

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

int default_num_threads() {
  if (const char* text = std::getenv("CHARRNN_NUM_THREADS"); text && *text) {
    char* end = nullptr;
    const long n = std::strtol(text, &end, 10);
    if (*end == 0 && n >= 1 && n <= 4096) return static_cast<int>(n);
    fail("CHARRNN_NUM_THREADS must be a whole number in 1 to 4096, got '", text, "'");
  }
  double n = std::max(1u, std::thread::hardware_concurrency());
#if defined(__linux__)
  if (const int allowed = processors_at_start(); allowed > 0) n = allowed;
  n = std::min(n, std::ceil(cgroup_quota()));
#endif
  return std::max(1, static_cast<int>(n));
}

std::atomic<int> the_fork_generation{0};
std::atomic<ThreadPool*> the_pool{nullptr};
std::mutex the_pool_mutex;
int size_at_fork = 0;

// Spins for a bounded time; returns whether value != old.
bool spin_for_change(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
  const auto changed = [&] {
    for (int i = 0; i < spins_per_look; ++i) {
      if (value.load(std::memory_order_acquire) != old) return true;
      relax();
    }
    return false;
  };
  if (changed()) return true;
  constexpr std::int64_t longest = std::chrono::nanoseconds(spin_time).count();
  const std::int64_t start = wall_clock();
  bool done = false;
  std::int64_t now = start;
  while (!done && now - start < longest) done = changed(), now = wall_clock();
  waits_of_this_thread().spinning += std::min(now - start, longest);
  return done;
}

// Sleeps until value != old. changed_at: the wall-clock time stored by the thread that changes it,
// or null.
void sleep_until_change(const std::atomic<std::uint32_t>& value, std::uint32_t old,
                        const std::int64_t* changed_at) {
  const std::int64_t start = wall_clock();
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
  if (changed_at) waits_of_this_thread().asleep += std::max<std::int64_t>(0, *changed_at - start);
}

}  // namespace

void Barrier::wait() {
  const std::uint32_t round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == parties_) {
    arrived_.store(0, std::memory_order_relaxed);
    if (timed_) opened_at_ = wall_clock();
    round_.store(round + 1, std::memory_order_release);
    round_.notify_all();
  } else if (!spin_for_change(round_, round)) {
    sleep_until_change(round_, round, timed_ ? &opened_at_ : nullptr);
  }
}

// Each worker waits on its own ticket: one that is not called never reads the job.
struct ThreadPool::Worker {
  alignas(64) std::atomic<std::uint32_t> ticket{0};
  alignas(64) std::atomic<std::uint32_t> done{0};
  Call call = nullptr;  // null with a new ticket: exit
  void* context = nullptr;
  Team team{};
  bool measured = false;
  Oversubscription::Time begin{}, end{};  // of a measured call
  Placement::Place place;
  std::thread thread;
};

ThreadPool::ThreadPool(int n) : size_(n), oversubscription_(n) {}

#if defined(__unix__) || defined(__APPLE__)
// The parent's threads do not exist in a forked child: it gets a new pool of the same size. The
// handlers are installed at load time, before there is a pool or a second thread: at first use
// would be too late for a concurrent fork.
const int ThreadPool::watching_forks = pthread_atfork(
    [] {
      the_pool_mutex.lock();
      ThreadPool* p = the_pool.load();
      size_at_fork = p ? p->size() : 0;
    },
    [] { the_pool_mutex.unlock(); },
    [] {
      the_pool_mutex.unlock();
      the_fork_generation.fetch_add(1);
      the_pool.store(size_at_fork ? new ThreadPool(size_at_fork) : nullptr);
    });
#endif

ThreadPool& ThreadPool::instance() {
  ThreadPool* pool = the_pool.load(std::memory_order_acquire);
  if (pool) return *pool;
  std::lock_guard<std::mutex> lock(the_pool_mutex);
  pool = the_pool.load(std::memory_order_acquire);
  if (!pool) {
    pool = new ThreadPool(default_num_threads());
    the_pool.store(pool, std::memory_order_release);
  }
  return *pool;
}

// Threads start at their first work. If the system refuses one, the pool has fewer.
void ThreadPool::start_workers(int n) {
  for (int i = static_cast<int>(workers_.size()) + 1; i < n; ++i) {
    try {
      workers_.reserve(workers_.size() + 1);
      auto worker = std::make_unique<Worker>();
      worker->thread = std::thread([this, w = worker.get()] { work(*w); });
      workers_.push_back(std::move(worker));
    } catch (const std::exception&) {
      return;
    }
  }
}

void ThreadPool::stop_workers() {
  for (auto& worker : workers_) {
    worker->call = nullptr;
    worker->ticket.fetch_add(1, std::memory_order_release);
    worker->ticket.notify_one();
  }
  for (auto& worker : workers_) worker->thread.join();
  workers_.clear();
}

void ThreadPool::resize(int n) {
  require(n >= 1 && n <= 4096, "num_threads must be in 1 to 4096, got ", n);
  if (busy_.exchange(true, std::memory_order_acquire))
    fail("set_num_threads must not be called while another thread computes");
  stop_workers();
  size_.store(n);
  oversubscription_ = Oversubscription(n);
  busy_.store(false, std::memory_order_release);
}

void ThreadPool::work(Worker& worker) {
  for (std::uint32_t ticket = 0;;) {
    if (!spin_for_change(worker.ticket, ticket)) sleep_until_change(worker.ticket, ticket, nullptr);
    ticket = worker.ticket.load(std::memory_order_acquire);
    if (!worker.call) return;
    if (worker.measured) worker.begin = Oversubscription::Time::now();
    worker.call(worker.context, worker.team);
    if (worker.measured) worker.end = Oversubscription::Time::now();
    worker.done.store(ticket, std::memory_order_release);
    worker.done.notify_one();
  }
}

void ThreadPool::run_erased(int parts, Call call, void* context) {
  parts = std::min(parts, size());
  if (parts <= 1 || busy_.exchange(true, std::memory_order_acquire))
    return call(context, Team{0, 1, nullptr});
  bool measured = false;
  const std::int64_t now = wall_clock();
  if (sharing_limits().operations_per_thread > 0) {
    parts = oversubscription_.limit(parts, now);
    measured = oversubscription_.measures(now);
  }
  start_workers(parts);
  parts = std::min(parts, static_cast<int>(workers_.size()) + 1);
  if (parts <= 1) {
    busy_.store(false, std::memory_order_release);
    return call(context, Team{0, 1, nullptr});
  }
  teams_.fetch_add(1, std::memory_order_relaxed);
  placement_.look(now);
  const Oversubscription::Time begin =
      measured ? Oversubscription::Time::now() : Oversubscription::Time{};
  Barrier barrier(parts, measured);
  for (int i = 1; i < parts; ++i) {
    Worker& worker = *workers_[static_cast<std::size_t>(i - 1)];
    placement_.place(worker.thread, i, worker.place);
    worker.call = call;
    worker.context = context;
    worker.team = Team{i, parts, &barrier};
    worker.measured = measured;
    worker.ticket.fetch_add(1, std::memory_order_release);
    worker.ticket.notify_one();
  }
  call(context, Team{0, parts, &barrier});
  Oversubscription::Run run;
  for (int i = 1; i < parts; ++i) {
    Worker& worker = *workers_[static_cast<std::size_t>(i - 1)];
    const std::uint32_t ticket = worker.ticket.load(std::memory_order_relaxed);
    for (std::uint32_t done = worker.done.load(std::memory_order_acquire); done != ticket;
         done = worker.done.load(std::memory_order_acquire)) {
      if (spin_for_change(worker.done, done)) continue;
      sleep_until_change(worker.done, done, measured ? &worker.end.wall : nullptr);
    }
    if (measured) run.add(begin.wall, worker.begin, worker.end);
  }
  if (measured) {
    const Oversubscription::Time end = Oversubscription::Time::now();
    run.wall = end.wall - begin.wall;
    run.add(begin.wall, begin, end);
    oversubscription_.add(parts, run, end.wall);
  }
  busy_.store(false, std::memory_order_release);
}

SharingLimits& sharing_limits() {
  static SharingLimits limits;
  return limits;
}

int fork_generation() { return the_fork_generation.load(std::memory_order_relaxed); }

int get_num_threads() { return ThreadPool::instance().size(); }
void set_num_threads(int n) { ThreadPool::instance().resize(n); }

}  // namespace charrnn_fast
