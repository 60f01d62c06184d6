// Sixteen lanes: AVX-512 with VNNI.
#ifndef BITSMITH_VECTOR_AVX512_H
#define BITSMITH_VECTOR_AVX512_H

#include <immintrin.h>

#include <cstdint>

#include "unroll.h"

namespace {

struct Avx512 {
  static constexpr int kLanes = 16;
  using Float = __m512;
  using Int = __m512i;
  using Entries = __m512;

  static BSK_INLINE Int splat(uint32_t value) {
    return _mm512_set1_epi32(static_cast<int32_t>(value));
  }
  static BSK_INLINE Float real(float value) { return _mm512_set1_ps(value); }
  static BSK_INLINE Int load(const uint32_t* at) { return _mm512_loadu_si512(at); }
  static BSK_INLINE Float load_float(const float* at) { return _mm512_loadu_ps(at); }
  static BSK_INLINE Float load_half(const uint16_t* at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  }
  static BSK_INLINE Int load_bytes(const uint8_t* at) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
  static BSK_INLINE void store(float* at, Float v) { _mm512_storeu_ps(at, v); }
  static BSK_INLINE void store_ints(void* at, Int v) { _mm512_storeu_si512(at, v); }

  template <int count>
  static BSK_INLINE Int right(Int v) {
    return _mm512_srli_epi32(v, count);
  }
  template <int count>
  static BSK_INLINE Int left(Int v) {
    return _mm512_slli_epi32(v, count);
  }
  static BSK_INLINE Int keep(Int v, uint32_t mask) { return _mm512_and_si512(v, splat(mask)); }
  static BSK_INLINE Int merge(Int v, uint32_t mask, Int base) {
    return _mm512_ternarylogic_epi32(v, splat(mask), base, 0xea);  // (v & mask) | base
  }
  static BSK_INLINE Int exclusive_or(Int a, Int b) { return _mm512_xor_si512(a, b); }
  static BSK_INLINE Int add_ints(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static BSK_INLINE Int subtract_ints(Int a, Int b) { return _mm512_sub_epi32(a, b); }
  static BSK_INLINE Int multiply_ints(Int a, Int b) { return _mm512_mullo_epi32(a, b); }

  static BSK_INLINE Float as_float(Int v) { return _mm512_castsi512_ps(v); }
  static BSK_INLINE Float to_float(Int v) { return _mm512_cvtepi32_ps(v); }
  static BSK_INLINE Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static BSK_INLINE Float subtract(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static BSK_INLINE Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static BSK_INLINE Float multiply_add(Float a, Float b, Float sum) {
    return _mm512_fmadd_ps(a, b, sum);
  }
  static BSK_INLINE Float subtract_product(Float a, Float b, Float from) {
    return _mm512_fnmadd_ps(a, b, from);
  }

  // Four products of unsigned codes and signed x are added to 32 bits at once, exactly.
  static constexpr int code_offset(int) { return 0; }
  template <int>
  static BSK_INLINE Int factor(Int codes) {
    return codes;
  }
  template <int>
  static BSK_INLINE Int dot(Int sum, Int codes, const int32_t* x) {
    return _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(*x));
  }

  static BSK_INLINE Entries load_entries(const float* table) { return _mm512_loadu_ps(table); }
  // Only the four lowest bits of an index count.
  static BSK_INLINE Float look_up(Entries entries, Int index) {
    return _mm512_permutexvar_ps(index, entries);
  }
  // Lanes 8 to 15 look up in the second.
  static BSK_INLINE Float look_up(Entries first, Entries second, Int index) {
    const Int lanes = _mm512_inserti64x4(splat(0), _mm256_set1_epi32(16), 1);
    return _mm512_permutex2var_ps(first, merge(index, 15, lanes), second);
  }
  static BSK_INLINE Float gather(const float* table, Int index) {
    return _mm512_i32gather_ps(index, table, 4);
  }
};

}  // namespace
#endif
