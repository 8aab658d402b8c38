#include "cpu/thread_pool.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <limits>
#include <mutex>
#include <string>

#include "charrnn_fast/threads.hpp"
#include "cpu/cgroup.hpp"
#include "cpu/waiting.hpp"
#include "errors.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace charrnn_fast {
namespace {

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

// libgomp's threads spin for 300,000 pauses of the processor, which are 10 to 17 ms.
constexpr std::int64_t others_spin = 20'000'000;

struct Name {
  Threads threads;
  const char* name;
};
constexpr Name names[] = {{Threads::automatic, "auto"},
                          {Threads::own, "own"},
                          {Threads::openmp, "openmp"},
                          {Threads::host, "host"}};

const char* name_of(Threads threads) {
  for (const Name& name : names)
    if (name.threads == threads) return name.name;
  return "";
}

// `what` is the name of the setting.
Threads threads_named(const char* what, const std::string& text) {
  for (const Name& name : names)
    if (name.threads != Threads::host && text == name.name) return name.threads;
  fail(what, " must be auto, own or openmp, got '", text, "'");
}

Threads default_threads() {
  const char* text = std::getenv("CHARRNN_EXECUTOR");
  return text && *text ? threads_named("CHARRNN_EXECUTOR", text) : Threads::automatic;
}

std::atomic<int> the_fork_generation{0};
std::atomic<ThreadPool*> the_pool{nullptr};
std::mutex the_pool_mutex;
int size_at_fork = 0;
Threads threads_at_fork = Threads::automatic;

}  // namespace

void Barrier::wait(int parties) {
  const std::uint32_t round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == parties) {
    arrived_.store(0, std::memory_order_relaxed);
    if (timed_) opened_at_ = wall_clock();
    round_.store(round + 1, std::memory_order_release);
    round_.notify_all();
  } else {
    wait_for_change(round_, round, timed_ ? &opened_at_ : nullptr);
  }
}

// Each worker waits on its own ticket: one that is not called never reads the job.
struct ThreadPool::Worker {
  alignas(64) std::atomic<std::uint32_t> ticket{0};
  alignas(64) std::atomic<std::uint32_t> done{0};
  int part = 0;  // of the pool's job; 0 with a new ticket: exit
  Placement::Place place;
  std::thread thread;
};

void ThreadPool::Job::begin(int part) {
  if (measured) members[static_cast<std::size_t>(part)].begin = Oversubscription::Time::now();
}

void ThreadPool::Job::run(int part, int of_parts) {
  call(context, Team{part, of_parts, &barrier});
  if (measured) members[static_cast<std::size_t>(part)].end = Oversubscription::Time::now();
}

ThreadPool::ThreadPool(int n, Threads threads) : size_(n), threads_(threads) { reset(n); }

void ThreadPool::reset(int n) {
  job_.members.resize(static_cast<std::size_t>(n));
  oversubscription_.assign(kinds_of_threads, Oversubscription(n, others_spin));
  oversubscription_[static_cast<std::size_t>(Threads::own)] = Oversubscription(n);
  attendance_ = {};
  job_.openmp_worker = 0;
  last_end_ = 0;
}

#if defined(__unix__) || defined(__APPLE__)
// The parent's threads do not exist in a forked child: it gets a new pool of the same size. The
// handlers are installed at load time, before there is a pool or a second thread: at first use
// would be too late for a concurrent fork.
const int ThreadPool::watching_forks = pthread_atfork(
    [] {
      the_pool_mutex.lock();
      ThreadPool* p = the_pool.load();
      size_at_fork = p ? p->size() : 0;
      threads_at_fork = p && p->threads() != Threads::host ? p->threads() : Threads::own;
    },
    [] { the_pool_mutex.unlock(); },
    [] {
      the_pool_mutex.unlock();
      the_fork_generation.fetch_add(1);
      the_pool.store(size_at_fork ? new ThreadPool(size_at_fork, threads_at_fork) : nullptr);
    });
#endif

ThreadPool& ThreadPool::instance() {
  ThreadPool* pool = the_pool.load(std::memory_order_acquire);
  if (pool) return *pool;
  std::lock_guard<std::mutex> lock(the_pool_mutex);
  pool = the_pool.load(std::memory_order_acquire);
  if (!pool) {
    pool = new ThreadPool(default_num_threads(), default_threads());
    the_pool.store(pool, std::memory_order_release);
  }
  return *pool;
}

// Threads start at their first work. If the system refuses one, the pool has fewer. Returns the
// possible size of a team.
int ThreadPool::start_workers(int parts) {
  for (int i = static_cast<int>(workers_.size()) + 1; i < parts; ++i) {
    try {
      workers_.reserve(workers_.size() + 1);
      auto worker = std::make_unique<Worker>();
      worker->part = i;
      worker->thread = std::thread([this, w = worker.get()] { work(*w); });
      workers_.push_back(std::move(worker));
    } catch (const std::exception&) {
      break;
    }
  }
  return std::min(parts, static_cast<int>(workers_.size()) + 1);
}

void ThreadPool::stop_workers() {
  for (auto& worker : workers_) {
    worker->part = 0;
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
  reset(n);
  busy_.store(false, std::memory_order_release);
}

void ThreadPool::set_threads(Threads threads, const Executor& host) {
  if (busy_.exchange(true, std::memory_order_acquire))
    fail("set_executor must not be called while another thread computes");
  if (threads == Threads::host) stop_workers();
  threads_.store(threads);
  host_ = host;
  reset(size());
  busy_.store(false, std::memory_order_release);
}

ThreadPool::Choice ThreadPool::choose(std::int64_t now) const {
  const Threads set = threads();
  const Choice own{Threads::own, size(), nullptr};
  if (set == Threads::own) return own;
  if (set == Threads::host)
    return {Threads::host, std::min(size(), host_.num_threads(host_.pool)), nullptr};
  const OpenMp* const openmp = find_openmp(set == Threads::automatic, now);
  if (!openmp) return own;
  // The region's threads have the processors.
  if (openmp->in_parallel()) return {Threads::openmp, 1, openmp};
  const int most = openmp->max_threads();
  // libgomp has a team for each thread that calls it. One that PyTorch does not call from would get
  // a second one.
  if (most < 2 || (set == Threads::automatic && !on_main_thread())) return own;
  return {Threads::openmp, std::min(size(), most), openmp};
}

Threads ThreadPool::threads_in_use() const {
  if (threads() == Threads::host) return Threads::host;
  return choose(std::numeric_limits<std::int64_t>::max()).threads;
}

// Whether the members of the last libgomp team are spinning. If they sleep, the pool's own threads
// are the better ones: they are kept off the caller's processor. After spin_time without a team the
// answer takes some 2 microseconds.
bool ThreadPool::openmp_is_awake(std::int64_t now) {
  if (now - last_end_ < spin_time) return last_threads_ == Threads::openmp;
  constexpr std::int64_t look = 2'000;
  const int worker = job_.openmp_worker.load(std::memory_order_relaxed);
  const std::int64_t before = processor_time(worker);
  if (worker == 0 || before < 0) {
    job_.openmp_worker.store(0, std::memory_order_relaxed);  // the next team tells
    return true;
  }
  while (wall_clock() - now < look) relax();
  return 2 * (processor_time(worker) - before) > look;
}

void ThreadPool::work(Worker& worker) {
  for (std::uint32_t ticket = 0;;) {
    wait_for_change(worker.ticket, ticket);
    ticket = worker.ticket.load(std::memory_order_acquire);
    if (worker.part == 0) return;
    job_.begin(worker.part);
    job_.run(worker.part, job_.parts.load(std::memory_order_relaxed));
    worker.done.store(ticket, std::memory_order_release);
    worker.done.notify_one();
  }
}

int ThreadPool::run_on_own(std::int64_t called) {
  const int parts = job_.parts.load(std::memory_order_relaxed);
  placement_.look(called);
  job_.begin(0);
  for (int i = 1; i < parts; ++i) {
    Worker& worker = *workers_[static_cast<std::size_t>(i - 1)];
    placement_.place(worker.thread, i, worker.place);
    worker.ticket.fetch_add(1, std::memory_order_release);
    worker.ticket.notify_one();
  }
  job_.run(0, parts);
  for (int i = 1; i < parts; ++i) {
    Worker& worker = *workers_[static_cast<std::size_t>(i - 1)];
    const std::int64_t& ended = job_.members[static_cast<std::size_t>(i)].end.wall;
    const std::uint32_t ticket = worker.ticket.load(std::memory_order_relaxed);
    for (std::uint32_t done = worker.done.load(std::memory_order_acquire); done != ticket;
         done = worker.done.load(std::memory_order_acquire))
      wait_for_change(worker.done, done, job_.measured ? &ended : nullptr);
  }
  // The caller waits as a member does at a barrier.
  if (job_.measured) job_.members[0].end = Oversubscription::Time::now();
  return parts;
}

// libgomp ends threads when a later team is smaller, so the team is always the whole one. Members
// that are not needed return.
int ThreadPool::run_on_openmp() {
  job_.begin(0);  // the caller is number 0
  job_.openmp->parallel(
      [](void* context) {
        Job& job = *static_cast<Job*>(context);
        const int wanted = job.parts.load(std::memory_order_acquire);
        const int parts = std::min(wanted, job.openmp->num_threads());
        const int part = job.openmp->thread_num();
        if (part == 1 && job.openmp_worker.load(std::memory_order_relaxed) == 0)
          job.openmp_worker.store(this_thread(), std::memory_order_relaxed);
        if (part > 0 && part < parts) job.begin(part);
        if (part < parts) job.run(part, parts);
        job.done.fetch_add(1, std::memory_order_release);
      },
      &job_, 0, 0);
  const int all = job_.done.load(std::memory_order_acquire);
  return std::min(all, job_.parts.load(std::memory_order_relaxed));
}

int ThreadPool::run_on_host() {
  const int parts = job_.parts.load(std::memory_order_relaxed);
  if (host_.at_once) {
    const auto task = [](void* context, int i) {
      Job& job = *static_cast<Job*>(context);
      job.begin(i);
      job.run(i, job.parts.load(std::memory_order_acquire));
      job.done.fetch_add(1, std::memory_order_release);
    };
    host_.run(host_.pool, parts, task, &job_);
    return job_.done.load(std::memory_order_acquire);
  }
  const auto task = [](void* context, int) {
    ThreadPool& pool = *static_cast<ThreadPool*>(context);
    int part, of_parts;
    if (!pool.gathering_.enter(part, of_parts)) return;
    pool.job_.begin(part);
    pool.job_.run(part, of_parts);
    pool.gathering_.leave();
  };
  gathering_.open(parts);
  host_.run(host_.pool, parts, task, this);
  task(this, 0);  // unless the door is closed: tasks of its own may be late, or never come
  const int came = gathering_.close();
  attendance_.add(parts, came, wall_clock());
  return came;
}

void ThreadPool::run_erased(int parts, Call call, void* context) {
  parts = std::min(parts, size());
  if (parts <= 1 || busy_.exchange(true, std::memory_order_acquire))
    return call(context, Team{0, 1, nullptr});
  const std::int64_t called = wall_clock();
  Choice choice = choose(called);
  if (threads() == Threads::automatic && choice.threads == Threads::openmp && choice.parts > 1 &&
      !openmp_is_awake(called))
    choice = {Threads::own, size(), nullptr};
  Oversubscription& oversubscription = oversubscription_[static_cast<std::size_t>(choice.threads)];
  parts = std::min(parts, choice.parts);
  bool measured = false;
  if (parts > 1 && sharing_limits().operations_per_thread > 0) {
    if (oversubscription.watches(called)) oversubscription.watch(time_of_other_threads(), called);
    parts = oversubscription.limit(parts, called);
    measured = oversubscription.measures(called);
  }
  if (choice.threads == Threads::own) parts = start_workers(parts);
  const bool gathers = choice.threads == Threads::host && !host_.at_once;
  if (gathers) parts = attendance_.limit(parts, called);
  if (parts <= 1) {
    busy_.store(false, std::memory_order_release);
    return call(context, Team{0, 1, nullptr});
  }
  job_.call = call;
  job_.context = context;
  job_.measured = measured;
  job_.openmp = choice.openmp;
  job_.barrier.set_timed(measured);
  job_.done.store(0, std::memory_order_relaxed);
  job_.parts.store(parts, std::memory_order_release);
  if (choice.threads == Threads::own)
    parts = run_on_own(called);
  else if (choice.threads == Threads::openmp)
    parts = run_on_openmp();
  else
    parts = run_on_host();
  last_threads_ = choice.threads;
  last_end_ = wall_clock();
  if (parts > 1) {
    auto& teams = teams_[static_cast<std::size_t>(choice.threads)];
    teams.store(teams.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }
  if (measured) {
    Oversubscription::Run run;
    run.wall = last_end_ - called;
    for (int i = 0; i < parts; ++i) {
      const Member& member = job_.members[static_cast<std::size_t>(i)];
      // Who comes late to a gathering counts in attendance_.
      run.add(gathers ? member.begin.wall : called, member.begin, member.end);
    }
    oversubscription.add(parts, run, last_end_);
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

void set_executor(const std::string& name) {
  ThreadPool::instance().set_threads(threads_named("executor", name), Executor{});
}
void set_executor(const Executor& executor) {
  require(executor.num_threads && executor.run,
          "executor must have both functions, num_threads and run, got null");
  ThreadPool::instance().set_threads(Threads::host, executor);
}
std::string get_executor() { return name_of(ThreadPool::instance().threads()); }
std::string executor_in_use() { return name_of(ThreadPool::instance().threads_in_use()); }

}  // namespace charrnn_fast
