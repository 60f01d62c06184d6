// Into the packed form, and back.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cmath>
#include <cstring>

#include "half.h"
#include "layout.h"

namespace bitsmith {
namespace {

bool all_finite(const float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(values[i])) return false;
  }
  return true;
}

bool all_float16(const float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float back = float16_to_float(float_to_float16(values[i]));
    if (float_bits(back) != float_bits(values[i])) return false;
  }
  return true;
}

// BSK_OK, or what is wrong with the numbers.
int check_numbers(const bsk_weight& w, const uint8_t* codes, const float* scale,
                  const int32_t* zero, int32_t zero_all, const float* table) {
  uint8_t highest = 0;
  for (int64_t i = 0; i < w.n * w.k; ++i) highest = codes[i] > highest ? codes[i] : highest;
  const int codes_end = w.kind == BSK_TABLE ? w.entries : 1 << w.bits;
  if (highest >= codes_end) return BSK_BAD_CODES;
  const int64_t groups = w.n * (w.k / w.group);
  if (w.kind == BSK_INTEGER) {
    const auto outside = [&](int32_t z) { return z < 0 || z >= 1 << w.bits; };
    if (!zero && outside(zero_all)) return BSK_BAD_CODES;
    for (int64_t i = 0; zero && i < groups; ++i) {
      if (outside(zero[i])) return BSK_BAD_CODES;
    }
  } else if (!all_finite(table, w.tables * w.entries)) {
    return BSK_BAD_SCALE;
  }
  return all_finite(scale, groups) ? BSK_OK : BSK_BAD_SCALE;
}

// Rows that share a table: 0 (all), 8 or 1.
int shared_tables(const bsk_weight& w, const float* table) {
  if (w.kind != BSK_TABLE) return 1;
  if (w.tables == 1) return 0;
  const size_t bytes = static_cast<size_t>(w.entries) * 4;
  for (int64_t row = 0; row < w.n; ++row) {
    if (memcmp(table + row * w.entries, table + row / 8 * 8 * w.entries, bytes)) return 1;
  }
  return 8;
}

Storage choose_storage(const bsk_weight& w, const float* scale, const int32_t* zero,
                       int32_t zero_all, const float* table) {
  const int64_t groups = w.n * (w.k / w.group);
  Storage out;
  out.half_scales = all_float16(scale, groups);
  out.zeros = false;
  out.table_rows = shared_tables(w, table);
  if (w.kind == BSK_TABLE) return out;
  out.zero_all = zero ? zero[0] : zero_all;
  for (int64_t i = 0; zero && i < groups; ++i) out.zeros |= zero[i] != zero[0];
  if (out.zeros) out.zero_all = 0;
  return out;
}

// The stored columns of a group: all of it in quads, the last one filled up with 0.
void pack_row(const Layout& layout, const uint8_t* codes, uint32_t* words) {
  for (int64_t g = 0; g < layout.groups; ++g) {
    for (int64_t c = 0; c < layout.group; c += 4) {
      const int64_t left = layout.group - c, stored = g * layout.padded + c;
      uint32_t quad = 0;
      memcpy(&quad, codes + g * layout.group + c, left < 4 ? left : 4);
      put_quad(words + stored / kChunk * layout.bits * layout.lanes, layout.lanes, layout.bits,
               stored % kChunk / 4, quad);
    }
  }
}

void unpack_row(const Layout& layout, const uint32_t* words, uint8_t* codes) {
  for (int64_t g = 0; g < layout.groups; ++g) {
    for (int64_t c = 0; c < layout.group; c += 4) {
      const int64_t left = layout.group - c, stored = g * layout.padded + c;
      const uint32_t quad =
          get_quad(words + stored / kChunk * layout.bits * layout.lanes, layout.lanes,
                   layout.bits, stored % kChunk / 4);
      memcpy(codes + g * layout.group + c, &quad, left < 4 ? left : 4);
    }
  }
}

void pack_scales(const Layout& layout, const float* scale, const int32_t* zero, uint8_t* packed) {
  for (int64_t row = 0; row < layout.n; ++row) {
    const int64_t first = row / layout.lanes * layout.block_scales() + row % layout.lanes;
    for (int64_t g = 0; g < layout.groups; ++g) {
      const int64_t at = first + g * layout.lanes, from = row * layout.groups + g;
      if (layout.storage.half_scales) {
        reinterpret_cast<uint16_t*>(packed + layout.scales_at)[at] = float_to_float16(scale[from]);
      } else {
        reinterpret_cast<float*>(packed + layout.scales_at)[at] = scale[from];
      }
      if (layout.storage.zeros) packed[layout.zeros_at + at] = static_cast<uint8_t>(zero[from]);
    }
  }
}

}  // namespace
}  // namespace bitsmith

using namespace bitsmith;

extern "C" {

int64_t bsk_packed_bytes(const bsk_weight* weight) {
  if (const int error = check_weight(weight)) return error;
  return make_layout(*weight, lanes_for(*weight), Storage{}).bytes;
}

int64_t bsk_packed_used(const bsk_weight* weight, const void* packed) {
  Layout layout;
  if (const int error = open_packed(weight, packed, &layout)) return error;
  return layout.bytes;
}

void bsk_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  const auto start = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (start + kPage - 1) / kPage * kPage;
  if (!memory || bytes < 0 || start + static_cast<uintptr_t>(bytes) < first + kPage) return;
  const uintptr_t whole = (start + static_cast<uintptr_t>(bytes) - first) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), whole, MADV_HUGEPAGE);  // a wish: it may be refused
#else
  (void)memory, (void)bytes;
#endif
}

int bsk_pack(const bsk_weight* weight, const uint8_t* codes, const float* scale,
             const int32_t* zero, int32_t zero_all, const float* table, void* packed) {
  if (const int error = check_weight(weight)) return error;
  if (!codes || !scale || !packed || (weight->kind == BSK_TABLE) != (table != nullptr)) {
    return BSK_BAD_INPUT;
  }
  if (reinterpret_cast<uintptr_t>(packed) % 64) return BSK_BAD_INPUT;
  if (weight->kind == BSK_TABLE) zero = nullptr;
  if (const int error = check_numbers(*weight, codes, scale, zero, zero_all, table)) return error;
  const Storage storage = choose_storage(*weight, scale, zero, zero_all, table);
  const Layout layout = make_layout(*weight, lanes_for(*weight), storage);
  auto* bytes = static_cast<uint8_t*>(packed);
  memset(bytes, 0, static_cast<size_t>(layout.bytes));
  write_header(*weight, layout, packed);
  auto* words = reinterpret_cast<uint32_t*>(bytes + layout.words_at);
  for (int64_t row = 0; row < layout.n; ++row) {
    pack_row(layout, codes + row * layout.k,
             words + row / layout.lanes * layout.block_words() + row % layout.lanes);
  }
  pack_scales(layout, scale, zero, bytes);
  auto* tables = reinterpret_cast<float*>(bytes + layout.tables_at);
  for (int64_t t = 0; t < weight->tables; ++t) {
    memcpy(tables + t * layout.table_size(), table + t * weight->entries,
           static_cast<size_t>(weight->entries) * 4);
  }
  return BSK_OK;
}

int bsk_unpack(const bsk_weight* weight, const void* packed, uint8_t* codes, float* scale,
               int32_t* zero, float* table) {
  Layout layout;
  if (const int error = open_packed(weight, packed, &layout)) return error;
  for (int64_t row = 0; row < layout.n; ++row) {
    const Block block = block_at(layout, packed, row / layout.lanes);
    const int lane = static_cast<int>(row % layout.lanes);
    if (codes) unpack_row(layout, block.words + lane, codes + row * layout.k);
    for (int64_t g = 0; g < layout.groups; ++g) {
      if (scale) scale[row * layout.groups + g] = scale_at(layout, block, g, lane);
      if (zero) zero[row * layout.groups + g] = zero_at(layout, block, g, lane);
    }
  }
  const auto* tables = reinterpret_cast<const float*>(static_cast<const uint8_t*>(packed) +
                                                      layout.tables_at);
  for (int64_t t = 0; table && t < weight->tables; ++t) {
    memcpy(table + t * weight->entries, tables + t * layout.table_size(),
           static_cast<size_t>(weight->entries) * 4);
  }
  return BSK_OK;
}
}
