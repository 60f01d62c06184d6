// Vectors of 16 lanes. Only for files compiled for AVX-512.
#ifndef BITSMITH_PANELS_LANES_AVX512_H
#define BITSMITH_PANELS_LANES_AVX512_H

#include <immintrin.h>

#include <cstdint>

namespace bitsmith::panels {
namespace {  // compiled for one instruction set: never shared with files for another

struct Lanes {
  using Float = __m512;
  using Int = __m512i;
  static constexpr int count = 16;
  // Of 32 registers, accumulators take 24.
  static constexpr int max_panels = 4;
  static constexpr int max_rows = 6;

  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
  static Float broadcast(float v) { return _mm512_set1_ps(v); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float multiply_add(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }

  static Int load(const int32_t* p) { return _mm512_loadu_si512(p); }
  static Int load(const int8_t* p) { return _mm512_loadu_si512(p); }
  static void store(int32_t* p, Int v) { _mm512_storeu_si512(p, v); }
  static void store(int8_t* p, Int v) { _mm512_storeu_si512(p, v); }
  static Int broadcast(int32_t v) { return _mm512_set1_epi32(v); }
  static Int subtract(Int a, Int b) { return _mm512_sub_epi32(a, b); }
  static Int subtract_bytes(Int a, Int b) { return _mm512_sub_epi8(a, b); }
  static Int multiply(Int a, Int b) { return _mm512_mullo_epi32(a, b); }
  // Not the intrinsic, in which GCC 12 sees a variable without a value.
  static Float to_float(Int v) { return Float(__builtin_convertvector(__v16si(v), __v16sf)); }
};

}  // namespace
}  // namespace bitsmith::panels
#endif
