/* The variant for 64-bit ARM with NEON: four blocks at a time, the same single operations as core.h.
 *
 * Compile with -ffp-contract=off: NEON has fused multiplications, and a compiler may contract intrinsics.
 */
#include "kernels.h"

#ifdef NVFP4_NEON

#include <arm_neon.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES 4 /* blocks that share a vector of scales, and parts of a block */
#define CANDIDATES 8

static const int search_offsets[CANDIDATES] = {0, -2, -1, 1, 2, 3, 4, 5}; /* equals: the first is preferred */

typedef struct { float32x4_t part[LANES]; } Block; /* its 16 numbers in order */

INLINE size_t width_of(int dtype) { return NVFP4_BLOCK * (dtype == NVFP4_FP32 ? 4 : 2); }

INLINE float32x4_t as_float(uint32x4_t bits) { return vreinterpretq_f32_u32(bits); }

INLINE uint32x4_t as_bits(float32x4_t value) { return vreinterpretq_u32_f32(value); }

INLINE Block load_block(const uint8_t *x, int dtype) {
    Block block;
    for (int h = 0; h < 2; h++) {
        if (dtype == NVFP4_FP32) {
            block.part[2 * h] = vreinterpretq_f32_u8(vld1q_u8(x + 32 * h));
            block.part[2 * h + 1] = vreinterpretq_f32_u8(vld1q_u8(x + 32 * h + 16));
            continue;
        }
        const uint16x8_t halves = vreinterpretq_u16_u8(vld1q_u8(x + 16 * h));
        if (dtype == NVFP4_BF16) {
            block.part[2 * h] = as_float(vshll_n_u16(vget_low_u16(halves), 16));
            block.part[2 * h + 1] = as_float(vshll_high_n_u16(halves, 16));
        } else {
            block.part[2 * h] = vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(halves)));
            block.part[2 * h + 1] = vcvt_high_f32_f16(vreinterpretq_f16_u16(halves));
        }
    }
    return block;
}

/* The largest magnitude of each fourth of a block. */
INLINE float32x4_t largest(Block block) {
    return vmaxq_f32(vmaxq_f32(vabsq_f32(block.part[0]), vabsq_f32(block.part[1])),
                     vmaxq_f32(vabsq_f32(block.part[2]), vabsq_f32(block.part[3])));
}

/* nvfp4_block_scale of four blocks. */
INLINE uint32x4_t block_scales(float32x4_t amax, float global) {
    float32x4_t scale = vdivq_f32(amax, vdupq_n_f32(NVFP4_E2M1_MAX * global));
    scale = vbslq_f32(vceqzq_f32(scale), vdupq_n_f32(1.0f), scale);
    scale = vminq_f32(vmaxq_f32(scale, vdupq_n_f32(0x1p-9f)), vdupq_n_f32(NVFP4_E4M3_MAX));
    const uint32x4_t bits = as_bits(scale), odd = vandq_u32(vshrq_n_u32(bits, 20), vdupq_n_u32(1));
    const uint32x4_t half = vdupq_n_u32(0x7ffffu - 0x3c000000u);
    const uint32x4_t normal = vshrq_n_u32(vaddq_u32(vaddq_u32(bits, half), odd), 20);
    const uint32x4_t below = vsubq_u32(as_bits(vaddq_f32(scale, vdupq_n_f32(0x1p14f))), vdupq_n_u32(0x46800000u));
    return vbslq_u32(vcltq_f32(scale, vdupq_n_f32(0x1p-6f)), below, normal);
}

/* nvfp4_from_e4m3 of four codes without sign, none of which is NaN: the exponent field is 120 too small. */
INLINE float32x4_t scale_values(uint32x4_t codes) {
    return vmulq_f32(as_float(vshlq_n_u32(codes, 20)), vdupq_n_f32(0x1p120f));
}

/* The E2M1 codes of quotients. Adding 1.5 * 2^23, 2^24 and 2^25 rounds the doubled magnitudes to multiples of 1, 2 and
 * 4: the grids of the codes 0 to 4, 4 to 6, and 6 and 7, of which the least is the right one. NaN becomes 7. */
INLINE uint32x4_t encode(float32x4_t quotient) {
    const float32x4_t magnitude = vabsq_f32(quotient);
    const float32x4_t doubled = vminnmq_f32(vaddq_f32(magnitude, magnitude), vdupq_n_f32(13.0f));
    const uint32x4_t ones = vsubq_u32(as_bits(vaddq_f32(doubled, vdupq_n_f32(0x1.8p23f))), vdupq_n_u32(0x4b400000u));
    const uint32x4_t twos = vsubq_u32(as_bits(vaddq_f32(doubled, vdupq_n_f32(0x1.8p24f))),
                                      vdupq_n_u32(0x4bc00000u - 2));
    const uint32x4_t fours = vsubq_u32(as_bits(vaddq_f32(doubled, vdupq_n_f32(0x1.8p25f))),
                                       vdupq_n_u32(0x4c400000u - 4));
    const uint32x4_t negative = vandq_u32(vcltzq_f32(quotient), vdupq_n_u32(8));
    return vorrq_u32(vminq_u32(ones, vminq_u32(twos, fours)), negative);
}

/* The codes of a block under a step, a byte for each pair of columns, in the low byte of each 32-bit lane. */
INLINE uint32x4x2_t encode_block(Block block, float32x4_t step) {
    uint32x4x2_t pairs;
    for (int h = 0; h < 2; h++) {
        const float32x4_t first = vdivq_f32(block.part[2 * h], step), second = vdivq_f32(block.part[2 * h + 1], step);
        pairs.val[h] = vsliq_n_u32(encode(vuzp1q_f32(first, second)), encode(vuzp2q_f32(first, second)), 4);
    }
    return pairs;
}

INLINE uint16x8_t narrow(uint32x4x2_t lanes) {
    return vuzp1q_u16(vreinterpretq_u16_u32(lanes.val[0]), vreinterpretq_u16_u32(lanes.val[1]));
}

/* ------------------------------------------------------------------------------------------------ search */

/* Numbers 0 to 6 rounded to E2M1: their sum with 1.5 * 2^23 times the spacing there, and back. */
INLINE float32x4_t round_e2m1(float32x4_t y) {
    float32x4_t shift = vdupq_n_f32(0x1.8p22f);
    shift = vbslq_f32(vcgeq_f32(y, vdupq_n_f32(2.0f)), vdupq_n_f32(0x1.8p23f), shift);
    shift = vbslq_f32(vcgeq_f32(y, vdupq_n_f32(4.0f)), vdupq_n_f32(0x1.8p24f), shift);
    return vsubq_f32(vaddq_f32(y, shift), shift);
}

/* The errors of a block under one candidate, four sums of four, added as nvfp4_block_error does. */
INLINE float32x4_t candidate_errors(const float32x4_t z[LANES], int at) {
    const float32x4_t s = vld1q_dup_f32(nvfp4_scale_values + at), r = vld1q_dup_f32(nvfp4_scale_reciprocals + at);
    float32x4_t e[LANES];
    for (int i = 0; i < LANES; i++) {
        const float32x4_t q = round_e2m1(vminnmq_f32(vmulq_f32(z[i], r), vdupq_n_f32(NVFP4_E2M1_MAX)));
        const float32x4_t d = vsubq_f32(z[i], vmulq_f32(q, s));
        e[i] = vmulq_f32(d, d);
    }
    return vaddq_f32(vaddq_f32(e[0], e[2]), vaddq_f32(e[1], e[3]));
}

/* Of two vectors the sums of lanes two apart. */
INLINE float32x4_t add_halves(float32x4_t a, float32x4_t b) {
    const float64x2_t x = vreinterpretq_f64_f32(a), y = vreinterpretq_f64_f32(b);
    return vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(x, y)), vreinterpretq_f32_f64(vzip2q_f64(x, y)));
}

/* nvfp4_search_scale of one block. */
INLINE uint8_t search_block(Block block, float32x4_t global, uint8_t plain) {
    float32x4_t z[LANES], e[CANDIDATES];
    float errors[CANDIDATES];
    for (int i = 0; i < LANES; i++) z[i] = vdivq_f32(vabsq_f32(block.part[i]), global);
    for (int c = 0; c < CANDIDATES; c++) e[c] = candidate_errors(z, plain + search_offsets[c] - NVFP4_TABLE_FIRST);
    for (int c = 0; c < CANDIDATES; c += 4)
        vst1q_f32(errors + c, vpaddq_f32(add_halves(e[c], e[c + 1]), add_halves(e[c + 2], e[c + 3])));
    int best = 0;
    for (int c = 1; c < CANDIDATES; c++) {
        const int scale = plain + search_offsets[c];
        if (scale >= (int)NVFP4_LEAST && scale <= (int)NVFP4_GREATEST && errors[c] < errors[best]) best = c;
    }
    return (uint8_t)(plain + search_offsets[best]);
}

/* ------------------------------------------------------------------------------------------------ loops */

INLINE void quantize_four(const uint8_t *x, int dtype, float global, int search, uint8_t *packed, uint8_t *scales) {
    Block block[LANES];
    for (int b = 0; b < LANES; b++) block[b] = load_block(x + (size_t)b * width_of(dtype), dtype);
    uint32x4_t codes = block_scales(vpmaxq_f32(vpmaxq_f32(largest(block[0]), largest(block[1])),
                                               vpmaxq_f32(largest(block[2]), largest(block[3]))), global);
    if (search) {
        uint32_t lanes[LANES];
        vst1q_u32(lanes, codes);
        for (int b = 0; b < LANES; b++) lanes[b] = search_block(block[b], vdupq_n_f32(global), (uint8_t)lanes[b]);
        codes = vld1q_u32(lanes);
    }
    const uint16x4_t words = vmovn_u32(codes);
    const uint32_t bytes = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words))), 0);
    memcpy(scales, &bytes, LANES);
    float steps[LANES];
    vst1q_f32(steps, vmulq_f32(scale_values(codes), vdupq_n_f32(global)));
    for (int b = 0; b < LANES; b += 2) {
        const uint16x8_t first = narrow(encode_block(block[b], vdupq_n_f32(steps[b])));
        const uint16x8_t second = narrow(encode_block(block[b + 1], vdupq_n_f32(steps[b + 1])));
        vst1q_u8(packed + b * NVFP4_BLOCK / 2,
                 vuzp1q_u8(vreinterpretq_u8_u16(first), vreinterpretq_u8_u16(second)));
    }
}

INLINE void quantize(const uint8_t *x, int dtype, size_t blocks, float global, int search, uint8_t *packed,
                     uint8_t *scales) {
    const size_t width = width_of(dtype);
    size_t b = 0;
    for (; b + LANES <= blocks; b += LANES)
        quantize_four(x + b * width, dtype, global, search, packed + b * NVFP4_BLOCK / 2, scales + b);
    if (b == blocks) return;
    uint8_t rest[LANES * NVFP4_BLOCK * 4] = {0}, rest_packed[LANES * NVFP4_BLOCK / 2], rest_scales[LANES];
    memcpy(rest, x + b * width, (blocks - b) * width);
    quantize_four(rest, dtype, global, search, rest_packed, rest_scales);
    memcpy(packed + b * NVFP4_BLOCK / 2, rest_packed, (blocks - b) * NVFP4_BLOCK / 2);
    memcpy(scales + b, rest_scales, blocks - b);
}

#define QUANTIZE(name, dtype)                                                                                          \
    static void name(const uint8_t *x, size_t blocks, float global, int search, uint8_t *packed, uint8_t *scales) {    \
        if (search)                                                                                                    \
            quantize(x, dtype, blocks, global, 1, packed, scales);                                                     \
        else                                                                                                           \
            quantize(x, dtype, blocks, global, 0, packed, scales);                                                     \
    }
QUANTIZE(quantize_bf16, NVFP4_BF16)
QUANTIZE(quantize_fp16, NVFP4_FP16)
QUANTIZE(quantize_fp32, NVFP4_FP32)

/* Bits of BF16 in each lane, nearest even; no NaN comes here. */
INLINE uint32x4_t round_bf16(float32x4_t value) {
    const uint32x4_t bits = as_bits(value), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    return vshrq_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd), 16);
}

/* The eight magnitudes a block can have are computed and rounded once, then looked up byte by byte. */
INLINE void dequantize(const uint8_t *packed, const uint8_t *scales, int dtype, size_t blocks, float global,
                       uint8_t *target) {
    static const float magnitudes[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
    for (size_t b = 0; b < blocks; b++) {
        const float step = nvfp4_step(scales[b], global);
        if (step != step) { /* a scale that is NaN: not here */
            nvfp4_portable.dequantize[dtype](packed + b * 8, scales + b, 1, global, target + b * width_of(dtype));
            continue;
        }
        const float32x4_t low = vld1q_f32(magnitudes), high = vld1q_f32(magnitudes + 4);
        const uint8x8_t pairs = vld1_u8(packed + b * NVFP4_BLOCK / 2);
        const uint8x8_t even = vand_u8(pairs, vdup_n_u8(15)), odd = vshr_n_u8(pairs, 4);
        const uint8x16_t codes = vcombine_u8(vzip1_u8(even, odd), vzip2_u8(even, odd));
        uint16x8_t words; /* the magnitudes, of FP32 the upper halves before the multiplication, which are exact */
        if (dtype == NVFP4_FP32)
            words = vuzp2q_u16(vreinterpretq_u16_f32(low), vreinterpretq_u16_f32(high));
        else if (dtype == NVFP4_BF16)
            words = vcombine_u16(vmovn_u32(round_bf16(vmulq_n_f32(low, step))),
                                 vmovn_u32(round_bf16(vmulq_n_f32(high, step))));
        else
            words = vreinterpretq_u16_f16(vcombine_f16(vcvt_f16_f32(vmulq_n_f32(low, step)),
                                                       vcvt_f16_f32(vmulq_n_f32(high, step))));
        const uint8x16_t bytes = vreinterpretq_u8_u16(words);
        const uint8x8_t lower = vuzp1_u8(vget_low_u8(bytes), vget_high_u8(bytes));
        const uint8x8_t upper = vuzp2_u8(vget_low_u8(bytes), vget_high_u8(bytes));
        const uint8x16_t first = vqtbl1q_u8(vcombine_u8(lower, lower), codes);
        const uint8x16_t second = vqtbl1q_u8(vcombine_u8(upper, veor_u8(upper, vdup_n_u8(0x80))), codes);
        const uint16x8_t numbers[2] = {vreinterpretq_u16_u8(vzip1q_u8(first, second)),
                                       vreinterpretq_u16_u8(vzip2q_u8(first, second))};
        for (int h = 0; h < 2; h++) {
            if (dtype != NVFP4_FP32) {
                vst1q_u8(target + b * 32 + 16 * h, vreinterpretq_u8_u16(numbers[h]));
                continue;
            }
            const float32x4_t front = as_float(vshll_n_u16(vget_low_u16(numbers[h]), 16));
            const float32x4_t back = as_float(vshll_high_n_u16(numbers[h], 16));
            vst1q_u8(target + b * 64 + 32 * h, vreinterpretq_u8_f32(vmulq_n_f32(front, step)));
            vst1q_u8(target + b * 64 + 32 * h + 16, vreinterpretq_u8_f32(vmulq_n_f32(back, step)));
        }
    }
}

#define DEQUANTIZE(name, dtype)                                                                                        \
    static void name(const uint8_t *packed, const uint8_t *scales, size_t blocks, float global, uint8_t *target) {     \
        dequantize(packed, scales, dtype, blocks, global, target);                                                     \
    }
DEQUANTIZE(dequantize_bf16, NVFP4_BF16)
DEQUANTIZE(dequantize_fp16, NVFP4_FP16)
DEQUANTIZE(dequantize_fp32, NVFP4_FP32)

static void expand(const uint8_t *codes, size_t count, float scale_inv, uint8_t *target) {
    size_t i = 0;
    if ((nvfp4_bits(scale_inv) & 0x7f800000u) != 0x7f800000u) { /* else NaN must be kept: not here */
        for (; i + 8 <= count; i += 8) {
            const uint16x8_t bytes = vmovl_u8(vld1_u8(codes + i));
            uint32x4_t words[2] = {vmovl_u16(vget_low_u16(bytes)), vmovl_high_u16(bytes)};
            for (int h = 0; h < 2; h++) {
                const uint32x4_t sign = vshlq_n_u32(vshrq_n_u32(words[h], 7), 31);
                const uint32x4_t rest = vandq_u32(words[h], vdupq_n_u32(0x7f));
                const uint32x4_t nan = vceqq_u32(rest, vdupq_n_u32(0x7f));
                const float32x4_t value = as_float(vorrq_u32(as_bits(scale_values(rest)), sign));
                words[h] = vbslq_u32(nan, vdupq_n_u32(0x7fc0), round_bf16(vmulq_n_f32(value, scale_inv)));
            }
            vst1q_u8(target + 2 * i, vreinterpretq_u8_u16(narrow((uint32x4x2_t){{words[0], words[1]}})));
        }
    }
    nvfp4_portable.expand(codes + i, count - i, scale_inv, target + 2 * i);
}

static uint32_t amax8(const uint8_t *x, size_t count) {
    uint8x16_t most = vdupq_n_u8(0);
    size_t i = 0;
    for (; i + 16 <= count; i += 16) most = vmaxq_u8(most, vandq_u8(vld1q_u8(x + i), vdupq_n_u8(0x7f)));
    const uint32_t rest = nvfp4_portable.amax8(x + i, count - i), here = vmaxvq_u8(most);
    return here > rest ? here : rest;
}

static uint32_t amax16(const uint8_t *x, size_t count) {
    uint16x8_t most[2] = {vdupq_n_u16(0), vdupq_n_u16(0)};
    size_t i = 0;
    for (; i + 16 <= count; i += 16)
        for (int k = 0; k < 2; k++) {
            const uint16x8_t bits = vreinterpretq_u16_u8(vld1q_u8(x + 2 * i + 16 * k));
            most[k] = vmaxq_u16(most[k], vandq_u16(bits, vdupq_n_u16(0x7fff)));
        }
    const uint32_t rest = nvfp4_portable.amax16(x + 2 * i, count - i), here = vmaxvq_u16(vmaxq_u16(most[0], most[1]));
    return here > rest ? here : rest;
}

static uint32_t amax32(const uint8_t *x, size_t count) {
    uint32x4_t most[2] = {vdupq_n_u32(0), vdupq_n_u32(0)};
    size_t i = 0;
    for (; i + 8 <= count; i += 8)
        for (int k = 0; k < 2; k++) {
            const uint32x4_t bits = vreinterpretq_u32_u8(vld1q_u8(x + 4 * i + 16 * k));
            most[k] = vmaxq_u32(most[k], vandq_u32(bits, vdupq_n_u32(0x7fffffff)));
        }
    const uint32_t rest = nvfp4_portable.amax32(x + 4 * i, count - i), here = vmaxvq_u32(vmaxq_u32(most[0], most[1]));
    return here > rest ? here : rest;
}

const Nvfp4Kernels nvfp4_neon = {
    "neon",
    amax8,
    amax16,
    amax32,
    {quantize_bf16, quantize_fp16, quantize_fp32},
    {dequantize_bf16, dequantize_fp16, dequantize_fp32},
    expand,
};

#endif
