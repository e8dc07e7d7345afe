/* Pieces on vectors of eight, for both x86-64 variants: scales, rounding to E2M1, and sums in core.h's order.
 *
 * Included after the target has been set; needs AVX2.
 */
#ifndef MTPFIX_NVFP4_AVX2_H
#define MTPFIX_NVFP4_AVX2_H

#include <immintrin.h>

#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))
#define LANES 8 /* blocks, or candidates, that share a vector */

/* Up to this global scale x / step cannot vanish for a BF16 x that is not 0: its own sign decides. */
#define BF16_GREATEST_GLOBAL 0x1p7f

static const int search_offsets[LANES] = {0, -2, -1, 1, 2, 3, 4, 5};

typedef struct { __m256 values[LANES]; } Octet;

/* One reduction for each of eight vectors: lanes 4 apart, then 2, then 1, as nvfp4_block_error adds. */
#define REDUCE(name, operation)                                                                                        \
    INLINE __m256 name##_pair(__m256 a, __m256 b) {                                                                    \
        return operation(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));                      \
    }                                                                                                                  \
    INLINE __m256 name##_two(__m256 a, __m256 b) {                                                                     \
        return operation(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));                                \
    }                                                                                                                  \
    INLINE __m256 name(const Octet *v) {                                                                               \
        const __m256 low = name##_two(name##_pair(v->values[0], v->values[4]), name##_pair(v->values[1], v->values[5])); \
        const __m256 high = name##_two(name##_pair(v->values[2], v->values[6]), name##_pair(v->values[3], v->values[7])); \
        return operation(_mm256_shuffle_ps(low, high, 0x88), _mm256_shuffle_ps(low, high, 0xdd));                      \
    }
REDUCE(add_lanes, _mm256_add_ps)
REDUCE(max_lanes, _mm256_max_ps)

/* nvfp4_block_scale of eight blocks: the codes, one in each lane. */
INLINE __m256i block_scales(__m256 amax, float global) {
    const __m256 least_normal = _mm256_set1_ps(0x1p-6f);
    const __m256i shift = _mm256_set1_epi32(0x46800000); /* 2^14 */
    __m256 scale = _mm256_div_ps(amax, _mm256_set1_ps(NVFP4_E2M1_MAX * global));
    const __m256 zero = _mm256_cmp_ps(scale, _mm256_setzero_ps(), _CMP_EQ_OQ);
    scale = _mm256_blendv_ps(scale, _mm256_set1_ps(1.0f), zero);
    scale = _mm256_min_ps(_mm256_max_ps(scale, _mm256_set1_ps(0x1p-9f)), _mm256_set1_ps(NVFP4_E4M3_MAX));
    const __m256i bits = _mm256_castps_si256(scale);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 20), _mm256_set1_epi32(1));
    const __m256i half = _mm256_set1_epi32(0x7ffff - 0x3c000000);
    const __m256i normal = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, half), odd), 20);
    const __m256i below =
        _mm256_sub_epi32(_mm256_castps_si256(_mm256_add_ps(scale, _mm256_castsi256_ps(shift))), shift);
    return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(normal), _mm256_castsi256_ps(below),
                                                _mm256_cmp_ps(scale, least_normal, _CMP_LT_OQ)));
}

/* nvfp4_from_e4m3 of eight codes without sign: the exponent field is 120 too small. */
INLINE __m256 scale_values(__m256i codes) {
    const __m256i nan = _mm256_cmpeq_epi32(codes, _mm256_set1_epi32(0x7f));
    const __m256 value = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(codes, 20)), _mm256_set1_ps(0x1p120f));
    return _mm256_or_ps(value, _mm256_castsi256_ps(nan));
}

INLINE void store_codes(uint8_t *target, __m256i codes) {
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
    _mm_storel_epi64((__m128i *)target, _mm_packus_epi16(words, words));
}

/* Magnitudes, of which NaN becomes 6, plus a number whose last place is the spacing of E2M1 there. */
INLINE __m256 rounder(__m256 magnitude, __m256 table) {
    const __m256i exponent = _mm256_srli_epi32(_mm256_castps_si256(_mm256_max_ps(magnitude, _mm256_set1_ps(1.0f))), 23);
    return _mm256_permutevar_ps(table, exponent);
}

/* 1.5 * 2^23 times the spacing 0.5, 1, 2 of numbers from 0, 2, 4 on, by the exponent's last two bits. */
INLINE __m256 spacing_table(void) {
    return _mm256_castsi256_ps(_mm256_setr_epi32(0x4b400000, 0x4bc00000, 0, 0x4ac00000, 0x4b400000, 0x4bc00000, 0,
                                                 0x4ac00000));
}

/* The same, with the code of the first number of each spacing, less what its rounding counts, in the last places. */
INLINE __m256 code_table(void) {
    return _mm256_castsi256_ps(_mm256_setr_epi32(0x4b400002, 0x4bc00004, 0, 0x4ac00000, 0x4b400002, 0x4bc00004, 0,
                                                 0x4ac00000));
}

/* E2M1 codes of magnitudes, in the low 16 bits of each lane. */
INLINE __m256i round_codes(__m256 magnitude, __m256 table) {
    magnitude = _mm256_min_ps(magnitude, _mm256_set1_ps(NVFP4_E2M1_MAX));
    return _mm256_castps_si256(_mm256_add_ps(magnitude, rounder(magnitude, table)));
}

/* The byte of each pair of columns in the low 16 bits of each lane. */
INLINE __m256i pair_codes(__m256i even, __m256i odd) { return _mm256_add_epi32(even, _mm256_slli_epi32(odd, 4)); }

/* The candidate of least error. Lanes hold candidates in the order in which equals are preferred, the plain one first. */
INLINE uint8_t choose_scale(const Octet *errors, uint8_t plain) {
    const __m256i offsets = _mm256_loadu_si256((const __m256i *)search_offsets);
    const __m256i codes = _mm256_add_epi32(offsets, _mm256_set1_epi32(plain));
    const __m256i there = _mm256_and_si256(_mm256_cmpgt_epi32(codes, _mm256_setzero_si256()),
                                           _mm256_cmpgt_epi32(_mm256_set1_epi32(127), codes));
    const __m256 error = _mm256_blendv_ps(_mm256_set1_ps(__builtin_inff()), add_lanes(errors),
                                          _mm256_castsi256_ps(there));
    __m256 least = _mm256_min_ps(error, _mm256_permute2f128_ps(error, error, 0x01));
    least = _mm256_min_ps(least, _mm256_permute_ps(least, 0x4e));
    least = _mm256_min_ps(least, _mm256_permute_ps(least, 0xb1));
    const unsigned equal = (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(error, least, _CMP_EQ_OQ)) | 0x100u;
    return (uint8_t)(plain + search_offsets[__builtin_ctz(equal) & 7]);
}

#endif
