#include "kernel_table.h"
#include "vector_portable.h"

namespace bitsmith {

const Kernels kPortableKernels = make_kernels<Portable<4>, OneRow::kSame>();
const Kernels kLookupKernels = make_kernels<Portable<1>, OneRow::kSame>();

}  // namespace bitsmith
