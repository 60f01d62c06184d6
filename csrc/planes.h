// Where the bits of a code lie.
//
// A chunk is 32 columns of one row: `bits` words of 32 bits. A width is split into planes by its
// binary form (3 = 2 + 1, 6 = 4 + 2, 8 = 8); the widest plane holds the lowest bits of a code and
// comes first. In a plane of width p, column 4·s + i of the chunk is at bit 8·i + s·p mod 8 of
// word s·p / 8: so one shift and one mask bring the codes of four neighbouring columns (a "quad")
// into the four bytes of a word, as integer dot products want them.
#ifndef BITSMITH_PLANES_H
#define BITSMITH_PLANES_H

#include <cstdint>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the first column of a quad is the lowest byte of its word"
#endif

namespace bitsmith {

inline constexpr int kChunk = 32;             // columns
inline constexpr int kQuads = kChunk / 4;     // of a chunk

// The word (in its chunk) and the first bit in each byte of plane `width`, for quad `quad`.
constexpr int plane_word(int base, int width, int quad) { return base + quad * width / 8; }
constexpr int plane_bit(int width, int quad) { return quad * width % 8; }

// Call visit(width, base, low) for each plane: words from `base` on, bits from `low` on.
template <class Visit>
constexpr void each_plane(int bits, Visit visit) {
  int done = 0;  // words before, which is also the bits before
  for (int width = 8; width; width /= 2) {
    if (!(bits & width)) continue;
    visit(width, done, done);
    done += width;
  }
}

// The byte `value` four times.
constexpr uint32_t four(uint32_t value) { return value * 0x01010101u; }

// Put the four codes of a quad, one a byte, into a chunk of zeros whose words lie `stride` apart;
// and take them out.
inline void put_quad(uint32_t* chunk, int64_t stride, int bits, int quad, uint32_t codes) {
  each_plane(bits, [&](int width, int base, int low) {
    const uint32_t part = codes >> low & four((1u << width) - 1);
    chunk[plane_word(base, width, quad) * stride] |= part << plane_bit(width, quad);
  });
}

inline uint32_t get_quad(const uint32_t* chunk, int64_t stride, int bits, int quad) {
  uint32_t codes = 0;
  each_plane(bits, [&](int width, int base, int low) {
    const uint32_t word = chunk[plane_word(base, width, quad) * stride];
    codes |= (word >> plane_bit(width, quad) & four((1u << width) - 1)) << low;
  });
  return codes;
}

}  // namespace bitsmith
#endif
