// Random weights and rows through the whole C interface, under the sanitizers.
//
//   fuzz LIBRARY SECONDS [SEED]
//
// Every buffer has exactly the size that the interface asks for, so that the first byte beyond is
// an error. Results are compared with products in double; int8 rows of one group bit for bit.
#include <dlfcn.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "random_weight.h"

namespace {

struct Library {
  decltype(&bsk_machine) machine;
  decltype(&bsk_use) use;
  decltype(&bsk_packed_bytes) packed_bytes;
  decltype(&bsk_packed_used) packed_used;
  decltype(&bsk_pack) pack;
  decltype(&bsk_unpack) unpack;
  decltype(&bsk_linear) linear;
  decltype(&bsk_embedding) embedding;
};

template <class F>
void find(void* from, const char* name, F* function) {
  *function = reinterpret_cast<F>(dlsym(from, name));
  if (!*function) {
    fprintf(stderr, "no %s\n", name);
    exit(2);
  }
}

struct Free {
  void operator()(void* p) const { free(p); }
};
using Bytes = std::unique_ptr<uint8_t, Free>;
Bytes bytes_at_64(int64_t size) {
  void* at = nullptr;
  if (posix_memalign(&at, 64, static_cast<size_t>(size > 0 ? size : 1))) exit(2);
  return Bytes(static_cast<uint8_t*>(at));
}

void expect(bool holds, const char* what, const bsk_weight& w) {
  if (holds) return;
  fprintf(stderr, "%s: kind %d bits %d [%lld, %lld] group %lld tables %lld entries %d rows %d\n",
          what, w.kind, w.bits, (long long)w.n, (long long)w.k, (long long)w.group,
          (long long)w.tables, w.entries, w.rows);
  abort();
}

void check_product(const Library& lib, const Weight& weight, const uint8_t* packed) {
  const bsk_weight& w = weight.w;
  const int64_t used = lib.packed_used(&w, packed);
  const Rows x = random_rows(w.k);
  const int rows = one_in(2) ? BSK_ROWS_INT8 : BSK_ROWS_FLOAT;
  const int64_t element = x.type == BSK_FLOAT32 ? 4 : 2;
  const int64_t y_stride = w.n + (one_in(2) ? 0 : below(5));
  std::vector<float> bias(one_in(2) ? w.n : 0);
  for (auto& b : bias) b = number();
  std::vector<uint8_t> y(x.m ? ((x.m - 1) * y_stride + w.n) * element : 0);
  const int status =
      lib.linear(&w, packed, used, x.type, x.bytes.data(), x.m, x.stride,
                 bias.empty() ? nullptr : bias.data(), y.data(), y_stride, rows,
                 1 + static_cast<int>(below(4)));
  if (rows == BSK_ROWS_INT8 && w.kind == BSK_TABLE) {
    return expect(status == BSK_UNSUPPORTED || !x.m, "int8 rows times a table", w);
  }
  expect(status == BSK_OK, "a product failed", w);
  for (int64_t r = 0; r < x.m; ++r) {
    float most = 0;
    for (int64_t j = 0; j < w.k; ++j) most = std::fmax(most, std::fabs(x.at(r, j)));
    const float scale = most > 0 ? static_cast<float>(double{most} / 127) : 1;
    for (int64_t i = 0; i < w.n; ++i) {
      double exact = 0, size = 0;
      int64_t sum = 0;
      for (int64_t j = 0; j < w.k; ++j) {
        const double given = x.at(r, j);
        const double code = std::nearbyint(x.at(r, j) / scale);
        const double taken = rows == BSK_ROWS_INT8 ? code * scale : given;
        exact += weight.scale_at(i, j) * weight.unit(i, j) * taken;
        size += weight.size(i, j) * std::fabs(taken);
        sum += static_cast<int64_t>(code * weight.unit(i, j));
      }
      const float b = bias.empty() ? 0 : bias[i];
      const double found = value_of(y.data(), x.type, r * y_stride + i);
      if (rows == BSK_ROWS_INT8 && w.group == w.k && x.type == BSK_FLOAT32) {
        float value = static_cast<float>(sum) * scale * weight.scale[i];
        if (!bias.empty()) value = value + b;
        expect(found == static_cast<double>(value), "an integer product is another", w);
      }
      const double coarse = x.type == BSK_FLOAT32 ? 0 : x.type == BSK_FLOAT16 ? 1e-3 : 8e-3;
      const double rounding = (w.k + 16) * 1.2e-7 * (size + std::fabs(b));
      const double bound = rounding + coarse * std::fabs(exact + b);
      const bool overflows = x.type == BSK_FLOAT16 && std::fabs(exact + b) > 60000;
      expect(overflows || std::fabs(found - exact - b) <= bound + 1e-7, "a product is wrong", w);
    }
  }
}

void check_rows(const Library& lib, const Weight& weight, const uint8_t* packed) {
  const bsk_weight& w = weight.w;
  std::vector<int64_t> index(below(40));
  for (auto& i : index) i = below(w.n);
  std::vector<float> y(index.size() * w.k);
  const auto look_up = [&] {
    return lib.embedding(&w, packed, index.data(), static_cast<int64_t>(index.size()), BSK_FLOAT32,
                         y.data(), 1 + static_cast<int>(below(3)));
  };
  expect(look_up() == BSK_OK, "a look-up failed", w);
  for (size_t i = 0; i < y.size(); ++i) {
    const int64_t row = index[i / w.k], column = static_cast<int64_t>(i) % w.k;
    const float value = static_cast<float>(weight.unit(row, column)) *
                        static_cast<float>(weight.scale_at(row, column));
    expect(y[i] == value, "a row is another", w);
  }
  if (index.empty()) return;
  index[below(static_cast<int64_t>(index.size()))] = one_in(2) ? w.n : -1 - below(1000);
  expect(look_up() == BSK_BAD_INDEX, "an index that is no row", w);
}

// Anything may be wrong with the description; memory is not read before it has been checked.
void check_nonsense(const Library& lib, const Weight& weight, const uint8_t* packed, int64_t used) {
  bsk_weight w = weight.w;
  const int64_t strange[] = {-1, 0, 3, 9, 1 << 20, INT64_MAX, INT64_MIN, INT64_MAX / 2, 1LL << 33};
  const int64_t value = strange[below(9)];
  switch (below(8)) {
    case 0: w.kind = static_cast<int32_t>(value); break;
    case 1: w.bits = static_cast<int32_t>(value); break;
    case 2: w.n = value; break;
    case 3: w.k = value; break;
    case 4: w.group = value; break;
    case 5: w.tables = value; break;
    case 6: w.entries = static_cast<int32_t>(value); break;
    default: w.rows = static_cast<int32_t>(value);
  }
  lib.packed_bytes(&w);
  if (lib.packed_used(&w, packed) != used) {
    float nothing[1] = {0};
    lib.linear(&w, packed, used, 0, nothing, 0, 1, nullptr, nothing, 1, 0, 1);
  }
  Bytes changed = bytes_at_64(used);
  memcpy(changed.get(), packed, static_cast<size_t>(used));
  changed.get()[below(64)] ^= static_cast<uint8_t>(1 + below(255));
  if (lib.packed_used(&weight.w, changed.get()) == used) {
    check_rows(lib, weight, packed);
  }
  float x = 0;
  const auto call = [&](const void* rows, int64_t m, int type, int kind) {
    return lib.linear(&weight.w, packed, used, type, rows, m, weight.w.k, nullptr, nullptr, 1, kind,
                      1);
  };
  expect(call(&x, -1, 0, 0) < 0 && call(&x, 1, 3, 0) < 0 && call(&x, 1, -1, 0) < 0 &&
             call(nullptr, 1, 0, 0) < 0 && call(&x, 1, 0, 0) < 0 && call(&x, 1, 0, 9) < 0,
         "nonsense is taken", weight.w);
  for (const int64_t held : {int64_t{0}, int64_t{63}, used - 64, used + 64, int64_t{-1}}) {
    expect(lib.linear(&weight.w, packed, held, 0, &x, 1, weight.w.k, nullptr, &x, 1, 0, 1) < 0,
           "another number of bytes is taken", weight.w);
  }
}

void check_weight(const Library& lib) {
  const Weight weight = random_weight();
  const bsk_weight& w = weight.w;
  const int64_t size = lib.packed_bytes(&w);
  if (size < 0) return expect(size == BSK_UNSUPPORTED || w.group < 8, "a weight is refused", w);
  Bytes room = bytes_at_64(size);
  const auto pack = [&](const float* scale) {
    return lib.pack(&w, weight.codes.data(), scale, weight.zeros ? weight.zero.data() : nullptr,
                    weight.zero_all, w.kind == BSK_TABLE ? weight.table.data() : nullptr,
                    room.get());
  };
  std::vector<float> broken = weight.scale;
  broken[below(static_cast<int64_t>(broken.size()))] = one_in(2) ? NAN : INFINITY;
  expect(pack(broken.data()) == BSK_BAD_SCALE, "a scale that is not finite", w);
  expect(pack(weight.scale.data()) == BSK_OK, "a weight cannot be packed", w);
  const int64_t used = lib.packed_used(&w, room.get());
  expect(used >= 64 && used <= size, "the bytes that are used", w);
  Bytes packed = bytes_at_64(used);  // what lies behind is gone
  memcpy(packed.get(), room.get(), static_cast<size_t>(used));
  room.reset();

  std::vector<uint8_t> codes(weight.codes.size());
  std::vector<float> scale(weight.scale.size()), table(weight.table.size());
  std::vector<int32_t> zero(weight.scale.size());
  expect(lib.unpack(&w, packed.get(), codes.data(), scale.data(),
                    w.kind == BSK_TABLE ? nullptr : zero.data(),
                    w.kind == BSK_TABLE ? table.data() : nullptr) == BSK_OK,
         "a weight cannot be unpacked", w);
  expect(codes == weight.codes && table == weight.table &&
             !memcmp(scale.data(), weight.scale.data(), scale.size() * 4),
         "other numbers come back", w);
  for (size_t g = 0; w.kind == BSK_INTEGER && g < zero.size(); ++g) {
    expect(zero[g] == (weight.zeros ? weight.zero[g] : weight.zero_all), "other zero points", w);
  }
  check_product(lib, weight, packed.get());
  check_rows(lib, weight, packed.get());
  check_nonsense(lib, weight, packed.get(), used);
}

}  // namespace

int main(int count, char** given) {
  if (count < 3) return fprintf(stderr, "fuzz LIBRARY SECONDS [SEED]\n"), 2;
  void* library = dlopen(given[1], RTLD_NOW);
  if (!library) return fprintf(stderr, "%s\n", dlerror()), 2;
  Library lib;
  find(library, "bsk_machine", &lib.machine);
  find(library, "bsk_use", &lib.use);
  find(library, "bsk_packed_bytes", &lib.packed_bytes);
  find(library, "bsk_packed_used", &lib.packed_used);
  find(library, "bsk_pack", &lib.pack);
  find(library, "bsk_unpack", &lib.unpack);
  find(library, "bsk_linear", &lib.linear);
  find(library, "bsk_embedding", &lib.embedding);
  random_bits.seed(count > 3 ? strtoull(given[3], nullptr, 10) : 0);
  const auto stop = std::chrono::steady_clock::now() + std::chrono::seconds(atoi(given[2]));
  int64_t done[16] = {};
  const int machine = lib.machine();
  do {
    const int any = static_cast<int>(below(machine + 1));
    const int set = machine != BSK_NEON || any == 0 ? any : BSK_NEON;
    if (lib.use(set)) return fprintf(stderr, "instruction set %d is not there\n", set), 1;
    for (int i = 0; i < 20; ++i, ++done[set]) check_weight(lib);
  } while (std::chrono::steady_clock::now() < stop);
  for (int set = 0; set < 16; ++set) {
    if (done[set]) printf("instruction set %d: %lld weights\n", set, (long long)done[set]);
  }
  return 0;
}
