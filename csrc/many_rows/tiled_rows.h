// y = x · wᵀ + bias for some rows, on tile registers of bytes that are filled straight from the
// packed codes: between one row, which the vectors multiply as fast as the weight can be read, and
// many, for which decoded weights are used often enough to be prepared.
//
// Rows of floats are cut into digits (../digits_avx512.h), which are multiplied as rows of integers.
#ifndef BITSMITH_PANELS_TILED_ROWS_H
#define BITSMITH_PANELS_TILED_ROWS_H

#include "cut.h"

namespace bitsmith::panels {

// The instruction set in use has such tiles, and this product of `m` rows fits them.
bool can_tile(const bsk_weight& weight, int rows, int64_t m);

// Of a product that can be tiled. BSK_OK, BSK_NO_MEMORY, or BSK_NOT_FINITE for integer rows of which
// one is not finite. An element of y depends neither on the threads nor on the other rows.
int tiled_rows(const Request& request, int rows);

}  // namespace bitsmith::panels
#endif
