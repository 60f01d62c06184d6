// Eight lanes: AVX2 with FMA and F16C.
#ifndef BITSMITH_VECTOR_AVX2_H
#define BITSMITH_VECTOR_AVX2_H

#include <immintrin.h>

#include <cstdint>

#include "unroll.h"

namespace {

struct Avx2 {
  static constexpr int kLanes = 8;
  using Float = __m256;
  using Int = __m256i;
  struct Entries {
    __m256 low, high;
  };

  static BSK_INLINE Int splat(uint32_t value) {
    return _mm256_set1_epi32(static_cast<int32_t>(value));
  }
  static BSK_INLINE Float real(float value) { return _mm256_set1_ps(value); }
  static BSK_INLINE Int load(const uint32_t* at) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  }
  static BSK_INLINE Float load_float(const float* at) { return _mm256_loadu_ps(at); }
  static BSK_INLINE Float load_half(const uint16_t* at) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
  static BSK_INLINE Int load_bytes(const uint8_t* at) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
  }
  static BSK_INLINE void store(float* at, Float v) { _mm256_storeu_ps(at, v); }
  static BSK_INLINE void store_ints(void* at, Int v) {
    _mm256_storeu_si256(static_cast<__m256i*>(at), v);
  }

  template <int count>
  static BSK_INLINE Int right(Int v) {
    return _mm256_srli_epi32(v, count);
  }
  template <int count>
  static BSK_INLINE Int left(Int v) {
    return _mm256_slli_epi32(v, count);
  }
  static BSK_INLINE Int keep(Int v, uint32_t mask) { return _mm256_and_si256(v, splat(mask)); }
  static BSK_INLINE Int merge(Int v, uint32_t mask, Int base) {
    return _mm256_or_si256(keep(v, mask), base);
  }
  static BSK_INLINE Int exclusive_or(Int a, Int b) { return _mm256_xor_si256(a, b); }
  static BSK_INLINE Int add_ints(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static BSK_INLINE Int subtract_ints(Int a, Int b) { return _mm256_sub_epi32(a, b); }
  static BSK_INLINE Int multiply_ints(Int a, Int b) { return _mm256_mullo_epi32(a, b); }

  static BSK_INLINE Float as_float(Int v) { return _mm256_castsi256_ps(v); }
  static BSK_INLINE Float to_float(Int v) { return _mm256_cvtepi32_ps(v); }
  static BSK_INLINE Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static BSK_INLINE Float subtract(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static BSK_INLINE Float multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static BSK_INLINE Float multiply_add(Float a, Float b, Float sum) {
    return _mm256_fmadd_ps(a, b, sum);
  }
  static BSK_INLINE Float subtract_product(Float a, Float b, Float from) {
    return _mm256_fnmadd_ps(a, b, from);
  }

  // Products are added in pairs to 16 bits that saturate. Codes of up to 7 bits stay below it
  // (2 · 127 · 127); wider ones are taken less 128, as magnitudes of at most 128 with the sign on
  // x (2 · 128 · 127 = 32512).
  static constexpr int code_offset(int bits) { return bits == 8 ? 128 : 0; }
  struct Factor {
    Int magnitude, sign;
  };
  template <int bits>
  static BSK_INLINE Factor factor(Int codes) {
    if constexpr (bits < 8) return {codes, codes};
    const Int centred = exclusive_or(codes, splat(0x80808080u));
    return {_mm256_abs_epi8(centred), centred};
  }
  template <int bits>
  static BSK_INLINE Int dot(Int sum, const Factor& codes, const int32_t* x) {
    Int value = _mm256_set1_epi32(*x);
    if constexpr (bits == 8) value = _mm256_sign_epi8(value, codes.sign);
    const Int pairs = _mm256_maddubs_epi16(codes.magnitude, value);
    return add_ints(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }

  static BSK_INLINE Entries load_entries(const float* table) {
    return {_mm256_loadu_ps(table), _mm256_loadu_ps(table + 8)};
  }
  // The three lowest bits of an index choose in each half, the fourth between them.
  static BSK_INLINE Float look_up(const Entries& entries, Int index) {
    const Float low = _mm256_permutevar8x32_ps(entries.low, index);
    const Float high = _mm256_permutevar8x32_ps(entries.high, index);
    return _mm256_blendv_ps(low, high, as_float(left<28>(index)));
  }
  static BSK_INLINE Float gather(const float* table, Int index) {
    return _mm256_i32gather_ps(table, index, 4);
  }
};

}  // namespace
#endif
