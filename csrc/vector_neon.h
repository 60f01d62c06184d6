// Four lanes: NEON with dot products.
#ifndef BITSMITH_VECTOR_NEON_H
#define BITSMITH_VECTOR_NEON_H

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "unroll.h"

namespace {

struct Neon {
  static constexpr int kLanes = 4;
  using Float = float32x4_t;
  using Int = uint32x4_t;
  using Entries = uint8x16x4_t;

  static BSK_INLINE Int splat(uint32_t value) { return vdupq_n_u32(value); }
  static BSK_INLINE Float real(float value) { return vdupq_n_f32(value); }
  static BSK_INLINE Int load(const uint32_t* at) { return vld1q_u32(at); }
  static BSK_INLINE Float load_float(const float* at) { return vld1q_f32(at); }
  static BSK_INLINE Float load_half(const uint16_t* at) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at)));
  }
  static BSK_INLINE Int load_bytes(const uint8_t* at) {
    uint32_t word;
    memcpy(&word, at, 4);
    return vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(word))));
  }
  static BSK_INLINE void store(float* at, Float v) { vst1q_f32(at, v); }
  static BSK_INLINE void store_ints(void* at, Int v) {
    vst1q_u8(static_cast<uint8_t*>(at), vreinterpretq_u8_u32(v));
  }

  template <int count>
  static BSK_INLINE Int right(Int v) {
    return vshrq_n_u32(v, count);
  }
  template <int count>
  static BSK_INLINE Int left(Int v) {
    return vshlq_n_u32(v, count);
  }
  static BSK_INLINE Int keep(Int v, uint32_t mask) { return vandq_u32(v, splat(mask)); }
  static BSK_INLINE Int merge(Int v, uint32_t mask, Int base) {
    return vorrq_u32(keep(v, mask), base);
  }
  static BSK_INLINE Int exclusive_or(Int a, Int b) { return veorq_u32(a, b); }
  static BSK_INLINE Int add_ints(Int a, Int b) { return vaddq_u32(a, b); }
  static BSK_INLINE Int subtract_ints(Int a, Int b) { return vsubq_u32(a, b); }
  static BSK_INLINE Int multiply_ints(Int a, Int b) { return vmulq_u32(a, b); }

  static BSK_INLINE Float as_float(Int v) { return vreinterpretq_f32_u32(v); }
  static BSK_INLINE Float to_float(Int v) { return vcvtq_f32_s32(vreinterpretq_s32_u32(v)); }
  static BSK_INLINE Float add(Float a, Float b) { return vaddq_f32(a, b); }
  static BSK_INLINE Float subtract(Float a, Float b) { return vsubq_f32(a, b); }
  static BSK_INLINE Float multiply(Float a, Float b) { return vmulq_f32(a, b); }
  static BSK_INLINE Float multiply_add(Float a, Float b, Float sum) {
    return vfmaq_f32(sum, a, b);
  }
  static BSK_INLINE Float subtract_product(Float a, Float b, Float from) {
    return vfmsq_f32(from, a, b);
  }

  // Both factors of the dot product are signed: 8-bit codes are taken less 128.
  static constexpr int code_offset(int bits) { return bits == 8 ? 128 : 0; }
  template <int bits>
  static BSK_INLINE Int factor(Int codes) {
    return bits == 8 ? exclusive_or(codes, splat(0x80808080u)) : codes;
  }
  template <int>
  static BSK_INLINE Int dot(Int sum, Int codes, const int32_t* x) {
    return vreinterpretq_u32_s32(vdotq_s32(vreinterpretq_s32_u32(sum),
                                           vreinterpretq_s8_u32(codes),
                                           vreinterpretq_s8_s32(vdupq_n_s32(*x))));
  }

  static BSK_INLINE Entries load_entries(const float* table) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(table);
    return {{vld1q_u8(bytes), vld1q_u8(bytes + 16), vld1q_u8(bytes + 32), vld1q_u8(bytes + 48)}};
  }
  // The four bytes of an entry are looked up one by one.
  static BSK_INLINE Float look_up(const Entries& entries, Int index) {
    const Int bytes = vmlaq_u32(splat(0x03020100u), keep(index, 15), splat(0x04040404u));
    return vreinterpretq_f32_u8(vqtbl4q_u8(entries, vreinterpretq_u8_u32(bytes)));
  }
  static BSK_INLINE Float gather(const float* table, Int index) {
    const float values[4] = {table[vgetq_lane_u32(index, 0)], table[vgetq_lane_u32(index, 1)],
                             table[vgetq_lane_u32(index, 2)], table[vgetq_lane_u32(index, 3)]};
    return vld1q_f32(values);
  }
};

}  // namespace
#endif
