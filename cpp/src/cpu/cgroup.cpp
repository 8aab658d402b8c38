#include "cpu/cgroup.hpp"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <sstream>
#include <vector>

namespace charrnn_fast {
namespace {

constexpr double unlimited = std::numeric_limits<double>::infinity();

// A mounted hierarchy of control groups: its group `top` is at `point`.
struct Mount {
  bool v2;
  std::string top, point;
};

bool lists(const std::string& words, const std::string& word) {
  return ("," + words + ",").find("," + word + ",") != std::string::npos;
}

// mountinfo writes blanks in paths as \040 and the like.
std::string unescaped(const std::string& text) {
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool escape = text[i] == '\\' && i + 3 < text.size();
    result += escape ? static_cast<char>(std::strtol(text.substr(i + 1, 3).c_str(), nullptr, 8))
                     : text[i];
    if (escape) i += 3;
  }
  return result;
}

// Lines "36 35 0:30 /top /point options [tags] - type source options of the hierarchy".
std::vector<Mount> read_mounts(const std::string& root) {
  std::vector<Mount> mounts;
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    const std::size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream left(line.substr(0, dash)), right(line.substr(dash + 3));
    std::string skipped, top, point, type, source, options;
    left >> skipped >> skipped >> skipped >> top >> point;
    right >> type >> source >> options;
    if (type == "cgroup2" || (type == "cgroup" && lists(options, "cpu")))
      mounts.push_back({type == "cgroup2", unescaped(top), unescaped(point)});
  }
  return mounts;
}

// Lines "4:cpu,cpuacct:/group" of version 1, "0::/group" of version 2.
std::string read_group(const std::string& root, bool v2) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (v2 ? controllers.empty() : lists(controllers, "cpu")) return line.substr(second + 1);
  }
  return "/";
}

double quota_of(const std::string& folder, bool v2) {
  double quota = 0, period = 0;
  if (v2) {
    std::string word;  // a number or "max"
    std::ifstream(folder + "/cpu.max") >> word >> period;
    quota = std::strtod(word.c_str(), nullptr);
  } else {
    std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
    std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  }
  return quota > 0 && period > 0 ? quota / period : unlimited;
}

}  // namespace

double cgroup_quota(const std::string& root) {
  double least = unlimited;
  for (const Mount& mount : read_mounts(root)) {
    // The group's path below the mount. In a container the group may be outside: then only the
    // mount is visible.
    std::string group = read_group(root, mount.v2);
    const std::string top = mount.top == "/" ? "" : mount.top;
    const bool below = group.compare(0, top.size(), top) == 0 &&
                       (group.size() == top.size() || group[top.size()] == '/');
    group = below && group.find("/..") == std::string::npos ? group.substr(top.size()) : "";
    for (;;) {
      least = std::min(least, quota_of(root + mount.point + group, mount.v2));
      if (group.empty()) break;
      group.resize(group.rfind('/'));
    }
  }
  return least;
}

}  // namespace charrnn_fast
