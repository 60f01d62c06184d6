// Rows of codes of x times panels of codes: the loops around registers.
//
// Included by one file for each instruction set, after its Lanes and its Dot:
//
//   max_rows            whose sums stay in registers
//   row_bytes           of an encoded code of x
//   shift               what is added to codes of x, as some instructions want them unsigned
//   encode              codes of x as `add` reads them
//   Weights expand      a vector of four codes a lane, ready to be multiplied with several rows
//   Int add             sum + products with the same four codes of x in each lane
#ifndef BITSMITH_PANELS_INTEGER_PRODUCT_H
#define BITSMITH_PANELS_INTEGER_PRODUCT_H

#include "product.h"

namespace bitsmith::panels {
namespace {

template <class Dot, int Rows, int Panels>
class IntegerBlock {
 public:
  IntegerBlock(const IntegerProduct& product, int64_t row, int64_t panel)
      : p_(product),
        row_(row),
        x_(product.x + row * product.x_stride),
        weights_(product.weights + panel * product.depth() * L::count),
        parameters_(panel * product.groups * L::count),
        sums_(product.sums + row * product.sums_stride + panel * L::count) {}

  // Integer sums of a group stay in registers; float ones of the groups so far are in memory.
  void multiply() const {
    for (int64_t g = 0; g < p_.groups; ++g) {
      L::Int total[Rows][Panels];
      start(g, total);
      add_products(g, total);
      add_group(g, total);
    }
  }

 private:
  using L = Lanes;

  const int32_t* of_group(const int32_t* all, int64_t g, int v) const {
    return all + parameters_ + (v * p_.groups + g) * L::count;
  }

  void start(int64_t g, L::Int (&total)[Rows][Panels]) const {
#pragma GCC unroll 32
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 32
      for (int v = 0; v < Panels; ++v) {
        total[r][v] = L::load(of_group(p_.start, g, v));
        if (p_.zero) {
          const L::Int x_sum = L::broadcast(p_.x_sums[(row_ + r) * p_.groups + g]);
          const L::Int zero = L::load(of_group(p_.zero, g, v));
          total[r][v] = L::subtract(total[r][v], L::multiply(zero, x_sum));
        }
      }
    }
  }

  void add_products(int64_t g, L::Int (&total)[Rows][Panels]) const {
    const uint8_t* x = x_ + g * p_.columns * Dot::row_bytes;
    const int8_t* weights = weights_ + g * p_.columns * L::count;
    const int64_t panel_stride = p_.depth() * L::count;
    for (int64_t c = 0; c < p_.columns; c += 4) {
      typename Dot::Weights weight[Panels];
#pragma GCC unroll 32
      for (int v = 0; v < Panels; ++v) {
        weight[v] = Dot::expand(L::load(weights + v * panel_stride + c * L::count));
      }
#pragma GCC unroll 32
      for (int r = 0; r < Rows; ++r) {
        const auto codes = Dot::load(x + r * p_.x_stride + c * Dot::row_bytes);
#pragma GCC unroll 32
        for (int v = 0; v < Panels; ++v) total[r][v] = Dot::add(total[r][v], codes, weight[v]);
      }
    }
  }

  void add_group(int64_t g, const L::Int (&total)[Rows][Panels]) const {
#pragma GCC unroll 32
    for (int v = 0; v < Panels; ++v) {
      const L::Float scale = L::load(p_.scale + parameters_ + (v * p_.groups + g) * L::count);
#pragma GCC unroll 32
      for (int r = 0; r < Rows; ++r) {
        float* sum = sums_ + r * p_.sums_stride + v * L::count;
        const L::Float value = L::to_float(total[r][v]);
        L::store(sum, g ? L::multiply_add(value, scale, L::load(sum)) : L::multiply(value, scale));
      }
    }
  }

  const IntegerProduct& p_;
  const int64_t row_;
  const uint8_t* x_;
  const int8_t* weights_;
  const int64_t parameters_;
  float* sums_;
};

// The block of as many rows as asked for, of those there is code for.
template <class Dot, int Panels, int Rows = Dot::max_rows>
inline void integer_rows(const IntegerProduct& p, int64_t row, int rows, int64_t panel) {
  if constexpr (Rows > 0) {
    if (rows == Rows) return IntegerBlock<Dot, Rows, Panels>(p, row, panel).multiply();
    integer_rows<Dot, Panels, Rows - 1>(p, row, rows, panel);
  }
}

// The rows cut into blocks of almost equal numbers.
template <class Dot, int Panels>
inline void integer_panels(const IntegerProduct& p, int64_t panel) {
  int64_t left = (p.rows + Dot::max_rows - 1) / Dot::max_rows;
  for (int64_t row = 0; left; --left) {
    const int rows = int((p.rows - row + left - 1) / left);
    integer_rows<Dot, Panels>(p, row, rows, panel);
    row += rows;
  }
}

// The panels cut into blocks of as many as there are registers for, and what is left.
template <class Dot, int Panels>
void integer_multiply_from(const IntegerProduct& p, int64_t panel) {
  if constexpr (Panels > 0) {
    for (; panel + Panels <= p.panels; panel += Panels) integer_panels<Dot, Panels>(p, panel);
    integer_multiply_from<Dot, Panels - 1>(p, panel);
  }
}

template <class Dot>
void integer_multiply(const IntegerProduct& p) {
  integer_multiply_from<Dot, Lanes::max_panels>(p, 0);
}

// Take zero points off the codes, and start sums at −shift · Σ codes.
template <class Dot>
void prepare(int64_t groups, int64_t columns, const int32_t* zero, int8_t* panel,
             int32_t* start) {
  using L = Lanes;
  constexpr int32_t kEach = 0x01010101;
  [[maybe_unused]] const uint8_t ones[4] = {1, 1, 1, 1};  // as they are where there is a shift
  for (int64_t g = 0; g < groups; ++g, start += L::count) {
    L::Int sum = L::broadcast(0);
    // At most 255, four times.
    const L::Int points = L::multiply(L::load(zero + g * L::count), L::broadcast(kEach));
    for (int64_t c = 0; c < columns; c += 4, panel += 4 * L::count) {
      const L::Int codes = L::subtract_bytes(L::load(panel), points);
      L::store(panel, codes);
      if constexpr (Dot::shift) sum = Dot::add(sum, Dot::load(ones), Dot::expand(codes));
    }
    L::store(start, L::multiply(sum, L::broadcast(-Dot::shift)));
  }
}

}  // namespace
}  // namespace bitsmith::panels
#endif
