/* What this machine can do at most, measured without any of Moli's code: bytes read per second from a buffer beyond the
 * caches, 8-bit and f32 multiply-adds per second. scripts/check-limits.sh compares it with what `moli bench` measures.
 *
 *   cc -O3 -pthread limits.c -o limits && ./limits THREADS BUFFER_BYTES SECONDS ISA
 *
 * ISA is a name as MOLI_ISA takes it. Prints three numbers, for all threads together; 0 where the instruction set has no
 * instruction. */

#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* Hides from the compiler what is in a vector or a number: equal chains stay apart, and none is left out. */
#if defined(__x86_64__)
#define USE_VECTOR(v) __asm__ volatile("" : "+v"(v))
#else
#define USE_VECTOR(v) __asm__ volatile("" : "+w"(v))
#endif
/* Unrolls the loop behind it, so that the accumulators are registers. */
#define ALL_CHAINS _Pragma("GCC unroll 32")
#define USE(n) __asm__ volatile("" : "+r"(n))
#define ROUNDS 20000

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A kernel does ROUNDS rounds and says how many multiply-adds those were. */
typedef double kernel(void);

/* `chains` accumulators of `type` that don't wait for each other, each with `step` applied in each round. */
#define KERNEL(name, attributes, type, first, chains, macs, step)       \
    attributes static double name(void) {                               \
        type acc[chains], start = first;                                \
        USE_VECTOR(start);                                              \
        ALL_CHAINS for (int i = 0; i < chains; i++) {                   \
            acc[i] = start;                                             \
            USE_VECTOR(acc[i]);                                         \
        }                                                               \
        for (long round = 0; round < ROUNDS; round++)                   \
            ALL_CHAINS for (int i = 0; i < chains; i++) { step; }       \
        ALL_CHAINS for (int i = 0; i < chains; i++) USE_VECTOR(acc[i]); \
        return (double)ROUNDS * chains * macs;                          \
    }

#if defined(__x86_64__)
/* Unlike __m256i these may not alias other types, so that the compiler keeps them in registers. */
typedef int ints256 __attribute__((vector_size(32)));
typedef int ints512 __attribute__((vector_size(64)));
#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f,avx512vnni")))
/* The bytes change from round to round, so that no product can be taken out of the loop. */
KERNEL(int8_avx2, AVX2, ints256, (ints256)_mm256_set1_epi8(3), 10, 32,
       acc[i] = (ints256)_mm256_add_epi16((__m256i)acc[i], _mm256_maddubs_epi16((__m256i)acc[i], _mm256_set1_epi8(5))))
KERNEL(f32_avx2, AVX2, __m256, _mm256_set1_ps(1.0f), 12, 8,
       acc[i] = _mm256_fmadd_ps(acc[i], _mm256_set1_ps(0.5f), _mm256_set1_ps(0.25f)))
KERNEL(int8_avx512, AVX512, ints512, (ints512)_mm512_setzero_si512(), 20, 64,
       acc[i] = (ints512)_mm512_dpbusd_epi32((__m512i)acc[i], _mm512_set1_epi8(3), _mm512_set1_epi8(5)))
KERNEL(f32_avx512, AVX512, __m512, _mm512_set1_ps(1.0f), 20, 16,
       acc[i] = _mm512_fmadd_ps(acc[i], _mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f)))

/* Whole tiles of 16 by 64 bytes by as many, for which Linux wants to be asked. */
__attribute__((target("amx-tile,amx-int8"))) static double int8_amx(void) {
    static const struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } __attribute__((aligned(64))) config = {
        1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&config);
    for (long round = 0; round < ROUNDS; round++) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_release();
    return (double)ROUNDS * 4 * 16 * 16 * 64;
}
#elif defined(__aarch64__)
#define DOT __attribute__((target("arch=armv8.2-a+dotprod")))
#define I8MM __attribute__((target("arch=armv8.2-a+i8mm")))
KERNEL(f32_neon, , float32x4_t, vdupq_n_f32(1.0f), 24, 4,
       acc[i] = vfmaq_f32(vdupq_n_f32(0.25f), acc[i], vdupq_n_f32(0.5f)))
KERNEL(int8_neon, , int16x8_t, vdupq_n_s16(0), 24, 8, acc[i] = vmlal_high_s8(acc[i], vdupq_n_s8(3), vdupq_n_s8(5)))
KERNEL(int8_dot, DOT, int32x4_t, vdupq_n_s32(0), 24, 16, acc[i] = vdotq_s32(acc[i], vdupq_n_s8(3), vdupq_n_s8(5)))
KERNEL(int8_i8mm, I8MM, int32x4_t, vdupq_n_s32(0), 24, 32,
       acc[i] = vmmlaq_s32(acc[i], vdupq_n_s8(3), vdupq_n_s8(5)))
#endif

/* What one thread does: read its part of the buffer, or run a kernel. */
struct work {
    pthread_barrier_t *begin;
    const uint64_t *words;
    size_t count;
    kernel *kernel;
    double seconds;
    double rate;
};

/* Several streams at once keep more reads under way than one does. */
#define STREAMS 8

typedef uint64_t line __attribute__((vector_size(64)));

static uint64_t sum(const uint64_t *words, size_t count) {
    const line *lines = (const line *)words;
    line sums = {0};
    size_t part = count / 8 / STREAMS;
    for (size_t i = 0; i < part; i++)
        ALL_CHAINS for (int stream = 0; stream < STREAMS; stream++) sums += lines[(size_t)stream * part + i];
    return sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
}

static void *run(void *argument) {
    struct work *work = argument;
    double done = 0, start, taken;
    pthread_barrier_wait(work->begin);
    start = now();
    do {
        if (work->kernel) {
            done += work->kernel();
        } else {
            uint64_t total = sum(work->words, work->count);
            USE(total);
            done += (double)(work->count * sizeof(uint64_t));
        }
        taken = now() - start;
    } while (taken < work->seconds);
    work->rate = done / taken;
    return NULL;
}

/* All threads' rates together. */
static double measure(int threads, const uint64_t *words, size_t count, kernel *kernel, double seconds) {
    pthread_t *ids = calloc((size_t)threads, sizeof *ids);
    struct work *work = calloc((size_t)threads, sizeof *work);
    pthread_barrier_t begin;
    double rate = 0;
    pthread_barrier_init(&begin, NULL, (unsigned)threads);
    for (int i = 0; i < threads; i++) {
        size_t part = count / (size_t)threads / 8 * 8;
        work[i] = (struct work){&begin, words + part * (size_t)i, part, kernel, seconds, 0};
        if (pthread_create(&ids[i], NULL, run, &work[i])) exit(1);
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        rate += work[i].rate;
    }
    pthread_barrier_destroy(&begin);
    free(ids);
    free(work);
    return rate;
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: limits THREADS BUFFER_BYTES SECONDS ISA\n");
        return 2;
    }
    int threads = atoi(argv[1]);
    size_t bytes = (size_t)strtoull(argv[2], NULL, 10);
    double seconds = atof(argv[3]);
    kernel *int8 = NULL, *f32 = NULL;
#if defined(__x86_64__)
    if (!strcmp(argv[4], "avx2")) int8 = int8_avx2, f32 = f32_avx2;
    if (!strcmp(argv[4], "avx512vnni")) int8 = int8_avx512, f32 = f32_avx512;
    if (!strcmp(argv[4], "avx512amx") && !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA))
        int8 = int8_amx, f32 = f32_avx512;
#elif defined(__aarch64__)
    f32 = f32_neon;
    if (!strcmp(argv[4], "neon")) int8 = int8_neon;
    if (!strcmp(argv[4], "neon-dotprod")) int8 = int8_dot;
    if (!strcmp(argv[4], "neon-i8mm")) int8 = int8_i8mm;
#endif
    uint64_t *words = threads > 0 ? aligned_alloc(64, bytes / 64 * 64) : NULL;
    if (!words) {
        fprintf(stderr, "limits: no threads or no memory\n");
        return 1;
    }
    memset(words, 1, bytes / 64 * 64);
    printf("%.4e %.4e %.4e\n", measure(threads, words, bytes / 64 * 8, NULL, seconds),
           int8 ? measure(threads, NULL, 0, int8, seconds) : 0, f32 ? measure(threads, NULL, 0, f32, seconds) : 0);
    free(words);
    return 0;
}
