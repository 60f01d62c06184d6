#include "lanes_avx512.h"
// Of these lanes.
#include "finish.h"
#include "product.h"
#include "tiles_amx.h"

namespace bitsmith::panels {
namespace {

// A tile register has 16 rows of 64 bytes. x gives 16 rows of up to 64 codes, a panel as many
// codes (four of each lane in a row), and their product is 16 rows of sums of the panel's lanes.
constexpr int kTile = 16;

// Codes that one product takes: the most that share the columns of a group evenly.
int64_t step_of(int64_t columns) {
  int64_t steps = (columns + 63) / 64;
  while (columns % (4 * steps)) ++steps;
  return columns / steps;
}

// Which tile registers are what.
constexpr int sum_tile(int row, int panel) { return 2 * row + panel; }
constexpr int kX = 4, kWeights = 6;

void enter(int64_t columns) {
  const int64_t step = step_of(columns);
  TileShapes shapes;
  for (int tile = 0; tile < kX; ++tile) shapes.set(tile, kTile, 64);
  for (int tile = kX; tile < kWeights; ++tile) shapes.set(tile, kTile, step);
  for (int tile = kWeights; tile < 8; ++tile) shapes.set(tile, step / 4, 64);
  use_tiles(shapes);
}

void encode(const int8_t* codes, int64_t count, uint8_t* out) {
  std::memcpy(out, codes, size_t(count));
}

// Codes of x are signed as they are, so sums start at 0.
void prepare(int64_t groups, int64_t columns, const int32_t* zero, int8_t* panel, int32_t*) {
  const Lanes::Int each = Lanes::broadcast(0x01010101);
  for (int64_t g = 0; g < groups; ++g) {
    const Lanes::Int points = Lanes::multiply(Lanes::load(zero + g * kTile), each);
    for (int64_t c = 0; c < columns; c += 4, panel += 4 * kTile) {
      Lanes::store(panel, Lanes::subtract_bytes(Lanes::load(panel), points));
    }
  }
}

// Sums of 16 rows of a group, out of a tile register, as float32.
class GroupSums {
 public:
  GroupSums(const IntegerProduct& p, int64_t row, int64_t panel, int64_t group)
      : x_sums_(p.zero ? p.x_sums + row * p.groups + group : nullptr), groups_(p.groups) {
    const int64_t at = (panel * p.groups + group) * kTile;
    scale_ = Lanes::load(p.scale + at);
    zero_ = p.zero ? Lanes::load(p.zero + at) : Lanes::broadcast(0);
  }

  // `before`, with row `i` of the sums, times the scale, added.
  Lanes::Float added(const int32_t* sums, int i, Lanes::Float before) const {
    Lanes::Int sum = Lanes::load(sums + i * kTile);
    if (x_sums_) {
      const Lanes::Int x_sum = Lanes::broadcast(x_sums_[i * groups_]);
      sum = Lanes::subtract(sum, Lanes::multiply(zero_, x_sum));
    }
    return Lanes::multiply_add(Lanes::to_float(sum), scale_, before);
  }

 private:
  const int32_t* x_sums_;
  const int64_t groups_;
  Lanes::Float scale_;
  Lanes::Int zero_;
};

// Some 16 rows of x times some panels: columns from `column` on.
template <int Rows, int Panels>
inline void add_step(const IntegerProduct& p, int64_t row, int64_t panel, int64_t column) {
  const uint8_t* x = p.x + row * p.x_stride + column;
  const int64_t panel_size = p.depth() * kTile;
  const int8_t* weights = p.weights + panel * panel_size + column * kTile;
  load_tile<kX>(x, p.x_stride);
  load_tile<kWeights>(weights, 64);
  multiply_tiles<sum_tile(0, 0), kX, kWeights>();
  if constexpr (Panels > 1) {
    load_tile<kWeights + 1>(weights + panel_size, 64);
    multiply_tiles<sum_tile(0, 1), kX, kWeights + 1>();
  }
  if constexpr (Rows > 1) {
    load_tile<kX + 1>(x + kTile * p.x_stride, p.x_stride);
    multiply_tiles<sum_tile(1, 0), kX + 1, kWeights>();
    if constexpr (Panels > 1) multiply_tiles<sum_tile(1, 1), kX + 1, kWeights + 1>();
  }
}

// Add a group's sums, of 16 rows, to the sums in memory.
template <int Tile>
inline void add_group(const IntegerProduct& p, int64_t row, int64_t panel, int64_t group) {
  alignas(64) int32_t sums[kTile * kTile];
  store_tile<Tile>(sums, 64);
  const GroupSums group_sums(p, row, panel, group);
  float* out = p.sums + row * p.sums_stride + panel * kTile;
  for (int i = 0; i < kTile; ++i, out += p.sums_stride) {
    const Lanes::Float before = group ? Lanes::load(out) : Lanes::broadcast(0.0f);
    Lanes::store(out, group_sums.added(sums, i, before));
  }
}

// Large groups: sums of up to 2 × 2 tiles, so that each tile that is loaded is used twice.
template <int Rows, int Panels>
void large_groups(const IntegerProduct& p, int64_t row, int64_t panel, int64_t step) {
  for (int64_t g = 0; g < p.groups; ++g) {
    zero_tile<0>();
    zero_tile<1>();
    zero_tile<2>();
    zero_tile<3>();
    for (int64_t c = 0; c < p.columns; c += step) {
      add_step<Rows, Panels>(p, row, panel, g * p.columns + c);
    }
    add_group<sum_tile(0, 0)>(p, row, panel, g);
    if constexpr (Panels > 1) add_group<sum_tile(0, 1)>(p, row, panel + 1, g);
    if constexpr (Rows > 1) add_group<sum_tile(1, 0)>(p, row + kTile, panel, g);
    if constexpr (Rows > 1 && Panels > 1) {
      add_group<sum_tile(1, 1)>(p, row + kTile, panel + 1, g);
    }
  }
}

template <int Tile>
inline void multiply_group(const IntegerProduct& p, int64_t row, int64_t panel, int64_t group,
                           int64_t step, int32_t* sums) {
  const uint8_t* x = p.x + row * p.x_stride + group * p.columns;
  const int8_t* weights = p.weights + (panel * p.depth() + group * p.columns) * kTile;
  zero_tile<Tile>();
  for (int64_t c = 0; c < p.columns; c += step) {
    load_tile<kX + Tile>(x + c, p.x_stride);
    load_tile<kWeights + Tile>(weights + c * kTile, 64);
    multiply_tiles<Tile, kX + Tile, kWeights + Tile>();
  }
  store_tile<Tile>(sums, 64);
}

// Small groups: what takes time is adding up their sums, so those of 16 rows stay in registers.
// While one group's are added the next one's are multiplied.
void small_groups(const IntegerProduct& p, int64_t row, int64_t panel, int64_t step) {
  alignas(64) int32_t sums[2][kTile * kTile];
  Lanes::Float total[kTile];
#pragma GCC unroll 16
  for (int i = 0; i < kTile; ++i) total[i] = Lanes::broadcast(0.0f);
  const auto add = [&](int64_t group) {
    const GroupSums group_sums(p, row, panel, group);
#pragma GCC unroll 16
    for (int i = 0; i < kTile; ++i) total[i] = group_sums.added(sums[group % 2], i, total[i]);
  };
  multiply_group<0>(p, row, panel, 0, step, sums[0]);
  for (int64_t g = 1; g < p.groups; g += 2) {
    multiply_group<1>(p, row, panel, g, step, sums[1]);
    add(g - 1);
    if (g + 1 < p.groups) multiply_group<0>(p, row, panel, g + 1, step, sums[0]);
    add(g);
  }
  if (p.groups % 2) add(p.groups - 1);
  float* out = p.sums + row * p.sums_stride + panel * kTile;
#pragma GCC unroll 16
  for (int i = 0; i < kTile; ++i) Lanes::store(out + i * p.sums_stride, total[i]);
}

template <int Rows>
void multiply_rows(const IntegerProduct& p, int64_t row, int64_t step) {
  int64_t panel = 0;
  for (; panel + 2 <= p.panels; panel += 2) large_groups<Rows, 2>(p, row, panel, step);
  if (panel < p.panels) large_groups<Rows, 1>(p, row, panel, step);
}

void multiply(const IntegerProduct& p) {
  constexpr int64_t kLarge = 256;  // columns of a group
  const int64_t step = step_of(p.columns);
  int64_t row = 0;
  if (p.groups == 1 || p.columns >= kLarge) {
    for (; row + kTile < p.rows; row += 2 * kTile) multiply_rows<2>(p, row, step);
    if (row < p.rows) multiply_rows<1>(p, row, step);
    return;
  }
  for (; row < p.rows; row += kTile) {
    for (int64_t panel = 0; panel < p.panels; ++panel) small_groups(p, row, panel, step);
  }
}

}  // namespace

const IntegerKernels kIntegerAmx = {Lanes::count, 1,      kTile, encode, prepare,
                                    multiply,     finish, enter, release_tiles};

}  // namespace bitsmith::panels
