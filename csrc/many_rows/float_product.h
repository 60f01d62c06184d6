// Rows of x times decoded panels of weights, in float32: the loops around registers.
//
// Included by one file for each instruction set, after its Lanes.
#ifndef BITSMITH_PANELS_FLOAT_PRODUCT_H
#define BITSMITH_PANELS_FLOAT_PRODUCT_H

#include "product.h"

namespace bitsmith::panels {
namespace {

// sums[r][panel][lane] += Σ_c x[r][c] · weights[panel][c][lane] for `Rows` rows and `Panels`
// panels, which stay in registers. The sum over `depth` columns starts from 0 and is added
// afterwards: the order of additions depends on the columns alone, and errors stay small.
template <int Rows, int Panels>
inline void float_block(const FloatProduct& p, int64_t row, int64_t panel) {
  using L = Lanes;
  const float* x = p.x + row * kFloatDepth;
  const float* weights = p.weights + panel * kFloatDepth * L::count;
  L::Float total[Rows][Panels];
#pragma GCC unroll 32
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 32
    for (int v = 0; v < Panels; ++v) total[r][v] = L::broadcast(0.0f);
  }
  for (int64_t c = 0; c < p.depth; ++c) {
    L::Float weight[Panels];
#pragma GCC unroll 32
    for (int v = 0; v < Panels; ++v) {
      weight[v] = L::load(weights + (v * kFloatDepth + c) * L::count);
    }
#pragma GCC unroll 32
    for (int r = 0; r < Rows; ++r) {
      const L::Float value = L::broadcast(x[r * kFloatDepth + c]);
#pragma GCC unroll 32
      for (int v = 0; v < Panels; ++v) {
        total[r][v] = L::multiply_add(value, weight[v], total[r][v]);
      }
    }
  }
  float* sums = p.sums + row * p.sums_stride + panel * L::count;
#pragma GCC unroll 32
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 32
    for (int v = 0; v < Panels; ++v) {
      float* sum = sums + r * p.sums_stride + v * L::count;
      L::store(sum, L::add(L::load(sum), total[r][v]));
    }
  }
}

// The block of as many rows as asked for, of those there is code for.
template <int Panels, int Rows = Lanes::max_rows>
inline void float_rows(const FloatProduct& p, int64_t row, int rows, int64_t panel) {
  if constexpr (Rows > 0) {
    if (rows == Rows) return float_block<Rows, Panels>(p, row, panel);
    float_rows<Panels, Rows - 1>(p, row, rows, panel);
  }
}

// The rows cut into blocks of almost equal numbers.
template <int Panels>
inline void float_panels(const FloatProduct& p, int64_t panel) {
  int64_t left = (p.rows + Lanes::max_rows - 1) / Lanes::max_rows;
  for (int64_t row = 0; left; --left) {
    const int rows = int((p.rows - row + left - 1) / left);
    float_rows<Panels>(p, row, rows, panel);
    row += rows;
  }
}

// The panels from `panel` on cut into blocks of as many as there are registers for, and the rest.
template <int Panels>
void float_multiply_from(const FloatProduct& p, int64_t panel) {
  if constexpr (Panels > 0) {
    for (; panel + Panels <= p.panels; panel += Panels) float_panels<Panels>(p, panel);
    float_multiply_from<Panels - 1>(p, panel);
  }
}

inline void float_multiply(const FloatProduct& p) {
  float_multiply_from<Lanes::max_panels>(p, 0);
}

}  // namespace
}  // namespace bitsmith::panels
#endif
