// The packed form of a weight.
//
// Rows are taken in blocks of `lanes` (the width of the machine's vectors), and word j of a chunk
// (planes.h) of all rows of a block lies side by side: one vector. A block's chunks follow each
// other, so that it is read from front to back.
//
//   header    64 bytes
//   words     [blocks][chunks][bits][lanes]       uint32 (7 bits are stored in 8)
//   scales    [blocks][stored_groups][lanes]      float16 where all are float16 numbers, else float
//   zeros     [blocks][stored_groups][lanes]      uint8; absent where all are the same
//   tables    [1 or blocks · lanes][2^bits]       float
//
// A group takes whole chunks, padded with code 0 that meets x = 0; a group of 16 takes half a
// chunk. Lanes beyond the last row have scale 0.
#ifndef BITSMITH_LAYOUT_H
#define BITSMITH_LAYOUT_H

#include "bitsmith_kernels.h"
#include "planes.h"

namespace bitsmith {

inline constexpr int kMostLanes = 16;
inline constexpr int64_t kHeaderBytes = 64;

// What is only known once the numbers have been seen.
struct Storage {
  bool half_scales = false;
  bool zeros = true;
  int zero_all = 0;  // where there are no zeros
  int table_rows = 1;  // that share a table: 0 (all), 8 or 1
};

struct Layout {
  int lanes, kind;
  int bits;  // of a stored code: those of the weight, 8 for 7
  int64_t n, k, group, groups;
  int64_t blocks;
  int64_t padded;         // columns that a group takes
  int64_t chunks;         // of a block
  int64_t stored_groups;  // of a row; more than `groups` where one fills a half chunk
  int64_t tables;         // stored ones
  Storage storage;
  int64_t words_at, scales_at, zeros_at, tables_at, bytes;

  int64_t columns() const { return chunks * kChunk; }  // with padding
  int64_t block_words() const { return chunks * bits * lanes; }
  int64_t block_scales() const { return stored_groups * lanes; }
  int64_t table_size() const { return int64_t{1} << bits; }
  // Where a column of the weight is stored.
  int64_t stored_column(int64_t column) const {
    return padded == group ? column : column / group * padded + column % group;
  }
};

// What kernels need of one block of rows.
struct Block {
  const uint32_t* words;
  const void* scales;
  const uint8_t* zeros;  // null: all zero_all
  int zero_all;
  bool half_scales;
  bool exact_in_float;   // no integer sum of a group is beyond 2^24
  int64_t chunks;
  int64_t group_chunks;  // 0: two groups in a chunk
  int64_t groups;        // stored ones
  const float* table;    // of the first row; the next row's comes after it, unless
  int table_rows;        // all rows share it (0); 8: rows are alike by eights
};

// BSK_OK, or what is wrong with the description.
int check_weight(const bsk_weight* weight);

// Lanes of the packed form that the machine in use reads.
int lanes_for(const bsk_weight& weight);

Layout make_layout(const bsk_weight& weight, int lanes, const Storage& storage);

void write_header(const bsk_weight& weight, const Layout& layout, void* packed);

// Check that packed bytes are of this weight and machine; BSK_OK, or what is wrong.
int open_packed(const bsk_weight* weight, const void* packed, Layout* layout);

Block block_at(const Layout& layout, const void* packed, int64_t block);

// Scale and zero point of one lane of a block.
float scale_at(const Layout& layout, const Block& block, int64_t group, int lane);
int zero_at(const Layout& layout, const Block& block, int64_t group, int lane);

}  // namespace bitsmith
#endif
