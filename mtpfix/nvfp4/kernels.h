/* What each variant of the CPU library provides: loops over blocks, numbers in memory at any alignment. */
#ifndef MTPFIX_NVFP4_KERNELS_H
#define MTPFIX_NVFP4_KERNELS_H

#ifdef __FAST_MATH__
#error "NVFP4 is defined by IEEE arithmetic: compile without -ffast-math"
#endif

#include <stddef.h>

#include "core.h"

enum { NVFP4_BF16, NVFP4_FP16, NVFP4_FP32, NVFP4_DTYPES };

typedef struct {
    const char *name;
    /* Bits of the largest magnitude of `count` numbers of 1, 2 or 4 bytes; those of a NaN are above all. */
    uint32_t (*amax8)(const uint8_t *x, size_t count);
    uint32_t (*amax16)(const uint8_t *x, size_t count);
    uint32_t (*amax32)(const uint8_t *x, size_t count);
    void (*quantize[NVFP4_DTYPES])(const uint8_t *x, size_t blocks, float global, int search, uint8_t *packed,
                                   uint8_t *scales);
    void (*dequantize[NVFP4_DTYPES])(const uint8_t *packed, const uint8_t *scales, size_t blocks, float global,
                                     uint8_t *target);
    /* `count` E4M3 numbers times one scale, rounded to BF16. */
    void (*expand)(const uint8_t *codes, size_t count, float scale_inv, uint8_t *target);
} Nvfp4Kernels;

#if defined(__GNUC__)
#define NVFP4_HIDDEN __attribute__((visibility("hidden")))
#else
#define NVFP4_HIDDEN
#endif

NVFP4_HIDDEN extern const Nvfp4Kernels nvfp4_portable;
#if defined(__x86_64__) && defined(__GNUC__)
#define NVFP4_X86
NVFP4_HIDDEN extern const Nvfp4Kernels nvfp4_avx2;
NVFP4_HIDDEN extern const Nvfp4Kernels nvfp4_avx512;
#endif
#if defined(__aarch64__) && defined(__ARM_NEON) && defined(__GNUC__) && !defined(__AARCH64EB__)
#define NVFP4_NEON
NVFP4_HIDDEN extern const Nvfp4Kernels nvfp4_neon;
#endif

/* Values of the 127 E4M3 codes and their reciprocals, with room for the codes that the search would try beyond. */
#define NVFP4_TABLE_FIRST NVFP4_SEARCH_FIRST
#define NVFP4_TABLE_SIZE (127 - NVFP4_SEARCH_FIRST + NVFP4_SEARCH_LAST)
NVFP4_HIDDEN extern float nvfp4_scale_values[NVFP4_TABLE_SIZE];
NVFP4_HIDDEN extern float nvfp4_scale_reciprocals[NVFP4_TABLE_SIZE];
NVFP4_HIDDEN void nvfp4_fill_tables(void);

#endif
