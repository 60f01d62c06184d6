// y = x · wᵀ + bias in float32.
#ifndef BITSMITH_PANELS_FLOAT_ROWS_H
#define BITSMITH_PANELS_FLOAT_ROWS_H

#include "cut.h"

namespace bitsmith::panels {

// BSK_OK or BSK_NO_MEMORY.
int float_rows(const Request& request);

}  // namespace bitsmith::panels
#endif
