#include <pybind11/stl.h>

#include "arrays.hpp"
#include "charrnn_fast/threads.hpp"
#include "charrnn_fast/version.hpp"
#include "compiler.hpp"
#include "cpu/cgroup.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/thread_pool.hpp"

namespace charrnn_fast::bindings {
namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = CHARRNN_VERSION;
  info["compiler"] = compiler;
  info["isa"] = isa_in_use();
  info["runnable_isas"] = runnable_isas();
  info["threads"] = get_num_threads();
  info["executor"] = executor_in_use();
  info["cuda"] = false;
  return info;
}

// Every thread counts between barriers: a lost wake-up hangs, a lost update shows.
Index pool_self_test(int rounds) {
  std::vector<Index> counts(static_cast<std::size_t>(get_num_threads()));
  Index total = 0;
  for (int r = 0; r < rounds; ++r)
    ThreadPool::instance().run(get_num_threads(), [&](const Team& team) {
      counts[static_cast<std::size_t>(team.part)] = r;
      team.wait();
      if (team.part == 0)
        for (int i = 0; i < team.parts; ++i) total += counts[static_cast<std::size_t>(i)] == r;
      team.wait();
    });
  return total;
}

}  // namespace

void register_threads(py::module_& m) {
  m.def("build_info", &build_info);
  m.def("available_isas", &runnable_isas);
  m.def("get_num_threads", &get_num_threads);
  m.def("set_num_threads", &set_num_threads, py::arg("n"));
  m.def("get_executor", &get_executor);
  m.def("set_executor", [](const std::string& name) { set_executor(name); }, py::arg("name"));
  m.def(
      "set_sharing_limits",
      [](double operations_per_thread, double operations_per_barrier) {
        sharing_limits() = {operations_per_thread, operations_per_barrier};
      },
      py::arg("operations_per_thread"), py::arg("operations_per_barrier"));
  m.def("cgroup_quota", &cgroup_quota, py::arg("root") = "");
  m.def("pool_teams", [] { return ThreadPool::instance().teams(); });
  m.def("openmp_teams", [] { return ThreadPool::instance().teams(Threads::openmp); });
  m.def("pool_self_test", &pool_self_test, py::arg("rounds"),
        py::call_guard<py::gil_scoped_release>());
}

}  // namespace charrnn_fast::bindings
