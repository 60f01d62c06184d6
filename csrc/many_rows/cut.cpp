#include "cut.h"

namespace bitsmith::panels {

void pad_bias(const Request& request, float* out) {
  const int64_t known = request.bias ? request.layout.n : 0;
  std::copy(request.bias, request.bias + known, out);
  std::fill(out + known, out + request.padded_n(), kNoBias);
}

int64_t rows_of_pass(int64_t m, int64_t row_bytes) {
  constexpr int64_t kPassBytes = 8 << 20, kLeast = 512, kMost = 2048;
  const int64_t most = std::clamp(kPassBytes / row_bytes, kLeast, kMost);
  const int64_t passes = (m + most - 1) / most;
  return (m + passes - 1) / passes;
}

Cut make_cut(int64_t panels, int64_t panel_count, int64_t row_count, int threads) {
  constexpr int64_t kRowUnit = 96;  // a multiple of what every kernel takes at once
  const int64_t wanted = threads > 1 ? 3 * int64_t{threads} : 1;
  Cut cut = {panels, panel_count, row_count, row_count, 0};
  while (cut.panels > 1 && cut.panel_tasks() < wanted) cut.panels /= 2;
  const int64_t most = (row_count + kRowUnit - 1) / kRowUnit;
  const int64_t pieces = std::clamp<int64_t>(wanted / cut.panel_tasks(), 1, most);
  cut.rows = round_up((row_count + pieces - 1) / pieces, kRowUnit);
  cut.tasks = cut.panel_tasks() * ((row_count + cut.rows - 1) / cut.rows);
  return cut;
}

}  // namespace bitsmith::panels
