#include "few_rows.h"

#include <atomic>
#include <cstring>

#include "half.h"
#include "parallel.h"
#include "scratch.h"

namespace bitsmith {
namespace {

// Elements of x that one thread prepares before another has begun.
constexpr int64_t kSmallRows = 1 << 13;
// Columns of a group up to which its sum stays in 32 bits, whatever the codes.
constexpr int64_t kMostSummed = (int64_t{1} << 31) / (255 * 127) - 1;
constexpr int64_t kMostDigitsSummed = (int64_t{1} << 31) / (255 * 128) - 1;
constexpr int64_t kMostValues = int64_t{1} << 46;  // of x

// One call: the rows of x are taken up to eight at a time ("bands").
struct Product {
  const void* packed;
  Layout layout;
  const Kernels* kernels;
  int type, rows;
  const uint8_t* x;
  int64_t m, x_stride;
  const float* bias;
  uint8_t* y;
  int64_t y_stride;
  int64_t blocks_per_item;

  // Scratch, band after band.
  float* floats;      // [stored column][rows of the band]
  int32_t* quads;     // [stored quad][rows]
  int32_t* sums;      // [stored group][rows]
  float* sums_real;
  float* row_scales;  // [m]
  bool digits;        // one row of floats as rows of bytes (digits.h), in quads and sums
  float* wide;        // [m][k] as float32
  int8_t* codes;      // [m][k] as int8
  std::atomic<int> error{BSK_OK};

  int64_t bands() const { return (m + kMostRows - 1) / kMostRows; }
  int rows_of(int64_t band) const {
    const int64_t left = m - band * kMostRows;
    return static_cast<int>(left < kMostRows ? left : kMostRows);
  }
  bool scaled() const { return rows == BSK_ROWS_INT8 || digits; }
  int64_t element() const { return type == BSK_FLOAT32 ? 4 : 2; }
};

// log2 of the rows that the kernel for `rows` rows takes; those that are too many are 0.
int row_step(int rows) { return rows > 4 ? 3 : rows > 2 ? 2 : rows - 1; }

// Copy a row, group by group into its padded place, `step` elements apart.
template <class T>
void spread(const Layout& layout, const T* row, int64_t group, int64_t padded, int step, T* out) {
  for (int64_t from = 0, to = 0; from < layout.k; from += group, to += padded) {
    for (int64_t c = 0; c < group; ++c) out[(to + c) * step] = row[from + c];
  }
}

void spread_codes(const Layout& layout, const int8_t* row, int step, int32_t* out) {
  for (int64_t g = 0; g < layout.groups; ++g) {
    const int8_t* from = row + g * layout.group;
    int32_t* to = out + g * layout.padded / 4 * step;
    for (int64_t c = 0; c < layout.group; c += 4, to += step) {
      const int64_t left = layout.group - c;
      *to = 0;
      memcpy(to, from + c, left < 4 ? left : 4);
    }
  }
}

// Put the one row of floats into quads of its digits; false where it has none.
bool prepare_digits(const Product& p) {
  const Layout& layout = p.layout;
  const int64_t columns = layout.columns();
  float* stored = p.wide + layout.k;  // where groups are padded
  p.kernels->widen(p.type, p.x, layout.k, p.wide);
  memset(stored, 0, static_cast<size_t>(columns) * 4);
  spread(layout, p.wide, layout.group, layout.padded, 1, stored);
  if (!p.kernels->cut(stored, columns, columns, p.codes, p.row_scales)) return false;
  for (int64_t quad = 0; quad < columns / 4; ++quad) {
    for (int digit = 0; digit < kDigits; ++digit) {
      memcpy(p.quads + quad * kDigits + digit, p.codes + digit * columns + quad * 4, 4);
    }
  }
  for (int64_t i = 0; i < layout.stored_groups * kDigits; ++i) {
    const int8_t* digit = p.codes + i % kDigits * columns;
    p.sums[i] = p.kernels->sum_codes(digit + i / kDigits * layout.padded, layout.padded);
    p.sums_real[i] = static_cast<float>(p.sums[i]);
  }
  return true;
}

// Put row `row` into its band; BSK_NOT_FINITE where it has no codes.
int prepare_row(const Product& p, int64_t row) {
  const Layout& layout = p.layout;
  const int64_t band = row / kMostRows, at = row % kMostRows, first = band * kMostRows;
  const int step = 1 << row_step(p.rows_of(band));
  float* wide = p.wide + row * layout.k;
  p.kernels->widen(p.type, p.x + row * p.x_stride * p.element(), layout.k, wide);
  if (p.rows == BSK_ROWS_FLOAT) {
    spread(layout, wide, layout.group, layout.padded, step,
           p.floats + first * layout.columns() + at);
    return BSK_OK;
  }
  int8_t* codes = p.codes + row * layout.k;
  if (!p.kernels->quantize(wide, layout.k, codes, p.row_scales + row)) return BSK_NOT_FINITE;
  spread_codes(layout, codes, step, p.quads + first * layout.columns() / 4 + at);
  for (int64_t g = 0; g < layout.groups; ++g) {
    const int64_t to = first * layout.stored_groups + g * step + at;
    p.sums[to] = p.kernels->sum_codes(codes + g * layout.group, layout.group);
    p.sums_real[to] = static_cast<float>(p.sums[to]);
  }
  return BSK_OK;
}

void prepare_item(int64_t row, void* state) {
  auto* p = static_cast<Product*>(state);
  if (const int error = prepare_row(*p, row)) p->error.store(error, std::memory_order_relaxed);
}

// Finish one row of a block: scales, bias and type, in the order that the definition has.
// `scales`: of the rows of the weight, where the sums do not have them yet; else null.
void finish_row(const Product& p, int64_t first, int64_t row, const float* scales, float* sums) {
  const int64_t left = p.layout.n - first;
  const int count = left < p.layout.lanes ? static_cast<int>(left) : p.layout.lanes;
  if (p.scaled()) {
    for (int i = 0; i < count; ++i) sums[i] *= p.row_scales[row];
  }
  if (scales) {
    for (int i = 0; i < count; ++i) sums[i] *= scales[i];
  }
  if (p.bias) {
    for (int i = 0; i < count; ++i) sums[i] += p.bias[first + i];
  }
  const int64_t at = row * p.y_stride + first;
  if (p.type == BSK_FLOAT32) {
    memcpy(p.y + at * 4, sums, static_cast<size_t>(count) * 4);
    return;
  }
  for (int i = 0; i < count; ++i) {
    const uint16_t half =
        p.type == BSK_FLOAT16 ? float_to_float16(sums[i]) : float_to_bfloat16(sums[i]);
    memcpy(p.y + (at + i) * 2, &half, 2);
  }
}

// The sums of a block with the rows of a band, into out[row][lane].
void multiply_codes(const Product& p, const Block& block, int64_t first, int step, float* out) {
  const Layout& layout = p.layout;
  const int width = layout.bits - 1;
  const CodeRows x{p.quads + first * layout.columns() / 4, p.sums + first * layout.stored_groups,
                   p.sums_real + first * layout.stored_groups};
  if (p.digits) return p.kernels->one_row_digits[width](block, x, out);
  const auto one_row = p.kernels->one_row_codes[width];
  if (step == 0 && one_row) return one_row(block, x, out);
  const auto decode = layout.bits == 8 ? nullptr : p.kernels->decode_codes[width];
  p.kernels->code_product[step](block, decode, x, out);
}

void multiply_floats(const Product& p, const Block& block, int64_t first, int step, float* out) {
  const Layout& layout = p.layout;
  const int width = layout.bits - 1;
  const float* x = p.floats + first * layout.columns();
  const bool table = layout.kind == BSK_TABLE;
  const auto one_row = (table ? p.kernels->one_row_table : p.kernels->one_row_integers)[width];
  if (step == 0 && one_row) return one_row(block, x, out);
  const auto decode = (table ? p.kernels->decode_table : p.kernels->decode_integers)[width];
  p.kernels->float_product[step](block, decode, x, out);
}

void multiply_block(const Product& p, int64_t at) {
  const Block block = block_at(p.layout, p.packed, at);
  const int lanes = p.layout.lanes;
  alignas(64) float out[kMostRows * kMostLanes];
  float scales[kMostLanes];
  const bool unscaled = p.scaled() && p.layout.stored_groups == 1;
  for (int lane = 0; unscaled && lane < lanes; ++lane) {
    scales[lane] = scale_at(p.layout, block, 0, lane);
  }
  for (int64_t band = 0; band < p.bands(); ++band) {
    const int rows = p.rows_of(band), step = row_step(rows);
    const int64_t first = band * kMostRows;
    const auto multiply = p.scaled() ? multiply_codes : multiply_floats;
    multiply(p, block, first, step, out);
    for (int row = 0; row < rows; ++row) {
      finish_row(p, at * lanes, first + row, unscaled ? scales : nullptr, out + row * lanes);
    }
  }
}

void multiply_item(int64_t item, void* state) {
  const auto& p = *static_cast<const Product*>(state);
  const int64_t first = item * p.blocks_per_item, stop = first + p.blocks_per_item;
  for (int64_t block = first; block < stop && block < p.layout.blocks; ++block) {
    multiply_block(p, block);
  }
}

// Scratch for the rows, zeroed where columns or rows are only there to fill up.
bool reserve(Product* p) {
  const Layout& layout = p->layout;
  const int64_t rows = p->bands() * kMostRows, columns = layout.columns();
  const int64_t sums = rows * layout.stored_groups;
  const bool integers = p->scaled();
  const int64_t product = rows * columns * (integers ? 1 : 4);
  const int64_t wide = (p->m * layout.k + (p->digits ? columns : 0)) * 4;
  const int64_t codes = p->digits ? kDigits * columns : integers ? p->m * layout.k : 0;
  const int64_t bytes = product + (integers ? 8 * sums + 4 * rows : 0) + wide + codes + 256;
  auto* at = static_cast<uint8_t*>(scratch(kScratchRows, bytes));
  if (!at) return false;
  const auto take = [&at](int64_t size) {
    uint8_t* taken = at;
    at += size;
    return taken;
  };
  p->floats = reinterpret_cast<float*>(take(product));
  p->quads = reinterpret_cast<int32_t*>(p->floats);
  p->wide = reinterpret_cast<float*>(take(wide));
  if (integers) {
    p->sums = reinterpret_cast<int32_t*>(take(4 * sums));
    p->sums_real = reinterpret_cast<float*>(take(4 * sums));
    p->row_scales = reinterpret_cast<float*>(take(4 * rows));
    p->codes = reinterpret_cast<int8_t*>(take(codes));
    memset(p->sums, 0, static_cast<size_t>(8 * sums));
  }
  if (columns != layout.k || p->m % kMostRows) {
    memset(p->floats, 0, static_cast<size_t>(product));
  }
  return true;
}

// A row of floats is taken as digits where that is a product of its own and sums fit.
bool as_digits(const Product& p) {
  return p.m == 1 && p.rows == BSK_ROWS_FLOAT && p.layout.kind == BSK_INTEGER &&
         p.kernels->one_row_digits[p.layout.bits - 1] && p.layout.group <= kMostDigitsSummed;
}

int prepare(Product* p, int threads) {
  p->digits = as_digits(*p);
  if (!reserve(p)) return BSK_NO_MEMORY;
  if (p->digits) {
    if (prepare_digits(*p)) return BSK_OK;
    p->digits = false;
    if (!reserve(p)) return BSK_NO_MEMORY;
  }
  const bool together = p->m * p->layout.k < kSmallRows;
  parallel(p->m, together ? 1 : threads, prepare_item, p);
  return p->error.load(std::memory_order_relaxed);
}

}  // namespace

int few_rows(const Layout& layout, const void* packed, const Kernels& kernels, int type,
             const void* x, int64_t m, int64_t x_stride, const float* bias, void* y,
             int64_t y_stride, int rows, int threads) {
  if (rows == BSK_ROWS_INT8 && layout.group > kMostSummed) return BSK_UNSUPPORTED;
  if (m > kMostValues / layout.columns()) return BSK_NO_MEMORY;
  Product p{};
  p.layout = layout;
  p.packed = packed;
  p.kernels = &kernels;
  p.type = type;
  p.rows = rows;
  p.x = static_cast<const uint8_t*>(x);
  p.m = m;
  p.x_stride = x_stride;
  p.bias = bias;
  p.y = static_cast<uint8_t*>(y);
  p.y_stride = y_stride;
  if (const int error = prepare(&p, threads)) return error;
  if (layout.n * layout.k * m < kSmallWork) threads = 1;
  // Some items a thread, so that none waits long for another.
  const int64_t share = layout.blocks / (int64_t{threads} * 8);
  p.blocks_per_item = share < 1 ? 1 : share > 8 ? 8 : share;
  const int64_t items = (layout.blocks + p.blocks_per_item - 1) / p.blocks_per_item;
  parallel(items, threads, multiply_item, &p);
  return BSK_OK;
}

}  // namespace bitsmith
