#include "lanes_portable.h"
// Of these lanes.
#include "finish.h"
#include "integer_product.h"

namespace bitsmith::panels {
namespace {

// Codes as 32-bit integers, of which compilers have vectors everywhere.
struct Dot {
  struct Weights {
    Lanes::Int at[4];
  };
  using Codes = Weights;
  static constexpr int max_rows = Lanes::max_rows;
  static constexpr int row_bytes = 1;
  static constexpr int shift = 0;

  static void encode(const int8_t* codes, int64_t count, uint8_t* out) {
    std::memcpy(out, codes, size_t(count));
  }
  static Weights expand(Lanes::Int codes) {
    return {{Lanes::left(codes, 24) >> 24, Lanes::left(codes, 16) >> 24,
             Lanes::left(codes, 8) >> 24, codes >> 24}};
  }
  static Codes load(const uint8_t* x) {
    Codes out;
    for (int i = 0; i < 4; ++i) out.at[i] = Lanes::broadcast(int8_t(x[i]));
    return out;
  }
  static Lanes::Int add(Lanes::Int sum, const Codes& x, const Weights& weights) {
    for (int i = 0; i < 4; ++i) {
      sum = Lanes::add(sum, Lanes::multiply(x.at[i], weights.at[i]));
    }
    return sum;
  }
};

}  // namespace

const IntegerKernels kIntegerPortable = {Lanes::count, Dot::row_bytes, 1,
                                         Dot::encode,  prepare<Dot>,   integer_multiply<Dot>,
                                         finish,       nullptr,        nullptr};

}  // namespace bitsmith::panels
