// The table of kernels of one instruction set; included once by each kernels_*.cpp.
#ifndef BITSMITH_KERNEL_TABLE_H
#define BITSMITH_KERNEL_TABLE_H

#include "chunks.h"
#include "kernels.h"
#include "one_row.h"
#include "rows.h"
#include "several_rows.h"

namespace {

// How one row is multiplied: as several ones are, decoded in registers, or that and as digits.
enum class OneRow { kSame, kFused, kDigits };

template <class V, OneRow one_row, int bits>
constexpr void set_width(bitsmith::Kernels* table) {
  table->decode_integers[bits - 1] = chunk_integers<V, bits>;
  table->decode_table[bits - 1] = chunk_table<V, bits>;
  table->decode_codes[bits - 1] = chunk_codes<V, bits>;
  if constexpr (one_row != OneRow::kSame) {
    table->one_row_integers[bits - 1] = one_row_integers<V, bits>;
    table->one_row_codes[bits - 1] = one_row_codes<V, bits>;
    table->one_row_table[bits - 1] = one_row_table<V, bits>;
  }
  if constexpr (one_row == OneRow::kDigits) {
    table->one_row_digits[bits - 1] = one_row_digits<V, bits>;
  }
}

template <class V, int step>
constexpr void set_products(bitsmith::Kernels* table) {
  table->float_product[step] = float_product<V, 1 << step>;
  table->code_product[step] = code_product<V, 1 << step>;
}

// Of all widths but 7, which is stored in 8 bits.
template <class V, OneRow one_row>
constexpr bitsmith::Kernels make_kernels() {
  bitsmith::Kernels table{};
  table.lanes = V::kLanes;
  set_width<V, one_row, 1>(&table);
  set_width<V, one_row, 2>(&table);
  set_width<V, one_row, 3>(&table);
  set_width<V, one_row, 4>(&table);
  set_width<V, one_row, 5>(&table);
  set_width<V, one_row, 6>(&table);
  set_width<V, one_row, 8>(&table);
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
