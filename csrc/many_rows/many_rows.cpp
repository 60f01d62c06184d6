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

int many_rows(const Request& given, int rows) {
  const Layout& layout = given.layout;
  if (layout.lanes != kernels_in_use().lanes) return BSK_UNSUPPORTED;  // packed for look-ups
  Request request = given;
  if (layout.n * layout.k < kSmallWork / given.m) request.threads = 1;
  if (rows == BSK_ROWS_FLOAT) {
    return panels::can_split(layout.kind) ? panels::split_rows(request)
                                          : panels::float_rows(request);
  }
  if (layout.kind != BSK_INTEGER || layout.group > kMostSummed) return BSK_UNSUPPORTED;
  return panels::integer_rows(request);
}

}  // namespace bitsmith
