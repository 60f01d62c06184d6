#include "kernel_table.h"
#include "vector_avx512.h"

namespace bitsmith {

const Kernels kAvx512Kernels = make_kernels<Avx512, true>();

}  // namespace bitsmith
