// The tile registers of AMX. Only for files compiled for AMX.
//
// In assembler, because compilers' own functions take register numbers as literals only, and
// some do not say which memory is read.
#ifndef BITSMITH_PANELS_TILES_AMX_H
#define BITSMITH_PANELS_TILES_AMX_H

#include <cstdint>

namespace bitsmith::panels {
namespace {  // compiled for one instruction set: never shared with files for another

// What `ldtilecfg` reads.
struct TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int64_t count, int64_t bytes) {
    rows[tile] = uint8_t(count);
    row_bytes[tile] = uint16_t(bytes);
  }
};
static_assert(sizeof(TileShapes) == 64);

inline void use_tiles(const TileShapes& shapes) {
  asm volatile("ldtilecfg %0" : : "m"(shapes));
}

inline void release_tiles() { asm volatile("tilerelease"); }

template <int Tile>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
}

// Rows `stride` bytes apart.
template <int Tile>
inline void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(Tile) : "memory");
}

template <int Tile>
inline void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(Tile) : "memory");
}

// sums += a · b, of signed bytes.
template <int Sums, int A, int B>
inline void multiply_tiles() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(A), "i"(B));
}

// sums += a · b, of signed bytes times unsigned ones.
template <int Sums, int A, int B>
inline void multiply_codes_tiles() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(A), "i"(B));
}

// sums += a · b, of bfloat16 in float32.
template <int Sums, int A, int B>
inline void multiply_bfloat16_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(A), "i"(B));
}

}  // namespace
}  // namespace bitsmith::panels
#endif
