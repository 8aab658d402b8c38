#include "cpu/waiting.hpp"

namespace charrnn_fast {

void wait_for_change(const std::atomic<std::uint32_t>& value, std::uint32_t old,
                     const std::int64_t* changed_at) {
  const auto changed = [&] { return value.load(std::memory_order_acquire) != old; };
  if (spin_until(changed)) return;
  const std::int64_t start = wall_clock();
  while (!changed()) value.wait(old, std::memory_order_acquire);
  if (changed_at) waits_of_this_thread().asleep += std::max<std::int64_t>(0, *changed_at - start);
}

}  // namespace charrnn_fast
