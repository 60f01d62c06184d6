// Which instruction set runs.
#ifndef BITSMITH_DISPATCH_H
#define BITSMITH_DISPATCH_H

#include "kernels.h"

namespace bitsmith {

// The kernels of the instruction set in use.
const Kernels& kernels_in_use();

// The machine has AMX with int8, and the system lets this process use it. Asked for once.
bool amx_ready();
// It is ready, and has bfloat16 too.
bool amx_has_bfloat16();

}  // namespace bitsmith
#endif
