// float16 and bfloat16 as bits, without help of the machine.
#ifndef BITSMITH_HALF_H
#define BITSMITH_HALF_H

#include <cstdint>
#include <cstring>

// Each file that includes this is compiled for a machine of its own: nothing here may be shared.
namespace {

inline uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

inline float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

inline float bfloat16_to_float(uint16_t bits) { return bits_float(uint32_t{bits} << 16); }

inline uint16_t float_to_bfloat16(float value) {  // to nearest, ties to even
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float float16_to_float(uint16_t half) {
  const uint32_t sign = uint32_t{half} << 16 & 0x80000000, rest = half & 0x7fff;
  if (rest >= 0x7c00) return bits_float(sign | 0x7f800000 | rest << 13);
  if (rest >= 0x0400) return bits_float(sign | ((rest << 13) + (112u << 23)));
  const float value = static_cast<float>(rest) * bits_float(103u << 23);  // times 2^-24
  return bits_float(sign | float_bits(value));
}

inline uint16_t float_to_float16(float value) {  // to nearest, ties to even
  const uint32_t bits = float_bits(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (rest >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // from 65520 on
  if (rest < 0x38800000) {  // subnormal: adding 0.5 leaves units of 2^-24 in the lowest bits
    const float shifted = bits_float(rest) + 0.5f;
    return static_cast<uint16_t>(sign | (float_bits(shifted) - float_bits(0.5f)));
  }
  return static_cast<uint16_t>(sign | ((rest + 0xfff + (rest >> 13 & 1) - (112u << 23)) >> 13));
}

}  // namespace
#endif
