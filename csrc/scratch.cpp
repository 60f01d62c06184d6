#include "scratch.h"

#include <cstdlib>

namespace bitsmith {
namespace {

struct Buffer {
  void* at = nullptr;
  int64_t bytes = 0;
  ~Buffer() { free(at); }
};

thread_local Buffer buffers[kScratchUses];

}  // namespace

void* scratch(ScratchUse use, int64_t bytes) {
  Buffer& buffer = buffers[use];
  if (bytes < 0) return nullptr;
  if (bytes <= buffer.bytes) return buffer.at;
  void* grown = nullptr;
  if (posix_memalign(&grown, 64, static_cast<size_t>(bytes) + 64)) return nullptr;
  free(buffer.at);
  buffer.at = grown;
  buffer.bytes = bytes;
  return grown;
}

}  // namespace bitsmith
