// What there is to know of a cell but its math; cells.hpp explains the members.
#pragma once

namespace charrnn_fast {

struct CellInfo {
  const char *name, *nonlinearity;
  const char* gates;
  const char* params_name;
  int num_gates, num_split, num_states, num_saved, num_params;
  int forget_gate;  // -1: it has none
  bool h_bypass, bounded;
  unsigned reads_next;

  // Whether h may be projected (proj_size): the step goes on with c, and past the gates h has no
  // way, on which its width would have to stay.
  constexpr bool takes_projection() const { return num_states > 1 && !h_bypass; }
};

}  // namespace charrnn_fast
