#include "layout.h"

#include <cstring>

#include "dispatch.h"
#include "half.h"

namespace bitsmith {
namespace {

constexpr uint32_t kMagic = 0x4b534242;  // "BBSK"
constexpr int64_t kMost = int64_t{1} << 31;  // rows or columns
constexpr int64_t kMostCodes = int64_t{1} << 46;

struct Header {
  uint32_t magic;
  uint16_t version;
  uint8_t lanes, kind, bits, half_scales, zeros, table_rows;
  int32_t entries, zero_all;
  int64_t n, k, group, tables;
  uint8_t rest[8];
};
static_assert(sizeof(Header) == kHeaderBytes);

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

Header make_header(const bsk_weight& weight, const Layout& layout) {
  Header header;
  memset(&header, 0, sizeof header);
  header.magic = kMagic;
  header.version = BSK_VERSION;
  header.lanes = static_cast<uint8_t>(layout.lanes);
  header.kind = static_cast<uint8_t>(weight.kind);
  header.bits = static_cast<uint8_t>(weight.bits);
  header.half_scales = layout.storage.half_scales;
  header.zeros = layout.storage.zeros;
  header.table_rows = static_cast<uint8_t>(layout.storage.table_rows);
  header.entries = weight.entries;
  header.zero_all = layout.storage.zero_all;
  header.n = weight.n;
  header.k = weight.k;
  header.group = weight.group;
  header.tables = weight.tables;
  return header;
}

}  // namespace

int check_weight(const bsk_weight* weight) {
  if (!weight) return BSK_BAD_INPUT;
  const bsk_weight& w = *weight;
  if (w.kind != BSK_INTEGER && w.kind != BSK_TABLE) return BSK_BAD_WEIGHT;
  if (w.bits < 1 || w.bits > 8) return BSK_BAD_WEIGHT;
  if (w.n < 1 || w.k < 1 || w.n > kMost || w.k > kMost) return BSK_BAD_WEIGHT;
  if (w.group < 1 || w.group > w.k || w.k % w.group) return BSK_BAD_WEIGHT;
  if (w.rows < BSK_ROWS_FLOAT || w.rows > BSK_ROWS_LOOKUP) return BSK_BAD_WEIGHT;
  if (w.kind == BSK_TABLE) {
    if (w.entries < 1 || w.entries > 1 << w.bits) return BSK_BAD_WEIGHT;
    if (w.tables != 1 && w.tables != w.n) return BSK_BAD_WEIGHT;
  } else if (w.entries != 0 || w.tables != 0) {
    return BSK_BAD_WEIGHT;
  }
  // A group is padded to 32 columns and the rows to 16 at most.
  const int64_t padded = w.k / w.group * round_up(w.group, kChunk);
  return padded > kMostCodes / round_up(w.n, 16) ? BSK_UNSUPPORTED : BSK_OK;
}

int lanes_for(const bsk_weight& weight) {
  return weight.rows == BSK_ROWS_LOOKUP ? 1 : kernels_in_use().lanes;
}

Layout make_layout(const bsk_weight& weight, int lanes, const Storage& storage) {
  Layout out;
  out.lanes = lanes;
  out.bits = weight.bits == 7 ? 8 : weight.bits;
  out.kind = weight.kind;
  out.n = weight.n;
  out.k = weight.k;
  out.group = weight.group;
  out.groups = weight.k / weight.group;
  out.blocks = (weight.n + lanes - 1) / lanes;
  const bool halves = weight.group == kChunk / 2 && weight.k > weight.group;
  out.padded = halves ? weight.group : round_up(weight.group, kChunk);
  out.stored_groups = halves ? round_up(out.groups, 2) : out.groups;
  out.chunks = out.stored_groups * out.padded / kChunk;
  out.tables = weight.kind != BSK_TABLE ? 0 : weight.tables == 1 ? 1 : out.blocks * lanes;
  out.storage = storage;
  const int64_t scales = out.blocks * out.block_scales();
  out.words_at = sizeof(Header);
  out.scales_at = round_up(out.words_at + out.blocks * out.block_words() * 4, 64);
  out.zeros_at = round_up(out.scales_at + scales * (storage.half_scales ? 2 : 4), 64);
  out.tables_at = round_up(out.zeros_at + (storage.zeros ? scales : 0), 64);
  out.bytes = round_up(out.tables_at + out.tables * out.table_size() * 4, 64);
  return out;
}

void write_header(const bsk_weight& weight, const Layout& layout, void* packed) {
  const Header header = make_header(weight, layout);
  memcpy(packed, &header, sizeof header);
}

int open_packed(const bsk_weight* weight, const void* packed, Layout* layout) {
  if (const int error = check_weight(weight)) return error;
  if (!packed || reinterpret_cast<uintptr_t>(packed) % 64) return BSK_BAD_INPUT;
  Header found;
  memcpy(&found, packed, sizeof found);
  if (found.half_scales > 1 || found.zeros > 1) return BSK_BAD_PACKED;
  if (found.zero_all < 0 || found.zero_all >= 1 << weight->bits) return BSK_BAD_PACKED;
  const int shared = found.table_rows;
  if (shared != 1 && (weight->kind != BSK_TABLE || (shared != 0 && shared != 8))) {
    return BSK_BAD_PACKED;
  }
  if ((shared == 0) != (weight->tables == 1)) return BSK_BAD_PACKED;
  const Storage storage{found.half_scales == 1, found.zeros == 1, found.zero_all, shared};
  *layout = make_layout(*weight, lanes_for(*weight), storage);
  const Header expected = make_header(*weight, *layout);
  return memcmp(&found, &expected, sizeof found) ? BSK_BAD_PACKED : BSK_OK;
}

Block block_at(const Layout& layout, const void* packed, int64_t block) {
  const auto* bytes = static_cast<const uint8_t*>(packed);
  const Storage& storage = layout.storage;
  const int64_t first_scale = block * layout.block_scales();
  Block out;
  out.words = reinterpret_cast<const uint32_t*>(bytes + layout.words_at) +
              block * layout.block_words();
  out.scales = bytes + layout.scales_at + first_scale * (storage.half_scales ? 2 : 4);
  out.zeros = storage.zeros ? bytes + layout.zeros_at + first_scale : nullptr;
  out.zero_all = storage.zero_all;
  out.half_scales = storage.half_scales;
  out.exact_in_float = layout.padded <= (1 << 24) / (127 * 255);
  out.chunks = layout.chunks;
  out.group_chunks = layout.padded / kChunk;
  out.groups = layout.stored_groups;
  out.table_rows = storage.table_rows;
  out.table = reinterpret_cast<const float*>(bytes + layout.tables_at);
  if (storage.table_rows) out.table += block * layout.lanes * layout.table_size();
  return out;
}

float scale_at(const Layout& layout, const Block& block, int64_t group, int lane) {
  const int64_t at = group * layout.lanes + lane;
  if (block.half_scales) return float16_to_float(static_cast<const uint16_t*>(block.scales)[at]);
  return static_cast<const float*>(block.scales)[at];
}

int zero_at(const Layout& layout, const Block& block, int64_t group, int lane) {
  return block.zeros ? block.zeros[group * layout.lanes + lane] : block.zero_all;
}

}  // namespace bitsmith
