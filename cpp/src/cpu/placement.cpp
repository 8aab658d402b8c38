#include "cpu/placement.hpp"

#if defined(__linux__)
#include <pthread.h>
#endif

namespace charrnn_fast {

#if defined(__linux__)

namespace {

// A change of a running process's affinity takes effect within 10 ms; reading it costs half a
// microsecond.
constexpr std::int64_t between_looks = 10'000'000;

cpu_set_t read_affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) CPU_ZERO(&set);
  return set;
}
const cpu_set_t initial_affinity = read_affinity();

}  // namespace

int processors_at_start() { return CPU_COUNT(&initial_affinity); }

Placement::Placement() : callers_(initial_affinity), allowed_(initial_affinity) {}

void Placement::look(std::int64_t now) {
  const int processor = sched_getcpu();
  if (processor == processor_ && now < next_look_) return;
  next_look_ = now + between_looks;
  const cpu_set_t mine = read_affinity();
  const bool changed = !CPU_EQUAL(&mine, &callers_);
  if (!changed && processor == processor_) return;
  if (changed && CPU_COUNT(&mine) > 1) allowed_ = mine, ++sets_;
  callers_ = mine, processor_ = processor, ++version_;
}

void Placement::place(std::thread& worker, int i, Place& place) const {
  if (place.version == version_) return;
  place.version = version_;
  cpu_set_t wanted = allowed_;
  if (i < CPU_COUNT(&allowed_) && processor_ >= 0) CPU_CLR(processor_, &wanted);
  const pthread_t thread = worker.native_handle();
  cpu_set_t now;
  if (CPU_COUNT(&wanted) == 0 || pthread_getaffinity_np(thread, sizeof now, &now) != 0) return;
  if (place.sets == sets_ && !CPU_EQUAL(&now, &place.left)) return;
  place.sets = sets_;
  // The system ignores processors that are offline or outside the control group. If it refuses, the
  // worker's affinity stays.
  pthread_setaffinity_np(thread, sizeof wanted, &wanted);
  if (pthread_getaffinity_np(thread, sizeof now, &now) == 0) place.left = now;
}

#else

int processors_at_start() { return 0; }

#endif

}  // namespace charrnn_fast
