// Work on all cores: the threads that torch has already, or a pool of our own.
#ifndef BITSMITH_PARALLEL_H
#define BITSMITH_PARALLEL_H

#include <cstdint>

namespace bitsmith {

// Call body(item) once for every item in [0, items), on at most `threads` threads, in any order.
// `state` is handed through. Returns when all are done.
void parallel(int64_t items, int threads, void (*body)(int64_t item, void* state), void* state);

}  // namespace bitsmith
#endif
