#include "tiled_rows.h"

#include <atomic>

#include "../dispatch.h"
#include "../few_rows.h"
#include "../scratch.h"
#include "product.h"
#include "workers.h"

namespace bitsmith::panels {
namespace {

// Columns of a group up to which a sum of codes, or digits, stays in 32 bits, whatever they are.
constexpr int64_t kMostSummed = (int64_t{1} << 31) / (255 * 128) - 1;
// Elements of x that one thread prepares before another has begun.
constexpr int64_t kSmallRows = 1 << 13;

int64_t digits_of(int rows) { return rows == BSK_ROWS_FLOAT ? kDigits : 1; }

// Columns of a tile: as many as it takes of those that share the columns of a group evenly.
int64_t step_of(const Layout& layout) {
  if (layout.padded < kChunk) return layout.padded;
  return layout.padded % (2 * kChunk) ? kChunk : 2 * kChunk;
}

class TiledRows {
 public:
  TiledRows(const Request& request, int rows)
      : request_(request),
        threads_(request.layout.n * request.layout.k * request.m < kSmallWork ? 1 : request.threads),
        layout_(request.layout),
        kernels_(kTiledAmx),
        digits_(digits_of(rows)),
        product_(product_of(request.layout, digits_ * request.m)) {}

  // Rows of x as bytes, in scratch memory; false without memory.
  bool reserve() {
    const int64_t rows = product_.rows(), columns = layout_.columns(), m = request_.m;
    const int64_t sums = round_up(rows * layout_.stored_groups * 4, kLine);
    const int64_t row = round_up(columns * 4, kLine), bytes = round_up(digits_ * columns, kLine);
    const int64_t scales = round_up(m * 4, kLine);
    auto* at = static_cast<uint8_t*>(scratch(
        kScratchRows, round_up(rows * columns, kLine) + 2 * sums + scales + m * (2 * row + bytes)));
    if (!at) return false;
    const auto take = [&at](int64_t size) {
      uint8_t* taken = at;
      at += size;
      return taken;
    };
    x_ = reinterpret_cast<int8_t*>(take(round_up(rows * columns, kLine)));
    x_sums_ = reinterpret_cast<int32_t*>(take(sums));
    x_sums_real_ = reinterpret_cast<float*>(take(sums));
    row_scale_ = reinterpret_cast<float*>(take(scales));
    wide_ = reinterpret_cast<float*>(take(m * row));
    spread_ = reinterpret_cast<float*>(take(m * row));
    bytes_ = reinterpret_cast<int8_t*>(take(m * bytes));
    row_size_ = row / 4;
    bytes_size_ = bytes;
    product_.x = x_;
    product_.x_sums = x_sums_;
    product_.x_sums_real = x_sums_real_;
    for (int64_t i = digits_ * m; i < rows; ++i) place(i, nullptr);
    return true;
  }

  // False where a row has no codes.
  bool prepare() {
    std::atomic<bool> all{true};
    const bool together = request_.m * layout_.k < kSmallRows;
    share(request_.m, together ? 1 : threads_, [&](int64_t, Tasks& tasks) {
      for (int64_t row; tasks.take(&row);) {
        if (!prepare_row(row)) all = false;
      }
    });
    return all;
  }

  void multiply() {
    // Some tasks a thread, so that none waits long for another.
    const int64_t blocks = layout_.blocks, share_of = blocks / (int64_t{threads_} * 8);
    const int64_t of_task = share_of < 1 ? 1 : share_of > 8 ? 8 : share_of;
    share((blocks + of_task - 1) / of_task, threads_, [&](int64_t, Tasks& tasks) {
      kernels_.enter(product_.tile_rows, product_.step);
      for (int64_t task; tasks.take(&task);) {
        const int64_t end = std::min(blocks, (task + 1) * of_task);
        for (int64_t block = task * of_task; block < end; ++block) multiply_block(block);
      }
      kernels_.leave();
    });
  }

  // Rows of floats without digits, one after the other.
  int multiply_left() const {
    const int64_t element = request_.type == BSK_FLOAT32 ? 4 : 2;
    for (int64_t row = 0; row < request_.m; ++row) {
      if (!left_[row]) continue;
      Request one = request_;
      one.m = 1;
      one.x = static_cast<const uint8_t*>(one.x) + row * one.x_stride * element;
      one.y = static_cast<uint8_t*>(one.y) + row * one.y_stride * element;
      if (const int error = few_rows(one, kernels_in_use(), BSK_ROWS_FLOAT)) return error;
    }
    return BSK_OK;
  }

 private:
  static TiledProduct product_of(const Layout& layout, int64_t rows) {
    TiledProduct out = {};
    out.bits = layout.bits;
    out.step = step_of(layout);
    out.group_steps = layout.padded / out.step;
    out.row_tiles = (rows + kTileRows - 1) / kTileRows;
    out.tile_rows = (rows + out.row_tiles - 1) / out.row_tiles;
    out.decode = kernels_in_use().decode_codes[layout.bits - 1];
    return out;
  }

  bool prepare_row(int64_t row) {
    float* wide = wide_ + row * row_size_;
    int8_t* bytes = bytes_ + row * bytes_size_;
    float* scale = row_scale_ + row;
    request_.widen(row, wide);
    if (digits_ == 1) {
      auto* codes = reinterpret_cast<int8_t*>(spread_ + row * row_size_);
      if (!kernels_in_use().quantize(wide, layout_.k, codes, scale)) return false;
      spread(layout_, codes, bytes);
    } else {
      float* all = spread_ + row * row_size_;
      spread(layout_, wide, all);
      left_[row] = !kernels_in_use().cut(all, layout_.columns(), layout_.columns(), bytes, scale);
      if (left_[row]) *scale = 0.0f;
    }
    for (int64_t digit = 0; digit < digits_; ++digit) {
      place(row * digits_ + digit, left_[row] ? nullptr : bytes + digit * layout_.columns());
    }
    return true;
  }

  // Put a row of bytes into the tiles, with its sums; null: zeros.
  void place(int64_t row, const int8_t* bytes) {
    const int64_t step = product_.step, steps = layout_.columns() / step;
    int8_t* to = x_ + row * step;
    for (int64_t i = 0; i < steps; ++i, to += product_.rows() * step) {
      if (bytes) {
        std::copy(bytes + i * step, bytes + (i + 1) * step, to);
      } else {
        std::fill(to, to + step, int8_t{0});
      }
    }
    for (int64_t group = 0; group < layout_.stored_groups; ++group) {
      const int64_t at = group * product_.rows() + row;
      x_sums_[at] = bytes ? kernels_in_use().sum_codes(bytes + group * layout_.padded,
                                                       layout_.padded)
                          : 0;
      x_sums_real_[at] = static_cast<float>(x_sums_[at]);
    }
  }

  void multiply_block(int64_t at) const {
    const Block block = block_at(layout_, request_.packed, at);
    const int64_t first = at * layout_.lanes, left = layout_.n - first;
    alignas(64) float sums[kMostTileRows * kMostLanes], scales[kMostLanes], bias[kMostLanes];
    kernels_.multiply(product_, block, sums);
    if (digits_ > 1) add_digits(sums);
    Output out = {};
    out.type = request_.type;
    out.y = request_.y;
    out.stride = request_.y_stride;
    out.column = first;
    out.columns = std::min<int64_t>(left, layout_.lanes);
    out.rows = request_.m;
    out.row_scale = row_scale_;
    out.column_scale = scales;
    out.bias = bias;
    for (int lane = 0; lane < layout_.lanes; ++lane) {
      scales[lane] = layout_.stored_groups == 1 ? scale_at(layout_, block, 0, lane) : 1.0f;
      bias[lane] = request_.bias && lane < left ? request_.bias[first + lane] : kNoBias;
    }
    kernels_.finish(out, sums, layout_.lanes);
  }

  // Sums of digits to those of rows, which take the place of the first ones.
  void add_digits(float* sums) const {
    const int64_t lanes = layout_.lanes;
    for (int64_t row = 0; row < request_.m; ++row) {
      const float* digits = sums + row * kDigits * lanes;
      for (int64_t lane = 0; lane < lanes; ++lane) {
        float sum = digits[(kDigits - 1) * lanes + lane];
        for (int digit = kDigits - 2; digit >= 0; --digit) {
          sum = sum * 256.0f + digits[digit * lanes + lane];
        }
        sums[row * lanes + lane] = sum;
      }
    }
  }

  const Request& request_;
  const int threads_;
  const Layout& layout_;
  const TiledKernels& kernels_;
  const int64_t digits_;
  TiledProduct product_;
  int8_t *x_ = nullptr, *bytes_ = nullptr;
  int32_t* x_sums_ = nullptr;
  float *x_sums_real_ = nullptr, *row_scale_ = nullptr, *wide_ = nullptr, *spread_ = nullptr;
  int64_t row_size_ = 0, bytes_size_ = 0;
  bool left_[kMostTileRows] = {};  // rows without digits
};

}  // namespace

bool can_tile([[maybe_unused]] const bsk_weight& weight, [[maybe_unused]] int rows,
              [[maybe_unused]] int64_t m) {
#if defined(__x86_64__)
  return bsk_in_use() == BSK_AMX && weight.kind == BSK_INTEGER &&
         weight.rows != BSK_ROWS_LOOKUP && weight.group <= kMostSummed &&
         m * digits_of(rows) <= kMostTileRows;
#else
  return false;
#endif
}

int tiled_rows([[maybe_unused]] const Request& request, [[maybe_unused]] int rows) {
#if defined(__x86_64__)
  TiledRows product(request, rows);
  if (!product.reserve()) return BSK_NO_MEMORY;
  if (!product.prepare()) return BSK_NOT_FINITE;
  product.multiply();
  return product.multiply_left();
#else
  return BSK_UNSUPPORTED;
#endif
}

}  // namespace bitsmith::panels
