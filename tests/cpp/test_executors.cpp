// The kernels on the threads of a host: pools that run their tasks at once, one after another, late
// or never; calls within its tasks; GCC's OpenMP runtime; forks. Bits stay the same, nothing hangs.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "charrnn_fast/cells.hpp"
#include "charrnn_fast/threads.hpp"
#include "check.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/gathering.hpp"
#include "cpu/openmp.hpp"
#include "cpu/thread_pool.hpp"
#include "teams.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

using namespace charrnn_fast;

namespace {

#if defined(CHARRNN_EMULATED)
constexpr bool emulated = true;
#else
constexpr bool emulated = false;
#endif

// The threads of a host, which take tasks from a queue.
class Host {
 public:
  explicit Host(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  }
  ~Host() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ends_ = true;
    }
    wakes_.notify_all();
    for (auto& thread : threads_) thread.join();
  }
  int size() const { return static_cast<int>(threads_.size()); }
  void submit(std::function<void()> task) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      queue_.push_back(std::move(task));
    }
    wakes_.notify_one();
  }

 private:
  void work() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      wakes_.wait(lock, [&] { return ends_ || !queue_.empty(); });
      if (queue_.empty()) return;
      const auto task = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable wakes_;
  std::deque<std::function<void()>> queue_;
  bool ends_ = false;
  std::vector<std::thread> threads_;
};

// Counts down to 0.
class Remaining {
 public:
  explicit Remaining(int n) : n_(n) {}
  void one_less() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--n_ == 0) done_.notify_all();
  }
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [&] { return n_ == 0; });
  }

 private:
  int n_;
  std::mutex mutex_;
  std::condition_variable done_;
};

using Task = void (*)(void* argument, int i);

std::atomic<long> runs{0};  // of all hosts

int host_threads(void* pool) { return static_cast<Host*>(pool)->size(); }

// Each task on a thread of its own, the calling one waits.
void run_at_once(void* pool, int n, Task task, void* argument) {
  ++runs;
  Remaining remaining(n);
  for (int i = 0; i < n; ++i)
    static_cast<Host*>(pool)->submit([&remaining, task, argument, i] {
      task(argument, i);
      remaining.one_less();
    });
  remaining.wait();
}

// All on the calling thread.
void run_in_turns(void*, int n, Task task, void* argument) {
  ++runs;
  for (int i = 0; i < n; ++i) task(argument, i);
}

// All on another thread, the last one first.
void run_in_turns_elsewhere(void* pool, int n, Task task, void* argument) {
  ++runs;
  Remaining remaining(1);
  static_cast<Host*>(pool)->submit([&] {
    for (int i = n; i-- > 0;) task(argument, i);
    remaining.one_less();
  });
  remaining.wait();
}

// Returns at once. Every third task is never called, some are late.
void run_late(void* pool, int n, Task task, void* argument) {
  static std::atomic<unsigned> count{0};
  ++runs;
  for (int i = 0; i < n; ++i) {
    const unsigned number = count.fetch_add(1);
    if (number % 3 == 0) continue;
    static_cast<Host*>(pool)->submit([task, argument, i, number] {
      if (number % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(number % 700));
      task(argument, i);
    });
  }
}

void run_never(void*, int, Task, void*) { ++runs; }

enum class Teams { whole, alone, any };
struct Kind {
  const char* name;
  void (*run)(void*, int, Task, void*);
  bool at_once;
  Teams teams;  // those that come together
};
constexpr Kind kinds[] = {
    {"at once, as it says", run_at_once, true, Teams::whole},
    {"at once, though it does not say so", run_at_once, false, Teams::any},
    {"one after another", run_in_turns, false, Teams::alone},
    {"one after another elsewhere", run_in_turns_elsewhere, false, Teams::alone},
    {"late", run_late, false, Teams::any},
    {"never", run_never, false, Teams::alone},
};

std::uint64_t teams_of_host() { return ThreadPool::instance().teams(Threads::host); }

void check_hosts() {
  const Kernels<float>& k = kernels<float>();
  set_executor("own");
  set_num_threads(1);
  std::vector<std::vector<char>> expected;
  for (int c = 0; c < k.num_cells; ++c) expected.push_back(results<float>(k.cells[c]));
  Host host(4);
  for (const Kind& kind : kinds) {
    set_executor(Executor{&host, host_threads, kind.run, kind.at_once});
    CHECK(get_executor() == "host" && executor_in_use() == "host", "%s", get_executor().c_str());
    for (const int threads : {2, 3, 8}) {
      const long runs_before = runs;
      const auto teams_before = teams_of_host();
      const long members = check_barriers(threads, 100);
      const long most = 100 * std::min(threads, host.size());
      CHECK(kind.teams == Teams::whole   ? members == most
            : kind.teams == Teams::alone ? members == 100
                                         : members <= most,
            "%s: %ld members in 100 teams", kind.name, members);
      for (int c = 0; c < k.num_cells; ++c)
        CHECK(results<float>(k.cells[c]) == expected[static_cast<std::size_t>(c)],
              "%s: %s (%s) on %d threads", kind.name, k.cells[c].name, k.cells[c].nonlinearity,
              threads);
      CHECK(runs > runs_before, "%s: never asked", kind.name);
      if (kind.teams != Teams::any)
        CHECK((teams_of_host() > teams_before) == (kind.teams == Teams::whole), "%s", kind.name);
    }
  }
  set_executor("own");
}

// A host's task calls the library, several do at once, and the host runs such tasks on a thread
// that waits for the library's own.
void check_calls_within_tasks() {
  set_executor("own");
  set_num_threads(1);
  const auto expected = results<float>(cell_info<Gru>());
  static const std::vector<char>* wanted = nullptr;
  static std::atomic<int> wrong{0};
  const auto call = [] { wrong += results<float>(cell_info<Gru>()) != *wanted; };
  Host host(3);
  wanted = &expected, wrong = 0;
  set_num_threads(3);
  for (const bool at_once : {false, true}) {
    // With at_once, the tasks need threads that nobody else takes.
    Host apart(3);
    set_executor(Executor{at_once ? &apart : &host, host_threads, run_at_once, at_once});
    Remaining remaining(6);
    for (int i = 0; i < 6; ++i)
      host.submit([&] {
        call();
        remaining.one_less();
      });
    call();
    remaining.wait();
    CHECK(wrong == 0, "%d of 7 callers, at_once %d", wrong.load(), at_once);
  }
  const auto helping = [](void* pool, int n, Task task, void* argument) {
    static thread_local bool within = false;
    if (!within) {
      within = true;
      wrong += results<float>(cell_info<Gru>()) != *wanted;
      within = false;
    }
    run_in_turns(pool, n, task, argument);
  };
  set_executor(Executor{&host, host_threads, helping, false});
  call();
  CHECK(wrong == 0, "a call while the caller waits");
  set_executor("own");
}

template <class F>
std::string message_of(const F& f) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

void check_errors() {
  Host host(2);
  set_executor("own");
  CHECK(message_of([] { set_executor("OpenMP"); }) ==
            "executor must be auto, own or openmp, got 'OpenMP'",
        "%s", message_of([] { set_executor("OpenMP"); }).c_str());
  CHECK(message_of([] { set_executor("host"); }) != "no error", "a host without functions");
  for (const Executor& executor :
       {Executor{&host, nullptr, run_at_once, true}, Executor{&host, host_threads, nullptr, true}})
    CHECK(message_of([&] { set_executor(executor); }).find("both functions") != std::string::npos,
          "a function is missing");
  CHECK(get_executor() == "own", "%s after errors", get_executor().c_str());
  // While a team is at work.
  set_num_threads(2);
  std::string message;
  ThreadPool::instance().run(2, [&](const Team& team) {
    if (team.part == 0) message = message_of([] { set_executor("auto"); });
  });
  CHECK(message == "set_executor must not be called while another thread computes", "%s",
        message.c_str());
  // A host without threads.
  const auto none = [](void*) { return 0; };
  set_executor(Executor{nullptr, none, run_never, true});
  const long before = runs;
  CHECK(check_barriers(3, 10) == 10 && runs == before, "a host without threads is asked");
  set_executor("own");
}

// ---- who comes in time --------------------------------------------------------------------

void check_gathering() {
  Gathering gathering;
  int part = -1, parts = -1;
  CHECK(!gathering.enter(part, parts), "closed at first");
  // Nobody comes; one comes; one comes after the door is closed.
  gathering.open(3);
  CHECK(gathering.close() == 0 && !gathering.enter(part, parts), "nobody");
  gathering.open(3);
  CHECK(gathering.enter(part, parts) && part == 0 && parts == 1, "%d of %d", part, parts);
  CHECK(!gathering.enter(part, parts), "too late");
  gathering.leave();
  CHECK(gathering.close() == 1, "alone");
  // More come than fit, again and again.
  std::atomic<int> round{0};
  std::atomic<long> members{0}, wrong{0};
  std::vector<std::thread> threads;
  constexpr int rounds = 300, most = 3;
  for (int t = 0; t < 5; ++t)
    threads.emplace_back([&] {
      while (round.load() < rounds) {
        int mine, of;
        if (!gathering.enter(mine, of)) {
          std::this_thread::yield();
          continue;
        }
        wrong += mine < 0 || mine >= of || of > most;
        ++members;
        gathering.leave();
      }
    });
  long sum = 0;
  for (; round.load() < rounds; ++round) {
    gathering.open(1 + round.load() % most);
    std::this_thread::yield();
    sum += gathering.close();
  }
  for (auto& thread : threads) thread.join();
  CHECK(wrong == 0 && sum == members, "%ld wrong; %ld of %ld members", wrong.load(), sum,
        members.load());
}

void check_attendance() {
  constexpr std::int64_t ms = 1'000'000;
  Attendance attendance;
  std::int64_t now = ms, pause = 0;
  CHECK(attendance.limit(4, now) == 4, "at first");
  attendance.add(4, 4, now);
  CHECK(attendance.limit(4, now) == 4 && attendance.limit(8, now) == 8, "all come");
  for (int trial = 0; trial < 12; ++trial) {
    attendance.add(4, 3, now);
    CHECK(attendance.limit(4, now) == 3 && attendance.limit(2, now) == 2, "one does not come");
    const std::int64_t begin = now;
    while (attendance.limit(4, now) < 4) {
      attendance.add(3, 3, now);
      now += ms / 4;
    }
    CHECK(now - begin >= pause && now - begin <= 801 * ms, "trial %d after %d ms", trial,
          static_cast<int>((now - begin) / ms));
    pause = now - begin;
  }
  CHECK(pause > 500 * ms, "%d ms", static_cast<int>(pause / ms));
  attendance.add(4, 0, now);
  CHECK(attendance.limit(4, now) == 1, "nobody comes");
}

// ---- OpenMP -------------------------------------------------------------------------------

#if defined(__linux__)

std::uint64_t teams_of_openmp() { return ThreadPool::instance().teams(Threads::openmp); }

void check_openmp() {
  set_executor("openmp");
  const bool before = executor_in_use() == "openmp";
  if (!before) {
    set_num_threads(2);
    const auto teams = teams_of_openmp();
    check_barriers(2, 10);
    CHECK(teams_of_openmp() == teams, "teams of a library that is not loaded");
  }
  if (!dlopen("libgomp.so.1", RTLD_NOW | RTLD_LOCAL)) {
    std::printf("no libgomp\n");
    return;
  }
  std::printf("with libgomp\n");
  CHECK(executor_in_use() == "openmp", "%s in use", executor_in_use().c_str());
  const OpenMp& openmp = *find_openmp(false, 0);
  const int most = openmp.max_threads();
  if (most < 2) return;
  set_num_threads(1);
  const auto expected = results<float>(cell_info<Lstm>());
  for (const int threads : {2, 3, 8}) {
    const auto teams = teams_of_openmp();
    const long members = check_barriers(threads, 200), all = 200 * std::min(threads, most);
    CHECK(members == all, "%ld of %ld members", members, all);
    CHECK(teams_of_openmp() == teams + 200, "%d teams", int(teams_of_openmp() - teams));
    CHECK(results<float>(cell_info<Lstm>()) == expected, "%d threads of OpenMP", threads);
    CHECK(teams_of_openmp() > teams + 200, "work was not shared");
  }
  // A thread of its own, which has a team of its own.
  std::thread([&] {
    const auto teams = teams_of_openmp();
    CHECK(results<float>(cell_info<Lstm>()) == expected, "another thread");
    CHECK(teams_of_openmp() > teams, "another thread's team");
    set_executor("auto");
    CHECK(executor_in_use() == "own", "%s in use", executor_in_use().c_str());
    set_executor("openmp");
  }).join();
  // In a parallel region the caller is alone, on every thread.
  struct Calls {
    const OpenMp& openmp;
    const std::vector<char>& expected;
    std::atomic<int> wrong{0}, right{0}, teams_of_one{0};
  } calls{openmp, expected};
  const auto teams = ThreadPool::instance().teams();
  openmp.parallel(
      [](void* context) {
        Calls& c = *static_cast<Calls*>(context);
        ThreadPool::instance().run(2, [&](const Team& team) { c.teams_of_one += team.parts == 1; });
        (results<float>(cell_info<Lstm>()) == c.expected ? c.right : c.wrong) += 1;
      },
      &calls, 0, 0);
  CHECK(calls.wrong == 0 && calls.right == most && calls.teams_of_one == most &&
            ThreadPool::instance().teams() == teams,
        "%d right, %d wrong, %d alone", calls.right.load(), calls.wrong.load(),
        calls.teams_of_one.load());
  // PyTorch is not there.
  set_executor("auto");
  CHECK(executor_in_use() == "own", "%s in use", executor_in_use().c_str());
  set_executor("own");
}

#else

void check_openmp() {}

#endif

// ---- forks --------------------------------------------------------------------------------

// A child has neither the host's threads nor OpenMP's.
void check_fork() {
#if (defined(__unix__) || defined(__APPLE__)) && !defined(__SANITIZE_THREAD__)
  Host host(3);
  set_num_threads(emulated ? 1 : 3);  // qemu-user cannot start threads in such a child
  const auto expected = results<float>(cell_info<Lstm>());
  for (const char* const name : {"host", "openmp", "auto", "own"}) {
    if (std::string(name) == "host")
      set_executor(Executor{&host, host_threads, run_at_once, true});
    else
      set_executor(name);
    results<float>(cell_info<Lstm>());
    const pid_t child = fork();
    if (child == 0) {
      alarm(120);  // rather than hang
      const std::string now = std::string(name) == "host" ? "own" : name;
      const bool alive = get_executor() == now && executor_in_use() == "own" &&
                         results<float>(cell_info<Lstm>()) == expected;
      _exit(alive ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(status == 0, "child of a parent with %s: status %d", name, status);
    CHECK(results<float>(cell_info<Lstm>()) == expected, "parent with %s", name);
  }
  set_executor("own");
#endif
}

}  // namespace

int main() {
  std::printf("instruction set %s\n", isa_in_use().c_str());
#if defined(__unix__) || defined(__APPLE__)
  alarm(1200);  // rather than hang
#endif
  check_gathering();
  check_attendance();
  sharing_limits() = {0, 0};  // small cases shall run on all threads too
  check_hosts();
  check_calls_within_tasks();
  check_errors();
  check_openmp();
  check_fork();
  return report();
}
