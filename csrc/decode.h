// Codes of a chunk in vectors: a lane for each row of a block. V is one of vector_*.h.
#ifndef BITSMITH_DECODE_H
#define BITSMITH_DECODE_H

#include "layout.h"
#include "unroll.h"

namespace {

using bitsmith::Block;
using bitsmith::four;
using bitsmith::kChunk;
using bitsmith::kQuads;
using bitsmith::plane_bit;
using bitsmith::plane_word;

constexpr uint32_t code_mask(int bits) { return (1u << bits) - 1; }
constexpr bool one_plane(int bits) { return (bits & (bits - 1)) == 0; }

// Bytes that are asked for in advance: for the cache next to the core, and for the one behind it,
// so that its few places for what is under way are not taken for long.
constexpr int kAhead = 512;
constexpr int kFarAhead = 4096;

// The processor stops looking ahead where a page ends.
template <int words>
BSK_INLINE void ask_ahead(const uint32_t* chunk) {
  for (int word = 0; word < words; word += 16) {
    const auto* at = reinterpret_cast<const char*>(chunk + word);
    __builtin_prefetch(at + kAhead, 0, 3);
    __builtin_prefetch(at + kFarAhead, 0, 2);
  }
}

// Scales and zero points are streams of their own, too slow for the processor to follow.
template <int lanes>
BSK_INLINE void ask_ahead(const Block& block, int64_t group) {
  const int64_t at = group * lanes;
  const auto* scales = static_cast<const char*>(block.scales);
  __builtin_prefetch(scales + at * (block.half_scales ? 2 : 4) + kAhead);
  if (block.zeros) __builtin_prefetch(block.zeros + at + kAhead);
}

template <class V>
BSK_INLINE typename V::Int load_word(const uint32_t* chunk, int word) {
  return V::load(chunk + word * V::kLanes);
}

// v >> shift, or v << −shift.
template <class V, int shift>
BSK_INLINE typename V::Int shifted(typename V::Int v) {
  if constexpr (shift > 0) {
    return V::template right<shift>(v);
  } else if constexpr (shift < 0) {
    return V::template left<-shift>(v);
  } else {
    return v;
  }
}

// The planes from `width` down, of bits of the code from `low` on, added to `codes`.
template <class V, int bits, int quad, int width, int low>
BSK_INLINE typename V::Int add_planes(const uint32_t* chunk, typename V::Int codes) {
  if constexpr (width == 0) {
    return codes;
  } else if constexpr ((bits & width) == 0) {
    return add_planes<V, bits, quad, width / 2, low>(chunk, codes);
  } else {
    constexpr uint32_t mask = four(code_mask(width) << low);
    const auto word = shifted<V, plane_bit(width, quad) - low>(
        load_word<V>(chunk, plane_word(low, width, quad)));
    codes = low ? V::merge(word, mask, codes) : V::keep(word, mask);
    return add_planes<V, bits, quad, width / 2, low + width>(chunk, codes);
  }
}

// The codes of four columns, one a byte. Where the width is one plane, bits of other columns are
// left above them: what comes next picks its bits anyway.
template <class V, int bits, int quad>
BSK_INLINE typename V::Int rough_quad(const uint32_t* chunk) {
  if constexpr (one_plane(bits)) {
    return shifted<V, plane_bit(bits, quad)>(load_word<V>(chunk, plane_word(0, bits, quad)));
  } else {
    return add_planes<V, bits, quad, 4, 0>(chunk, V::splat(0));
  }
}

// The same with nothing above the codes.
template <class V, int bits, int quad>
BSK_INLINE typename V::Int clean_quad(const uint32_t* chunk) {
  const auto codes = rough_quad<V, bits, quad>(chunk);
  if constexpr (one_plane(bits) && bits < 8) return V::keep(codes, four(code_mask(bits)));
  return codes;
}

// Floats from codes without converting: the bits of a code are put into the fraction of a power
// of two in which they count as they are (2^23, or 2^15 and 2^7 where they lie 8 or 16 higher),
// and that power is subtracted with the zero point. All of it is exact.
constexpr int byte_shift(int bits, int byte) {
  return byte == 3 ? 24 : byte == 2 && bits == 8 ? 16 : 0;
}
constexpr int byte_place(int bits, int byte) { return 8 * byte - byte_shift(bits, byte); }

constexpr float place_power(int place) {
  return static_cast<float>(1 << (23 - place));
}
constexpr uint32_t power_bits(int place) { return static_cast<uint32_t>(127 + 23 - place) << 23; }

// What is subtracted: the power and the zero point, for codes in place 0, 8 and 16.
template <class V>
struct Origin {
  typename V::Float at[3];

  explicit BSK_INLINE Origin(typename V::Float zero) {
    unroll<3>([&](auto i) BSK_INLINED { at[i] = V::add(zero, V::real(place_power(8 * i))); });
  }
};

// u − zero of one column: byte `byte` of a quad.
template <class V, int bits, int byte>
BSK_INLINE typename V::Float centred(typename V::Int quad, const Origin<V>& origin) {
  constexpr int place = byte_place(bits, byte);
  const auto code = V::merge(shifted<V, byte_shift(bits, byte)>(quad), code_mask(bits) << place,
                             V::splat(power_bits(place)));
  return V::subtract(V::as_float(code), origin.at[place / 8]);
}

template <class V>
BSK_INLINE typename V::Float load_scales(const Block& block, int64_t group) {
  if (block.half_scales) {
    return V::load_half(static_cast<const uint16_t*>(block.scales) + group * V::kLanes);
  }
  return V::load_float(static_cast<const float*>(block.scales) + group * V::kLanes);
}

template <class V>
BSK_INLINE typename V::Int load_zeros(const Block& block, int64_t group) {
  if (!block.zeros) return V::splat(static_cast<uint32_t>(block.zero_all));
  return V::load_bytes(block.zeros + group * V::kLanes);
}

// Zero points, less what the vectors' integer products take off the codes.
template <class V, int bits>
BSK_INLINE typename V::Int load_code_zeros(const Block& block, int64_t group) {
  const auto offset = V::splat(static_cast<uint32_t>(V::code_offset(bits)));
  return V::subtract_ints(load_zeros<V>(block, group), offset);
}

// float(Σ u · x − zero · Σ x): exact where `block.exact_in_float`, else rounded once.
template <class V>
BSK_INLINE typename V::Float without_zero(const Block& block, typename V::Int sum,
                                          typename V::Int zero, int32_t x_sum, float x_sum_real) {
  if (block.exact_in_float) {
    return V::subtract_product(V::to_float(zero), V::real(x_sum_real), V::to_float(sum));
  }
  const auto part = V::multiply_ints(zero, V::splat(static_cast<uint32_t>(x_sum)));
  return V::to_float(V::subtract_ints(sum, part));
}

// Where the tables of a block are looked up.
enum class Place {
  kRegister,  // one table of 16 entries at most for all rows
  kTwo,       // two of them, for the first and the last eight rows
  kMemory,
};

template <class V>
Place table_place(const Block& block, int bits) {
  if (bits > 4 || block.table_rows == 1) return Place::kMemory;
  return block.table_rows == 8 && V::kLanes > 8 ? Place::kTwo : Place::kRegister;
}

template <class V, int bits, Place place>
struct Table {
  typename V::Entries first, second;

  explicit BSK_INLINE Table(const Block& block) {
    first = load(block.table);
    second = place == Place::kTwo ? load(block.table + (8 << bits)) : first;
  }

  // 16 entries, repeated where there are fewer: bits above a code then do not matter.
  static BSK_INLINE typename V::Entries load(const float* table) {
    if constexpr (bits == 4) return V::load_entries(table);
    float repeated[16];
    for (int i = 0; i < 16; ++i) repeated[i] = table[i & code_mask(bits)];
    return V::load_entries(repeated);
  }

  template <int byte>
  BSK_INLINE typename V::Float look_up(typename V::Int quad) const {
    const auto index = shifted<V, 8 * byte>(quad);
    if constexpr (place == Place::kTwo) return V::look_up(first, second, index);
    return V::look_up(first, index);
  }
};

template <class V, int bits>
struct Table<V, bits, Place::kMemory> {
  const float* table;
  typename V::Int first;  // entry of each lane's table

  explicit BSK_INLINE Table(const Block& block) : table(block.table) {
    uint32_t start[V::kLanes];
    const uint32_t stride = block.table_rows ? 1u << bits : 0;
    for (uint32_t i = 0; i < V::kLanes; ++i) start[i] = stride * i;
    first = V::load(start);
  }

  template <int byte>
  BSK_INLINE typename V::Float look_up(typename V::Int quad) const {
    const auto code = V::keep(shifted<V, 8 * byte>(quad), code_mask(bits));
    return V::gather(table, V::add_ints(code, first));
  }
};

// Call use(place) with the place of the block's tables as a constant.
template <class V, int bits, class Use>
BSK_INLINE void with_place(const Block& block, Use use) {
  if constexpr (bits <= 4) {
    const Place place = table_place<V>(block, bits);
    if (place == Place::kRegister) {
      return use(std::integral_constant<Place, Place::kRegister>{});
    }
    if constexpr (V::kLanes > 8) {
      if (place == Place::kTwo) return use(std::integral_constant<Place, Place::kTwo>{});
    }
  }
  use(std::integral_constant<Place, Place::kMemory>{});
}

}  // namespace
#endif
