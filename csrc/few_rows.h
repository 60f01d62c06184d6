// The product of a packed weight with few rows of x: codes are decoded for every one, or eight.
#ifndef BITSMITH_FEW_ROWS_H
#define BITSMITH_FEW_ROWS_H

#include "kernels.h"
#include "request.h"

namespace bitsmith {

// Products below which one thread is done before another has begun.
inline constexpr int64_t kSmallWork = 1 << 16;

// y[m][n] = x[m][k] · wᵀ + bias[n] with the kernels that the weight is packed for. BSK_OK,
// BSK_NO_MEMORY, BSK_NOT_FINITE for integer rows of which one is not finite, or BSK_UNSUPPORTED
// for a group whose sum may leave 32 bits.
int few_rows(const Request& request, const Kernels& kernels, int rows);

}  // namespace bitsmith
#endif
