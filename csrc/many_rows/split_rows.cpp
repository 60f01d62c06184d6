// Codes less their zero points have 8 bits and a sign, so a bfloat16 holds them. A float32 of x is
// the sum of three bfloat16 (a float16 of two), and a tile's products are exact, its sums float32.
// A group's sum is then multiplied by its scale, as with integer rows.
//
// Tiles take numbers below 2^-126 as 0, and make such sums 0. Of an element of x this cuts off less
// than 2^-126, and rows whose largest number is below 2^-62 are left to `float_rows`: what is lost
// is less than 2^-64 of the largest number of the row. Rows with numbers of 2^100 and more, of which
// a sum could overflow before its scale makes it small, infinite ones and NaN are left to it too.
#include "split_rows.h"

#include <cstring>

#include "../dispatch.h"
#include "float_rows.h"
#include "product.h"
#include "split_plan.h"
#include "workers.h"

namespace bitsmith::panels {
namespace {

constexpr uint32_t kLeast = (127 - 62) << 23, kBeyond = (127 + 100) << 23;  // bits of float32

constexpr int64_t kRowParts = 6;  // tiles of rows times parts, which stay in the first-level cache

// Null where the machine in use has no such tiles.
const SplitKernels* kernels() {
#if defined(__x86_64__)
  if (bsk_in_use() == BSK_AMX && amx_has_bfloat16()) return &kSplitAmx;
#endif
  return nullptr;
}

int parts_of(int type) { return type == BSK_FLOAT32 ? 3 : type == BSK_FLOAT16 ? 2 : 1; }

// One product, with all the memory that it takes.
class SplitRows {
 public:
  SplitRows(const Request& request, const SplitKernels& kernels)
      : request_(request),
        layout_(request.layout),
        kernels_(kernels),
        parts_(parts_of(request.type)),
        units_(request.layout),
        cut_(cut_of(request)),
        piece_tiles_(units_.of_piece() * units_.most_chunks()),
        row_tiles_(kRowParts / parts_),
        pairs_((cut_.panels + 1) / 2),
        direct_(request.type == BSK_FLOAT32 && layout_.padded == layout_.group),
        largest_(request.m),
        bias_(request.padded_n()),
        wide_(request.threads * wide_size()),
        x_(request.threads * x_size()),
        weights_(request.threads * weights_size()),
        scale_(request.threads * scale_size()),
        sums_(request.threads * sums_size()) {
    if (!complete()) return;
    pad_bias(request, bias_.get());
    std::fill(largest_.get(), largest_.get() + request.m, 0);
  }

  bool complete() const {
    return largest_.get() && bias_.get() && wide_.get() && x_.get() && weights_.get() &&
           scale_.get() && sums_.get();
  }

  void multiply() {
    share(cut_.tasks, request_.threads, [&](int64_t worker, Tasks& tasks) {
      for (int64_t task; tasks.take(&task);) product(task, worker);
      kernels_.leave();
    });
  }

  // Whether the tiles are right for a row.
  bool fits(int64_t row) const {
    const uint32_t largest = largest_.get()[row];
    return !largest || (largest >= kLeast && largest < kBeyond);
  }

 private:
  int64_t wide_size() const { return piece_tiles_ * kTileColumns; }
  int64_t x_size() const { return kRowParts * piece_tiles_ * kTileSize; }
  int64_t weights_size() const { return 2 * pairs_ * piece_tiles_ * kTileSize; }
  int64_t scale_size() const { return 2 * pairs_ * units_.of_piece() * layout_.lanes; }
  int64_t most_rows() const { return round_up(cut_.rows, kTileRows); }
  int64_t sums_stride(int64_t pairs) const { return 2 * pairs * layout_.lanes; }  // of a row
  int64_t sums_size() const { return most_rows() * sums_stride(pairs_); }

  void product(int64_t task, int64_t worker) {
    const int64_t panel = cut_.first_panel(task), panels = cut_.panels_of(task);
    const int64_t row = cut_.first_row(task), rows = cut_.rows_of(task);
    SplitProduct p = {};
    p.parts = parts_;
    p.tile_rows = tile_rows_of(rows);
    p.pairs = (panels + 1) / 2;
    uint16_t* x = x_.get() + worker * x_size();
    p.x = x;
    p.weights = weights_.get() + worker * weights_size();
    p.scale = scale_.get() + worker * scale_size();
    float* sums = sums_.get() + worker * sums_size();
    kernels_.enter(p.tile_rows);
    const int64_t step = row_tiles_ * p.tile_rows;  // rows at a time
    for (int64_t first = 0; first < units_.count(); first += units_.of_piece()) {
      const Piece piece = units_.piece(first);
      decode(panel, panels, piece, worker);
      p.units = piece.units;
      p.unit_count = piece.count;
      p.add = first > 0;
      for (int64_t from = 0; from < rows; from += step) {
        const int64_t count = std::min(step, rows - from);
        p.row_tiles = (count + p.tile_rows - 1) / p.tile_rows;
        split(row + from, count, p.row_tiles * p.tile_rows, piece, panel == 0, worker, x);
        p.sums = sums + from * sums_stride(p.pairs);
        kernels_.multiply(p);
      }
    }
    for (int64_t from = 0; from < rows; from += step) {
      const int64_t count = std::min(step, rows - from);
      finish(row + from, count, round_up(count, p.tile_rows), panel, p.pairs,
             sums + from * sums_stride(p.pairs));
    }
  }

  // Tiles and scales of the panels from `panel` on.
  void decode(int64_t panel, int64_t panels, const Piece& piece, int64_t worker) const {
    uint16_t* weights = weights_.get() + worker * weights_size();
    float* scale = scale_.get() + worker * scale_size();
    for (int64_t i = 0; i < round_up(panels, 2); ++i) {
      uint16_t* tile = weights + (i / 2 * piece.tiles * 2 + i % 2) * kTileSize;
      float* scales = scale + (i / 2 * piece.count * 2 + i % 2) * layout_.lanes;
      if (i < panels) {
        decode_panel(block_at(layout_, request_.packed, panel + i), piece, tile, scales);
      } else {
        clear_panel(piece, tile, scales);
      }
    }
  }

  void decode_panel(const Block& block, const Piece& piece, uint16_t* tile, float* scale) const {
    const auto codes_of = kernels_in_use().decode_codes[layout_.bits - 1];
    const int64_t lanes = layout_.lanes;
    alignas(kLine) uint32_t codes[kQuads * kMostLanes];
    for (int64_t i = 0; i < piece.count; ++i, scale += 2 * lanes) {
      const int64_t unit = piece.first + i, group = units_.group(unit);
      const uint8_t* zeros = block.zeros ? block.zeros + group * lanes : nullptr;
      for (int64_t c = 0; c < units_.chunks(unit); ++c, tile += 2 * kTileSize) {
        codes_of(block, units_.chunk(unit) + c, codes);
        kernels_.prepare(codes, zeros, block.zero_all, units_.half(unit), tile);
      }
      const int64_t at = group * lanes, element = block.half_scales ? 2 : 4;
      kernels_.widen(block.half_scales ? BSK_FLOAT16 : BSK_FLOAT32,
                     static_cast<const uint8_t*>(block.scales) + at * element, lanes, scale);
    }
  }

  // A panel that is only there because panels come in pairs.
  void clear_panel(const Piece& piece, uint16_t* tile, float* scale) const {
    for (int64_t t = 0; t < piece.tiles; ++t, tile += 2 * kTileSize) {
      std::fill(tile, tile + kTileSize, uint16_t{0});
    }
    for (int64_t i = 0; i < piece.count; ++i, scale += 2 * layout_.lanes) {
      std::fill(scale, scale + layout_.lanes, 0.0f);
    }
  }

  // Parts of the rows from `first` on, and of none up to `tile_rows`; `look`: keep the largest
  // number of each.
  void split(int64_t first, int64_t rows, int64_t tile_rows, const Piece& piece, bool look,
             int64_t worker, uint16_t* out) {
    const int64_t part_stride = tile_rows * kTileColumns, tile_stride = parts_ * part_stride;
    for (int64_t i = 0; i < tile_rows; ++i, out += kTileColumns) {
      if (i >= rows) {
        clear_row(piece, part_stride, out);
        continue;
      }
      const float* row = columns(first + i, piece, wide_.get() + worker * wide_size());
      kernels_.split(parts_, row, piece.chunks, part_stride, tile_stride, out);
      if (look) {
        uint32_t& most = largest_.get()[first + i];
        most = std::max(most, kernels_.largest(row, piece.chunks * kTileColumns));
      }
    }
  }

  void clear_row(const Piece& piece, int64_t part_stride, uint16_t* out) const {
    for (int64_t t = 0; t < piece.chunks * parts_; ++t, out += part_stride) {
      std::fill(out, out + kTileColumns, uint16_t{0});
    }
  }

  // A piece of a row of x as it is stored, with padding, as float32: where it is, or in `wide`.
  const float* columns(int64_t row, const Piece& piece, float* wide) const {
    const int64_t from = piece.chunk * kChunk, count = piece.chunks * kChunk;
    if (direct_ && from + count <= layout_.k) {
      return static_cast<const float*>(request_.x) + row * request_.x_stride + from;
    }
    const int64_t element = request_.type == BSK_FLOAT32 ? 4 : 2;
    const auto* x = static_cast<const uint8_t*>(request_.x) + row * request_.x_stride * element;
    std::fill(wide, wide + count, 0.0f);
    for (int64_t at = 0; at < count;) {
      const int64_t group = (from + at) / layout_.padded, in_group = (from + at) % layout_.padded;
      const int64_t stored = std::min(layout_.padded - in_group, count - at);
      const int64_t column = group * layout_.group + in_group;
      const int64_t end = std::min((group + 1) * layout_.group, layout_.k);
      const int64_t there = std::min(stored, end - column);
      if (there > 0) {
        kernels_.widen(request_.type, x + column * element, there, wide + at);
      }
      at += stored;
    }
    return wide;
  }

  void finish(int64_t row, int64_t rows, int64_t stored_rows, int64_t panel, int64_t pairs,
              const float* sums) const {
    Output out = {};
    out.type = request_.type;
    out.y = request_.y;
    out.stride = request_.y_stride;
    out.row = row;
    out.rows = rows;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      out.column = (panel + 2 * pair) * layout_.lanes;
      out.columns = std::min<int64_t>(2 * layout_.lanes, layout_.n - out.column);
      out.bias = bias_.get() + out.column;
      kernels_.finish(out, sums + pair * stored_rows * sums_stride(1), sums_stride(1));
    }
  }

  const Request& request_;
  const Layout& layout_;
  const SplitKernels& kernels_;
  const int parts_;
  const Units units_;
  const Cut cut_;
  const int64_t piece_tiles_, row_tiles_, pairs_;
  const bool direct_;  // x is read where it is
  Buffer<uint32_t> largest_;  // bits of the largest number of each row, without the sign
  Buffer<float> bias_, wide_;
  Buffer<uint16_t> x_, weights_;
  Buffer<float> scale_, sums_;
};

// The rows that tiles are not right for, once more.
int redo(const Request& request, const SplitRows& product) {
  int64_t count = 0;
  for (int64_t row = 0; row < request.m; ++row) count += !product.fits(row);
  if (!count) return BSK_OK;
  const int64_t element = request.type == BSK_FLOAT32 ? 4 : 2;
  const int64_t x_bytes = request.layout.k * element, y_bytes = request.layout.n * element;
  Buffer<uint8_t> x(count * x_bytes), y(count * y_bytes);
  if (!x.get() || !y.get()) return BSK_NO_MEMORY;
  const auto each = [&](const auto& use) {
    for (int64_t row = 0, at = 0; row < request.m; ++row) {
      if (!product.fits(row)) use(row, at++);
    }
  };
  each([&](int64_t row, int64_t at) {
    const auto* from = static_cast<const uint8_t*>(request.x) + row * request.x_stride * element;
    std::memcpy(x.get() + at * x_bytes, from, size_t(x_bytes));
  });
  const Request some = {request.layout, request.packed,   request.type, x.get(), count,
                        request.layout.k, request.bias,   y.get(),      request.layout.n,
                        request.threads};
  if (const int error = float_rows(some)) return error;
  each([&](int64_t row, int64_t at) {
    auto* to = static_cast<uint8_t*>(request.y) + row * request.y_stride * element;
    std::memcpy(to, y.get() + at * y_bytes, size_t(y_bytes));
  });
  return BSK_OK;
}

}  // namespace

bool can_split(int kind) { return kind == BSK_INTEGER && kernels(); }

int split_rows(const Request& request) {
  SplitRows product(request, *kernels());
  if (!product.complete()) return BSK_NO_MEMORY;
  product.multiply();
  return redo(request, product);
}

}  // namespace bitsmith::panels
