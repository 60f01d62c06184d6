// Vectors of 8 lanes. Only for files compiled for AVX2 and FMA.
#ifndef BITSMITH_PANELS_LANES_AVX2_H
#define BITSMITH_PANELS_LANES_AVX2_H

#include <immintrin.h>

#include <cstdint>

namespace bitsmith::panels {
namespace {  // compiled for one instruction set: never shared with files for another

struct Lanes {
  using Float = __m256;
  using Int = __m256i;
  static constexpr int count = 8;
  // Of 16 registers, accumulators take 12.
  static constexpr int max_panels = 2;
  static constexpr int max_rows = 6;

  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static Float broadcast(float v) { return _mm256_set1_ps(v); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float multiply_add(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }

  static Int load(const int32_t* p) { return _mm256_loadu_si256(as_int(p)); }
  static Int load(const int8_t* p) { return _mm256_loadu_si256(as_int(p)); }
  static void store(int32_t* p, Int v) { _mm256_storeu_si256(reinterpret_cast<Int*>(p), v); }
  static void store(int8_t* p, Int v) { _mm256_storeu_si256(reinterpret_cast<Int*>(p), v); }
  static Int broadcast(int32_t v) { return _mm256_set1_epi32(v); }
  static Int subtract(Int a, Int b) { return _mm256_sub_epi32(a, b); }
  static Int subtract_bytes(Int a, Int b) { return _mm256_sub_epi8(a, b); }
  static Int multiply(Int a, Int b) { return _mm256_mullo_epi32(a, b); }
  static Float to_float(Int v) { return _mm256_cvtepi32_ps(v); }

 private:
  static const Int* as_int(const void* p) { return static_cast<const Int*>(p); }
};

}  // namespace
}  // namespace bitsmith::panels
#endif
