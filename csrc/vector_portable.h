// Vectors of 1 or 4 lanes, by the compiler's own vector types.
#ifndef BITSMITH_VECTOR_PORTABLE_H
#define BITSMITH_VECTOR_PORTABLE_H

#include <cstdint>
#include <cstring>

#include "half.h"
#include "unroll.h"

namespace {

template <int lanes>
struct PortableTypes;

template <>
struct PortableTypes<1> {
  typedef float Float __attribute__((vector_size(4)));
  typedef uint32_t Int __attribute__((vector_size(4)));
  typedef int32_t Signed __attribute__((vector_size(4)));
};

template <>
struct PortableTypes<4> {
  typedef float Float __attribute__((vector_size(16)));
  typedef uint32_t Int __attribute__((vector_size(16)));
  typedef int32_t Signed __attribute__((vector_size(16)));
};

template <int lanes>
struct Portable {
  static constexpr int kLanes = lanes;
  using Float = typename PortableTypes<lanes>::Float;
  using Int = typename PortableTypes<lanes>::Int;
  using Signed = typename PortableTypes<lanes>::Signed;
  struct Entries {
    float at[16];
  };

  static Int splat(uint32_t value) { return Int{} + value; }
  static Float real(float value) { return Float{} + value; }
  static Int load(const uint32_t* at) { return copy<Int>(at); }
  static Float load_float(const float* at) { return copy<Float>(at); }
  static Float load_half(const uint16_t* at) {
    Float out{};
    for (int i = 0; i < lanes; ++i) out[i] = float16_to_float(at[i]);
    return out;
  }
  static Int load_bytes(const uint8_t* at) {
    Int out{};
    for (int i = 0; i < lanes; ++i) out[i] = at[i];
    return out;
  }
  static void store(float* at, Float v) { memcpy(at, &v, sizeof v); }
  static void store_ints(void* at, Int v) { memcpy(at, &v, sizeof v); }

  template <int count>
  static Int right(Int v) {
    return v >> count;
  }
  template <int count>
  static Int left(Int v) {
    return v << count;
  }
  static Int keep(Int v, uint32_t mask) { return v & mask; }
  static Int merge(Int v, uint32_t mask, Int base) { return (v & mask) | base; }
  static Int exclusive_or(Int a, Int b) { return a ^ b; }
  static Int add_ints(Int a, Int b) { return a + b; }
  static Int subtract_ints(Int a, Int b) { return a - b; }
  static Int multiply_ints(Int a, Int b) { return a * b; }

  static Float as_float(Int v) { return copy<Float>(&v); }
  static Float to_float(Int v) { return __builtin_convertvector(copy<Signed>(&v), Float); }
  static Float add(Float a, Float b) { return a + b; }
  static Float subtract(Float a, Float b) { return a - b; }
  static Float multiply(Float a, Float b) { return a * b; }
  static Float multiply_add(Float a, Float b, Float sum) { return a * b + sum; }
  static Float subtract_product(Float a, Float b, Float from) { return from - a * b; }

  // Codes are multiplied as they are.
  static constexpr int code_offset(int) { return 0; }
  template <int>
  static Int factor(Int codes) {
    return codes;
  }
  template <int>
  static Int dot(Int sum, Int codes, const int32_t* x) {
    for (int i = 0; i < 4; ++i) {
      const auto value = static_cast<int8_t>(static_cast<uint32_t>(*x) >> 8 * i);
      sum += (codes >> 8 * i & 255) * static_cast<uint32_t>(int32_t{value});
    }
    return sum;
  }

  static Entries load_entries(const float* table) {
    Entries out;
    memcpy(out.at, table, sizeof out.at);
    return out;
  }
  static Float look_up(const Entries& entries, Int index) {
    return gather(entries.at, index & 15);
  }
  static Float gather(const float* table, Int index) {
    Float out{};
    for (int i = 0; i < lanes; ++i) out[i] = table[index[i]];
    return out;
  }

 private:
  template <class To>
  static To copy(const void* from) {
    To out;
    memcpy(&out, from, sizeof out);
    return out;
  }
};

}  // namespace
#endif
