// Chunks of a block, decoded into memory.
#ifndef BITSMITH_CHUNKS_H
#define BITSMITH_CHUNKS_H

#include "decode.h"

namespace {

BSK_INLINE int64_t group_of(const Block& block, int64_t chunk, int half) {
  return block.group_chunks ? chunk / block.group_chunks : 2 * chunk + half;
}

template <class V, int bits>
void chunk_integers(const Block& block, int64_t chunk, float* out) {
  const uint32_t* words = block.words + chunk * bits * V::kLanes;
  ask_ahead<bits * V::kLanes>(words);
  unroll<kQuads>([&](auto q) BSK_INLINED {
    constexpr int quad = decltype(q)::value;
    const int64_t group = group_of(block, chunk, quad / 4);
    const auto scale = load_scales<V>(block, group);
    const Origin<V> origin(V::to_float(load_zeros<V>(block, group)));
    const auto codes = rough_quad<V, bits, quad>(words);
    unroll<4>([&](auto i) BSK_INLINED {
      constexpr int byte = decltype(i)::value;
      V::store(out + (4 * quad + byte) * V::kLanes,
               V::multiply(scale, centred<V, bits, byte>(codes, origin)));
    });
  });
}

template <class V, int bits>
void chunk_table(const Block& block, int64_t chunk, float* out) {
  const uint32_t* words = block.words + chunk * bits * V::kLanes;
  ask_ahead<bits * V::kLanes>(words);
  with_place<V, bits>(block, [&](auto place) BSK_INLINED {
    const Table<V, bits, decltype(place)::value> table(block);
    unroll<kQuads>([&](auto q) BSK_INLINED {
      constexpr int quad = decltype(q)::value;
      const auto scale = load_scales<V>(block, group_of(block, chunk, quad / 4));
      const auto codes = rough_quad<V, bits, quad>(words);
      unroll<4>([&](auto i) BSK_INLINED {
        constexpr int byte = decltype(i)::value;
        V::store(out + (4 * quad + byte) * V::kLanes,
                 V::multiply(scale, table.template look_up<byte>(codes)));
      });
    });
  });
}

// The codes as they are, one a byte.
template <class V, int bits>
void chunk_codes(const Block& block, int64_t chunk, uint32_t* out) {
  const uint32_t* words = block.words + chunk * bits * V::kLanes;
  ask_ahead<bits * V::kLanes>(words);
  unroll<kQuads>([&](auto q) BSK_INLINED {
    constexpr int quad = decltype(q)::value;
    V::store_ints(out + quad * V::kLanes, clean_quad<V, bits, quad>(words));
  });
}

}  // namespace
#endif
