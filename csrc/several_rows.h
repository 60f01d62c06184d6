// Products of a block of rows of the weight with 1 to 8 rows of x: a chunk at a time is decoded
// into memory that stays in the first cache, and used for all rows of x. One product serves
// every width and kind of weight.
#ifndef BITSMITH_SEVERAL_ROWS_H
#define BITSMITH_SEVERAL_ROWS_H

#include "decode.h"
#include "kernels.h"

namespace {

using bitsmith::CodeRows;
using bitsmith::DecodeCodes;
using bitsmith::DecodeFloats;

template <class V, int rows>
void float_product(const Block& block, DecodeFloats decode, const float* x, float* out) {
  // Sums that are independent of each other: few would wait for each addition.
  constexpr int kSums = rows >= 4 ? rows : 4;
  alignas(64) float values[kChunk * V::kLanes];
  typename V::Float total[rows];
  unroll<rows>([&](auto r) BSK_INLINED { total[r] = V::real(0); });
  for (int64_t chunk = 0; chunk < block.chunks; ++chunk, x += kChunk * rows) {
    decode(block, chunk, values);
    typename V::Float part[kSums];
    unroll<kSums>([&](auto i) BSK_INLINED { part[i] = V::real(0); });
    constexpr int kColumns = kSums / rows;  // at a time
    for (int column = 0; column < kChunk; column += kColumns) {
      unroll<kColumns>([&](auto c) BSK_INLINED {
        const auto w = V::load_float(values + (column + c) * V::kLanes);
        const float* at = x + (column + c) * rows;
        unroll<rows>([&](auto r) BSK_INLINED {
          auto& sum = part[c * rows + r];
          sum = V::multiply_add(w, V::real(at[r]), sum);
        });
      });
    }
    unroll<kSums>([&](auto i) BSK_INLINED { total[i % rows] = V::add(total[i % rows], part[i]); });
  }
  unroll<rows>([&](auto r) BSK_INLINED { V::store(out + r * V::kLanes, total[r]); });
}

// The quads from `first` to `stop` of the codes of a chunk, multiplied and added to `sum`.
template <class V, int rows>
BSK_INLINE void add_quads(const uint32_t* codes, const int32_t* x, int first, int stop,
                          typename V::Int (&sum)[rows]) {
  for (int quad = first; quad < stop; ++quad) {
    const auto factor = V::template factor<8>(V::load(codes + quad * V::kLanes));
    unroll<rows>([&](auto r) BSK_INLINED {
      sum[r] = V::template dot<8>(sum[r], factor, x + quad * rows + r);
    });
  }
}

// Without `decode` the weight is 8 bits wide: its words are codes, one a byte.
template <class V, int rows>
void code_product(const Block& block, DecodeCodes decode, const CodeRows& x, float* out) {
  alignas(64) uint32_t decoded[kQuads * V::kLanes];
  typename V::Int sum[rows];
  typename V::Float total[rows];
  unroll<rows>([&](auto r) BSK_INLINED { total[r] = V::real(0); });
  const auto begin = [&]() BSK_INLINED {
    unroll<rows>([&](auto r) BSK_INLINED { sum[r] = V::splat(0); });
  };
  const auto end = [&](int64_t group) BSK_INLINED {
    const auto zero = load_code_zeros<V, 8>(block, group);
    const auto scale = load_scales<V>(block, group);
    unroll<rows>([&](auto r) BSK_INLINED {
      const int64_t at = group * rows + r;
      const auto part = without_zero<V>(block, sum[r], zero, x.sums[at], x.sums_real[at]);
      total[r] = block.groups == 1 ? part : V::multiply_add(part, scale, total[r]);
    });
  };
  const int32_t* quads = x.quads;
  int64_t group = 0, left = 0;
  begin();
  for (int64_t chunk = 0; chunk < block.chunks; ++chunk, quads += kQuads * rows) {
    const uint32_t* codes = block.words + chunk * kQuads * V::kLanes;
    if (decode) {
      decode(block, chunk, decoded);
      codes = decoded;
    } else {
      ask_ahead<kQuads * V::kLanes>(codes);
    }
    if (block.group_chunks == 0) {  // two groups in a chunk
      add_quads<V, rows>(codes, quads, 0, kQuads / 2, sum);
      end(group++);
      begin();
      add_quads<V, rows>(codes, quads, kQuads / 2, kQuads, sum);
      end(group++);
      begin();
      continue;
    }
    add_quads<V, rows>(codes, quads, 0, kQuads, sum);
    if (++left == block.group_chunks) {
      left = 0;
      end(group++);
      begin();
    }
  }
  unroll<rows>([&](auto r) BSK_INLINED { V::store(out + r * V::kLanes, total[r]); });
}

}  // namespace
#endif
