// Loops whose counter is a constant, as shifts by immediate operands need.
#ifndef BITSMITH_UNROLL_H
#define BITSMITH_UNROLL_H

#include <utility>

#define BSK_INLINE __attribute__((always_inline)) inline
// After the parameters of a lambda.
#define BSK_INLINED __attribute__((always_inline))

namespace {

template <class Body, int... I>
BSK_INLINE void unroll_over(Body&& body, std::integer_sequence<int, I...>) {
  (body(std::integral_constant<int, I>{}), ...);
}

// body(0), body(1), … body(count − 1), each with a constant.
template <int count, class Body>
BSK_INLINE void unroll(Body&& body) {
  unroll_over(body, std::make_integer_sequence<int, count>{});
}

}  // namespace
#endif
