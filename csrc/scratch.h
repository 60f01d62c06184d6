// Memory that a thread keeps from call to call.
#ifndef BITSMITH_SCRATCH_H
#define BITSMITH_SCRATCH_H

#include <cstdint>

namespace bitsmith {

// Who uses it; what one has is not touched by another.
enum ScratchUse { kScratchRows, kScratchUses };

// The calling thread's memory for this use, of at least so many bytes, on 64 bytes; null where
// there is none to be had. What was in it is lost.
void* scratch(ScratchUse use, int64_t bytes);

}  // namespace bitsmith
#endif
