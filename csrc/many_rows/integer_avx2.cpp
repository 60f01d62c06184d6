#include "lanes_avx2.h"
// Of these lanes.
#include "finish.h"
#include "integer_product.h"

namespace bitsmith::panels {
namespace {

// Four bytes, in every lane.
inline __m256i broadcast(const uint8_t* x) {
  int32_t bytes;
  std::memcpy(&bytes, x, sizeof bytes);
  return Lanes::broadcast(bytes);
}

// Sums of two products of bytes may leave the 16 bits in which AVX2 adds them. So codes are
// widened to 16 bits, of which two products are added in 32: exact for all codes.
struct Dot {
  struct Weights {
    __m256i even, odd;  // codes 0 and 2, 1 and 3 of each lane
  };
  struct Codes {
    __m256i even, odd;
  };
  static constexpr int max_rows = 4;
  static constexpr int row_bytes = 2;
  static constexpr int shift = 0;

  static void encode(const int8_t* codes, int64_t count, uint8_t* out) {
    for (int64_t i = 0; i < count; i += 4) {
      const int16_t four[4] = {codes[i], codes[i + 2], codes[i + 1], codes[i + 3]};
      std::memcpy(out + 2 * i, four, sizeof four);
    }
  }
  static Weights expand(Lanes::Int codes) {
    return {_mm256_srai_epi16(_mm256_slli_epi16(codes, 8), 8), _mm256_srai_epi16(codes, 8)};
  }
  static Codes load(const uint8_t* x) {
    return {broadcast(x), broadcast(x + 4)};
  }
  static Lanes::Int add(Lanes::Int sum, Codes x, Weights weights) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(x.even, weights.even));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(x.odd, weights.odd));
  }
};

// Weights within ±63 need no widening: 255 · 63 · 2 is in 16 bits.
struct NarrowDot {
  using Weights = __m256i;
  static constexpr int max_rows = 5;
  static constexpr int row_bytes = 1;
  static constexpr int shift = 128;

  static void encode(const int8_t* codes, int64_t count, uint8_t* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = uint8_t(codes[i]) ^ 0x80;
  }
  static Weights expand(Lanes::Int codes) { return codes; }
  static Lanes::Int load(const uint8_t* x) {
    return broadcast(x);
  }
  static Lanes::Int add(Lanes::Int sum, Lanes::Int x, Weights weights) {
    const __m256i pairs = _mm256_maddubs_epi16(x, weights);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

template <class D>
constexpr IntegerKernels kernels() {
  return {Lanes::count, D::row_bytes,        1,      D::encode, prepare<D>,
          integer_multiply<D>, finish, nullptr,   nullptr};
}

}  // namespace

const IntegerKernels kIntegerAvx2 = kernels<Dot>();
const IntegerKernels kNarrowIntegerAvx2 = kernels<NarrowDot>();

}  // namespace bitsmith::panels
