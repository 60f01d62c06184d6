// How a product is cut into tasks, and its rows and bias laid out for them.
#ifndef BITSMITH_PANELS_CUT_H
#define BITSMITH_PANELS_CUT_H

#include <algorithm>
#include <cstdint>

#include "../request.h"
#include "buffer.h"

namespace bitsmith::panels {

// Rows of x to take in one go, all passes about alike. Each pass decodes the weight again and
// starts the threads twice; but x, of so many bytes a row, is to stay within reach of the caches.
int64_t rows_of_pass(int64_t m, int64_t row_bytes);

// Copy the groups of a row to where the packed form has them, with 0 in between and after.
template <class T>
void spread(const Layout& layout, const T* row, T* out) {
  std::fill(out, out + layout.columns(), T(0));
  if (layout.padded == layout.group) {
    std::copy(row, row + layout.k, out);
    return;
  }
  for (int64_t g = 0; g < layout.groups; ++g) {
    std::copy(row + g * layout.group, row + (g + 1) * layout.group, out + g * layout.padded);
  }
}

// Added to any number it leaves it as it is, −0 too.
constexpr float kNoBias = -0.0f;

// The bias up to whole panels; without one, kNoBias.
void pad_bias(const Request& request, float* out);

// y cut into tasks: some panels (each decoded once in a task) times some rows.
struct Cut {
  int64_t panels, panel_count;  // of a task; in all
  int64_t rows, row_count;
  int64_t tasks;

  int64_t panel_tasks() const { return (panel_count + panels - 1) / panels; }
  int64_t first_panel(int64_t task) const { return task % panel_tasks() * panels; }
  int64_t first_row(int64_t task) const { return task / panel_tasks() * rows; }
  int64_t panels_of(int64_t task) const {
    return std::min(panels, panel_count - first_panel(task));
  }
  int64_t rows_of(int64_t task) const { return std::min(rows, row_count - first_row(task)); }
};

// Tasks of `panels` panels and all rows; smaller ones where threads would be without work.
Cut make_cut(int64_t panels, int64_t panel_count, int64_t row_count, int threads);

}  // namespace bitsmith::panels
#endif
