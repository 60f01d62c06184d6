#include "float_rows.h"

#include "../dispatch.h"
#include "product.h"
#include "workers.h"

namespace bitsmith::panels {
namespace {

constexpr int64_t kPanels = 4;  // of a task
constexpr int64_t kDepthChunks = kFloatDepth / kChunk;

const FloatKernels& kernels() {
  switch (bsk_in_use()) {
#if defined(__x86_64__)
    case BSK_AMX:
    case BSK_AVX512:
      return kFloatAvx512;
    case BSK_AVX2:
      return kFloatAvx2;
#endif
    default:
      return kFloatPortable;
  }
}

// Products of up to `most_rows` rows, with all the memory that they take.
class FloatRows {
 public:
  FloatRows(const Request& request, int64_t most_rows)
      : request_(request),
        layout_(request.layout),
        kernels_(kernels()),
        depths_((layout_.chunks + kDepthChunks - 1) / kDepthChunks),
        sums_size_(most_rows * kPanels * layout_.lanes),
        x_(depths_ * most_rows * kFloatDepth),
        row_(request.threads * row_size()),
        bias_(request.padded_n()),
        weights_(request.threads * weights_size()),
        sums_(request.threads * sums_size_) {
    if (complete()) pad_bias(request, bias_.get());
  }

  bool complete() const {
    return x_.get() && row_.get() && bias_.get() && weights_.get() && sums_.get();
  }

  void multiply(int64_t first, int64_t rows) {
    share(rows, request_.threads, [&](int64_t worker, Tasks& tasks) {
      for (int64_t row; tasks.take(&row);) pack(first + row, row, rows, worker);
    });
    const Cut cut = make_cut(kPanels, request_.layout.blocks, rows, request_.threads);
    share(cut.tasks, request_.threads, [&](int64_t worker, Tasks& tasks) {
      for (int64_t task; tasks.take(&task);) product(cut, task, first, worker);
    });
  }

 private:
  int64_t row_size() const { return layout_.k + round_up(layout_.columns(), kFloatDepth); }
  int64_t weights_size() const { return kPanels * kFloatDepth * layout_.lanes; }
  int64_t sums_stride() const { return kPanels * layout_.lanes; }

  // x as float32 in pieces: [depths][rows][kFloatDepth].
  void pack(int64_t from, int64_t row, int64_t rows, int64_t worker) {
    float* wide = row_.get() + worker * row_size();
    float* stored = wide + layout_.k;
    request_.widen(from, wide);
    spread(layout_, wide, stored);
    for (int64_t d = 0; d < depths_; ++d) {
      const float* piece = stored + d * kFloatDepth;
      std::copy(piece, piece + kFloatDepth, x_.get() + (d * rows + row) * kFloatDepth);
    }
  }

  void product(const Cut& cut, int64_t task, int64_t first, int64_t worker) {
    const int64_t panel = cut.first_panel(task), row = cut.first_row(task);
    float* sums = sums_.get() + worker * sums_size_;
    FloatProduct p = {};
    p.rows = cut.rows_of(task);
    p.panels = cut.panels_of(task);
    p.weights = weights_.get() + worker * weights_size();
    p.sums = sums;
    p.sums_stride = sums_stride();
    std::fill(sums, sums + p.rows * p.sums_stride, 0.0f);
    for (int64_t d = 0; d < depths_; ++d) {
      const int64_t chunk = d * kDepthChunks;
      const int64_t chunks = std::min(kDepthChunks, layout_.chunks - chunk);
      for (int64_t i = 0; i < p.panels; ++i) {
        decode(panel + i, chunk, chunks,
               weights_.get() + worker * weights_size() + i * kFloatDepth * layout_.lanes);
      }
      p.depth = chunks * kChunk;
      p.x = x_.get() + (d * cut.row_count + row) * kFloatDepth;
      kernels_.multiply(p);
    }
    const int64_t column = panel * layout_.lanes;
    Output out = {};
    out.type = request_.type;
    out.y = request_.y;
    out.stride = request_.y_stride;
    out.row = first + row;
    out.column = column;
    out.rows = p.rows;
    out.columns = std::min(p.panels * layout_.lanes, layout_.n - column);
    out.bias = bias_.get() + column;
    kernels_.finish(out, sums, p.sums_stride);
  }

  void decode(int64_t panel, int64_t chunk, int64_t chunks, float* out) const {
    const Kernels& all = kernels_in_use();
    const auto& decoders = layout_.kind == BSK_TABLE ? all.decode_table : all.decode_integers;
    const Block block = block_at(layout_, request_.packed, panel);
    for (int64_t i = 0; i < chunks; ++i) {
      decoders[layout_.bits - 1](block, chunk + i, out + i * kChunk * layout_.lanes);
    }
  }

  const Request& request_;
  const Layout& layout_;
  const FloatKernels& kernels_;
  const int64_t depths_, sums_size_;
  Buffer<float> x_, row_, bias_, weights_, sums_;
};

}  // namespace

int float_rows(const Request& request) {
  const int64_t rows = rows_of_pass(request.m, request.layout.columns() * int64_t{sizeof(float)});
  FloatRows product(request, rows);
  if (!product.complete()) return BSK_NO_MEMORY;
  for (int64_t first = 0; first < request.m; first += rows) {
    product.multiply(first, std::min(rows, request.m - first));
  }
  return BSK_OK;
}

}  // namespace bitsmith::panels
