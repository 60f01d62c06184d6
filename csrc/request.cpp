#include "request.h"

#include "dispatch.h"

namespace bitsmith {

void Request::widen(int64_t row, float* out) const {
  const int64_t element = type == BSK_FLOAT32 ? 4 : 2;
  kernels_in_use().widen(type, static_cast<const uint8_t*>(x) + row * x_stride * element,
                         layout.k, out);
}

}  // namespace bitsmith
