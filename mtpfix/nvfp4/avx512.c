/* The variant for x86-64 with AVX-512: sixteen blocks of BF16 at a time; all else is the AVX2 variant's.
 *
 * AVX-512 brings fused multiplications, so this must be compiled with -ffp-contract=off.
 */
#include "kernels.h"

#ifdef NVFP4_X86

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq"))),                 \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq")
#endif

#include "avx2.h"

#define BLOCKS 16
#define BF16_WIDTH (2 * NVFP4_BLOCK)

INLINE __m512i round_codes_wide(__m512 magnitude, __m512 table) {
    magnitude = _mm512_min_ps(magnitude, _mm512_set1_ps(NVFP4_E2M1_MAX));
    const __m512i exponent = _mm512_srli_epi32(_mm512_castps_si512(_mm512_max_ps(magnitude, _mm512_set1_ps(1.0f))), 23);
    return _mm512_castps_si512(_mm512_add_ps(magnitude, _mm512_permutevar_ps(table, exponent)));
}

/* The largest magnitudes of eight blocks. */
INLINE __m256 block_amaxes(const uint8_t *x) {
    const __m256i magnitude = _mm256_set1_epi16(0x7fff);
    __m128i least[LANES];
    for (int b = 0; b < LANES; b++) {
        const __m256i bits = _mm256_loadu_si256((const __m256i *)(x + b * BF16_WIDTH));
        const __m256i rest = _mm256_andnot_si256(bits, magnitude);
        least[b] = _mm_minpos_epu16(_mm_min_epu16(_mm256_castsi256_si128(rest), _mm256_extracti128_si256(rest, 1)));
    }
    const __m128i low = _mm_unpacklo_epi32(_mm_unpacklo_epi16(least[0], least[1]),
                                           _mm_unpacklo_epi16(least[2], least[3]));
    const __m128i high = _mm_unpacklo_epi32(_mm_unpacklo_epi16(least[4], least[5]),
                                            _mm_unpacklo_epi16(least[6], least[7]));
    const __m128i bits = _mm_sub_epi16(_mm_set1_epi16(0x7fff), _mm_unpacklo_epi64(low, high));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

/* nvfp4_search_scale of one block. */
INLINE uint8_t search_block(const uint8_t *x, __m512 global, uint8_t plain) {
    const __m256i bits = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)x), _mm256_set1_epi16(0x7fff));
    const __m512 magnitude = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    const __m512 z = _mm512_div_ps(magnitude, global);
    const __m512 table = _mm512_broadcast_f32x8(spacing_table());
    Octet errors;
    for (int c = 0; c < LANES; c++) {
        const int at = plain + search_offsets[c] - NVFP4_TABLE_FIRST;
        const __m512 s = _mm512_set1_ps(nvfp4_scale_values[at]), r = _mm512_set1_ps(nvfp4_scale_reciprocals[at]);
        const __m512 y = _mm512_min_ps(_mm512_mul_ps(z, r), _mm512_set1_ps(NVFP4_E2M1_MAX));
        const __m512i exponent = _mm512_srli_epi32(_mm512_castps_si512(_mm512_max_ps(y, _mm512_set1_ps(1.0f))), 23);
        const __m512 shift = _mm512_permutevar_ps(table, exponent);
        const __m512 q = _mm512_sub_ps(_mm512_add_ps(y, shift), shift);
        const __m512 d = _mm512_sub_ps(z, _mm512_mul_ps(q, s));
        const __m512 e = _mm512_mul_ps(d, d);
        errors.values[c] = _mm256_add_ps(_mm512_castps512_ps256(e), _mm512_extractf32x8_ps(e, 1));
    }
    return choose_scale(&errors, plain);
}

INLINE void quantize_sixteen(const uint8_t *x, float global, int search, uint8_t *packed, uint8_t *scales) {
    const __m512 table = _mm512_broadcast_f32x8(code_table());
    float steps[BLOCKS] __attribute__((aligned(64)));
    for (int h = 0; h < BLOCKS; h += LANES) {
        __m256i codes = block_scales(block_amaxes(x + h * BF16_WIDTH), global);
        store_codes(scales + h, codes);
        if (search) {
            for (int b = h; b < h + LANES; b++)
                scales[b] = search_block(x + b * BF16_WIDTH, _mm512_set1_ps(global), scales[b]);
            codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(scales + h)));
        }
        _mm256_store_ps(steps + h, _mm256_mul_ps(scale_values(codes), _mm256_set1_ps(global)));
    }
    const __m512 all = _mm512_load_ps(steps);
    const __m512i pair = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    for (int b = 0; b < BLOCKS; b += 2) {
        const __m512 step = _mm512_permutexvar_ps(_mm512_add_epi32(pair, _mm512_set1_epi32(b)), all);
        const __m512i bits = _mm512_loadu_si512(x + b * BF16_WIDTH);
        const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi16(0x7fff));
        const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(magnitude, 16));
        const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(magnitude, _mm512_set1_epi32((int)0xffff0000u)));
        const __m512i low = round_codes_wide(_mm512_div_ps(even, step), table);
        const __m512i high = _mm512_slli_epi32(round_codes_wide(_mm512_div_ps(odd, step), table), 4);
        const __m512i negative = _mm512_min_epu16(_mm512_subs_epu16(bits, _mm512_set1_epi16((short)0x8000)),
                                                  _mm512_set1_epi16(1)); /* and not -0.0 */
        const __m512i signs = _mm512_madd_epi16(negative, _mm512_set1_epi32(0x00800008));
        const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(_mm512_add_epi32(low, high), signs));
        _mm_storeu_si128((__m128i *)(packed + b * NVFP4_BLOCK / 2), bytes);
    }
}

INLINE void quantize(const uint8_t *x, size_t blocks, float global, int search, uint8_t *packed, uint8_t *scales) {
    size_t b = 0;
    for (; b + BLOCKS <= blocks; b += BLOCKS)
        quantize_sixteen(x + b * BF16_WIDTH, global, search, packed + b * NVFP4_BLOCK / 2, scales + b);
    nvfp4_avx2.quantize[NVFP4_BF16](x + b * BF16_WIDTH, blocks - b, global, search, packed + b * NVFP4_BLOCK / 2,
                                    scales + b);
}

static void quantize_plain(const uint8_t *x, size_t blocks, float global, uint8_t *packed, uint8_t *scales) {
    quantize(x, blocks, global, 0, packed, scales);
}

static void quantize_search(const uint8_t *x, size_t blocks, float global, uint8_t *packed, uint8_t *scales) {
    quantize(x, blocks, global, 1, packed, scales);
}

static void quantize_bf16(const uint8_t *x, size_t blocks, float global, int search, uint8_t *packed,
                          uint8_t *scales) {
    if (global > BF16_GREATEST_GLOBAL)
        nvfp4_portable.quantize[NVFP4_BF16](x, blocks, global, search, packed, scales);
    else if (search)
        quantize_search(x, blocks, global, packed, scales);
    else
        quantize_plain(x, blocks, global, packed, scales);
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static uint32_t amax8(const uint8_t *x, size_t count) { return nvfp4_avx2.amax8(x, count); }

static uint32_t amax16(const uint8_t *x, size_t count) { return nvfp4_avx2.amax16(x, count); }

static uint32_t amax32(const uint8_t *x, size_t count) { return nvfp4_avx2.amax32(x, count); }

static void quantize_fp16(const uint8_t *x, size_t blocks, float global, int search, uint8_t *packed,
                          uint8_t *scales) {
    nvfp4_avx2.quantize[NVFP4_FP16](x, blocks, global, search, packed, scales);
}

static void quantize_fp32(const uint8_t *x, size_t blocks, float global, int search, uint8_t *packed,
                          uint8_t *scales) {
    nvfp4_avx2.quantize[NVFP4_FP32](x, blocks, global, search, packed, scales);
}

static void dequantize_bf16(const uint8_t *packed, const uint8_t *scales, size_t blocks, float global,
                            uint8_t *target) {
    nvfp4_avx2.dequantize[NVFP4_BF16](packed, scales, blocks, global, target);
}

static void dequantize_fp16(const uint8_t *packed, const uint8_t *scales, size_t blocks, float global,
                            uint8_t *target) {
    nvfp4_avx2.dequantize[NVFP4_FP16](packed, scales, blocks, global, target);
}

static void dequantize_fp32(const uint8_t *packed, const uint8_t *scales, size_t blocks, float global,
                            uint8_t *target) {
    nvfp4_avx2.dequantize[NVFP4_FP32](packed, scales, blocks, global, target);
}

static void expand(const uint8_t *codes, size_t count, float scale_inv, uint8_t *target) {
    nvfp4_avx2.expand(codes, count, scale_inv, target);
}

const Nvfp4Kernels nvfp4_avx512 = {
    "avx512",
    amax8,
    amax16,
    amax32,
    {quantize_bf16, quantize_fp16, quantize_fp32},
    {dequantize_bf16, dequantize_fp16, dequantize_fp32},
    expand,
};

#endif
