#include "lanes_avx512.h"
// Of these lanes.
#include "finish.h"
#include "product.h"
#include "tiles_amx.h"

namespace bitsmith::panels {
namespace {

// A tile register has 16 rows of 64 bytes: of x 32 columns of up to 16 rows, of a panel 32 columns
// of 16 lanes, two in each row. The two are columns i and i + 16, which lie in two vectors of x.
constexpr int kPairBytes = 64;

// Which tile registers are what. There are two sets of sums, which take turns.
constexpr int sum_tile(int turn, int panel) { return 2 * turn + panel; }
constexpr int kX = 4, kWeights = 6;

void enter(int64_t tile_rows) {
  TileShapes shapes;
  for (int tile = 0; tile < kWeights; ++tile) shapes.set(tile, tile_rows, kPairBytes);
  for (int tile = kWeights; tile < 8; ++tile) shapes.set(tile, kTileRows, kPairBytes);
  use_tiles(shapes);
}

void widen(int type, const void* from, int64_t count, float* out) {
  if (type == BSK_FLOAT32) {
    std::memcpy(out, from, size_t(count) * sizeof(float));
    return;
  }
  const auto* halves = static_cast<const uint16_t*>(from);
  for (int64_t i = 0; i < count; i += Lanes::count) {
    const int64_t left = count - i;
    const __mmask16 kept = left < Lanes::count ? __mmask16((1 << left) - 1) : __mmask16(0xffff);
    const __m256i some = _mm256_maskz_loadu_epi16(kept, halves + i);
    const __m512 values =
        type == BSK_FLOAT16
            ? _mm512_cvtph_ps(some)
            : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(some), 16));
    _mm512_mask_storeu_ps(out + i, kept, values);
  }
}

// The upper halves of two vectors, as pairs.
__m512i upper_halves(__m512i first, __m512i second) {
  return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(first, 16), second);
}

// 16 numbers, less their upper halves: what bfloat16 has not taken of them. Exact.
__m512i rest(__m512i value) {
  const __m512i upper = _mm512_and_si512(value, _mm512_set1_epi32(int32_t(0xffff0000)));
  return _mm512_castps_si512(
      _mm512_sub_ps(_mm512_castsi512_ps(value), _mm512_castsi512_ps(upper)));
}

// Cut off, not rounded: no part is larger than what it is part of, and 8 + 8 + 8 bits are all.
void split(int parts, const float* row, int64_t tiles, int64_t part_stride, int64_t tile_stride,
           uint16_t* out) {
  for (int64_t tile = 0; tile < tiles; ++tile, row += kTileColumns, out += tile_stride) {
    __m512i first = _mm512_loadu_si512(row), second = _mm512_loadu_si512(row + kTileColumns / 2);
    _mm512_storeu_si512(out, upper_halves(first, second));
    for (int part = 1; part < parts; ++part) {
      first = rest(first);
      second = rest(second);
      _mm512_storeu_si512(out + part * part_stride, upper_halves(first, second));
    }
  }
}

uint32_t largest(const float* row, int64_t count) {
  uint32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = float_bits(row[i]) & 0x7fffffff;
    most = bits > most ? bits : most;
  }
  return most;
}

// u − zero for byte `Byte` (0 or 1) of each lane, as float32: the code is put into the fraction of
// a power of two in which it counts as it is, and the power is subtracted with the zero point.
// Eight bits are left of the result, in its upper half.
template <int Byte>
inline __m512i centred(__m512i codes, __m512 zero) {
  constexpr int32_t mask = 0xff << 8 * Byte, power = (127 + 23 - 8 * Byte) << 23;
  const __m512i code = _mm512_ternarylogic_epi32(codes, _mm512_set1_epi32(mask),
                                                 _mm512_set1_epi32(power), 0xea);  // (a & b) | c
  const __m512 origin = _mm512_add_ps(zero, _mm512_castsi512_ps(_mm512_set1_epi32(power)));
  return _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(code), origin));
}

template <int Byte>
inline void store_pairs(__m512i first, __m512i second, __m512 zero, __mmask32 kept,
                        uint16_t* out) {
  const __m512i a = centred<Byte>(first, zero), b = centred<Byte>(second, zero);
  const __m512i pairs = _mm512_or_si512(_mm512_srli_epi32(a, 16), b);
  _mm512_storeu_si512(out, _mm512_maskz_mov_epi16(kept, pairs));
}

void prepare(const uint32_t* codes, const uint8_t* zeros, int zero_all, int half,
             uint16_t* tile) {
  const __m512i points = zeros ? _mm512_cvtepu8_epi32(_mm_loadu_si128(
                                     reinterpret_cast<const __m128i*>(zeros)))
                               : _mm512_set1_epi32(zero_all);
  const __m512 zero = Lanes::to_float(points);
  const __mmask32 kept = half < 0 ? 0xffffffff : half ? 0xaaaaaaaa : 0x55555555;
  constexpr int kQuads = 4;  // of a half; a quad is four columns, a byte each
  for (int quad = 0; quad < kQuads; ++quad, tile += 4 * kTileColumns) {
    __m512i first = _mm512_loadu_si512(codes + quad * Lanes::count);
    __m512i second = _mm512_loadu_si512(codes + (kQuads + quad) * Lanes::count);
    store_pairs<0>(first, second, zero, kept, tile);
    store_pairs<1>(first, second, zero, kept, tile + kTileColumns);
    first = _mm512_srli_epi32(first, 16);
    second = _mm512_srli_epi32(second, 16);
    store_pairs<0>(first, second, zero, kept, tile + 2 * kTileColumns);
    store_pairs<1>(first, second, zero, kept, tile + 3 * kTileColumns);
  }
}

// The sums of 16 rows and two panels, in tile registers, and where they go.
struct Waiting {
  const float* scale;
  float* out;
  bool add;
};

template <bool Add>
void add_sums(const float* sums, int64_t tile_rows, const Waiting& to) {
  const Lanes::Float scales[2] = {Lanes::load(to.scale), Lanes::load(to.scale + Lanes::count)};
  float* out = to.out;
  for (int64_t i = 0; i < tile_rows; ++i, out += 2 * Lanes::count) {
    for (int panel = 0; panel < 2; ++panel) {
      float* sum = out + panel * Lanes::count;
      const Lanes::Float before = Add ? Lanes::load(sum) : Lanes::broadcast(0.0f);
      const Lanes::Float value = Lanes::load(sums + (panel * kTileRows + i) * Lanes::count);
      Lanes::store(sum, Lanes::multiply_add(value, scales[panel], before));
    }
  }
}

template <int Turn>
void store(int64_t tile_rows, const Waiting& to) {
  alignas(64) float sums[2 * kTileRows * Lanes::count];
  store_tile<sum_tile(Turn, 0)>(sums, 64);
  store_tile<sum_tile(Turn, 1)>(sums + kTileRows * Lanes::count, 64);
  if (to.add) {
    add_sums<true>(sums, tile_rows, to);
  } else {
    add_sums<false>(sums, tile_rows, to);
  }
}

// All parts of some columns of 16 rows times two panels.
template <int Turn, int Parts>
inline void multiply_unit(const uint16_t* x, int64_t part_stride, int64_t tiles,
                          const uint16_t* weights) {
  zero_tile<sum_tile(Turn, 0)>();
  zero_tile<sum_tile(Turn, 1)>();
  for (int64_t i = 0; i < tiles; ++i, weights += 2 * kTileSize) {
    load_tile<kWeights>(weights, kPairBytes);
    load_tile<kWeights + 1>(weights + kTileSize, kPairBytes);
#pragma GCC unroll 3
    for (int part = 0; part < Parts; ++part, x += part_stride) {
      load_tile<kX>(x, kPairBytes);
      multiply_bfloat16_tiles<sum_tile(Turn, 0), kX, kWeights>();
      multiply_bfloat16_tiles<sum_tile(Turn, 1), kX, kWeights + 1>();
    }
  }
}

// Sums stay in their tile registers while the next ones are computed in the others. Stored right
// away, they would hold up the loads that follow: a load waits for stores before it that have the
// same last 12 bits of the address, and these wait for the products.
template <int Parts>
void multiply_parts(const SplitProduct& p) {
  const int64_t tile_size = p.tile_rows * kTileColumns;
  const int64_t part_stride = p.row_tiles * tile_size;
  const uint16_t* weights = p.weights;
  const float* scale = p.scale;
  float* sums = p.sums;
  Waiting waiting = {};
  bool turn = false;
  for (int64_t pair = 0; pair < p.pairs; ++pair) {
    for (int64_t u = 0; u < p.unit_count; ++u) {
      const Unit& unit = p.units[u];
      const uint16_t* x = p.x + unit.tile * Parts * part_stride;
      for (int64_t r = 0; r < p.row_tiles; ++r, x += tile_size) {
        if (turn) {
          multiply_unit<1, Parts>(x, part_stride, unit.tiles, weights);
          if (waiting.out) store<0>(p.tile_rows, waiting);
        } else {
          multiply_unit<0, Parts>(x, part_stride, unit.tiles, weights);
          if (waiting.out) store<1>(p.tile_rows, waiting);
        }
        waiting = {scale, sums + r * p.tile_rows * 2 * Lanes::count, p.add || u > 0};
        turn = !turn;
      }
      weights += unit.tiles * 2 * kTileSize;
      scale += 2 * Lanes::count;
    }
    sums += p.row_tiles * p.tile_rows * 2 * Lanes::count;
  }
  if (!waiting.out) return;
  if (turn) {
    store<0>(p.tile_rows, waiting);
  } else {
    store<1>(p.tile_rows, waiting);
  }
}

void multiply(const SplitProduct& p) {
  if (p.parts == 3) return multiply_parts<3>(p);
  if (p.parts == 2) return multiply_parts<2>(p);
  multiply_parts<1>(p);
}

}  // namespace

const SplitKernels kSplitAmx = {widen,    split,  largest, prepare,
                                multiply, finish, enter,   release_tiles};

}  // namespace bitsmith::panels
