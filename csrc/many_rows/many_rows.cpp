#include "many_rows.h"

#include "../dispatch.h"
#include "float_rows.h"
#include "integer_rows.h"
#include "split_rows.h"

namespace bitsmith {

namespace {

// Products below which one thread is done before another has begun.
constexpr int64_t kSmallWork = 1 << 18;
// Columns of a group up to which its sum stays in 32 bits, whatever the codes.
constexpr int64_t kMostSummed = (int64_t{1} << 31) / (255 * 127) - 1;

}  // namespace

int64_t most_few_rows(const bsk_weight& weight, int rows) {
  return rows == BSK_ROWS_FLOAT && panels::can_split(weight.kind) ? 4 : 16;
}

int many_rows(const bsk_weight& weight, const void* packed, int type, const void* x, int64_t m,
              int64_t x_stride, const float* bias, void* y, int64_t y_stride, int rows,
              int threads) {
  Layout layout;
  if (const int error = open_packed(&weight, packed, &layout)) return error;
  if (layout.lanes != kernels_in_use().lanes) return BSK_UNSUPPORTED;  // packed for look-ups
  if (threads < 1 || layout.n * layout.k < kSmallWork / m) threads = 1;
  const panels::Request request = {layout, packed, type, x,        m,
                                   x_stride, bias, y,    y_stride, threads};
  if (rows == BSK_ROWS_FLOAT) {
    return panels::can_split(weight.kind) ? panels::split_rows(request)
                                          : panels::float_rows(request);
  }
  if (weight.kind != BSK_INTEGER || weight.group > kMostSummed) return BSK_UNSUPPORTED;
  return panels::integer_rows(request);
}

}  // namespace bitsmith
