// Random weights and rows, and what they are in double precision.
#ifndef BITSMITH_RANDOM_WEIGHT_H
#define BITSMITH_RANDOM_WEIGHT_H

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "../../csrc/bitsmith_kernels.h"

namespace {

std::mt19937_64 random_bits;
int64_t below(int64_t end) {
  return static_cast<int64_t>(random_bits() % static_cast<uint64_t>(end));
}
bool one_in(int n) { return below(n) == 0; }
float number() { return std::normal_distribution<float>()(random_bits); }

// A weight and everything it is made of.
struct Weight {
  bsk_weight w{};
  std::vector<uint8_t> codes;
  std::vector<float> scale, table;
  std::vector<int32_t> zero;
  int32_t zero_all = 0;
  bool zeros = false;

  int64_t groups() const { return w.k / w.group; }
  int point(int64_t i, int64_t g) const { return zeros ? zero[i * groups() + g] : zero_all; }
  double scale_at(int64_t i, int64_t j) const { return scale[i * groups() + j / w.group]; }
  double unit(int64_t i, int64_t j) const {
    const int u = codes[i * w.k + j];
    if (w.kind == BSK_TABLE) return table[(w.tables == 1 ? 0 : i) * w.entries + u];
    return u - point(i, j / w.group);
  }
  double size(int64_t i, int64_t j) const {  // of the terms that a product may be made of
    if (w.kind == BSK_TABLE) return std::fabs(unit(i, j) * scale_at(i, j));
    return std::fabs(scale_at(i, j)) * (codes[i * w.k + j] + point(i, j / w.group));
  }
};

Weight random_weight() {
  Weight out;
  bsk_weight& w = out.w;
  w.kind = one_in(3) ? BSK_TABLE : BSK_INTEGER;
  w.bits = 1 + static_cast<int>(below(8));
  w.n = 1 + below(one_in(8) ? 90 : 40);
  const int64_t sizes[] = {16, 32, 64, 128, 8, 8 + below(120)};
  w.group = one_in(3) ? 1 + below(400) : sizes[below(6)];
  w.k = one_in(3) ? w.group : w.group * (1 + below(6));
  if (w.kind == BSK_TABLE) {
    w.tables = one_in(2) ? 1 : w.n;
    w.entries = one_in(3) ? 1 + static_cast<int>(below(1 << w.bits)) : 1 << w.bits;
  }
  w.rows = static_cast<int>(below(3));
  const int64_t groups = w.n * out.groups();
  const int end = w.kind == BSK_TABLE ? w.entries : 1 << w.bits;
  out.codes.resize(w.n * w.k);
  for (auto& code : out.codes) code = static_cast<uint8_t>(one_in(4) ? end - 1 : below(end));
  out.scale.resize(groups);
  const bool half = one_in(2);
  for (auto& s : out.scale) s = half ? static_cast<float>(below(2048)) / 1024 : number();
  out.table.resize(w.tables * w.entries);
  for (auto& value : out.table) value = number();
  out.zeros = w.kind == BSK_INTEGER && one_in(2);
  if (w.kind == BSK_INTEGER) out.zero_all = static_cast<int32_t>(below(end));
  out.zero.resize(out.zeros ? groups : 0);
  for (auto& z : out.zero) z = static_cast<int32_t>(below(end));
  return out;
}

float widened(uint16_t half, int type) {
  uint32_t bits = static_cast<uint32_t>(half) << 16;
  if (type == BSK_FLOAT16) {
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    const float size = exponent ? std::ldexp(1024.0f + mantissa, exponent - 25)
                                : std::ldexp(static_cast<float>(mantissa), -24);
    return half >> 15 ? -size : size;
  }
  float out;
  memcpy(&out, &bits, 4);
  return out;
}

struct Rows {
  int type;
  int64_t m, stride;
  std::vector<uint8_t> bytes;  // the last row ends where the bytes end
  float at(int64_t r, int64_t j) const {
    const int64_t i = r * stride + j;
    uint16_t half;
    float whole;
    if (type == BSK_FLOAT32) return memcpy(&whole, &bytes[i * 4], 4), whole;
    return memcpy(&half, &bytes[i * 2], 2), widened(half, type);
  }
};

Rows random_rows(int64_t k) {
  const int64_t m = below(one_in(40) ? 300 : one_in(3) ? 70 : 10);
  Rows x{static_cast<int>(below(3)), m, k + (one_in(2) ? 0 : below(9)), {}};
  const int64_t count = x.m ? (x.m - 1) * x.stride + k : 0, size = x.type == BSK_FLOAT32 ? 4 : 2;
  x.bytes.resize(count * size);
  float scale = 1;  // kernels may take rows of tiny and of huge numbers in other ways
  for (int64_t i = 0; i < count; ++i) {
    if (i % x.stride == 0) scale = !one_in(12) ? 1 : one_in(2) ? 1e-30f : 1e31f;
    const float value = one_in(16) ? 0 : scale * number();
    const uint16_t half = static_cast<uint16_t>(0x3800 + below(0x700) + (one_in(2) ? 0x8000 : 0));
    if (x.type == BSK_FLOAT32) memcpy(&x.bytes[i * 4], &value, 4);
    else memcpy(&x.bytes[i * 2], &half, 2);
  }
  return x;
}

double value_of(const uint8_t* y, int type, int64_t i) {
  float whole;
  uint16_t half;
  if (type == BSK_FLOAT32) return memcpy(&whole, y + i * 4, 4), whole;
  return memcpy(&half, y + i * 2, 2), widened(half, type);
}

}  // namespace
#endif
