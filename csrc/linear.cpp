// y = x · wᵀ + bias: which way is the quickest.
#include "dispatch.h"
#include "few_rows.h"
#include "layout.h"
#include "many_rows/many_rows.h"
#include "many_rows/tiled_rows.h"

extern "C" int bsk_linear(const bsk_weight* weight, const void* packed, int64_t packed_bytes,
                          int type, const void* x, int64_t m, int64_t x_stride, const float* bias,
                          void* y, int64_t y_stride, int rows, int threads) {
  using namespace bitsmith;
  Layout layout;
  if (packed_bytes < kHeaderBytes) return BSK_BAD_PACKED;
  if (const int error = open_packed(weight, packed, &layout)) return error;
  if (packed_bytes != layout.bytes) return BSK_BAD_PACKED;
  if (m < 0 || type < BSK_FLOAT32 || type > BSK_BFLOAT16) return BSK_BAD_INPUT;
  if (rows != BSK_ROWS_FLOAT && rows != BSK_ROWS_INT8) return BSK_BAD_INPUT;
  if (m == 0) return BSK_OK;
  if (!x || !y || x_stride < 0 || (m > 1 && y_stride < weight->n)) return BSK_BAD_INPUT;
  if (rows == BSK_ROWS_INT8 && weight->kind == BSK_TABLE) return BSK_UNSUPPORTED;
  if (threads < 1) threads = 1;
  const Request request = {layout, packed, type, x, m, x_stride, bias, y, y_stride, threads};
  if (m > 1 && panels::can_tile(*weight, rows, m)) return panels::tiled_rows(request, rows);
  const bool lookup = weight->rows == BSK_ROWS_LOOKUP;
  if (!lookup && m > most_few_rows(*weight, rows)) return many_rows(request, rows);
  return few_rows(request, lookup ? kLookupKernels : kernels_in_use(), rows);
}
