// Memory that is needed during one call, on cache lines of its own.
#ifndef BITSMITH_PANELS_BUFFER_H
#define BITSMITH_PANELS_BUFFER_H

#include <cstdint>
#include <cstdlib>

namespace bitsmith::panels {

constexpr int64_t kLine = 64;

// The least multiple of `unit` that is not below `value`.
constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// `count` elements, not initialised; `get` is null when there was no memory for them.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<T*>(
            std::aligned_alloc(kLine, size_t(round_up(count * int64_t(sizeof(T)) + 1, kLine))))) {}
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* get() const { return data_; }

 private:
  T* data_;
};

}  // namespace bitsmith::panels
#endif
