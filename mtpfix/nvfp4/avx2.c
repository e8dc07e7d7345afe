/* The variant for x86-64 with AVX2 and F16C: eight blocks at a time, the same single operations as core.h.
 *
 * FMA is not enabled here, so that no compiler can contract a multiplication and an addition.
 */
#include "kernels.h"

#ifdef NVFP4_X86

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#endif

#include "avx2.h"

INLINE __m256i encode(__m256 even, __m256 odd, __m256 table) {
    const __m256 zero = _mm256_setzero_ps();
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    const __m256i low = _mm256_castps_si256(_mm256_and_ps(_mm256_cmp_ps(even, zero, _CMP_LT_OQ),
                                                          _mm256_castsi256_ps(_mm256_set1_epi32(0x08))));
    const __m256i high = _mm256_castps_si256(_mm256_and_ps(_mm256_cmp_ps(odd, zero, _CMP_LT_OQ),
                                                           _mm256_castsi256_ps(_mm256_set1_epi32(0x80))));
    const __m256i codes = pair_codes(round_codes(_mm256_and_ps(even, magnitude), table),
                                     round_codes(_mm256_and_ps(odd, magnitude), table));
    return _mm256_and_si256(_mm256_add_epi32(codes, _mm256_or_si256(low, high)), _mm256_set1_epi32(0xff));
}

/* Four blocks' bytes, which stand in 32-bit lanes, to memory. */
INLINE void store_blocks(uint8_t *packed, const __m256i codes[4]) {
    const __m256i bytes = _mm256_packus_epi16(_mm256_packus_epi32(codes[0], codes[1]),
                                              _mm256_packus_epi32(codes[2], codes[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i *)packed, _mm256_permutevar8x32_epi32(bytes, order));
}

/* --------------------------------------------------------------------------------- one block, by its dtype */

INLINE size_t width_of(int dtype) { return NVFP4_BLOCK * (dtype == NVFP4_FP32 ? 4 : 2); }

INLINE __m256i load(const uint8_t *x) { return _mm256_loadu_si256((const __m256i *)x); }

/* The first and the last eight numbers. */
INLINE void load_halves(const uint8_t *x, int dtype, __m256 *low, __m256 *high) {
    if (dtype == NVFP4_FP32) {
        *low = _mm256_loadu_ps((const float *)(const void *)x);
        *high = _mm256_loadu_ps((const float *)(const void *)(x + 32));
        return;
    }
    const __m128i first = _mm_loadu_si128((const __m128i *)x), second = _mm_loadu_si128((const __m128i *)(x + 16));
    if (dtype == NVFP4_FP16) {
        *low = _mm256_cvtph_ps(first);
        *high = _mm256_cvtph_ps(second);
    } else {
        *low = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(first), 16));
        *high = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(second), 16));
    }
}

INLINE __m256 block_amaxes(const uint8_t *x, int dtype) {
    if (dtype == NVFP4_FP32) {
        const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
        Octet v;
        for (int b = 0; b < LANES; b++) {
            __m256 low, high;
            load_halves(x + (size_t)b * 64, dtype, &low, &high);
            v.values[b] = _mm256_max_ps(_mm256_and_ps(low, magnitude), _mm256_and_ps(high, magnitude));
        }
        return max_lanes(&v);
    }
    const __m256i magnitude = _mm256_set1_epi16(0x7fff);
    __m128i least[LANES]; /* of 0x7fff less the magnitude's bits, because there is a minimum across lanes only */
    for (int b = 0; b < LANES; b++) {
        const __m256i rest = _mm256_andnot_si256(load(x + (size_t)b * 32), magnitude);
        least[b] = _mm_minpos_epu16(_mm_min_epu16(_mm256_castsi256_si128(rest), _mm256_extracti128_si256(rest, 1)));
    }
    const __m128i low = _mm_unpacklo_epi32(_mm_unpacklo_epi16(least[0], least[1]),
                                           _mm_unpacklo_epi16(least[2], least[3]));
    const __m128i high = _mm_unpacklo_epi32(_mm_unpacklo_epi16(least[4], least[5]),
                                            _mm_unpacklo_epi16(least[6], least[7]));
    const __m128i bits = _mm_sub_epi16(_mm_set1_epi16(0x7fff), _mm_unpacklo_epi64(low, high));
    if (dtype == NVFP4_FP16) return _mm256_cvtph_ps(bits);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

INLINE __m256i encode_block(const uint8_t *x, int dtype, __m256 step, __m256 table) {
    if (dtype == NVFP4_BF16) {
        const __m256i bits = load(x);
        const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi16(0x7fff));
        const __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(magnitude, 16));
        const __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(magnitude, _mm256_set1_epi32((int)0xffff0000u)));
        const __m256i codes = pair_codes(round_codes(_mm256_div_ps(even, step), table),
                                         round_codes(_mm256_div_ps(odd, step), table));
        const __m256i negative = _mm256_min_epu16(_mm256_subs_epu16(bits, _mm256_set1_epi16((short)0x8000)),
                                                  _mm256_set1_epi16(1)); /* and not -0.0 */
        const __m256i signs = _mm256_madd_epi16(negative, _mm256_set1_epi32(0x00800008));
        return _mm256_and_si256(_mm256_add_epi32(codes, signs), _mm256_set1_epi32(0xff));
    }
    __m256 low, high;
    load_halves(x, dtype, &low, &high);
    const __m256i codes = encode(_mm256_div_ps(_mm256_shuffle_ps(low, high, 0x88), step),
                                 _mm256_div_ps(_mm256_shuffle_ps(low, high, 0xdd), step), table);
    return _mm256_permute4x64_epi64(codes, 0xd8);
}

/* nvfp4_search_scale of one block. */
INLINE uint8_t search_block(const uint8_t *x, int dtype, __m256 global, uint8_t plain) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    const __m256 table = spacing_table(), most = _mm256_set1_ps(NVFP4_E2M1_MAX);
    __m256 z[2];
    load_halves(x, dtype, &z[0], &z[1]);
    Octet errors;
    for (int h = 0; h < 2; h++) z[h] = _mm256_div_ps(_mm256_and_ps(z[h], magnitude), global);
    for (int c = 0; c < LANES; c++) {
        const int at = plain + search_offsets[c] - NVFP4_TABLE_FIRST;
        const __m256 s = _mm256_broadcast_ss(nvfp4_scale_values + at);
        const __m256 r = _mm256_broadcast_ss(nvfp4_scale_reciprocals + at);
        __m256 e[2];
        for (int h = 0; h < 2; h++) {
            const __m256 y = _mm256_min_ps(_mm256_mul_ps(z[h], r), most);
            const __m256 shift = rounder(y, table);
            const __m256 q = _mm256_sub_ps(_mm256_add_ps(y, shift), shift);
            const __m256 d = _mm256_sub_ps(z[h], _mm256_mul_ps(q, s));
            e[h] = _mm256_mul_ps(d, d);
        }
        errors.values[c] = _mm256_add_ps(e[0], e[1]);
    }
    return choose_scale(&errors, plain);
}

/* ------------------------------------------------------------------------------------------------ loops */

INLINE void quantize_eight(const uint8_t *x, int dtype, float global, int search, uint8_t *packed, uint8_t *scales) {
    const size_t width = width_of(dtype);
    const __m256 table = code_table();
    __m256i codes = block_scales(block_amaxes(x, dtype), global);
    store_codes(scales, codes);
    if (search) {
        for (int b = 0; b < LANES; b++)
            scales[b] = search_block(x + (size_t)b * width, dtype, _mm256_set1_ps(global), scales[b]);
        codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)scales));
    }
    float steps[LANES] __attribute__((aligned(32)));
    _mm256_store_ps(steps, _mm256_mul_ps(scale_values(codes), _mm256_set1_ps(global)));
    for (int b = 0; b < LANES; b += 4) {
        __m256i bytes[4];
        for (int i = 0; i < 4; i++)
            bytes[i] = encode_block(x + (size_t)(b + i) * width, dtype, _mm256_broadcast_ss(steps + b + i), table);
        store_blocks(packed + b * NVFP4_BLOCK / 2, bytes);
    }
}

INLINE void quantize(const uint8_t *x, int dtype, size_t blocks, float global, int search, uint8_t *packed,
                     uint8_t *scales) {
    const size_t width = width_of(dtype);
    size_t b = 0;
    for (; b + LANES <= blocks; b += LANES)
        quantize_eight(x + b * width, dtype, global, search, packed + b * NVFP4_BLOCK / 2, scales + b);
    if (b == blocks) return;
    uint8_t rest[LANES * NVFP4_BLOCK * 4] = {0}, rest_packed[LANES * NVFP4_BLOCK / 2], rest_scales[LANES];
    memcpy(rest, x + b * width, (blocks - b) * width);
    quantize_eight(rest, dtype, global, search, rest_packed, rest_scales);
    memcpy(packed + b * NVFP4_BLOCK / 2, rest_packed, (blocks - b) * NVFP4_BLOCK / 2);
    memcpy(scales + b, rest_scales, blocks - b);
}

#define QUANTIZE(name, dtype)                                                                                          \
    static void name##_plain(const uint8_t *x, size_t blocks, float global, uint8_t *packed, uint8_t *scales) {        \
        quantize(x, dtype, blocks, global, 0, packed, scales);                                                         \
    }                                                                                                                  \
    static void name##_search(const uint8_t *x, size_t blocks, float global, uint8_t *packed, uint8_t *scales) {       \
        quantize(x, dtype, blocks, global, 1, packed, scales);                                                         \
    }                                                                                                                  \
    static void name(const uint8_t *x, size_t blocks, float global, int search, uint8_t *packed, uint8_t *scales) {    \
        if (dtype == NVFP4_BF16 && global > BF16_GREATEST_GLOBAL)                                                      \
            nvfp4_portable.quantize[dtype](x, blocks, global, search, packed, scales);                                 \
        else if (search)                                                                                               \
            name##_search(x, blocks, global, packed, scales);                                                          \
        else                                                                                                           \
            name##_plain(x, blocks, global, packed, scales);                                                           \
    }
QUANTIZE(quantize_bf16, NVFP4_BF16)
QUANTIZE(quantize_fp16, NVFP4_FP16)
QUANTIZE(quantize_fp32, NVFP4_FP32)

static uint32_t amax8(const uint8_t *x, size_t count) {
    const __m256i magnitude = _mm256_set1_epi8(0x7f);
    __m256i v = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 32 <= count; i += 32) v = _mm256_max_epu8(v, _mm256_and_si256(load(x + i), magnitude));
    uint8_t lanes[32];
    _mm256_storeu_si256((__m256i *)lanes, v);
    const uint32_t most = nvfp4_portable.amax8(lanes, 32), rest = nvfp4_portable.amax8(x + i, count - i);
    return most > rest ? most : rest;
}

static uint32_t amax16(const uint8_t *x, size_t count) {
    const __m256i magnitude = _mm256_set1_epi16(0x7fff);
    __m256i v[4];
    for (int k = 0; k < 4; k++) v[k] = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 64 <= count; i += 64)
        for (int k = 0; k < 4; k++)
            v[k] = _mm256_max_epu16(v[k], _mm256_and_si256(load(x + 2 * i + 32 * (size_t)k), magnitude));
    uint8_t lanes[32];
    _mm256_storeu_si256((__m256i *)lanes, _mm256_max_epu16(_mm256_max_epu16(v[0], v[1]), _mm256_max_epu16(v[2], v[3])));
    const uint32_t most = nvfp4_portable.amax16(lanes, 16), rest = nvfp4_portable.amax16(x + 2 * i, count - i);
    return most > rest ? most : rest;
}

static uint32_t amax32(const uint8_t *x, size_t count) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i v[4];
    for (int k = 0; k < 4; k++) v[k] = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 32 <= count; i += 32)
        for (int k = 0; k < 4; k++)
            v[k] = _mm256_max_epu32(v[k], _mm256_and_si256(load(x + 4 * i + 32 * (size_t)k), magnitude));
    uint8_t lanes[32];
    _mm256_storeu_si256((__m256i *)lanes, _mm256_max_epu32(_mm256_max_epu32(v[0], v[1]), _mm256_max_epu32(v[2], v[3])));
    const uint32_t most = nvfp4_portable.amax32(lanes, 8), rest = nvfp4_portable.amax32(x + 4 * i, count - i);
    return most > rest ? most : rest;
}

/* Bits of BF16 in each lane, nearest even; no NaN comes here. */
INLINE __m256i round_bf16(__m256 value) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
}

INLINE __m128i pack_words(__m256i lanes) {
    return _mm_packus_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
}

/* The eight magnitudes a block can have are computed and rounded once, then looked up byte by byte. */
INLINE void dequantize(const uint8_t *packed, const uint8_t *scales, int dtype, size_t blocks, float global,
                       uint8_t *target) {
    const __m256 values = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    const __m128i nibble = _mm_set1_epi8(15);
    const __m128i split = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    for (size_t b = 0; b < blocks; b++) {
        const float step = nvfp4_step(scales[b], global);
        const __m256 products = _mm256_mul_ps(values, _mm256_set1_ps(step));
        const __m128i pairs = _mm_loadl_epi64((const __m128i *)(packed + b * NVFP4_BLOCK / 2));
        const __m128i codes = _mm_unpacklo_epi8(_mm_and_si128(pairs, nibble),
                                                _mm_and_si128(_mm_srli_epi16(pairs, 4), nibble));
        if (dtype == NVFP4_FP32) {
            for (int h = 0; h < 2; h++) {
                const __m256i lanes = _mm256_cvtepu8_epi32(h ? _mm_srli_si128(codes, 8) : codes);
                const __m256 sign = _mm256_castsi256_ps(
                    _mm256_and_si256(_mm256_slli_epi32(lanes, 28), _mm256_set1_epi32((int)0x80000000u)));
                _mm256_storeu_ps((float *)(void *)(target + b * 64 + 32 * (size_t)h),
                                 _mm256_xor_ps(_mm256_permutevar8x32_ps(products, lanes), sign));
            }
            continue;
        }
        const __m128i words = dtype == NVFP4_BF16 ? pack_words(round_bf16(products)) : _mm256_cvtps_ph(products, 0);
        const __m128i bytes = _mm_shuffle_epi8(words, split); /* the low bytes, then the high ones */
        const __m128i low = _mm_unpacklo_epi64(bytes, bytes);
        const __m128i high = _mm_xor_si128(_mm_unpackhi_epi64(bytes, bytes),
                                           _mm_set_epi64x((long long)0x8080808080808080ull, 0));
        const __m128i first = _mm_shuffle_epi8(low, codes), second = _mm_shuffle_epi8(high, codes);
        _mm_storeu_si128((__m128i *)(target + b * 32), _mm_unpacklo_epi8(first, second));
        _mm_storeu_si128((__m128i *)(target + b * 32 + 16), _mm_unpackhi_epi8(first, second));
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
        const __m256 scale = _mm256_set1_ps(scale_inv);
        for (; i + 16 <= count; i += 16) {
            __m256i words[2];
            for (int h = 0; h < 2; h++) {
                const __m256i bits = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(codes + i + 8 * (size_t)h)));
                const __m256i sign = _mm256_slli_epi32(_mm256_srli_epi32(bits, 7), 31);
                const __m256i rest = _mm256_and_si256(bits, _mm256_set1_epi32(0x7f));
                const __m256i nan = _mm256_cmpeq_epi32(rest, _mm256_set1_epi32(0x7f));
                const __m256 value = _mm256_xor_ps(
                    _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(rest, 20)), _mm256_set1_ps(0x1p120f)),
                    _mm256_castsi256_ps(sign));
                words[h] = _mm256_or_si256(round_bf16(_mm256_mul_ps(value, scale)),
                                           _mm256_and_si256(nan, _mm256_set1_epi32(0x7fc0)));
            }
            const __m256i packed = _mm256_packus_epi32(words[0], words[1]);
            _mm256_storeu_si256((__m256i *)(target + 2 * i), _mm256_permute4x64_epi64(packed, 0xd8));
        }
    }
    nvfp4_portable.expand(codes + i, count - i, scale_inv, target + 2 * i);
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const Nvfp4Kernels nvfp4_avx2 = {
    "avx2",
    amax8,
    amax16,
    amax32,
    {quantize_bf16, quantize_fp16, quantize_fp32},
    {dequantize_bf16, dequantize_fp16, dequantize_fp32},
    expand,
};

#endif
