#include "kernel_table.h"
#include "vector_avx2.h"

namespace bitsmith {

const Kernels kAvx2Kernels = make_kernels<Avx2, OneRow::kFused>();

}  // namespace bitsmith
