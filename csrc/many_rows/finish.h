// Sums to rows of y.
//
// Included by one file for each instruction set, after its Lanes. To be compiled without
// contraction of products and sums (-ffp-contract=off): integer rows are defined bit for bit.
#ifndef BITSMITH_PANELS_FINISH_H
#define BITSMITH_PANELS_FINISH_H

#include <cstring>

#include "../bitsmith_kernels.h"
#include "../half.h"
#include "product.h"

namespace bitsmith::panels {
namespace {

inline void narrow(int type, const float* values, int64_t count, void* y, int64_t from) {
  if (type == BSK_FLOAT32) {
    std::memcpy(static_cast<float*>(y) + from, values, size_t(count) * sizeof(float));
    return;
  }
  uint16_t* half = static_cast<uint16_t*>(y) + from;
  if (type == BSK_BFLOAT16) {
    for (int64_t i = 0; i < count; ++i) half[i] = float_to_bfloat16(values[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) half[i] = float_to_float16(values[i]);
  }
}

// One vector of y. Products and the sum are rounded one by one, in this order.
template <bool Scaled>
inline Lanes::Float finished(const Output& out, const float* sums, int64_t row, int64_t column) {
  Lanes::Float value = Lanes::load(sums + column);
  if constexpr (Scaled) {
    value = Lanes::multiply(value, Lanes::broadcast(out.row_scale[row]));
    value = Lanes::multiply(value, Lanes::load(out.column_scale + column));
  }
  return Lanes::add(value, Lanes::load(out.bias + column));
}

template <bool Scaled>
inline void finish_rows(const Output& out, const float* sums, int64_t sums_stride) {
  for (int64_t row = 0; row < out.rows; ++row, sums += sums_stride) {
    const int64_t at = (out.row + row) * out.stride + out.column;
    int64_t column = 0;
    if (out.type == BSK_FLOAT32) {
      float* y = static_cast<float*>(out.y) + at;
      for (; column + Lanes::count <= out.columns; column += Lanes::count) {
        Lanes::store(y + column, finished<Scaled>(out, sums, row, column));
      }
    }
    for (; column < out.columns; column += Lanes::count) {
      float values[Lanes::count];
      Lanes::store(values, finished<Scaled>(out, sums, row, column));
      const int64_t left = out.columns - column;
      narrow(out.type, values, left < Lanes::count ? left : Lanes::count, out.y, at + column);
    }
  }
}

inline void finish(const Output& out, const float* sums, int64_t sums_stride) {
  if (out.row_scale) {
    finish_rows<true>(out, sums, sums_stride);
  } else {
    finish_rows<false>(out, sums, sums_stride);
  }
}

}  // namespace
}  // namespace bitsmith::panels
#endif
