// The product of a packed weight with many rows of x: weights are decoded a tile at a
// time into cache and multiplied from there.
#ifndef BITSMITH_MANY_ROWS_H
#define BITSMITH_MANY_ROWS_H

#include "../request.h"

namespace bitsmith {

// Rows of x up to which the product of few rows is quicker.
int64_t most_few_rows(const bsk_weight& weight, int rows);

// y[m][n] = x[m][k] · wᵀ + bias[n]; any m ≥ 1 is right (few rows are better served elsewhere).
// Uses the instruction set in use. An element of y depends neither on the threads nor on the other
// rows.
//
// Returns BSK_OK, BSK_NO_MEMORY, BSK_NOT_FINITE for integer rows of which one is not finite, or
// BSK_UNSUPPORTED for a weight that is packed for look-ups, and for integer rows with a table or a
// group whose sum may leave 32 bits.
int many_rows(const Request& request, int rows);

}  // namespace bitsmith
#endif
