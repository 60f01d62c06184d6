#include "dispatch.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace bitsmith {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

// Bits of what the processor says about tiles.
constexpr int kBfloat16 = 22, kTiles = 24, kInt8 = 25;

bool has_feature(int bit) {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> bit & 1);
}

bool has_amx() {
#if defined(__linux__)
  if (!has_feature(kTiles) || !has_feature(kInt8)) return false;
  // The tile registers are large: Linux wants to be asked (ARCH_REQ_XCOMP_PERM, XTILEDATA).
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}
bool has_amx_bfloat16() { return amx_ready() && has_feature(kBfloat16); }
#else
bool has_amx() { return false; }
bool has_amx_bfloat16() { return false; }
#endif

int best_machine() {
#if defined(__x86_64__)
  if (has_avx512()) return amx_ready() ? BSK_AMX : BSK_AVX512;
  return has_avx2() ? BSK_AVX2 : BSK_PORTABLE;
#elif defined(BSK_WITH_NEON) && defined(__linux__)
  return getauxval(AT_HWCAP) >> 20 & 1 ? BSK_NEON : BSK_PORTABLE;  // HWCAP_ASIMDDP
#elif defined(BSK_WITH_NEON) && defined(__APPLE__)
  return BSK_NEON;
#else
  return BSK_PORTABLE;
#endif
}

int machine() {
  static const int found = best_machine();
  return found;
}

constexpr int kUnset = -1;
std::atomic<int> chosen{kUnset};

int in_use() {
  const int set = chosen.load(std::memory_order_relaxed);
  return set == kUnset ? machine() : set;
}

}  // namespace

bool amx_ready() {
  static const bool ready = has_amx();
  return ready;
}

bool amx_has_bfloat16() {
  static const bool has = has_amx_bfloat16();
  return has;
}

const Kernels& kernels_in_use() {
  switch (in_use()) {
#if defined(__x86_64__)
    case BSK_AMX:
    case BSK_AVX512:
      return kAvx512Kernels;
    case BSK_AVX2:
      return kAvx2Kernels;
#endif
#if defined(BSK_WITH_NEON)
    case BSK_NEON:
      return kNeonKernels;
#endif
    default:
      return kPortableKernels;
  }
}

}  // namespace bitsmith

extern "C" {

int bsk_version(void) { return BSK_VERSION; }

int bsk_machine(void) { return bitsmith::machine(); }

int bsk_in_use(void) { return bitsmith::in_use(); }

int bsk_use(int instructions) {
  const int best = bitsmith::machine();
  const bool x86 = instructions > BSK_PORTABLE && instructions <= BSK_AMX && best <= BSK_AMX;
  const bool here = instructions == BSK_PORTABLE || instructions == best ||
                    (x86 && instructions <= best);
  if (!here) return BSK_UNSUPPORTED;
  bitsmith::chosen.store(instructions, std::memory_order_relaxed);
  return BSK_OK;
}
}
