#include "integer_rows.h"

#include <atomic>

#include "../dispatch.h"
#include "product.h"
#include "workers.h"

namespace bitsmith::panels {
namespace {

constexpr int64_t kPanels = 4;    // of a task
constexpr int64_t kSumRows = 96;  // whose sums stay in the first-level cache; see make_cut

const IntegerKernels& kernels_for([[maybe_unused]] int bits) {
  switch (bsk_in_use()) {
#if defined(__x86_64__)
    case BSK_AMX:
      return kIntegerAmx;
    case BSK_AVX512:
      return kIntegerAvx512;
    case BSK_AVX2:
      return bits <= 6 ? kNarrowIntegerAvx2 : kIntegerAvx2;
#endif
    default:
      return kIntegerPortable;
  }
}

// Codes less their zero points are in 8 bits: then these are taken off the codes. Otherwise the
// centre is, and zero points less the centre come off the sums.
bool zeros_fit(const Layout& layout) {
  const Storage& storage = layout.storage;
  return layout.bits < 8 || (!storage.zeros && storage.zero_all == 128);
}

// Products of up to `most_rows` rows, with all the memory that they take.
class IntegerRows {
 public:
  IntegerRows(const Request& request, int64_t most_rows)
      : request_(request),
        layout_(request.layout),
        kernels_(kernels_for(request.layout.bits)),
        zeros_fit_(zeros_fit(request.layout)),
        groups_(layout_.stored_groups),
        // Rows start in different sets of the cache.
        x_stride_(round_up(layout_.columns() * kernels_.row_bytes, 2 * kLine) + kLine),
        x_(round_up(most_rows, kernels_.row_unit) * x_stride_),
        x_sums_(zeros_fit_ ? 0 : round_up(most_rows, kernels_.row_unit) * groups_),
        x_scale_(most_rows),
        row_(request.threads * layout_.k),
        codes_(request.threads * codes_size()),
        bias_(request.padded_n()),
        column_scale_(request.padded_n()),
        weights_(request.threads * weights_size()),
        scale_(request.threads * parameters_size()),
        start_(request.threads * parameters_size()),
        taken_(request.threads * parameters_size()),
        left_(request.threads * parameters_size()),
        sums_(request.threads * kSumRows * sums_stride()) {
    if (!complete()) return;
    pad_bias(request, bias_.get());
    read_column_scales();
  }

  bool complete() const {
    return x_.get() && x_sums_.get() && x_scale_.get() && row_.get() && codes_.get() &&
           bias_.get() && column_scale_.get() && weights_.get() && scale_.get() &&
           start_.get() && taken_.get() && left_.get() && sums_.get();
  }

  int multiply(int64_t first, int64_t rows) {
    std::atomic<bool> finite{true};
    share(rows, request_.threads, [&](int64_t worker, Tasks& tasks) {
      for (int64_t row; tasks.take(&row);) {
        if (!encode(first + row, row, worker)) finite = false;
      }
    });
    if (!finite) return BSK_NOT_FINITE;
    clear_rows(rows, round_up(rows, kernels_.row_unit));
    const Cut cut = make_cut(kPanels, request_.layout.blocks, rows, request_.threads);
    share(cut.tasks, request_.threads, [&](int64_t worker, Tasks& tasks) {
      if (kernels_.enter) kernels_.enter(layout_.padded);
      for (int64_t task; tasks.take(&task);) product(cut, task, first, worker);
      if (kernels_.leave) kernels_.leave();
    });
    return BSK_OK;
  }

 private:
  int64_t codes_size() const { return layout_.k + layout_.columns(); }
  int64_t weights_size() const { return kPanels * layout_.columns() * layout_.lanes; }
  int64_t parameters_size() const { return kPanels * groups_ * layout_.lanes; }
  int64_t sums_stride() const { return kPanels * layout_.lanes; }

  // Rows that are only there because kernels take several.
  void clear_rows(int64_t from, int64_t to) {
    std::fill(x_.get() + from * x_stride_, x_.get() + to * x_stride_, 0);
    if (!zeros_fit_) std::fill(x_sums_.get() + from * groups_, x_sums_.get() + to * groups_, 0);
  }

  // Quantize row `from` of x; false where it is not finite.
  bool encode(int64_t from, int64_t row, int64_t worker) {
    const Kernels& all = kernels_in_use();
    float* wide = row_.get() + worker * layout_.k;
    int8_t* codes = codes_.get() + worker * codes_size();
    int8_t* stored = codes + layout_.k;
    request_.widen(from, wide);
    if (!all.quantize(wide, layout_.k, codes, x_scale_.get() + row)) return false;
    spread(layout_, codes, stored);
    kernels_.encode(stored, layout_.columns(), x_.get() + row * x_stride_);
    if (!zeros_fit_) {
      for (int64_t g = 0; g < groups_; ++g) {
        x_sums_.get()[row * groups_ + g] = all.sum_codes(stored + g * layout_.padded,
                                                         layout_.padded);
      }
    }
    return true;
  }

  void product(const Cut& cut, int64_t task, int64_t first, int64_t worker) {
    const int64_t panel = cut.first_panel(task);
    IntegerProduct p = {};
    p.groups = groups_;
    p.columns = layout_.padded;
    p.x_stride = x_stride_;
    p.panels = cut.panels_of(task);
    p.sums = sums_.get() + worker * kSumRows * sums_stride();
    p.sums_stride = sums_stride();
    decode(panel, worker, &p);
    Output out = {};
    out.type = request_.type;
    out.y = request_.y;
    out.stride = request_.y_stride;
    out.column = panel * layout_.lanes;
    out.columns = std::min(p.panels * layout_.lanes, layout_.n - out.column);
    out.column_scale = column_scale_.get() + out.column;
    out.bias = bias_.get() + out.column;
    const int64_t end = cut.first_row(task) + cut.rows_of(task);
    for (int64_t row = cut.first_row(task); row < end; row += kSumRows) {
      p.rows = std::min(kSumRows, end - row);
      p.x = x_.get() + row * x_stride_;
      p.x_sums = x_sums_.get() + row * groups_;
      kernels_.multiply(p);
      out.row = first + row;
      out.rows = p.rows;
      out.row_scale = x_scale_.get() + row;
      kernels_.finish(out, p.sums, p.sums_stride);
    }
  }

  // Codes and parameters of the panels from `panel` on.
  void decode(int64_t panel, int64_t worker, IntegerProduct* p) {
    const int64_t size = groups_ * layout_.lanes, at = worker * parameters_size();
    int8_t* weights = weights_.get() + worker * weights_size();
    p->weights = weights;
    p->scale = scale_.get() + at;
    p->start = start_.get() + at;
    p->zero = zeros_fit_ ? nullptr : left_.get() + at;
    for (int64_t i = 0; i < p->panels; ++i, weights += layout_.columns() * layout_.lanes) {
      const Block block = block_at(layout_, request_.packed, panel + i);
      const int64_t to = at + i * size;
      decode_codes(block, weights);
      read_zeros(block, taken_.get() + to, left_.get() + to);
      kernels_.prepare(groups_, layout_.padded, taken_.get() + to, weights, start_.get() + to);
      read_scales(block, scale_.get() + to);
    }
  }

  void decode_codes(const Block& block, void* out) const {
    const auto decode = kernels_in_use().decode_codes[layout_.bits - 1];
    auto* quads = static_cast<uint32_t*>(out);
    for (int64_t chunk = 0; chunk < layout_.chunks; ++chunk) {
      decode(block, chunk, quads + chunk * kQuads * layout_.lanes);
    }
  }

  void read_zeros(const Block& block, int32_t* taken, int32_t* left) const {
    constexpr int32_t kCentre = 128;
    for (int64_t i = 0; i < groups_ * layout_.lanes; ++i) {
      const int32_t zero = block.zeros ? block.zeros[i] : block.zero_all;
      taken[i] = zeros_fit_ ? zero : kCentre;
      left[i] = zero - taken[i];
    }
  }

  void widen_scales(const Block& block, int64_t count, float* out) const {
    kernels_in_use().widen(block.half_scales ? BSK_FLOAT16 : BSK_FLOAT32, block.scales, count,
                           out);
  }

  // A single scale of a row multiplies the finished sum instead: y = (sum · scale of x) · scale.
  void read_scales(const Block& block, float* out) const {
    const int64_t count = groups_ * layout_.lanes;
    if (layout_.groups == 1) {
      std::fill(out, out + count, 1.0f);
    } else {
      widen_scales(block, count, out);
    }
  }

  void read_column_scales() {
    float* out = column_scale_.get();
    if (layout_.groups > 1) return std::fill(out, out + request_.padded_n(), 1.0f);
    for (int64_t panel = 0; panel < request_.layout.blocks; ++panel) {
      const Block block = block_at(layout_, request_.packed, panel);
      widen_scales(block, layout_.lanes, out + panel * layout_.lanes);
    }
  }

  const Request& request_;
  const Layout& layout_;
  const IntegerKernels& kernels_;
  const bool zeros_fit_;
  const int64_t groups_, x_stride_;
  Buffer<uint8_t> x_;
  Buffer<int32_t> x_sums_;
  Buffer<float> x_scale_, row_;
  Buffer<int8_t> codes_;
  Buffer<float> bias_, column_scale_;
  Buffer<int8_t> weights_;
  Buffer<float> scale_;
  Buffer<int32_t> start_, taken_, left_;  // zero points: those taken off codes, and the rest
  Buffer<float> sums_;
};

}  // namespace

int integer_rows(const Request& request) {
  const int64_t rows = rows_of_pass(request.m, request.layout.columns());
  IntegerRows product(request, rows);
  if (!product.complete()) return BSK_NO_MEMORY;
  for (int64_t first = 0; first < request.m; first += rows) {
    const int error = product.multiply(first, std::min(rows, request.m - first));
    if (error) return error;
  }
  return BSK_OK;
}

}  // namespace bitsmith::panels
