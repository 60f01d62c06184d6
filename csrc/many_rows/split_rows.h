// y = x · wᵀ + bias in float32, on tiles of bfloat16.
#ifndef BITSMITH_PANELS_SPLIT_ROWS_H
#define BITSMITH_PANELS_SPLIT_ROWS_H

#include "cut.h"

namespace bitsmith::panels {

// The machine in use has such tiles, and the weight is of integers (`kind` is BSK_INTEGER).
bool can_split(int kind);

// BSK_OK or BSK_NO_MEMORY.
int split_rows(const Request& request);

}  // namespace bitsmith::panels
#endif
