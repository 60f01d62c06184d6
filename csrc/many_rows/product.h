// What products with many rows are made of: a set of functions for each instruction set.
//
// A panel is a block of the packed weight (layout.h), decoded: `lanes` neighbouring rows of w,
// which are neighbouring columns of y, a vector with one weight of each. Columns of x and w are
// those of the packed form, padding included, where x is 0.
#ifndef BITSMITH_PANELS_PRODUCT_H
#define BITSMITH_PANELS_PRODUCT_H

#include <cstdint>

namespace bitsmith::panels {

// Where sums go: y[row][column] = sum (· row_scale · column_scale) + bias, rounded to `type`.
struct Output {
  int type;
  void* y;
  int64_t stride;             // elements
  int64_t row, column;        // of the first sum
  int64_t rows, columns;      // that y has of these sums
  const float* row_scale;     // of row `row` on; null: sums are not scaled
  const float* column_scale;  // of column `column` on, up to whole panels, like `bias`
  const float* bias;
};

using Finish = void (*)(const Output& out, const float* sums, int64_t sums_stride);

// Columns of x and w that are multiplied at a time, from the first-level cache: 4 chunks.
constexpr int64_t kFloatDepth = 128;

struct FloatProduct {
  const float* x;  // [rows][kFloatDepth]
  int64_t rows;
  const float* weights;  // [panels][kFloatDepth][lanes]
  int64_t panels;
  int64_t depth;  // kFloatDepth, or less
  float* sums;    // [rows][sums_stride], added to
  int64_t sums_stride;
};

struct FloatKernels {
  int lanes;
  void (*multiply)(const FloatProduct& product);
  Finish finish;
};

struct IntegerProduct {
  int64_t groups, columns;  // of each
  const uint8_t* x;         // codes as `encode` writes them, [rows][x_stride bytes]
  int64_t x_stride;
  const int32_t* x_sums;  // of the codes, [rows][groups]; only where there are zero points
  int64_t rows;
  const int8_t* weights;  // [panels][groups · columns / 4][lanes][4]
  int64_t panels;
  const float* scale;    // [panels][groups][lanes], like the next two
  const int32_t* start;  // what makes up for the form of the codes of x
  const int32_t* zero;   // zero points that the weights still have; null: none
  float* sums;           // [rows][sums_stride], written
  int64_t sums_stride;

  int64_t depth() const { return groups * columns; }
};

struct IntegerKernels {
  int lanes;
  int row_bytes;  // of an encoded code of x
  // Rows are taken in this number: x, x_sums and sums have memory for a multiple of it.
  int64_t row_unit;
  void (*encode)(const int8_t* codes, int64_t count, uint8_t* out);
  // Take zero points [groups][lanes] off the codes of a panel, which are then signed bytes, and
  // write the start of sums.
  void (*prepare)(int64_t groups, int64_t columns, const int32_t* zero, int8_t* panel,
                  int32_t* start);
  void (*multiply)(const IntegerProduct& product);
  Finish finish;
  // Before a thread's first product, and after its last one; null: nothing to do.
  void (*enter)(int64_t columns);
  void (*leave)();
};

// Each exists only where it was compiled.
extern const FloatKernels kFloatPortable, kFloatAvx2, kFloatAvx512;
extern const IntegerKernels kIntegerPortable, kIntegerAvx2, kIntegerAvx512, kIntegerAmx;
// For weights of 6 bits at most.
extern const IntegerKernels kNarrowIntegerAvx2;

}  // namespace bitsmith::panels
#endif
