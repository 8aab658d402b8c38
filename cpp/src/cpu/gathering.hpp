// Teams on a pool that may run its tasks one after another, late or never.
//
// The members of a team wait for each other, so each must have a thread. The members are the tasks
// that begin before the door closes: it closes when all have come, or 0.1 ms after the first. Later
// tasks return. Results do not depend on the team's size.
#pragma once

#include <atomic>
#include <cstdint>

namespace charrnn_fast {

// One team after another. A task that comes after its own run may become a member of the next.
class Gathering {
 public:
  Gathering();
  // For a team of at most `parts`. What its members read must be written before.
  void open(int parts);
  // Returns false if the door is closed. Else the caller is a member, `part` of `parts`.
  bool enter(int& part, int& parts);
  // A member's last access to what the team shares.
  void leave();
  // Closes the door. Returns the team's size, after all members have left.
  int close();

 private:
  std::atomic<std::uint32_t> door_;  // closed or not; the most that can come; those who have
  std::atomic<std::uint32_t> left_{0};
};

// How many threads of such a pool to call, given how many came: waiting for one that does not come
// takes longer than a small run.
class Attendance {
 public:
  int limit(int parts, std::int64_t now);
  // After a run for which `came` of `called` threads came.
  void add(int called, int came, std::int64_t now);

 private:
  int limit_ = 0;  // 0: none
  std::int64_t pause_ = 0, retry_ = 0;
};

}  // namespace charrnn_fast
