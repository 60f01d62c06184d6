#include "../decode.h"
#include "../vector_avx512.h"
#include "lanes_avx512.h"
// Of these lanes.
#include "finish.h"
#include "product.h"
#include "tiles_amx.h"

namespace bitsmith::panels {
namespace {

// Which tile registers are what. There are two sets of sums, which take turns.
constexpr int sum_tile(int turn, int row_tile) { return 2 * turn + row_tile; }
constexpr int kX = 4, kWeights = 6;
constexpr int64_t kTileWords = 256;  // of weights, at most

void enter(int64_t tile_rows, int64_t step) {
  TileShapes shapes;
  for (int tile = 0; tile < kX; ++tile) shapes.set(tile, tile_rows, 64);
  for (int tile = kX; tile < kWeights; ++tile) shapes.set(tile, tile_rows, step);
  for (int tile = kWeights; tile < 8; ++tile) shapes.set(tile, step / 4, 64);
  use_tiles(shapes);
}

// Where the codes of a step lie: those of 8 bits as they are packed, others decoded.
class Codes {
 public:
  Codes(const TiledProduct& p, const Block& block)
      : p_(p), block_(block), steps_(block.chunks * kChunk / p.step), ready_(find(0)) {}

  // Of the next step, from the first one on. The one after it is decoded already, for tile
  // registers are not filled from what has been written just now.
  BSK_INLINE const uint32_t* take() {
    const uint32_t* out = ready_;
    if (++step_ < steps_) ready_ = find(step_);
    return out;
  }

 private:
  static constexpr int64_t kBuffers = 4;

  BSK_INLINE const uint32_t* find(int64_t step) {
    const int64_t column = step * p_.step;
    if (p_.bits == 8) {
      const uint32_t* words = block_.words + column / 4 * Lanes::count;
      ask_ahead<kTileWords>(words);
      return words;
    }
    if (column % kChunk) return ready_ + p_.step / 4 * Lanes::count;  // the chunk's other half
    uint32_t* decoded = buffer_ + step % kBuffers * kTileWords;
    p_.decode(block_, column / kChunk, decoded);
    if (p_.step > kChunk) p_.decode(block_, column / kChunk + 1, decoded + kTileWords / 2);
    return decoded;
  }

  const TiledProduct& p_;
  const Block& block_;
  const int64_t steps_;
  alignas(64) uint32_t buffer_[kBuffers * kTileWords];
  int64_t step_ = 0;
  const uint32_t* ready_;
};

template <int Turn, int RowTiles>
inline void multiply_step(const TiledProduct& p, const int8_t* x, const uint32_t* codes) {
  load_tile<kWeights>(codes, 64);
  load_tile<kX>(x, p.step);
  multiply_codes_tiles<sum_tile(Turn, 0), kX, kWeights>();
  if constexpr (RowTiles > 1) {
    load_tile<kX + 1>(x + p.tile_rows * p.step, p.step);
    multiply_codes_tiles<sum_tile(Turn, 1), kX + 1, kWeights>();
  }
}

// Add the sums of a group, as integers, to those of the groups before.
template <bool Exact>
inline void add_rows(const TiledProduct& p, const Block& block, int64_t group,
                     const int32_t* of_group, float* sums) {
  const auto zero = load_zeros<Avx512>(block, group);
  const auto scale = load_scales<Avx512>(block, group);
  const auto zero_real = Lanes::to_float(zero);
  const int64_t rows = p.rows(), at = group * rows;
#pragma GCC unroll 4
  for (int64_t row = 0; row < rows; ++row) {
    const Lanes::Int sum = Lanes::load(of_group + row * Lanes::count);
    float* to = sums + row * Lanes::count;
    Lanes::Float part;
    if constexpr (Exact) {
      part = Avx512::subtract_product(zero_real, Lanes::broadcast(p.x_sums_real[at + row]),
                                      Lanes::to_float(sum));
    } else {
      const Lanes::Int of_zero = Lanes::multiply(zero, Lanes::broadcast(p.x_sums[at + row]));
      part = Lanes::to_float(Lanes::subtract(sum, of_zero));
    }
    if (block.groups > 1) {
      part = group ? Lanes::multiply_add(part, scale, Lanes::load(to))
                   : Lanes::multiply(part, scale);
    }
    Lanes::store(to, part);
  }
}

template <int Turn, int RowTiles>
inline void add_group(const TiledProduct& p, const Block& block, int64_t group, float* sums) {
  alignas(64) int32_t of_group[RowTiles * kTileRows * Lanes::count];
  store_tile<sum_tile(Turn, 0)>(of_group, 64);
  if constexpr (RowTiles > 1) {
    store_tile<sum_tile(Turn, 1)>(of_group + p.tile_rows * Lanes::count, 64);
  }
  if (block.groups > 1) ask_ahead<Lanes::count>(block, group);
  if (block.exact_in_float) {
    add_rows<true>(p, block, group, of_group, sums);
  } else {
    add_rows<false>(p, block, group, of_group, sums);
  }
}

// A group's sums stay in their tile registers while the next group's are computed: see float_amx.cpp.
template <int Turn, int RowTiles>
inline void multiply_group(const TiledProduct& p, const Block& block, int64_t group, Codes* codes,
                           float* sums) {
  zero_tile<sum_tile(Turn, 0)>();
  if constexpr (RowTiles > 1) zero_tile<sum_tile(Turn, 1)>();
  const int64_t first = group * p.group_steps, x_step = p.rows() * p.step;
  for (int64_t step = first; step < first + p.group_steps; ++step) {
    multiply_step<Turn, RowTiles>(p, p.x + step * x_step, codes->take());
  }
  if (group) add_group<1 - Turn, RowTiles>(p, block, group - 1, sums);
}

template <int RowTiles>
void multiply_tiles_of(const TiledProduct& p, const Block& block, float* sums) {
  Codes codes(p, block);
  int64_t group = 0;
  for (; group + 2 <= block.groups; group += 2) {
    multiply_group<0, RowTiles>(p, block, group, &codes, sums);
    multiply_group<1, RowTiles>(p, block, group + 1, &codes, sums);
  }
  if (group == block.groups) return add_group<1, RowTiles>(p, block, group - 1, sums);
  multiply_group<0, RowTiles>(p, block, group, &codes, sums);
  add_group<0, RowTiles>(p, block, group, sums);
}

void multiply(const TiledProduct& p, const Block& block, float* sums) {
  if (p.row_tiles == 1) return multiply_tiles_of<1>(p, block, sums);
  multiply_tiles_of<2>(p, block, sums);
}

}  // namespace

const TiledKernels kTiledAmx = {multiply, finish, enter, release_tiles};

}  // namespace bitsmith::panels
