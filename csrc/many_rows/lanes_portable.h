// Vectors of 4 lanes in terms of the compiler's own: SSE2, NEON, or plain words.
#ifndef BITSMITH_PANELS_LANES_PORTABLE_H
#define BITSMITH_PANELS_LANES_PORTABLE_H

#include <cstdint>
#include <cstring>

#ifdef __ARM_NEON
#include <arm_neon.h>
#endif

namespace bitsmith::panels {
namespace {  // compiled for one instruction set: never shared with files for another

struct Lanes {
  typedef float Float __attribute__((vector_size(16)));
  typedef int32_t Int __attribute__((vector_size(16)));
  static constexpr int count = 4;
#ifdef __ARM_NEON
  static constexpr int max_panels = 4;  // 24 of 32 registers
  static constexpr int max_rows = 6;
#else
  static constexpr int max_panels = 2;  // 8 of 16 registers: products take another
  static constexpr int max_rows = 4;
#endif

  static Float load(const float* p) { return from<Float>(p); }
  static void store(float* p, Float v) { std::memcpy(p, &v, sizeof v); }
  static Float broadcast(float v) { return Float{v, v, v, v}; }
  static Float add(Float a, Float b) { return a + b; }
  static Float multiply(Float a, Float b) { return a * b; }
  static Float multiply_add(Float a, Float b, Float c) {
#ifdef __ARM_NEON
    return Float(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b)));
#else
    return a * b + c;
#endif
  }

  // Integers wrap: sums are done without a sign.
  static Int load(const int32_t* p) { return from<Int>(p); }
  static Int load(const int8_t* p) { return from<Int>(p); }
  static void store(int32_t* p, Int v) { std::memcpy(p, &v, sizeof v); }
  static void store(int8_t* p, Int v) { std::memcpy(p, &v, sizeof v); }
  static Int broadcast(int32_t v) { return Int{v, v, v, v}; }
  static Int add(Int a, Int b) { return Int(Words(a) + Words(b)); }
  static Int subtract(Int a, Int b) { return Int(Words(a) - Words(b)); }
  static Int subtract_bytes(Int a, Int b) { return Int(Bytes(a) - Bytes(b)); }
  static Int multiply(Int a, Int b) { return Int(Words(a) * Words(b)); }
  static Int left(Int v, int count) { return Int(Words(v) << count); }
  static Float to_float(Int v) { return __builtin_convertvector(v, Float); }

 private:
  typedef uint32_t Words __attribute__((vector_size(16)));
  typedef uint8_t Bytes __attribute__((vector_size(16)));

  template <class V>
  static V from(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
};

}  // namespace
}  // namespace bitsmith::panels
#endif
