#include "lanes_avx512.h"
// Of these lanes.
#include "finish.h"
#include "integer_product.h"

namespace bitsmith::panels {
namespace {

// VNNI multiplies unsigned bytes by signed ones, and adds four products to 32 bits.
struct Dot {
  using Weights = __m512i;
  static constexpr int max_rows = Lanes::max_rows;
  static constexpr int row_bytes = 1;
  static constexpr int shift = 128;

  static void encode(const int8_t* codes, int64_t count, uint8_t* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = uint8_t(codes[i]) ^ 0x80;
  }
  static Weights expand(Lanes::Int codes) { return codes; }
  static Lanes::Int load(const uint8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    return Lanes::broadcast(four);
  }
  static Lanes::Int add(Lanes::Int sum, Lanes::Int x, Weights weights) {
    return _mm512_dpbusd_epi32(sum, x, weights);
  }
};

}  // namespace

const IntegerKernels kIntegerAvx512 = {Lanes::count,  Dot::row_bytes,        1,
                                       Dot::encode,   prepare<Dot>,          integer_multiply<Dot>,
                                       finish,        nullptr,               nullptr};

}  // namespace bitsmith::panels
