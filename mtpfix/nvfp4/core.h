/* The arithmetic of NVFP4, once: included by the CPU library and by the CUDA source.
 *
 * Every result is defined by single IEEE 754 binary32 operations, rounded to nearest even, in the order written here.
 * Compile with -ffp-contract=off (nvcc and NVRTC: -fmad=false) and without fast-math, flush-to-zero or approximate
 * division: a fused multiply-add or a reciprocal changes stored bytes. Knows single numbers and blocks of 16; knows
 * nothing of tensors, threads or memory.
 *
 * A weight is code * scale * global: code in E2M1 (4 bits), scale in E4M3 for each block of 16, global in binary32 for
 * the tensor. Scales and codes equal those of nvidia-modelopt, modelopt/torch/quantization/qtensor/nvfp4_tensor.py
 * (get_weights_scaling_factor, _cast_fp4), where that defines any.
 */
#ifndef MTPFIX_NVFP4_CORE_H
#define MTPFIX_NVFP4_CORE_H

#if defined(__CUDACC_RTC__)
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
#else
#include <stdint.h>
#endif

#if defined(__CUDA_ARCH__) || defined(__CUDACC_RTC__)
#define MTPFIX_FN __device__ __forceinline__
#define MTPFIX_DIV(a, b) __fdiv_rn((a), (b))
#define MTPFIX_MUL(a, b) __fmul_rn((a), (b))
#define MTPFIX_ADD(a, b) __fadd_rn((a), (b))
#define MTPFIX_SUB(a, b) __fsub_rn((a), (b))
#else
#include <string.h>
#if defined(__CUDACC__)
#define MTPFIX_FN __device__ __host__ __forceinline__
#else
#define MTPFIX_FN static inline
#endif
#define MTPFIX_DIV(a, b) ((a) / (b))
#define MTPFIX_MUL(a, b) ((a) * (b))
#define MTPFIX_ADD(a, b) ((a) + (b))
#define MTPFIX_SUB(a, b) ((a) - (b))
#endif

#define NVFP4_BLOCK 16           /* numbers that share one E4M3 scale */
#define NVFP4_E2M1_MAX 6.0f
#define NVFP4_E4M3_MAX 448.0f
#define NVFP4_RANGE 2688.0f      /* 6 * 448: the largest number that a global scale of 1 can express */
#define NVFP4_ONE 0x38u          /* 1.0 in E4M3, the scale of a block of zeros */
#define NVFP4_LEAST 0x01u        /* 2^-9, the least positive E4M3 number */
#define NVFP4_GREATEST 0x7eu     /* 448 */
#define NVFP4_SEARCH_FIRST (-2)  /* the scale search tries the codes from the plain one's neighbours below ... */
#define NVFP4_SEARCH_LAST 5      /* ... to those above */
#define NVFP4_ZERO_GLOBAL 0x1p-24f /* of a tensor of zeros; below any real weight's, so that max() over parts ignores it */
#define NVFP4_LEAST_GLOBAL 0x1p-149f

/* ------------------------------------------------------------------------------------------------ bits */

MTPFIX_FN uint32_t nvfp4_bits(float value) {
#if defined(__CUDA_ARCH__) || defined(__CUDACC_RTC__)
    return __float_as_uint(value);
#else
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
}

MTPFIX_FN float nvfp4_float(uint32_t bits) {
#if defined(__CUDA_ARCH__) || defined(__CUDACC_RTC__)
    return __uint_as_float(bits);
#else
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

MTPFIX_FN float nvfp4_abs(float value) { return nvfp4_float(nvfp4_bits(value) & 0x7fffffffu); }

/* ------------------------------------------------------------------------------------ formats, to binary32 */

MTPFIX_FN float nvfp4_from_bf16(uint16_t bits) { return nvfp4_float((uint32_t)bits << 16); }

MTPFIX_FN float nvfp4_from_fp16(uint16_t bits) {
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16;
    const uint32_t rest = bits & 0x7fffu;
    if (rest >= 0x7c00u) return nvfp4_float(sign | 0x7f800000u | (rest << 13));
    if (rest >= 0x0400u) return nvfp4_float(sign | ((rest << 13) + 0x38000000u));
    return nvfp4_float(sign | nvfp4_bits(MTPFIX_MUL((float)rest, 0x1p-24f)));
}

MTPFIX_FN float nvfp4_from_e4m3(uint8_t bits) { /* 0x7f and 0xff are NaN; there is no infinity */
    const uint32_t sign = (uint32_t)(bits & 0x80u) << 24;
    const uint32_t rest = bits & 0x7fu;
    if (rest == 0x7fu) return nvfp4_float(sign | 0x7fc00000u);
    if (rest >= 0x08u) return nvfp4_float(sign | ((rest << 20) + 0x3c000000u));
    return nvfp4_float(sign | nvfp4_bits(MTPFIX_MUL((float)rest, 0x1p-9f)));
}

MTPFIX_FN float nvfp4_from_e2m1(uint8_t code) { /* 0 0.5 1 1.5 2 3 4 6, then the same negative */
    const uint32_t sign = (uint32_t)(code & 0x8u) << 28;
    const uint32_t rest = code & 0x7u;
    if (rest >= 2u) return nvfp4_float(sign | ((rest << 22) + 0x3f000000u));
    return nvfp4_float(sign | (rest << 24) * 63u); /* 63 << 24 is 0.5 */
}

/* ---------------------------------------------------------------------------------- formats, from binary32 */

/* Round to nearest even, as torch does; NaN becomes the quiet NaN 0x7fc0. */
MTPFIX_FN uint16_t nvfp4_to_bf16(float value) {
    const uint32_t bits = nvfp4_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0u;
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* Round to nearest even; beyond 65504 (from 65520 on) infinity. */
MTPFIX_FN uint16_t nvfp4_to_fp16(float value) {
    const uint32_t bits = nvfp4_bits(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (rest >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
    if (rest < 0x38800000u) /* below 2^-14: the sum's last bit is 2^-24 */
        return (uint16_t)(sign | (nvfp4_bits(MTPFIX_ADD(nvfp4_float(rest), 0.5f)) - 0x3f000000u));
    return (uint16_t)(sign | ((rest + 0xfffu + ((rest >> 13) & 1u) - 0x38000000u) >> 13));
}

/* Round to nearest even, saturating at 448; NaN becomes NaN. */
MTPFIX_FN uint8_t nvfp4_to_e4m3(float value) {
    const uint32_t bits = nvfp4_bits(value);
    const uint32_t sign = (bits >> 24) & 0x80u;
    const uint32_t rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return (uint8_t)(sign | 0x7fu);
    if (rest >= 0x43e00000u) return (uint8_t)(sign | NVFP4_GREATEST);
    if (rest < 0x3c800000u) /* below 2^-6: the sum's last bit is 2^-9 */
        return (uint8_t)(sign | (nvfp4_bits(MTPFIX_ADD(nvfp4_float(rest), 0x1p14f)) - 0x46800000u));
    return (uint8_t)(sign | ((rest + 0x7ffffu + ((rest >> 20) & 1u) - 0x3c000000u) >> 20));
}

/* The magnitude's code, 0 to 7, of a number >= 0: nearest, ties to the even code, everything above 5 to 6.
 * A quotient 0/0 becomes 7, as in ModelOpt (it dequantizes to 0 there, because its scale is 0). */
MTPFIX_FN uint32_t nvfp4_round_e2m1(float magnitude) {
    return (uint32_t)!(magnitude <= 0.25f) + (uint32_t)!(magnitude < 0.75f) + (uint32_t)!(magnitude <= 1.25f) +
           (uint32_t)!(magnitude < 1.75f) + (uint32_t)!(magnitude <= 2.5f) + (uint32_t)!(magnitude < 3.5f) +
           (uint32_t)!(magnitude <= 5.0f);
}

/* The sign is that of the comparison, not of the bit: -0.0 becomes 0, a negative number that rounds to 0 becomes 8. */
MTPFIX_FN uint8_t nvfp4_to_e2m1(float value) {
    return (uint8_t)(nvfp4_round_e2m1(nvfp4_abs(value)) | (value < 0.0f ? 8u : 0u));
}

/* ------------------------------------------------------------------------------------------------ scales */

/* The global scale of a tensor whose largest magnitude is `amax`, which must be finite. Never 0: where the quotient
 * vanishes ModelOpt would write NaN scales. */
MTPFIX_FN float nvfp4_global_scale(float amax) {
    const float scale = MTPFIX_DIV(amax, NVFP4_RANGE);
    if (amax == 0.0f) return NVFP4_ZERO_GLOBAL;
    return scale > 0.0f ? scale : NVFP4_LEAST_GLOBAL;
}

/* The E4M3 scale of a block whose largest magnitude is `amax`. */
MTPFIX_FN uint8_t nvfp4_block_scale(float amax, float global) {
    const float scale = MTPFIX_DIV(amax, MTPFIX_MUL(NVFP4_E2M1_MAX, global));
    if (scale == 0.0f) return NVFP4_ONE;
    if (scale <= 0x1p-9f) return NVFP4_LEAST;
    return nvfp4_to_e4m3(scale);
}

/* What a block's codes are multiplied with. */
MTPFIX_FN float nvfp4_step(uint8_t scale, float global) { return MTPFIX_MUL(nvfp4_from_e4m3(scale), global); }

/* One number of an FP8 tensor with 128 x 128 blocks: dequantized, then rounded to BF16, as it would be had the
 * checkpoint been converted to BF16 first. */
MTPFIX_FN float nvfp4_from_fp8_block(uint8_t code, float scale_inv) {
    return nvfp4_from_bf16(nvfp4_to_bf16(MTPFIX_MUL(nvfp4_from_e4m3(code), scale_inv)));
}

/* ------------------------------------------------------------------------------------------------ blocks */

MTPFIX_FN float nvfp4_block_amax(const float x[NVFP4_BLOCK]) {
    uint32_t amax = 0; /* magnitudes order as their bits do, and NaN above all */
    for (int i = 0; i < NVFP4_BLOCK; i++) {
        const uint32_t bits = nvfp4_bits(x[i]) & 0x7fffffffu;
        amax = bits > amax ? bits : amax;
    }
    return nvfp4_float(amax);
}

/* The squared error of a block under one scale, in units of the global scale squared: `z` are |x| / global. The sum's
 * order is fixed, halves onto halves, so that every implementation gets the same bits. */
MTPFIX_FN float nvfp4_block_error(const float z[NVFP4_BLOCK], uint8_t scale) {
    const float s = nvfp4_from_e4m3(scale);
    const float r = MTPFIX_DIV(1.0f, s);
    float e[NVFP4_BLOCK];
    for (int i = 0; i < NVFP4_BLOCK; i++) {
        const float q = nvfp4_from_e2m1((uint8_t)nvfp4_round_e2m1(MTPFIX_MUL(z[i], r)));
        const float d = MTPFIX_SUB(z[i], MTPFIX_MUL(q, s));
        e[i] = MTPFIX_MUL(d, d);
    }
    for (int half = NVFP4_BLOCK / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) e[i] = MTPFIX_ADD(e[i], e[i + half]);
    return e[0];
}

/* The scale with the least squared error among the plain one's neighbours; of equals the plain one, then the lowest. */
MTPFIX_FN uint8_t nvfp4_search_scale(const float x[NVFP4_BLOCK], float global, uint8_t plain) {
    float z[NVFP4_BLOCK];
    for (int i = 0; i < NVFP4_BLOCK; i++) z[i] = MTPFIX_DIV(nvfp4_abs(x[i]), global);
    float least = nvfp4_block_error(z, plain);
    uint8_t best = plain;
    for (int offset = NVFP4_SEARCH_FIRST; offset <= NVFP4_SEARCH_LAST; offset++) {
        const int scale = (int)plain + offset;
        if (offset == 0 || scale < (int)NVFP4_LEAST || scale > (int)NVFP4_GREATEST) continue;
        const float error = nvfp4_block_error(z, (uint8_t)scale);
        if (error < least) {
            least = error;
            best = (uint8_t)scale;
        }
    }
    return best;
}

/* The codes of a block under a scale, two to a byte: the even column in the low nibble. */
MTPFIX_FN void nvfp4_pack_block(const float x[NVFP4_BLOCK], float step, uint8_t packed[NVFP4_BLOCK / 2]) {
    for (int i = 0; i < NVFP4_BLOCK / 2; i++) {
        const uint32_t low = nvfp4_to_e2m1(MTPFIX_DIV(x[2 * i], step));
        const uint32_t high = nvfp4_to_e2m1(MTPFIX_DIV(x[2 * i + 1], step));
        packed[i] = (uint8_t)(low | high << 4);
    }
}

/* Quantize one block; returns its scale. `x` must be finite, `global` finite and positive. */
MTPFIX_FN uint8_t nvfp4_quantize_block(const float x[NVFP4_BLOCK], float global, int search,
                                       uint8_t packed[NVFP4_BLOCK / 2]) {
    uint8_t scale = nvfp4_block_scale(nvfp4_block_amax(x), global);
    if (search) scale = nvfp4_search_scale(x, global, scale);
    nvfp4_pack_block(x, nvfp4_step(scale, global), packed);
    return scale;
}

/* One number of a block, whose `step` is nvfp4_step of its scale. */
MTPFIX_FN float nvfp4_dequantize(uint8_t code, float step) { return MTPFIX_MUL(nvfp4_from_e2m1(code), step); }

#endif
