#include "digits_avx512.h"
#include "kernel_table.h"
#include "vector_avx512.h"

namespace bitsmith {
namespace {

constexpr Kernels with_digits() {
  Kernels table = make_kernels<Avx512, OneRow::kDigits>();
  table.cut = cut_row;
  return table;
}

}  // namespace

const Kernels kAvx512Kernels = with_digits();

}  // namespace bitsmith
