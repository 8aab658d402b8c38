// The thread pool: its barriers, the same bits for any number of threads, callers in each other's
// way, fork; when teams shrink; and where workers run.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "charrnn_fast/cells.hpp"
#include "charrnn_fast/threads.hpp"
#include "check.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/thread_pool.hpp"
#include "teams.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/wait.h>
#include <unistd.h>
#endif
#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#endif

using namespace charrnn_fast;

namespace {

template <class T>
void check_bits() {
  const Kernels<T>& k = kernels<T>();
  for (int i = 0; i < k.num_cells; ++i) {
    const CellInfo& cell = k.cells[i];
    set_num_threads(1);
    const auto expected = results<T>(cell);
    for (const int threads : {2, 3, 8}) {
      set_num_threads(threads);
      const auto before = ThreadPool::instance().teams();
      CHECK(results<T>(cell) == expected, "%s (%s) on %d threads", cell.name, cell.nonlinearity,
            threads);
      CHECK(ThreadPool::instance().teams() > before, "%d threads did not share the work", threads);
    }
  }
}

void check_callers_at_once() {
  set_num_threads(1);
  const auto expected = results<float>(cell_info<Gru>());
  set_num_threads(3);
  std::vector<std::vector<char>> found(4);
  std::vector<std::thread> callers;
  for (auto& mine : found) callers.emplace_back([&] { mine = results<float>(cell_info<Gru>()); });
  // Meanwhile the pool changes size, or refuses to.
  for (int n = 1; n < 40; ++n) {
    try {
      set_num_threads(1 + n % 5);
    } catch (const std::invalid_argument& error) {
      CHECK(std::strstr(error.what(), "another thread computes"), "%s", error.what());
    }
    std::this_thread::yield();
  }
  for (auto& caller : callers) caller.join();
  for (const auto& mine : found) CHECK(mine == expected, "a caller beside others");
}

#if defined(CHARRNN_EMULATED)
constexpr bool emulated = true;
#else
constexpr bool emulated = false;
#endif

// Whether the child of a process that had several threads may start some. The thread sanitizer ends
// such a child, and qemu-user cannot do it.
#if defined(__SANITIZE_THREAD__)
constexpr bool children_have_threads = false;
#else
constexpr bool children_have_threads = !emulated;
#endif

#if defined(__unix__) || defined(__APPLE__)
// Several threads of a child are the first to lock a mutex there, which another thread of the
// parent holds or has held: one has it at a time.
void check_first_locks_of_children() {
  constexpr int children = 200, threads = children_have_threads ? 3 : 1, rounds = 20;
  for (int i = 0; i < children; ++i) {
    ForkSafeMutex mutex;
    std::atomic<bool> locked{false}, done{false};
    std::thread holder([&] {
      const std::lock_guard<ForkSafeMutex> lock(mutex);
      locked = true;
      while (i % 2 == 0 && !done) std::this_thread::yield();
    });
    while (!locked) std::this_thread::yield();
    if (i % 2 == 1) holder.join();
    const pid_t child = fork();
    if (child == 0) {
      alarm(60);  // rather than hang
      std::atomic<int> ready{0}, inside{0}, together{0};
      const auto lock_often = [&] {
        ++ready;
        while (ready < threads) continue;
        for (int round = 0; round < rounds; ++round) {
          const std::lock_guard<ForkSafeMutex> lock(mutex);
          together += inside.exchange(1);
          inside = 0;
        }
      };
      std::vector<std::thread> others;
      for (int t = 1; t < threads; ++t) others.emplace_back(lock_often);
      lock_often();
      for (auto& other : others) other.join();
      _exit(together == 0 ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(status == 0, "child %d: status %d", i, status);
    done = true;
    if (holder.joinable()) holder.join();
  }
}
#endif

// A fork between two calls, and one while another thread is in a call.
void check_fork() {
#if (defined(__unix__) || defined(__APPLE__)) && !defined(__SANITIZE_THREAD__)
  set_num_threads(3);
  const auto expected = results<float>(cell_info<Lstm>());
  for (int i = 0; i < 6; ++i) {
    std::thread busy;
    if (i % 2 == 1) busy = std::thread([] { results<double>(cell_info<Lstm>()); });
    const pid_t child = fork();
    if (child == 0) {
      alarm(120);  // rather than hang
      // qemu-user cannot start threads in the child of a process that had several.
      if (emulated) set_num_threads(1);
      const bool alive =
          results<float>(cell_info<Lstm>()) == expected && get_num_threads() == (emulated ? 1 : 3);
      _exit(alive ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(status == 0, "child %d: status %d", i, status);
    if (busy.joinable()) busy.join();
    CHECK(results<float>(cell_info<Lstm>()) == expected, "parent of child %d", i);
  }
#endif
}

// ---- when teams shrink --------------------------------------------------------------------

constexpr std::int64_t ms = 1'000'000;

// A run of `threads`, of which the first loses `first` of its time and each other one `others`.
Oversubscription::Run run_of(int threads, double first, double others, double worked_each = 1) {
  Oversubscription::Run run;
  run.wall = 4 * ms;
  run.lost = static_cast<std::int64_t>(double(run.wall) * (first + (threads - 1) * others));
  run.most_lost = static_cast<std::int64_t>(double(run.wall) * std::max(first, others));
  run.worked = static_cast<std::int64_t>(worked_each * threads * double(run.wall)) - run.lost;
  return run;
}

// The limit after enough runs for a decision, the clock advanced by them.
int after(Oversubscription& oversubscription, int threads, const Oversubscription::Run& run,
          std::int64_t& now) {
  for (int i = 0; i < 5 && oversubscription.limit(threads, now) == threads; ++i) {
    CHECK(oversubscription.measures(now), "a long run is not measured");
    now += run.wall;
    oversubscription.add(threads, run, now);
  }
  return oversubscription.limit(threads, now);
}

void check_oversubscription() {
  struct Example {
    int threads;
    double first, others, worked_each;
    int expected;
    const char* what;
  };
  for (const Example& e : std::initializer_list<Example>{
           {2, 0, 0, 1, 2, "an idle machine"},
           {2, 0.1, 0.05, 1, 2, "small interruptions"},
           {2, 0.5, 0, 0.72, 1, "two threads, one of them on a shared processor"},
           {2, 0.8, 0, 0.85, 1, "the same between barriers"},
           {2, 0.3, 0.3, 0.6, 1, "a program that wanders between the two"},
           {2, 0.25, 0.25, 1, 2, "a quota of one and a half processors"},
           {2, 0.1, 0.1, 0.5, 1, "waiting for one another"},
           {16, 0.5, 0, 1, 15, "one of sixteen"},
           {16, 0.02, 0.02, 0.75, 16, "shares of different size"},
           {8, 0.75, 0.75, 1, 2, "eight threads on two processors"},
       }) {
    Oversubscription oversubscription(e.threads);
    std::int64_t now = ms;
    CHECK(after(oversubscription, e.threads, run_of(e.threads, e.first, e.others, e.worked_each),
                now) == e.expected,
          "%s", e.what);
    CHECK(oversubscription.limit(1, now) == 1, "%s", e.what);
  }
  // The full team is tried again, less and less often, and kept once it has its processors back.
  Oversubscription oversubscription(2);
  std::int64_t now = ms, pause = 0;
  const Oversubscription::Run busy = run_of(2, 0.8, 0), idle = run_of(2, 0, 0);
  for (int trial = 0; trial < 8; ++trial) {
    CHECK(after(oversubscription, 2, busy, now) == 1, "trial %d", trial);
    const std::int64_t begin = now;
    while (oversubscription.limit(2, now) == 1) now += ms;
    CHECK((now - begin >= pause || trial < 2) && now - begin <= 1000 * ms, "trial %d after %d ms",
          trial, static_cast<int>((now - begin) / ms));
    pause = now - begin;
  }
  CHECK(pause > 500 * ms, "%d ms", static_cast<int>(pause / ms));
  for (int i = 0; i < 10; ++i)
    CHECK(after(oversubscription, 2, idle, now) == 2, "idle again, %d", i);
  after(oversubscription, 2, busy, now);
  CHECK(after(oversubscription, 2, busy, now) == 1, "oversubscribed again");
  now += 200 * ms;
  CHECK(oversubscription.limit(2, now) == 2, "after an idle time, pauses are short again");
}

// Milliseconds until all threads are tried again, if other threads of the process run for `busy` ms
// of it.
int pause_beside(Oversubscription& oversubscription, int busy, std::int64_t& now) {
  const Oversubscription::Run slow = run_of(2, 0.8, 0);
  after(oversubscription, 2, slow, now);
  CHECK(after(oversubscription, 2, slow, now) == 1, "not oversubscribed");
  const std::int64_t begin = now;
  std::int64_t others = 1000 * ms;
  for (; oversubscription.limit(2, now) == 1; now += ms) {
    if (now - begin < busy * ms) others += ms;
    if (oversubscription.watches(now)) oversubscription.watch(others, now);
  }
  return static_cast<int>((now - begin) / ms);
}

// Once other threads of the process have stopped, all threads are tried again at once.
void check_watching() {
  const Oversubscription::Run slow = run_of(2, 0.8, 0), idle = run_of(2, 0, 0);
  {
    Oversubscription oversubscription(2);
    std::int64_t now = ms;
    const int early = pause_beside(oversubscription, 30, now);
    CHECK(early >= 30 && early <= 49, "after %d ms", early);
    CHECK(after(oversubscription, 2, idle, now) == 2, "the trial succeeds");
    const int again = pause_beside(oversubscription, 30, now);
    CHECK(again >= 30 && again <= 49, "after %d ms", again);
    // It fails: no more of them, until the full team has been the best.
    const int failed = pause_beside(oversubscription, 30, now);
    CHECK(failed >= 100, "after %d ms", failed);
    CHECK(after(oversubscription, 2, idle, now) == 2, "a later trial succeeds");
    const int then = pause_beside(oversubscription, 30, now);
    CHECK(then >= 30 && then <= 49, "after %d ms", then);
  }
  {
    // Nothing else of this process runs: another program does.
    Oversubscription oversubscription(2);
    std::int64_t now = ms;
    const int pause = pause_beside(oversubscription, 0, now);
    CHECK(pause >= 50, "after %d ms", pause);
  }
  {
    // The team's own threads spin.
    Oversubscription oversubscription(2, 35 * ms);
    std::int64_t now = ms;
    const int pause = pause_beside(oversubscription, 30, now);
    CHECK(pause >= 50, "after %d ms", pause);
  }
  {
    // Another caller's clock says nothing about this one's.
    Oversubscription oversubscription(2);
    std::int64_t now = ms;
    CHECK(after(oversubscription, 2, slow, now) == 1, "not oversubscribed");
    oversubscription.watch(0, now += 12 * ms);
    std::thread([&] { oversubscription.watch(1000 * ms, now += 12 * ms); }).join();
    oversubscription.watch(0, now += 12 * ms);
    oversubscription.watch(0, now += 12 * ms);
    CHECK(oversubscription.limit(2, now) == 1, "callers in turns");
  }
  const std::int64_t before = time_of_other_threads();
  std::thread([] {
    const std::int64_t begin = Oversubscription::Time::now().on_processor;
    while (Oversubscription::Time::now().on_processor - begin < 5 * ms) continue;
  }).join();
  const std::int64_t others = time_of_other_threads() - before;
  CHECK(others >= 4 * ms && others < 1000 * ms, "%d us of another thread", int(others / 1000));
}

// Time asleep is told from time lost.
void check_clocks() {
  const Oversubscription::Time begin{1000, 100, {10, 20}}, end{2000, 500, {40, 320}};
  Oversubscription::Run run;
  run.add(900, begin, end);
  // 1100 since it was called, 300 of them asleep with reason, 400 running, 30 of these spinning
  CHECK(run.worked == 370 && run.lost == 400 && run.most_lost == 400, "%d %d %d", int(run.worked),
        int(run.lost), int(run.most_lost));
  const Oversubscription::Time before = Oversubscription::Time::now();
  volatile double sink = 1;
  for (int i = 0; i < 1000000; ++i) sink = sink * 0.5;
  const Oversubscription::Time later = Oversubscription::Time::now();
  CHECK(later.wall > before.wall && later.on_processor > before.on_processor, "clocks stand still");
}

// ---- where workers run --------------------------------------------------------------------

#if defined(__linux__)

using Processors = std::vector<int>;

cpu_set_t set_of(const Processors& processors) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int p : processors) CPU_SET(p, &set);
  return set;
}

// None where that fails.
Processors read_affinity(pid_t thread = 0) {
  cpu_set_t set;
  CPU_ZERO(&set);
  Processors processors;
  if (sched_getaffinity(thread, sizeof set, &set) != 0) return processors;
  for (int p = 0; p < CPU_SETSIZE; ++p)
    if (CPU_ISSET(p, &set)) processors.push_back(p);
  return processors;
}

void set_affinity(const Processors& processors, pid_t thread = 0) {
  const cpu_set_t set = set_of(processors);
  CHECK(sched_setaffinity(thread, sizeof set, &set) == 0, "thread %d", int(thread));
}

Processors without(Processors processors, int processor) {
  processors.erase(std::remove(processors.begin(), processors.end(), processor), processors.end());
  return processors;
}

struct Member {
  pid_t thread;
  Processors processors;  // where it may run
};

// A team's threads while they are in a call, the caller first. It does not sleep meanwhile.
std::vector<Member> team_of(int threads) {
  std::vector<Member> team(static_cast<std::size_t>(threads));
  std::atomic<int> arrived{0};
  ThreadPool::instance().run(threads, [&](const Team& member) {
    const auto thread = static_cast<pid_t>(syscall(SYS_gettid));
    team[static_cast<std::size_t>(member.part)] = {thread, read_affinity(thread)};
    arrived.fetch_add(1);
    while (member.part == 0 && arrived.load() < member.parts) std::this_thread::yield();
  });
  return team;
}

// Like f in a thread of its own: what it does to its affinity, it does to itself.
template <class F>
void apart(const F& f) {
  std::thread(f).join();
}

bool all_on(const std::vector<Member>& team, std::size_t first, const Processors& processors) {
  for (std::size_t i = first; i < team.size(); ++i)
    if (team[i].processors != processors) return false;
  return true;
}

// The caller's affinity is looked at from time to time only.
void let_affinity_be_seen() { std::this_thread::sleep_for(std::chrono::milliseconds(15)); }

void check_placement() {
  const Processors all = read_affinity();
  const int n = static_cast<int>(all.size());
  // A caller that is pinned, here and there, again and again; then callers in turns.
  for (int round = 0; round < 3; ++round) {
    set_num_threads(n);
    apart([&] {
      for (const int p : {all.front(), all.back(), all.back(), all.front()}) {
        set_affinity({p});
        const auto team = team_of(n);
        const Processors expected = n > 1 ? without(all, p) : all;
        CHECK(all_on(team, 1, expected), "%d threads, the caller on %d", n, p);
        CHECK(team[0].processors == Processors{p}, "the caller's own affinity has changed");
      }
    });
  }
  for (int i = 0; i < 6; ++i)
    apart([&, p = i % 2 ? all.front() : all.back()] {
      set_affinity({p});
      CHECK(all_on(team_of(n), 1, n > 1 ? without(all, p) : all), "caller %d, on %d", i, p);
    });
  // A caller that the scheduler may move: one processor is missing, and not another one.
  for (int i = 0; i < 3 && n > 1; ++i) {
    const auto team = team_of(n);
    CHECK(static_cast<int>(team[1].processors.size()) == n - 1 &&
              std::includes(all.begin(), all.end(), team[1].processors.begin(),
                            team[1].processors.end()),
          "%d of %d processors", static_cast<int>(team[1].processors.size()), n);
  }
  // More threads than processors: one worker for each other processor is kept off the caller's.
  set_num_threads(n + 2);
  apart([&] {
    set_affinity({all.back()});
    const auto team = team_of(n + 2);
    for (int i = 1; i < n + 2; ++i)
      CHECK(
          team[static_cast<std::size_t>(i)].processors == (i < n ? without(all, all.back()) : all),
          "worker %d of %d", i, n + 1);
  });
  if (n < 2) return;
  const int p = all.front(), q = all.back();

  // Workers that another program has pinned stay where they are, until the processors of their
  // caller change.
  set_num_threads(2);
  apart([&] {
    set_affinity({p});
    const pid_t worker = team_of(2)[1].thread;
    set_affinity({p}, worker);
    set_affinity({q});
    CHECK(all_on(team_of(2), 1, {p}), "pinned by another program");
    set_affinity({p});
    CHECK(all_on(team_of(2), 1, {p}), "pinned by another program to the caller's processor");
    set_affinity(all);
    let_affinity_be_seen();
    const auto team = team_of(2);
    CHECK(team[1].thread == worker && static_cast<int>(team[1].processors.size()) == n - 1,
          "%d of %d processors once all are free again",
          static_cast<int>(team[1].processors.size()), n);
  });

  // Fewer processors for the caller are fewer for its workers, also if the caller stays where it
  // is; and they are kept when it is pinned then.
  if (n > 2) {
    const Processors few{all[0], all[1]};
    set_num_threads(n);
    apart([&] {
      set_affinity({all[0]});
      team_of(n);
      set_affinity(few);
      let_affinity_be_seen();
      auto team = team_of(n);
      CHECK(team[1].processors.size() == 1 &&
                (team[1].processors[0] == few[0] || team[1].processors[0] == few[1]),
            "the first worker of a caller on two processors");
      CHECK(all_on(team, 2, few), "more threads than the caller has processors");
      set_affinity({all[0]});
      CHECK(team_of(n)[1].processors == Processors{all[1]}, "pinned then");
      set_affinity(all);
      let_affinity_be_seen();
      CHECK(static_cast<int>(team_of(n)[1].processors.size()) == n - 1, "all of them again");
    });
  }

  // A forked child's workers are its own.
  if (!children_have_threads) return;
  apart([&] {
    set_affinity({p});
    const auto before = team_of(2);
    const pid_t child = fork();
    if (child == 0) {
      alarm(60);
      set_affinity({q});
      const auto team = team_of(2);
      _exit(all_on(team, 1, without(all, q)) && team[1].thread != before[1].thread ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(status == 0, "child: status %d", status);
    CHECK(all_on(team_of(2), 1, without(all, p)), "the parent's worker");
  });
}

#else

void check_placement() {}

#endif

}  // namespace

int main() {
  std::printf("instruction set %s\n", isa_in_use().c_str());
  check_oversubscription();
  check_watching();
  check_clocks();
  sharing_limits() = {0, 0};  // small cases shall run on all threads too
  for (const int threads : {1, 2, 3, 8}) {
    const long members = check_barriers(threads, 200);
    CHECK(members == threads * 200, "%ld members in 200 teams of %d", members, threads);
  }
  check_bits<float>();
  check_bits<double>();
  check_callers_at_once();
  check_fork();
#if defined(__unix__) || defined(__APPLE__)
  check_first_locks_of_children();
#endif
  check_placement();
  return report();
}
