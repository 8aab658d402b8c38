// The CPU quota of Linux's control groups.
#pragma once

#include <string>

namespace charrnn_fast {

// Processors' worth of time that this process may use: the smallest quota of its own control group
// and those around it, of version 1 or 2; infinity without a limit. `root` is prepended to every
// path that is read, for tests.
double cgroup_quota(const std::string& root = "");

}  // namespace charrnn_fast
