// y = x · wᵀ + bias with each row of x as int8 codes and a scale.
#ifndef BITSMITH_PANELS_INTEGER_ROWS_H
#define BITSMITH_PANELS_INTEGER_ROWS_H

#include "cut.h"

namespace bitsmith::panels {

// Of a weight of kind BSK_INTEGER. BSK_OK, BSK_NO_MEMORY, or BSK_NOT_FINITE where a row of x has
// no codes.
int integer_rows(const Request& request);

}  // namespace bitsmith::panels
#endif
