// Products of a block of rows of the weight with one row of x: codes are decoded in registers and
// used at once, so that reading the weight is all that takes time.
#ifndef BITSMITH_ONE_ROW_H
#define BITSMITH_ONE_ROW_H

#include "decode.h"
#include "kernels.h"

namespace {

using bitsmith::CodeRows;
using bitsmith::kDigits;

// Sums that are independent of each other: one would wait for each addition.
constexpr int kChains = 4;

// Take a block half chunk by half chunk (16 columns): begin(group), half(chunk's words, its
// number, constant 0 or 1) …, end(group).
template <int chunk_words, int lanes, class Begin, class Half, class End>
BSK_INLINE void walk(const Block& block, Begin begin, Half half, End end) {
  const uint32_t* words = block.words;
  const bool two_groups = block.group_chunks == 0;
  int64_t group = 0, left = 0;  // chunks of the group
  for (int64_t chunk = 0; chunk < block.chunks; ++chunk, words += chunk_words) {
    ask_ahead<chunk_words>(words);
    if (left == 0) {
      if (block.groups > 1) ask_ahead<lanes>(block, group);
      begin(group);
      left = two_groups ? 1 : block.group_chunks;
    }
    half(words, chunk, std::integral_constant<int, 0>{});
    if (two_groups) {
      end(group++);
      begin(group);
    }
    half(words, chunk, std::integral_constant<int, 1>{});
    if (--left == 0) end(group++);
  }
}

// Sums of float products: those of a group, and of all groups with their scales.
template <class V>
struct FloatSums {
  typename V::Float part[kChains], total = V::real(0);

  BSK_INLINE void begin() {
    for (auto& sum : part) sum = V::real(0);
  }
  template <int chain>
  BSK_INLINE void add(typename V::Float w, const float* x) {
    part[chain] = V::multiply_add(w, V::real(*x), part[chain]);
  }
  BSK_INLINE void end(typename V::Float scale) {
    const auto sum = V::add(V::add(part[0], part[1]), V::add(part[2], part[3]));
    total = V::multiply_add(sum, scale, total);
  }
};

template <class V, int bits, Place place>
BSK_INLINE void one_row_looked_up(const Block& block, const float* x, float* out) {
  FloatSums<V> sums;
  const Table<V, bits, place> table(block);
  walk<bits * V::kLanes, V::kLanes>(
      block, [&](int64_t) BSK_INLINED { sums.begin(); },
      [&](const uint32_t* words, int64_t chunk, auto half) BSK_INLINED {
        const float* at = x + chunk * kChunk;
        unroll<4>([&](auto q) BSK_INLINED {
          constexpr int quad = 4 * decltype(half)::value + decltype(q)::value;
          const auto codes = rough_quad<V, bits, quad>(words);
          unroll<4>([&](auto i) BSK_INLINED {
            constexpr int byte = decltype(i)::value;
            sums.template add<byte>(table.template look_up<byte>(codes), at + 4 * quad + byte);
          });
        });
      },
      [&](int64_t group) BSK_INLINED { sums.end(load_scales<V>(block, group)); });
  V::store(out, sums.total);
}

template <class V, int bits>
void one_row_integers(const Block& block, const float* x, float* out) {
  FloatSums<V> sums;
  Origin<V> origin(V::real(0));
  walk<bits * V::kLanes, V::kLanes>(
      block,
      [&](int64_t group) BSK_INLINED {
        sums.begin();
        origin = Origin<V>(V::to_float(load_zeros<V>(block, group)));
      },
      [&](const uint32_t* words, int64_t chunk, auto half) BSK_INLINED {
        const float* at = x + chunk * kChunk;
        unroll<4>([&](auto q) BSK_INLINED {
          constexpr int quad = 4 * decltype(half)::value + decltype(q)::value;
          const auto codes = rough_quad<V, bits, quad>(words);
          unroll<4>([&](auto i) BSK_INLINED {
            constexpr int byte = decltype(i)::value;
            sums.template add<byte>(centred<V, bits, byte>(codes, origin), at + 4 * quad + byte);
          });
        });
      },
      [&](int64_t group) BSK_INLINED { sums.end(load_scales<V>(block, group)); });
  V::store(out, sums.total);
}

template <class V, int bits>
void one_row_table(const Block& block, const float* x, float* out) {
  with_place<V, bits>(block, [&](auto place) BSK_INLINED {
    one_row_looked_up<V, bits, decltype(place)::value>(block, x, out);
  });
}

template <class V, int bits>
void one_row_codes(const Block& block, const CodeRows& x, float* out) {
  typename V::Int sum[kChains];
  auto total = V::real(0);
  walk<bits * V::kLanes, V::kLanes>(
      block,
      [&](int64_t) BSK_INLINED {
        for (auto& part : sum) part = V::splat(0);
      },
      [&](const uint32_t* words, int64_t chunk, auto half) BSK_INLINED {
        const int32_t* at = x.quads + chunk * kQuads;
        unroll<4>([&](auto q) BSK_INLINED {
          constexpr int chain = decltype(q)::value, quad = 4 * decltype(half)::value + chain;
          const auto codes = V::template factor<bits>(clean_quad<V, bits, quad>(words));
          sum[chain] = V::template dot<bits>(sum[chain], codes, at + quad);
        });
      },
      [&](int64_t group) BSK_INLINED {
        const auto all = V::add_ints(V::add_ints(sum[0], sum[1]), V::add_ints(sum[2], sum[3]));
        const auto zero = load_code_zeros<V, bits>(block, group);
        const auto part =
            without_zero<V>(block, all, zero, x.sums[group], x.sums_real[group]);
        total = block.groups == 1 ? part
                                  : V::multiply_add(part, load_scales<V>(block, group), total);
      });
  V::store(out, total);
}

// A row of floats as digits, lowest first: x.quads[quad][digit], x.sums[group][digit].
template <class V, int bits>
void one_row_digits(const Block& block, const CodeRows& x, float* out) {
  constexpr int kTurns = 2;  // sums of a digit that are independent of each other
  typename V::Int sum[kTurns][kDigits];
  auto total = V::real(0);
  walk<bits * V::kLanes, V::kLanes>(
      block,
      [&](int64_t) BSK_INLINED {
        for (auto& turn : sum) {
          for (auto& part : turn) part = V::splat(0);
        }
      },
      [&](const uint32_t* words, int64_t chunk, auto half) BSK_INLINED {
        const int32_t* at = x.quads + chunk * kQuads * kDigits;
        unroll<4>([&](auto q) BSK_INLINED {
          constexpr int quad = 4 * decltype(half)::value + decltype(q)::value;
          const auto codes = V::template factor<bits>(clean_quad<V, bits, quad>(words));
          unroll<kDigits>([&](auto d) BSK_INLINED {
            auto& part = sum[quad % kTurns][d];
            part = V::template dot<bits>(part, codes, at + quad * kDigits + d);
          });
        });
      },
      [&](int64_t group) BSK_INLINED {
        const auto zero = load_code_zeros<V, bits>(block, group);
        auto value = V::real(0);
        unroll<kDigits>([&](auto d) BSK_INLINED {
          constexpr int digit = kDigits - 1 - decltype(d)::value;
          const int64_t at = group * kDigits + digit;
          const auto all = V::add_ints(sum[0][digit], sum[1][digit]);
          const auto part = without_zero<V>(block, all, zero, x.sums[at], x.sums_real[at]);
          value = d ? V::multiply_add(value, V::real(256), part) : part;
        });
        total = block.groups == 1 ? value
                                  : V::multiply_add(value, load_scales<V>(block, group), total);
      });
  V::store(out, total);
}

}  // namespace
#endif
