// The table of kernels of one instruction set; included once by each kernels_*.cpp.
#ifndef BITSMITH_KERNEL_TABLE_H
#define BITSMITH_KERNEL_TABLE_H

#include "chunks.h"
#include "kernels.h"
#include "one_row.h"
#include "rows.h"
#include "several_rows.h"

namespace {

// `fused`: with products of one row that decode in registers.
template <class V, bool fused, int bits>
constexpr void set_width(bitsmith::Kernels* table) {
  table->decode_integers[bits - 1] = chunk_integers<V, bits>;
  table->decode_table[bits - 1] = chunk_table<V, bits>;
  table->decode_codes[bits - 1] = chunk_codes<V, bits>;
  if constexpr (fused) {
    table->one_row_integers[bits - 1] = one_row_integers<V, bits>;
    table->one_row_codes[bits - 1] = one_row_codes<V, bits>;
    table->one_row_table[bits - 1] = one_row_table<V, bits>;
  }
}

template <class V, int step>
constexpr void set_products(bitsmith::Kernels* table) {
  table->float_product[step] = float_product<V, 1 << step>;
  table->code_product[step] = code_product<V, 1 << step>;
}

// Of all widths but 7, which is stored in 8 bits.
template <class V, bool fused>
constexpr bitsmith::Kernels make_kernels() {
  bitsmith::Kernels table{};
  table.lanes = V::kLanes;
  set_width<V, fused, 1>(&table);
  set_width<V, fused, 2>(&table);
  set_width<V, fused, 3>(&table);
  set_width<V, fused, 4>(&table);
  set_width<V, fused, 5>(&table);
  set_width<V, fused, 6>(&table);
  set_width<V, fused, 8>(&table);
  set_products<V, 0>(&table);
  set_products<V, 1>(&table);
  set_products<V, 2>(&table);
  set_products<V, 3>(&table);
  table.widen = widen_row;
  table.quantize = quantize_row;
  table.sum_codes = sum_row;
  return table;
}

}  // namespace
#endif
