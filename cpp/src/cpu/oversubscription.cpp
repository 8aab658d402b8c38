#include "cpu/oversubscription.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>

#if defined(__unix__) || defined(__APPLE__)
#include <time.h>
#endif

namespace charrnn_fast {

std::int64_t wall_clock() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

Waits& waits_of_this_thread() {
  thread_local Waits waits;
  return waits;
}

#if defined(__unix__) || defined(__APPLE__)
namespace {
// Returns whether the system has this clock.
bool read(clockid_t clock, std::int64_t& time) {
  timespec t;
  if (clock_gettime(clock, &t) != 0) return false;
  time = std::int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
  return true;
}
}  // namespace

std::int64_t time_of_other_threads() {
  std::int64_t mine, all;
  const bool known = read(CLOCK_THREAD_CPUTIME_ID, mine) && read(CLOCK_PROCESS_CPUTIME_ID, all);
  return known ? std::max<std::int64_t>(0, all - mine) : 0;
}
#else
std::int64_t time_of_other_threads() { return 0; }
#endif

Oversubscription::Time Oversubscription::Time::now() {
  const std::int64_t wall = wall_clock();
#if defined(__unix__) || defined(__APPLE__)
  std::int64_t on_processor;
  if (read(CLOCK_THREAD_CPUTIME_ID, on_processor))
    return {wall, on_processor, waits_of_this_thread()};
#endif
  return {wall, wall, {}};  // nothing is ever lost
}

void Oversubscription::Run::add(std::int64_t called, const Time& begin, const Time& end) {
  const std::int64_t on_processor = end.on_processor - begin.on_processor;
  worked += on_processor - (end.waits.spinning - begin.waits.spinning);
  const std::int64_t ready = end.wall - called - (end.waits.asleep - begin.waits.asleep);
  const std::int64_t mine = std::max<std::int64_t>(0, ready - on_processor);
  lost += mine;
  most_lost = std::max(most_lost, mine);
}

namespace {
constexpr std::int64_t milliseconds = 1'000'000;
constexpr std::int64_t between_measurements = milliseconds / 4;
// Several time slices: neither one interruption decides, nor the threads' first moments, before
// they run on different processors. In a trial oversubscription is expected.
constexpr std::int64_t decision_time = 20 * milliseconds, trial_time = 10 * milliseconds;
constexpr std::int64_t shortest_pause = 50 * milliseconds, longest_pause = 800 * milliseconds;
// A running thread's time is charged by ticks of the system, of up to 10 ms.
constexpr std::int64_t between_watches = 12 * milliseconds;
}  // namespace

int Oversubscription::limit(int parts, std::int64_t now) {
  if (limit_ < most_ && now >= retry_) limit_ = most_, trial_ = true;
  return std::min(parts, limit_);
}

bool Oversubscription::watches(std::int64_t now) const {
  return limit_ == 1 && most_ > 1 && may_be_early_ && now >= next_watch_;
}

void Oversubscription::watch(std::int64_t others, std::int64_t now) {
  const void* const thread = &waits_of_this_thread();
  if (thread == watcher_) {
    const double busy = static_cast<double>(others - others_) / static_cast<double>(now - watched_);
    if (busy >= 0.5) others_ran_ = true;
    if (busy < 0.1 && others_ran_) retry_ = now, early_ = true;
  }
  watcher_ = thread, others_ = others, watched_ = now, next_watch_ = now + between_watches;
}

bool Oversubscription::measures(std::int64_t now) {
  if (limit_ <= 1 || (!trial_ && now - measured_ < between_measurements)) return false;
  measured_ = now;
  return true;
}

void Oversubscription::add(int parts, const Run& run, std::int64_t now) {
  const double wall = static_cast<double>(run.wall);
  wall_ += wall, threads_ += parts * wall;
  worked_ += static_cast<double>(run.worked);
  lost_ += static_cast<double>(run.lost), most_lost_ += static_cast<double>(run.most_lost);
  if (wall_ < double(trial_ ? trial_time : decision_time)) return;
  const double threads = threads_ / wall_, lost = lost_ / wall_, most_lost = most_lost_ / wall_;
  // One thread alone would have been as fast.
  const bool one_will_do = worked_ / wall_ < 0.95;
  // An idle machine, too, loses a quarter of a thread.
  double fewer = std::max(1.0, std::floor(threads - lost + 0.25));
  if (one_will_do && fewer >= threads) fewer = 1;
  // Time that fewer threads would take if they lost none. If equal, the smaller team is better.
  const double takes = (1 - most_lost) * threads / fewer;
  if (fewer < threads && (one_will_do || takes < 1.02)) {
    limit_ = static_cast<int>(fewer);
    // The next trial of the full team must cost little of the time until then.
    pause_ = std::clamp(2 * pause_, shortest_pause, longest_pause);
    retry_ = now + std::max(pause_, static_cast<std::int64_t>(10 * wall_));
    may_be_early_ = may_be_early_ && !early_;
    others_ran_ = false, watcher_ = nullptr, next_watch_ = now + spins_;
  } else if (limit_ == most_) {
    pause_ /= 2;
    may_be_early_ = true;
  }
  wall_ = threads_ = worked_ = lost_ = most_lost_ = 0;
  trial_ = early_ = false;
}

}  // namespace charrnn_fast
