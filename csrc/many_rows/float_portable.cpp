#include "lanes_portable.h"
// Of these lanes.
#include "finish.h"
#include "float_product.h"

namespace bitsmith::panels {

const FloatKernels kFloatPortable = {Lanes::count, float_multiply, finish};

}  // namespace bitsmith::panels
