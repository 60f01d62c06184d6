/* Preloaded into a process, makes the CPUID instruction deny features that the machine has.
 *
 * Linux can make CPUID fault (arch_prctl ARCH_SET_CPUID, per thread, inherited by new threads,
 * cleared by execve). The fault arrives as SIGSEGV; the handler runs the real instruction with
 * faulting off, clears the masked feature bits, and steps over the two bytes 0F A2. Any other
 * SIGSEGV goes to whatever handler the program installed: sigaction and signal are interposed so
 * that no library replaces ours, and blocking SIGSEGV is left out of signal masks.
 *
 * BITSMITH_CPUID is "avx2" (no AVX-512, AMX, VNNI) or "avx512" (AVX-512 F/BW/DQ/VL, no VNNI, AMX).
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))

static int keep_avx512;
static struct sigaction wanted; /* what the program asked for on SIGSEGV */
static int (*real_sigaction)(int, const struct sigaction *, struct sigaction *);
static int (*real_pthread_sigmask)(int, const sigset_t *, sigset_t *);
static int (*real_sigprocmask)(int, const sigset_t *, sigset_t *);

static void allow_cpuid(unsigned long yes) { syscall(SYS_arch_prctl, ARCH_SET_CPUID, yes); }

static void mask(uint32_t leaf, uint32_t sub, uint32_t r[4]) {
    if (leaf == 7 && sub == 0) {
        /* AVX512 IFMA, PF, ER go always; F, DQ, CD, BW, VL only for avx2 */
        r[1] &= ~(BIT(21) | BIT(26) | BIT(27));
        if (!keep_avx512) r[1] &= ~(BIT(16) | BIT(17) | BIT(28) | BIT(30) | BIT(31));
        /* AVX512 VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ */
        r[2] &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));
        /* 4VNNIW, 4FMAPS, VP2INTERSECT, AMX-BF16, AVX512-FP16, AMX-TILE, AMX-INT8 */
        r[3] &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));
    } else if (leaf == 7 && sub == 1) {
        /* AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA */
        r[0] &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23));
        /* AVX-VNNI-INT8, AVX-NE-CONVERT, AMX-COMPLEX, AVX-VNNI-INT16, AVX10 */
        r[3] &= ~(BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19));
    } else if (leaf == 0x1d || leaf == 0x1e || leaf == 0x24) {
        r[0] = r[1] = r[2] = r[3] = 0; /* AMX palettes, AVX10 */
    }
}

static void on_fault(int sig, siginfo_t *info, void *context) {
    greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *ip = (const unsigned char *)g[REG_RIP];
    if (info->si_code == SI_KERNEL && ip[0] == 0x0f && ip[1] == 0xa2) {
        uint32_t leaf = (uint32_t)g[REG_RAX], sub = (uint32_t)g[REG_RCX], r[4];
        allow_cpuid(1);
        __cpuid_count(leaf, sub, r[0], r[1], r[2], r[3]);
        allow_cpuid(0);
        mask(leaf, sub, r);
        g[REG_RAX] = r[0], g[REG_RBX] = r[1], g[REG_RCX] = r[2], g[REG_RDX] = r[3];
        g[REG_RIP] += 2;
        return;
    }
    if (wanted.sa_flags & SA_SIGINFO) {
        wanted.sa_sigaction(sig, info, context);
    } else if (wanted.sa_handler != SIG_DFL && wanted.sa_handler != SIG_IGN) {
        wanted.sa_handler(sig);
    } else {
        struct sigaction die = {.sa_handler = SIG_DFL};
        real_sigaction(SIGSEGV, &die, NULL); /* the instruction runs again, and kills */
    }
}

static void resolve(void) {
    if (real_sigaction) return;
    real_pthread_sigmask = dlsym(RTLD_NEXT, "pthread_sigmask");
    real_sigprocmask = dlsym(RTLD_NEXT, "sigprocmask");
    real_sigaction = dlsym(RTLD_NEXT, "sigaction");
}

int sigaction(int sig, const struct sigaction *act, struct sigaction *old) {
    resolve();
    if (sig != SIGSEGV) return real_sigaction(sig, act, old);
    if (old) *old = wanted;
    if (act) wanted = *act;
    return 0;
}

sighandler_t signal(int sig, sighandler_t handler) {
    struct sigaction act = {.sa_handler = handler, .sa_flags = SA_RESTART}, old;
    return sigaction(sig, &act, &old) == 0 ? old.sa_handler : SIG_ERR;
}

static const sigset_t *without_segv(int how, const sigset_t *set, sigset_t *copy) {
    if (!set || how == SIG_UNBLOCK) return set;
    *copy = *set;
    sigdelset(copy, SIGSEGV);
    return copy;
}

int pthread_sigmask(int how, const sigset_t *set, sigset_t *old) {
    sigset_t copy;
    resolve();
    return real_pthread_sigmask(how, without_segv(how, set, &copy), old);
}

int sigprocmask(int how, const sigset_t *set, sigset_t *old) {
    sigset_t copy;
    resolve();
    return real_sigprocmask(how, without_segv(how, set, &copy), old);
}

__attribute__((constructor)) static void begin(void) {
    const char *profile = getenv("BITSMITH_CPUID");
    if (!profile) return;
    keep_avx512 = strcmp(profile, "avx512") == 0;
    resolve();
    struct sigaction act = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_RESTART};
    real_sigaction(SIGSEGV, &act, &wanted);
    if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0UL) != 0) _exit(86); /* the kernel refuses */
}
