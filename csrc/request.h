// A product that is asked for: y[m][n] = x[m][k] · wᵀ + bias[n], see bsk_linear.
#ifndef BITSMITH_REQUEST_H
#define BITSMITH_REQUEST_H

#include <cstdint>

#include "layout.h"

namespace bitsmith {

struct Request {
  const Layout& layout;
  const void* packed;
  int type;
  const void* x;
  int64_t m, x_stride;
  const float* bias;
  void* y;
  int64_t y_stride;
  int threads;

  // Columns of y up to whole panels.
  int64_t padded_n() const { return layout.blocks * layout.lanes; }
  // A row of x as float32, [k].
  void widen(int64_t row, float* out) const;
};

}  // namespace bitsmith
#endif
