// Rows of a weight, decoded one by one.
#include <cstring>

#include "dispatch.h"
#include "half.h"
#include "layout.h"
#include "parallel.h"

namespace bitsmith {
namespace {

constexpr int64_t kRowsPerItem = 16;
constexpr int64_t kSmallWork = 1 << 16;  // values that one thread decodes by itself

struct Lookup {
  const void* packed;
  Layout layout;
  const Kernels* kernels;
  const int64_t* index;
  int64_t count;
  int type;
  uint8_t* y;
};

void put_values(int type, const float* values, int64_t step, int64_t count, uint8_t* y) {
  if (type == BSK_FLOAT32) {
    for (int64_t i = 0; i < count; ++i) memcpy(y + 4 * i, values + i * step, 4);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const float value = values[i * step];
    const uint16_t half =
        type == BSK_FLOAT16 ? float_to_float16(value) : float_to_bfloat16(value);
    memcpy(y + 2 * i, &half, 2);
  }
}

void decode_row(const Lookup& l, int64_t row, uint8_t* y) {
  const Layout& layout = l.layout;
  const Block block = block_at(layout, l.packed, row / layout.lanes);
  const int64_t lane = row % layout.lanes, size = l.type == BSK_FLOAT32 ? 4 : 2;
  const auto decode = (layout.kind == BSK_TABLE ? l.kernels->decode_table
                                                : l.kernels->decode_integers)[layout.bits - 1];
  alignas(64) float values[kChunk * kMostLanes];
  for (int64_t chunk = 0; chunk < layout.chunks; ++chunk) {
    decode(block, chunk, values);
    // A chunk is one piece of a padded group, or of groups without padding.
    const int64_t group = chunk * kChunk / layout.padded, within = chunk * kChunk % layout.padded;
    const int64_t first = group * layout.group + within;
    const int64_t stop = layout.padded == layout.group ? layout.k : (group + 1) * layout.group;
    const int64_t left = stop - first;
    put_values(l.type, values + lane, layout.lanes, left < kChunk ? left : kChunk,
               y + first * size);
  }
}

void decode_item(int64_t item, void* state) {
  const auto& l = *static_cast<const Lookup*>(state);
  const int64_t row_bytes = l.layout.k * (l.type == BSK_FLOAT32 ? 4 : 2);
  const int64_t stop = (item + 1) * kRowsPerItem;
  for (int64_t i = item * kRowsPerItem; i < stop && i < l.count; ++i) {
    decode_row(l, l.index[i], l.y + i * row_bytes);
  }
}

}  // namespace
}  // namespace bitsmith

extern "C" int bsk_embedding(const bsk_weight* weight, const void* packed, const int64_t* index,
                             int64_t count, int type, void* y, int threads) {
  using namespace bitsmith;
  Lookup l{};
  if (const int error = open_packed(weight, packed, &l.layout)) return error;
  if (count < 0 || type < BSK_FLOAT32 || type > BSK_BFLOAT16) return BSK_BAD_INPUT;
  if (count == 0) return BSK_OK;
  if (!index || !y) return BSK_BAD_INPUT;
  for (int64_t i = 0; i < count; ++i) {
    if (index[i] < 0 || index[i] >= weight->n) return BSK_BAD_INDEX;
  }
  l.packed = packed;
  l.kernels = weight->rows == BSK_ROWS_LOOKUP ? &kLookupKernels : &kernels_in_use();
  l.index = index;
  l.count = count;
  l.type = type;
  l.y = static_cast<uint8_t*>(y);
  if (count * weight->k < kSmallWork) threads = 1;
  parallel((count + kRowsPerItem - 1) / kRowsPerItem, threads, decode_item, &l);
  return BSK_OK;
}
