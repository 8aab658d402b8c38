// Reads many places of a file in one call.
#include <algorithm>
#include <cerrno>
#include <cstddef>

#include <unistd.h>

#include "arrays.hpp"

namespace charrnn_fast::bindings {
namespace {

enum class Read { done, ended, failed };

// The bytes from `begin` on, all of them.
Read read_at(int file, char* to, Index bytes, Index begin) {
  while (bytes > 0) {
    const ssize_t n = pread(file, to, static_cast<std::size_t>(bytes), begin);
    if (n == 0) return Read::ended;
    if (n < 0 && errno != EINTR) return Read::failed;
    const Index got = std::max<Index>(0, n);
    to += got, bytes -= got, begin += got;
  }
  return Read::done;
}

bool read_rows(int file, Index begin, Index end, const py::object& starts, const py::object& rows) {
  const py::array first = checked_array<Index>(starts, "starts");
  auto into = py::reinterpret_borrow<py::array>(rows);
  if (!py::isinstance<py::array>(rows) || into.ndim() != 2 || first.ndim() != 1 ||
      into.shape(0) != first.shape(0) || !(into.flags() & py::array::c_style) || !into.writeable())
    throw py::value_error("rows must be a writable, C-contiguous array [B, N] for starts [B]");
  const Index batch = first.shape(0), row_bytes = into.shape(1) * into.itemsize();
  // A copy: another thread may change the array after the check.
  const auto* given = static_cast<const Index*>(first.data());
  const std::vector<Index> at(given, given + batch);
  for (const Index start : at)
    if (start < 0 || start >= end - begin)
      throw py::value_error("starts must be in 0 to " + std::to_string(end - begin - 1) + ", got " +
                            std::to_string(start));
  auto* to = static_cast<char*>(into.mutable_data());
  Read result = Read::done;
  int error = 0;
  {
    py::gil_scoped_release release;
    for (Index start : at)
      for (Index left = row_bytes; left > 0 && result == Read::done; start = 0) {
        const Index bytes = std::min(left, end - begin - start);
        result = read_at(file, to, bytes, begin + start);
        error = errno;
        to += bytes, left -= bytes;
      }
  }
  if (result == Read::failed) {
    errno = error;
    PyErr_SetFromErrno(PyExc_OSError);
    throw py::error_already_set();
  }
  return result == Read::done;
}

}  // namespace

void register_files(py::module_& m) {
  m.def("read_rows", &read_rows, py::arg("file"), py::arg("begin"), py::arg("end"),
        py::arg("starts"), py::arg("rows"));
}

}  // namespace charrnn_fast::bindings
