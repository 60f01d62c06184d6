// Rows of floats as digits of base 256, for integer dot products.
//
// x = scale · Σ_d 256^d · digit_d with signed bytes as digits, where `scale` is a power of two of
// which the largest magnitude of the row is between 2^29 and 2^30. So a number keeps all its 24
// bits down to 1/64 of the largest one; below that it is rounded to 2^-30 of it. Dot products of
// bytes take four numbers at a time, and codes need not be made floats: four digits are multiplied
// more quickly than one float, and their sums are exact.
#ifndef BITSMITH_DIGITS_AVX512_H
#define BITSMITH_DIGITS_AVX512_H

#include <immintrin.h>

#include <cstdint>

#include "half.h"
#include "kernels.h"

namespace {

using bitsmith::kDigits;

// The largest exponent below which a row is left to others: its scale would be no normal number.
constexpr uint32_t kLeastExponent = 30;

inline bool cut_row(const float* row, int64_t count, int64_t stride, int8_t* digits, float* scale) {
  __m512i most = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += 16) {
    const __m512i bits = _mm512_loadu_si512(row + i);
    most = _mm512_max_epu32(most, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
  }
  const uint32_t largest = _mm512_reduce_max_epu32(most), exponent = largest >> 23;
  if (largest && (exponent < kLeastExponent || exponent == 255)) return false;
  // 2^29 over the power of two of the largest magnitude, and its inverse.
  const float factor = largest ? bits_float((127 + 156 - exponent) << 23) : 1.0f;
  *scale = largest ? bits_float((exponent - 29) << 23) : 1.0f;
  for (int64_t i = 0; i < count; i += 16) {
    const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(row + i), _mm512_set1_ps(factor));
    __m512i left = _mm512_cvtps_epi32(scaled);
    for (int digit = 0; digit < kDigits; ++digit) {
      const __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(left, 24), 24);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(digits + digit * stride + i),
                       _mm512_cvtepi32_epi8(low));
      left = _mm512_srai_epi32(_mm512_sub_epi32(left, low), 8);
    }
  }
  return true;
}

}  // namespace
#endif
