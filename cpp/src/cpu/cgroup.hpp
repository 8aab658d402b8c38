// What Linux's control groups grant this process.
#pragma once

#include <string>

namespace charrnn_fast {

// Processors' worth of time that this process may use: the least of what its own control group and
// those around it grant, of either version; infinity where none sets a limit. `root` stands before
// every path that is read, for tests.
double cgroup_quota(const std::string& root = "");

}  // namespace charrnn_fast
