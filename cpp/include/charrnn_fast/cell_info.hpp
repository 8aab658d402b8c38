// A cell's properties other than its math; cells.hpp explains the members.
#pragma once

namespace charrnn_fast {

struct CellInfo {
  const char *name, *nonlinearity;
  const char* gates;
  const char* params_name;
  int num_gates, num_split, num_states, num_saved, num_params;
  int forget_gate;  // -1: none
  bool h_bypass, bounded;
  unsigned reads_next;

  // Whether h may be projected (proj_size). The cell needs a state c besides h, and h may enter the
  // step only through the gates: elsewhere its width must be H.
  constexpr bool takes_projection() const { return num_states > 1 && !h_bypass; }
};

}  // namespace charrnn_fast
