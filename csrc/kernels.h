// What is written once for every instruction set, and compiled once for each.
#ifndef BITSMITH_KERNELS_TABLE_H
#define BITSMITH_KERNELS_TABLE_H

#include "layout.h"

namespace bitsmith {

inline constexpr int kMostRows = 8;   // of x that a kernel takes
inline constexpr int kRowCounts = 4;  // 1, 2, 4, 8

// Rows of x as int8, interleaved by quads, and the sum of each row over each group.
struct CodeRows {
  const int32_t* quads;    // [stored column / 4][row], four codes each
  const int32_t* sums;     // [stored group][row]
  const float* sums_real;  // the same
};

// A chunk of a block, decoded: values out[32][lanes], or codes out[8][lanes], four in each.
using DecodeFloats = void (*)(const Block& block, int64_t chunk, float* out);
using DecodeCodes = void (*)(const Block& block, int64_t chunk, uint32_t* out);

// Digits of a number of a row that is cut into them (digits.h).
inline constexpr int kDigits = 4;

struct Kernels {
  int lanes;
  DecodeFloats decode_integers[8];  // [bits − 1]
  DecodeFloats decode_table[8];
  DecodeCodes decode_codes[8];

  // Rows of x as float32, interleaved: x[stored column][row]; out[row][lane] = Σ w · x.
  void (*float_product[kRowCounts])(const Block& block, DecodeFloats decode, const float* x,
                                    float* out);  // [log2 rows]
  // out[row][lane] = Σ_g scale_g · float(Σ (u − zero_g) · x), of one group without the scale.
  // `decode`: null where the weight has 8 bits.
  void (*code_product[kRowCounts])(const Block& block, DecodeCodes decode, const CodeRows& x,
                                   float* out);

  // The same for one row in one go; null where there is none.
  void (*one_row_integers[8])(const Block& block, const float* x, float* out);  // [bits − 1]
  void (*one_row_table[8])(const Block& block, const float* x, float* out);
  void (*one_row_codes[8])(const Block& block, const CodeRows& x, float* out);
  // A row of floats as rows of its digits; the sums are those of the row, over its scale.
  void (*one_row_digits[8])(const Block& block, const CodeRows& x, float* out);

  // x as float32 (`type` is BSK_FLOAT32 …).
  void (*widen)(int type, const void* x, int64_t count, float* out);
  // Codes and scale of a row; false where it is not finite.
  bool (*quantize)(const float* x, int64_t count, int8_t* codes, float* scale);
  int32_t (*sum_codes)(const int8_t* codes, int64_t count);
  // The digits of a row (digits.h), [kDigits][stride], lowest first, and what they count; false
  // where there are none. `count`: a multiple of 16. Null where floats are multiplied as they are.
  bool (*cut)(const float* row, int64_t count, int64_t stride, int8_t* digits, float* scale);
};

// Each exists only where it was compiled.
extern const Kernels kPortableKernels;  // 4 lanes
extern const Kernels kLookupKernels;    // 1 lane: rows by themselves
extern const Kernels kAvx2Kernels;      // 8 lanes
extern const Kernels kAvx512Kernels;    // 16 lanes
extern const Kernels kNeonKernels;      // 4 lanes, with dot products

}  // namespace bitsmith
#endif
