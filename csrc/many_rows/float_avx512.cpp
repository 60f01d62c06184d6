#include "lanes_avx512.h"
// Of these lanes.
#include "finish.h"
#include "float_product.h"

namespace bitsmith::panels {

const FloatKernels kFloatAvx512 = {Lanes::count, float_multiply, finish};

}  // namespace bitsmith::panels
