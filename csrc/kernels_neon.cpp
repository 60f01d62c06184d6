#include "kernel_table.h"
#include "vector_neon.h"

namespace bitsmith {

const Kernels kNeonKernels = make_kernels<Neon, OneRow::kFused>();

}  // namespace bitsmith
