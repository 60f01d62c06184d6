// What products with many rows are made of: a set of functions for each instruction set.
//
// A panel is a block of the packed weight (layout.h), decoded: `lanes` neighbouring rows of w,
// which are neighbouring columns of y, a vector with one weight of each. Columns of x and w are
// those of the packed form, padding included, where x is 0.
#ifndef BITSMITH_PANELS_PRODUCT_H
#define BITSMITH_PANELS_PRODUCT_H

#include <cstdint>

#include "../layout.h"

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

// Tiles of bfloat16: 16 lanes, 32 columns. A row of x is the sum of its parts, each with as many
// bits as a bfloat16 has.
constexpr int64_t kTileRows = 16, kTileColumns = 32;
constexpr int64_t kTileSize = kTileRows * kTileColumns;  // at most

// Columns of one group that are summed in tiles before their scale is applied.
struct Unit {
  int64_t tile;   // of x, the first one
  int64_t tiles;  // that follow each other
};

// Tiles of rows of x, one below the other, times pairs of panels.
struct SplitProduct {
  int parts;
  int64_t row_tiles, tile_rows;
  const uint16_t* x;        // [columns / 32][parts][row_tiles][tile_rows][32]
  const uint16_t* weights;  // [pairs][tiles of all units][2][16][lanes][2]
  const float* scale;       // [pairs][units][2][lanes]
  const Unit* units;
  int64_t unit_count;
  int64_t pairs;
  bool add;     // to the sums that are there
  float* sums;  // [pairs][row_tiles · tile_rows][2 · lanes]
};

struct SplitKernels {
  // `count` numbers as float32 (`type` is BSK_FLOAT32 …).
  void (*widen)(int type, const void* from, int64_t count, float* out);
  // Parts of 32 · `tiles` columns of a row of x; tiles are `tile_stride` apart, parts of one
  // `part_stride`.
  void (*split)(int parts, const float* row, int64_t tiles, int64_t part_stride,
                int64_t tile_stride, uint16_t* out);
  // The bits of the largest magnitude. Bits are ordered as the numbers; those of NaN come last.
  uint32_t (*largest)(const float* row, int64_t count);
  // A tile of weights: the codes of a chunk, less their zero points. `half`: 0 or 1 for the
  // first or the last 16 columns alone, the others 0; −1 for all.
  void (*prepare)(const uint32_t* codes, const uint8_t* zeros, int zero_all, int half,
                  uint16_t* tile);
  void (*multiply)(const SplitProduct& product);
  Finish finish;
  // Before a thread's first product with tiles of so many rows, and after its last one.
  void (*enter)(int64_t tile_rows);
  void (*leave)();
};

constexpr int64_t kMostTileRows = 2 * kTileRows;

// Rows of bytes, in one or two tiles, times a block of the packed weight.
struct TiledProduct {
  int bits;
  int64_t step;                   // columns of a tile: 16, 32 or 64
  int64_t group_steps;            // of a group
  int64_t row_tiles, tile_rows;
  const int8_t* x;                // [columns / step][row_tiles][tile_rows][step]
  const int32_t* x_sums;          // [groups][row_tiles · tile_rows]
  const float* x_sums_real;       // the same
  void (*decode)(const Block& block, int64_t chunk, uint32_t* out);

  int64_t rows() const { return row_tiles * tile_rows; }
};

struct TiledKernels {
  // sums[row][lane] = Σ_g scale_g · float(Σ (u − zero_g) · x), of one group without the scale.
  void (*multiply)(const TiledProduct& product, const Block& block, float* sums);
  Finish finish;
  // Before a thread's first product with such tiles, and after its last one.
  void (*enter)(int64_t tile_rows, int64_t step);
  void (*leave)();
};

// Each exists only where it was compiled.
extern const FloatKernels kFloatPortable, kFloatAvx2, kFloatAvx512;
extern const SplitKernels kSplitAmx;
extern const TiledKernels kTiledAmx;
extern const IntegerKernels kIntegerPortable, kIntegerAvx2, kIntegerAvx512, kIntegerAmx;
// For weights of 6 bits at most.
extern const IntegerKernels kNarrowIntegerAvx2;

}  // namespace bitsmith::panels
#endif
