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
// Rows of floats up to which digits of one row at a time are quicker than floats of all.
constexpr int64_t kMostAlone = 3;

// One call: the rows of x are taken up to eight at a time ("bands").
struct Product {
  const Request& request;
  const Layout& layout;
  const Kernels& kernels;
  int64_t m;
  int rows;
  bool alone;  // see has_digits
  int64_t blocks_per_item = 1;

  // Scratch, band after band.
  float* floats = nullptr;     // [stored column][rows of the band]
  int32_t* quads = nullptr;    // [stored quad][rows]
  int32_t* sums = nullptr;     // [stored group][rows]
  float* sums_real = nullptr;
  float* row_scales = nullptr;  // [m]
  float* wide = nullptr;       // [m][k] as float32
  int8_t* codes = nullptr;     // [m][k] as int8
  std::atomic<int> error{BSK_OK};

  // Rows of floats that are multiplied one by one: as digits (digits_avx512.h), in quads[row][stored
  // quad][digit] and sums[row][stored group][digit], or where a row has none as floats[row].
  bool has_digits[kMostAlone] = {};

  int64_t bands() const { return (m + kMostRows - 1) / kMostRows; }
  int rows_of(int64_t band) const {
    const int64_t left = m - band * kMostRows;
    return static_cast<int>(left < kMostRows ? left : kMostRows);
  }
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

// Put a row of floats into quads of its digits, or leave it as it is.
void prepare_alone(Product* p, int64_t row) {
  const Layout& layout = p->layout;
  const int64_t columns = layout.columns(), groups = layout.stored_groups * kDigits;
  float* wide = p->wide + row * (layout.k + columns);
  float* stored = wide + layout.k;  // where groups are padded
  int8_t* digits = p->codes + row * kDigits * columns;
  p->request.widen(row, wide);
  memset(stored, 0, static_cast<size_t>(columns) * 4);
  spread(layout, wide, layout.group, layout.padded, 1, stored);
  p->has_digits[row] = p->kernels.cut(stored, columns, columns, digits, p->row_scales + row);
  if (!p->has_digits[row]) {
    memcpy(p->floats + row * columns, stored, static_cast<size_t>(columns) * 4);
    return;
  }
  int32_t* quads = p->quads + row * columns;
  for (int64_t i = 0; i < columns; ++i) {
    memcpy(quads + i, digits + i % kDigits * columns + i / kDigits * 4, 4);
  }
  for (int64_t i = 0; i < groups; ++i) {
    const int8_t* from = digits + i % kDigits * columns + i / kDigits * layout.padded;
    p->sums[row * groups + i] = p->kernels.sum_codes(from, layout.padded);
    p->sums_real[row * groups + i] = static_cast<float>(p->sums[row * groups + i]);
  }
}

// Put row `row` into its band; BSK_NOT_FINITE where it has no codes.
int prepare_row(const Product& p, int64_t row) {
  const Layout& layout = p.layout;
  const int64_t band = row / kMostRows, at = row % kMostRows, first = band * kMostRows;
  const int step = 1 << row_step(p.rows_of(band));
  float* wide = p.wide + row * layout.k;
  p.request.widen(row, wide);
  if (p.rows == BSK_ROWS_FLOAT) {
    spread(layout, wide, layout.group, layout.padded, step,
           p.floats + first * layout.columns() + at);
    return BSK_OK;
  }
  int8_t* codes = p.codes + row * layout.k;
  if (!p.kernels.quantize(wide, layout.k, codes, p.row_scales + row)) return BSK_NOT_FINITE;
  spread_codes(layout, codes, step, p.quads + first * layout.columns() / 4 + at);
  for (int64_t g = 0; g < layout.groups; ++g) {
    const int64_t to = first * layout.stored_groups + g * step + at;
    p.sums[to] = p.kernels.sum_codes(codes + g * layout.group, layout.group);
    p.sums_real[to] = static_cast<float>(p.sums[to]);
  }
  return BSK_OK;
}

void prepare_item(int64_t row, void* state) {
  auto* p = static_cast<Product*>(state);
  if (p->alone) return prepare_alone(p, row);
  if (const int error = prepare_row(*p, row)) p->error.store(error, std::memory_order_relaxed);
}

// Finish one row of a block: scales, bias and type, in the order that the definition has.
// `scaled`: by the scale of the row. `scales`: of the rows of the weight, where the sums do not have
// them yet; else null.
void finish_row(const Product& p, int64_t first, int64_t row, bool scaled, const float* scales,
                float* sums) {
  const Request& request = p.request;
  const int64_t left = p.layout.n - first;
  const int count = left < p.layout.lanes ? static_cast<int>(left) : p.layout.lanes;
  if (scaled) {
    for (int i = 0; i < count; ++i) sums[i] *= p.row_scales[row];
  }
  if (scales) {
    for (int i = 0; i < count; ++i) sums[i] *= scales[i];
  }
  if (request.bias) {
    for (int i = 0; i < count; ++i) sums[i] += request.bias[first + i];
  }
  auto* y = static_cast<uint8_t*>(request.y);
  const int64_t at = row * request.y_stride + first;
  if (request.type == BSK_FLOAT32) {
    memcpy(y + at * 4, sums, static_cast<size_t>(count) * 4);
    return;
  }
  for (int i = 0; i < count; ++i) {
    const uint16_t half =
        request.type == BSK_FLOAT16 ? float_to_float16(sums[i]) : float_to_bfloat16(sums[i]);
    memcpy(y + (at + i) * 2, &half, 2);
  }
}

// The sums of a block with the rows of a band, into out[row][lane].
void multiply_codes(const Product& p, const Block& block, int64_t first, int step, float* out) {
  const Layout& layout = p.layout;
  const int width = layout.bits - 1;
  const CodeRows x{p.quads + first * layout.columns() / 4, p.sums + first * layout.stored_groups,
                   p.sums_real + first * layout.stored_groups};
  const auto one_row = p.kernels.one_row_codes[width];
  if (step == 0 && one_row) return one_row(block, x, out);
  const auto decode = layout.bits == 8 ? nullptr : p.kernels.decode_codes[width];
  p.kernels.code_product[step](block, decode, x, out);
}

void multiply_floats(const Product& p, const Block& block, int64_t first, int step, float* out) {
  const Layout& layout = p.layout;
  const int width = layout.bits - 1;
  const float* x = p.floats + first * layout.columns();
  const bool table = layout.kind == BSK_TABLE;
  const auto one_row = (table ? p.kernels.one_row_table : p.kernels.one_row_integers)[width];
  if (step == 0 && one_row) return one_row(block, x, out);
  const auto decode = (table ? p.kernels.decode_table : p.kernels.decode_integers)[width];
  p.kernels.float_product[step](block, decode, x, out);
}

void multiply_alone(const Product& p, const Block& block, int64_t first, const float* scales) {
  const int width = p.layout.bits - 1;
  const int64_t columns = p.layout.columns(), groups = p.layout.stored_groups * kDigits;
  alignas(64) float out[kMostLanes];
  for (int64_t row = 0; row < p.m; ++row) {
    if (p.has_digits[row]) {
      p.kernels.one_row_digits[width](
          block, {p.quads + row * columns, p.sums + row * groups, p.sums_real + row * groups},
          out);
      finish_row(p, first, row, true, scales, out);
    } else {
      p.kernels.one_row_integers[width](block, p.floats + row * columns, out);
      finish_row(p, first, row, false, nullptr, out);
    }
  }
}

void multiply_block(const Product& p, int64_t at) {
  const Block block = block_at(p.layout, p.request.packed, at);
  const int lanes = p.layout.lanes;
  const bool integers = p.rows == BSK_ROWS_INT8;
  alignas(64) float out[kMostRows * kMostLanes];
  float of_lanes[kMostLanes];
  const float* scales = (integers || p.alone) && p.layout.stored_groups == 1 ? of_lanes : nullptr;
  for (int lane = 0; scales && lane < lanes; ++lane) {
    of_lanes[lane] = scale_at(p.layout, block, 0, lane);
  }
  if (p.alone) return multiply_alone(p, block, at * lanes, scales);
  for (int64_t band = 0; band < p.bands(); ++band) {
    const int rows = p.rows_of(band), step = row_step(rows);
    const int64_t first = band * kMostRows;
    const auto multiply = integers ? multiply_codes : multiply_floats;
    multiply(p, block, first, step, out);
    for (int row = 0; row < rows; ++row) {
      finish_row(p, at * lanes, first + row, integers, scales, out + row * lanes);
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
  const int64_t sums = (p->alone ? p->m * kDigits : rows) * layout.stored_groups;
  const bool integers = p->rows == BSK_ROWS_INT8 || p->alone;
  const int64_t product = rows * columns * (p->rows == BSK_ROWS_INT8 ? 1 : 4);
  const int64_t wide = p->m * (layout.k + (p->alone ? columns : 0)) * 4;
  const int64_t codes = p->m * (p->alone ? kDigits * columns : integers ? layout.k : 0);
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

// Whether rows of floats are multiplied one by one, as digits.
bool one_by_one(const Request& request, const Kernels& kernels, int rows) {
  const Layout& layout = request.layout;
  return request.m <= kMostAlone && rows == BSK_ROWS_FLOAT && layout.kind == BSK_INTEGER &&
         kernels.one_row_digits[layout.bits - 1] && layout.group <= kMostDigitsSummed;
}

}  // namespace

int few_rows(const Request& request, const Kernels& kernels, int rows) {
  const Layout& layout = request.layout;
  const int64_t m = request.m;
  if (rows == BSK_ROWS_INT8 && layout.group > kMostSummed) return BSK_UNSUPPORTED;
  if (m > kMostValues / layout.columns()) return BSK_NO_MEMORY;
  Product p{request, layout, kernels, m, rows, one_by_one(request, kernels, rows)};
  if (!reserve(&p)) return BSK_NO_MEMORY;
  parallel(m, m * layout.k < kSmallRows ? 1 : request.threads, prepare_item, &p);
  if (const int error = p.error.load(std::memory_order_relaxed)) return error;
  const int threads = layout.n * layout.k * m < kSmallWork ? 1 : request.threads;
  // Some items a thread, so that none waits long for another.
  const int64_t share = layout.blocks / (int64_t{threads} * 8);
  p.blocks_per_item = share < 1 ? 1 : share > 8 ? 8 : share;
  const int64_t items = (layout.blocks + p.blocks_per_item - 1) / p.blocks_per_item;
  parallel(items, threads, multiply_item, &p);
  return BSK_OK;
}

}  // namespace bitsmith
