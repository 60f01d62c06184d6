// Rows of x as the kernels want them. Plain loops, which each instruction set vectorizes.
#ifndef BITSMITH_ROWS_H
#define BITSMITH_ROWS_H

#include <cstdint>
#include <cstring>

#include "bitsmith_kernels.h"
#include "half.h"

namespace {

inline void widen_row(int type, const void* x, int64_t count, float* out) {
  if (type == BSK_FLOAT32) {
    memcpy(out, x, static_cast<size_t>(count) * 4);
  } else if (type == BSK_FLOAT16) {
    const auto* from = static_cast<const uint16_t*>(x);
    for (int64_t i = 0; i < count; ++i) out[i] = float16_to_float(from[i]);
  } else {
    const auto* from = static_cast<const uint16_t*>(x);
    for (int64_t i = 0; i < count; ++i) out[i] = bfloat16_to_float(from[i]);
  }
}

// The scale of a row whose largest magnitude is `absmax`: absmax / 127, rounded once, never below
// the smallest normal number, and so that 127 of it is a float32; 1 for a row of zeros.
inline float scale_of(float absmax) {
  if (absmax == 0) return 1.0f;
  const float least = 1.17549435e-38f, most = bits_float(0x7c010203);  // FLT_MAX / 127
  const double exact = static_cast<double>(absmax) / 127.0;
  if (exact < least) return least;
  const float scale = static_cast<float>(exact);
  return scale > most ? most : scale;
}

// codes = clamp(round(x / scale)), ties to even; false where x is not finite.
inline bool quantize_row(const float* x, int64_t count, int8_t* codes, float* scale) {
  int32_t largest = 0;  // of the bits, which are ordered as the magnitudes
  for (int64_t i = 0; i < count; ++i) {
    int32_t bits;
    memcpy(&bits, x + i, 4);
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  if (largest >= 0x7f800000) return false;
  const float step = scale_of(bits_float(static_cast<uint32_t>(largest)));
  for (int64_t i = 0; i < count; ++i) {
    float value = x[i] / step;
    value = value > 127.0f ? 127.0f : value;
    value = value < -127.0f ? -127.0f : value;
    // Adding 1.5 · 2^23 rounds to an integer, and leaves it in the lowest bits.
    const float shifted = value + 12582912.0f;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    codes[i] = static_cast<int8_t>(bits);
  }
  *scale = step;
  return true;
}

inline int32_t sum_row(const int8_t* codes, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += codes[i];
  return sum;
}

}  // namespace
#endif
