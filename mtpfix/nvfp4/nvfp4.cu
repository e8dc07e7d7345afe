/* NVFP4 on a CUDA device: largest magnitude, global scale, quantize (plain and with the scale search), dequantize.
 *
 * The bytes equal those of the CPU library: what is rounded is defined in core.h, and where this file takes a shorter
 * way (encode_exactly, hardware conversions) the way gives the same bits. Compile with -fmad=false, for sm_80 or newer;
 * the FP4 conversion instruction is used where the target has it (sm_100a, sm_103a, sm_110a, sm_120a, sm_121a).
 *
 * Tensors are contiguous and their last dimension is a multiple of 16, so a tensor is a row of blocks and only the FP8
 * kernels ask for its shape. A warp takes 32 blocks at a time; each lane loads 16 bytes per instruction, neighbours side
 * by side, and the load of the next 32 blocks is under way while it computes. Sources may lie at any address; outputs
 * are aligned to 16 bytes. A launch takes at most 2^31 chunks of 16 bytes and 2^24 threads, in blocks of a multiple of 32.
 *
 * Knows nothing of files, names, streams or launch sizes.
 */
#include "core.h"

#if defined(NVFP4_EMULATED)
#include "emulation.h" /* the tests' stand-in for the built-in names of a device */
#else

#if defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM120_ALL) || \
    (defined(__CUDA_ARCH_FAMILY_SPECIFIC__) && __CUDA_ARCH_FAMILY_SPECIFIC__ >= 1000) /* by toolkits from 12.9 on */
#define NVFP4_HARDWARE_E2M1 1
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#define NVFP4_HARDWARE_E4M3 1
#endif

/* The eight numbers' codes, the first in the lowest four bits. */
__device__ __forceinline__ uint32_t convert_e2m1x8(const float y[8]) {
    uint32_t packed = 0;
#if defined(NVFP4_HARDWARE_E2M1)
    asm("{\n\t.reg .b8 a, b, c, d;\n\t"
        "cvt.rn.satfinite.e2m1x2.f32 a, %2, %1;\n\t"
        "cvt.rn.satfinite.e2m1x2.f32 b, %4, %3;\n\t"
        "cvt.rn.satfinite.e2m1x2.f32 c, %6, %5;\n\t"
        "cvt.rn.satfinite.e2m1x2.f32 d, %8, %7;\n\t"
        "mov.b32 %0, {a, b, c, d};\n\t}"
        : "=r"(packed)
        : "f"(y[0]), "f"(y[1]), "f"(y[2]), "f"(y[3]), "f"(y[4]), "f"(y[5]), "f"(y[6]), "f"(y[7]));
#endif
    return packed;
}

/* Two E4M3 numbers as two FP16 numbers, exactly; the first in the low half. */
__device__ __forceinline__ uint32_t convert_from_e4m3x2(uint32_t pair) {
    uint32_t halves = 0;
#if defined(NVFP4_HARDWARE_E4M3)
    asm("{\n\t.reg .b16 p;\n\tcvt.u16.u32 p, %1;\n\tcvt.rn.f16x2.e4m3x2 %0, p;\n\t}" : "=r"(halves) : "r"(pair));
#endif
    return halves;
}

__device__ __forceinline__ float convert_from_fp16(uint32_t half) {
    float value;
    asm("{\n\t.reg .b16 h;\n\tcvt.u16.u32 h, %1;\n\tcvt.f32.f16 %0, h;\n\t}" : "=f"(value) : "r"(half & 0xffffu));
    return value;
}

/* Two numbers rounded to nearest even, the first in the low half; NaN becomes 0x7fff. */
__device__ __forceinline__ uint32_t convert_bf16x2(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ uint32_t convert_fp16x2(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ uint32_t max_u16x2(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    uint32_t larger;
    asm("max.u16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
    return larger;
#else
    return max(a & 0xffff0000u, b & 0xffff0000u) | max(a & 0xffffu, b & 0xffffu);
#endif
}
#endif

#define WARP 32u
#define LANE (threadIdx.x & 31u)
#define FULL 0xffffffffu
#define INLINE __device__ __forceinline__

/* ------------------------------------------------------------------------------------------------ memory */

/* Sixteen bytes from any address; `aligned` says that this address is a multiple of 16. */
template <bool LAST_USE>
INLINE uint4 load(const uint8_t *at, bool aligned) {
    if (aligned) return LAST_USE ? __ldcs((const uint4 *)at) : __ldg((const uint4 *)at);
    uint32_t word[4];
    if (((unsigned long long)at & 1u) == 0) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            word[i] = (uint32_t)((const uint16_t *)at)[2 * i] | (uint32_t)((const uint16_t *)at)[2 * i + 1] << 16;
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++)
            word[i] = (uint32_t)at[4 * i] | (uint32_t)at[4 * i + 1] << 8 | (uint32_t)at[4 * i + 2] << 16 |
                      (uint32_t)at[4 * i + 3] << 24;
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

INLINE bool is_aligned(const void *at) { return ((unsigned long long)at & 15u) == 0; }

/* ------------------------------------------------------------------------------------------------ sources */

/* A source says how 16 bytes of it become numbers. LANES: how many lanes hold a block. */

struct Bfloat16 {
    static constexpr uint32_t LANES = 2, NUMBERS = 8;
    static constexpr bool SHORT = true; /* at most 11 significant bits: encode_exactly may divide by a reciprocal */
    INLINE static void unpack(const uint4 &chunk, float x[8]) {
        const uint32_t word[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            x[2 * i] = nvfp4_float(word[i] << 16);
            x[2 * i + 1] = nvfp4_float(word[i] & 0xffff0000u);
        }
    }
    INLINE static uint32_t amax_of_pairs(const uint4 &chunk) {
        return max_u16x2(max_u16x2(chunk.x & 0x7fff7fffu, chunk.y & 0x7fff7fffu),
                         max_u16x2(chunk.z & 0x7fff7fffu, chunk.w & 0x7fff7fffu));
    }
    INLINE static uint32_t amax(const uint4 &chunk) { /* the bits of a binary32 number */
        const uint32_t pair = amax_of_pairs(chunk);
        return max(pair << 16, pair & 0xffff0000u);
    }
};

struct Float16 {
    static constexpr uint32_t LANES = 2, NUMBERS = 8;
    static constexpr bool SHORT = true;
    INLINE static void unpack(const uint4 &chunk, float x[8]) {
        const uint32_t word[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            x[2 * i] = convert_from_fp16(word[i]);
            x[2 * i + 1] = convert_from_fp16(word[i] >> 16);
        }
    }
    INLINE static uint32_t amax(const uint4 &chunk) {
        const uint32_t pair = Bfloat16::amax_of_pairs(chunk);
        return nvfp4_bits(convert_from_fp16(max(pair & 0xffffu, pair >> 16)));
    }
};

struct Float32 {
    static constexpr uint32_t LANES = 4, NUMBERS = 4;
    static constexpr bool SHORT = false;
    INLINE static void unpack(const uint4 &chunk, float x[4]) {
        x[0] = nvfp4_float(chunk.x);
        x[1] = nvfp4_float(chunk.y);
        x[2] = nvfp4_float(chunk.z);
        x[3] = nvfp4_float(chunk.w);
    }
    INLINE static uint32_t amax(const uint4 &chunk) {
        return max(max(chunk.x & 0x7fffffffu, chunk.y & 0x7fffffffu), max(chunk.z & 0x7fffffffu, chunk.w & 0x7fffffffu));
    }
};

/* ------------------------------------------------------------------------------------------------ codes */

/* What encode_exactly divides by, in units of the step: the rounding in software wants the quotients doubled. */
#if defined(NVFP4_HARDWARE_E2M1)
#define DIVISOR 1.0f
#else
#define DIVISOR 0.5f
#endif

/* The reciprocal of the divisor if encode_exactly gives the bits of the division for a block whose largest magnitude is
 * `amax`, else 0: no step of it may leave the normal range, and unless it saturates no quotient may reach 7. */
template <class Source, bool SATURATE>
INLINE float inverse_of(float amax, float step) {
    const float inverse = __frcp_rn(DIVISOR * step);
    const float limit = SATURATE || !Source::SHORT || DIVISOR == 1.0f ? 0x1p30f : 13.5f;
    return step >= 0x1p-90f && step <= 0x1p10f && __fmul_rn(amax, inverse) < limit ? inverse : 0.0f;
}

/* The codes of COUNT numbers, four bits each, for a block that has an inverse.
 *
 * y = x / divisor, rounded as the division is: with `inverse` correctly rounded, one correction of the product gives the
 * division's own bits for every x of at most 11 significant bits; -0.0 becomes +0.0 on the way. In software, adding
 * 1.5 * 2^23, 2^24 and 2^25 rounds the doubled |y| to multiples of 1, 2 and 4, ties to even: the grids of the codes 0 to
 * 4, 4 to 6, and 6 and 7, of which the least is the right one. */
template <class Source, bool SATURATE, int COUNT>
INLINE uint32_t encode_exactly(const float x[COUNT], float step, float inverse) {
    float y[8] = {};
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        if (Source::SHORT) {
            const float quotient = __fmul_rn(x[i], inverse);
            y[i] = __fmaf_rn(__fmaf_rn(-quotient, DIVISOR * step, x[i]), inverse, quotient);
        } else {
            y[i] = __fadd_rn(__fdiv_rn(x[i], step), 0.0f);
        }
    }
#if defined(NVFP4_HARDWARE_E2M1)
    return convert_e2m1x8(y);
#else
    uint32_t codes = 0, excess = 0;
#pragma unroll
    for (int i = COUNT - 1; i >= 0; i--) {
        float magnitude = fabsf(y[i]);
        if (!Source::SHORT) magnitude = __fadd_rn(magnitude, magnitude);
        if (SATURATE || !Source::SHORT) magnitude = fminf(magnitude, 13.0f);
        const uint32_t ones = nvfp4_bits(__fadd_rn(magnitude, 12582912.0f));
        const uint32_t twos = nvfp4_bits(__fadd_rn(magnitude, 25165824.0f)) - (0x4bc00000u - 0x4b400000u - 2u);
        const uint32_t fours = nvfp4_bits(__fadd_rn(magnitude, 50331648.0f)) - (0x4c400000u - 0x4b400000u - 4u);
        codes = __funnelshift_l(nvfp4_bits(y[i]), codes, 1); /* the sign, then the magnitude's three bits */
        codes = (codes << 3) + min(ones, min(twos, fours));
        excess = (excess << 4) + 0x4b400000u;
    }
    return codes - excess;
#endif
}

/* The same for any numbers and any step. */
template <int COUNT>
INLINE uint32_t encode_slowly(const float x[COUNT], float step) {
    uint32_t codes = 0;
#pragma unroll
    for (int i = COUNT - 1; i >= 0; i--) codes = codes << 4 | nvfp4_to_e2m1(__fdiv_rn(x[i], step));
    return codes;
}

template <class Source, bool SATURATE>
INLINE uint32_t encode(const uint4 &chunk, float step, float inverse) { /* `inverse` is 0 out of range */
    float x[Source::NUMBERS];
    Source::unpack(chunk, x);
    if (inverse != 0.0f) return encode_exactly<Source, SATURATE, (int)Source::NUMBERS>(x, step, inverse);
    return encode_slowly<(int)Source::NUMBERS>(x, step);
}

/* --------------------------------------------------------------------------------------- largest magnitude */

INLINE void raise(uint32_t *slot, uint32_t bits) {
#pragma unroll
    for (uint32_t distance = 16; distance > 0; distance /= 2) bits = max(bits, __shfl_xor_sync(FULL, bits, (int)distance));
    if (LANE == 0 && bits > 0) atomicMax(slot, bits);
}

/* Raise `slot` to the bits of the largest magnitude; NaN is above infinity, and both above every number. */
template <class Source>
INLINE void amax(const uint8_t *source, uint32_t blocks, uint32_t *slot) {
    constexpr uint32_t DEPTH = 4;
    const bool aligned = is_aligned(source);
    const uint32_t chunks = blocks * Source::LANES, stride = gridDim.x * blockDim.x;
    uint32_t at = blockIdx.x * blockDim.x + threadIdx.x, largest = 0;
    for (; at + (DEPTH - 1) * stride < chunks; at += DEPTH * stride) {
        uint4 chunk[DEPTH];
#pragma unroll
        for (uint32_t i = 0; i < DEPTH; i++) chunk[i] = load<false>(source + 16ull * (at + i * stride), aligned);
#pragma unroll
        for (uint32_t i = 0; i < DEPTH; i++) largest = max(largest, Source::amax(chunk[i]));
    }
    for (; at < chunks; at += stride) largest = max(largest, Source::amax(load<false>(source + 16ull * at, aligned)));
    raise(slot, largest);
}

/* ------------------------------------------------------------------------------------------------ quantize */

/* One lane holds 16 bytes of LANES blocks, of which it works out the scale of one and learns the others'. */
template <class Source>
INLINE void quantize(const uint8_t *source, uint32_t blocks, const float *global_scale, uint8_t *packed,
                     uint8_t *scales) {
    constexpr uint32_t LANES = Source::LANES;
    const float global = *global_scale;
    const bool aligned = is_aligned(source);
    const uint32_t lane = LANE, mine = lane % LANES;
    const uint32_t units = (blocks + WARP - 1) / WARP, stride = gridDim.x * (blockDim.x / WARP);
    uint32_t unit = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    uint4 next[LANES];
    auto fetch = [&](uint32_t of) {
#pragma unroll
        for (uint32_t j = 0; j < LANES; j++) {
            const uint32_t inside = j * WARP + lane; /* of the unit's chunks */
            next[j] = make_uint4(0, 0, 0, 0);
            if (of * WARP + inside / LANES < blocks)
                next[j] = load<true>(source + 16ull * ((unsigned long long)of * (WARP * LANES) + inside), aligned);
        }
    };
    if (unit < units) fetch(unit);
    while (unit < units) {
        uint4 chunk[LANES];
#pragma unroll
        for (uint32_t j = 0; j < LANES; j++) chunk[j] = next[j];
        const uint32_t now = unit;
        unit += stride;
        if (unit < units) fetch(unit);

        uint32_t bits = 0;
#pragma unroll
        for (uint32_t j = 0; j < LANES; j++) {
            uint32_t largest = Source::amax(chunk[j]);
#pragma unroll
            for (uint32_t distance = 1; distance < LANES; distance *= 2)
                largest = max(largest, __shfl_xor_sync(FULL, largest, (int)distance));
            if (j == mine) bits = largest;
        }
        const uint32_t block = now * WARP + mine * (WARP / LANES) + lane / LANES;
        const float amax = nvfp4_float(bits);
        const uint8_t scale = nvfp4_block_scale(amax, global);
        const float step = nvfp4_step(scale, global);
        const float inverse = inverse_of<Source, false>(amax, step);
        if (block < blocks) scales[block] = scale;
#pragma unroll
        for (uint32_t j = 0; j < LANES; j++) {
            const int holder = (int)(lane - mine + j);
            const float its_step = __shfl_sync(FULL, step, holder), its_inverse = __shfl_sync(FULL, inverse, holder);
            const uint32_t codes = encode<Source, false>(chunk[j], its_step, its_inverse);
            const uint32_t inside = j * WARP + lane;
            if (now * WARP + inside / LANES < blocks) {
                const unsigned long long at = (unsigned long long)now * (WARP * LANES) + inside;
                if (LANES == 2) __stcs((uint32_t *)packed + at, codes);
                else __stcs((uint16_t *)packed + at, (uint16_t)codes);
            }
        }
    }
}

/* One lane holds a block: the search looks at it eight times, so memory does not set the pace. */
template <class Source>
INLINE void quantize_searching(const uint8_t *source, uint32_t blocks, const float *global_scale, uint8_t *packed,
                               uint8_t *scales) {
    constexpr uint32_t LANES = Source::LANES, NUMBERS = Source::NUMBERS;
    const float global = *global_scale;
    const bool aligned = is_aligned(source);
    const uint32_t stride = gridDim.x * blockDim.x;
    for (uint32_t block = blockIdx.x * blockDim.x + threadIdx.x; block < blocks; block += stride) {
        float x[NVFP4_BLOCK];
#pragma unroll
        for (uint32_t j = 0; j < LANES; j++)
            Source::unpack(load<true>(source + 16ull * ((unsigned long long)block * LANES + j), aligned), x + j * NUMBERS);
        const float amax = nvfp4_block_amax(x);
        const uint8_t scale = nvfp4_search_scale(x, global, nvfp4_block_scale(amax, global));
        const float step = nvfp4_step(scale, global);
        const float inverse = inverse_of<Source, true>(amax, step);
        scales[block] = scale;
        uint2 codes;
        if (inverse != 0.0f) {
            codes.x = encode_exactly<Source, true, 8>(x, step, inverse);
            codes.y = encode_exactly<Source, true, 8>(x + 8, step, inverse);
        } else {
            codes.x = encode_slowly<8>(x, step);
            codes.y = encode_slowly<8>(x + 8, step);
        }
        __stcs((uint2 *)packed + block, codes);
    }
}

/* ---------------------------------------------------------------------------- FP8 with a scale per 128 x 128 */

/* Where a block lies in the matrix, kept up to date without a division for each. */
struct Place {
    uint32_t row, column, rows_on, columns_on, width; /* columns in blocks of 16 */
    INLINE Place(uint32_t block, uint32_t stride, uint32_t width)
        : row(block / width), column(block % width), rows_on(stride / width), columns_on(stride % width), width(width) {}
    INLINE void move() {
        row += rows_on;
        column += columns_on;
        if (column >= width) {
            column -= width;
            row++;
        }
    }
    INLINE float scale_inv(const float *table, uint32_t first_row) const {
        return __ldg(table + (unsigned long long)((first_row + row) / 128u) * ((width + 7u) / 8u) + column / 8u);
    }
};

/* A block's 16 numbers, dequantized and rounded to BF16, in two chunks of BF16. */
INLINE void widen(const uint4 &codes, float scale_inv, uint4 chunk[2]) {
    const uint32_t word[4] = {codes.x, codes.y, codes.z, codes.w};
    uint32_t pair[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint32_t two = (word[i / 2] >> (i % 2 * 16)) & 0xffffu;
#if defined(NVFP4_HARDWARE_E4M3)
        const uint32_t halves = convert_from_e4m3x2(two);
        const float low = convert_from_fp16(halves), high = convert_from_fp16(halves >> 16);
#else
        const float low = nvfp4_from_e4m3((uint8_t)two), high = nvfp4_from_e4m3((uint8_t)(two >> 8));
#endif
        pair[i] = convert_bf16x2(__fmul_rn(low, scale_inv), __fmul_rn(high, scale_inv));
    }
    chunk[0] = make_uint4(pair[0], pair[1], pair[2], pair[3]);
    chunk[1] = make_uint4(pair[4], pair[5], pair[6], pair[7]);
}

INLINE void amax_fp8_blocks(const uint8_t *source, uint32_t blocks, uint32_t width, const float *scale_inv,
                            uint32_t first_row, uint32_t *slot) {
    const bool aligned = is_aligned(source);
    const uint32_t stride = gridDim.x * blockDim.x;
    uint32_t block = blockIdx.x * blockDim.x + threadIdx.x, largest = 0;
    for (Place place(block, stride, width); block < blocks; block += stride, place.move()) {
        const uint4 codes = load<false>(source + 16ull * block, aligned);
        const uint32_t word[4] = {codes.x, codes.y, codes.z, codes.w};
        uint32_t pair = 0; /* magnitudes order as their codes do, and the two NaNs, 0x7f and 0xff, are the largest */
#pragma unroll
        for (int i = 0; i < 4; i++)
            pair = max_u16x2(pair, max_u16x2(word[i] & 0x007f007fu, (word[i] >> 8) & 0x007f007fu));
        const uint32_t code = max(pair & 0xffffu, pair >> 16);
        const float number = nvfp4_from_fp8_block((uint8_t)code, place.scale_inv(scale_inv, first_row));
        largest = max(largest, nvfp4_bits(number) & 0x7fffffffu);
    }
    raise(slot, largest);
}

template <bool SEARCH>
INLINE void quantize_fp8_blocks(const uint8_t *source, uint32_t blocks, uint32_t width, const float *scale_inv,
                                uint32_t first_row, const float *global_scale, uint8_t *packed, uint8_t *scales) {
    const float global = *global_scale;
    const bool aligned = is_aligned(source);
    const uint32_t stride = gridDim.x * blockDim.x;
    uint32_t block = blockIdx.x * blockDim.x + threadIdx.x;
    Place place(block, stride, width);
    uint4 next = make_uint4(0, 0, 0, 0);
    float next_scale = 0.0f;
    auto fetch = [&]() {
        next = load<true>(source + 16ull * block, aligned);
        next_scale = place.scale_inv(scale_inv, first_row);
    };
    if (block < blocks) fetch();
    while (block < blocks) {
        uint4 chunk[2];
        widen(next, next_scale, chunk);
        const uint32_t here = block;
        block += stride;
        place.move();
        if (block < blocks) fetch();
        const float amax = nvfp4_float(max(Bfloat16::amax(chunk[0]), Bfloat16::amax(chunk[1])));
        uint8_t scale = nvfp4_block_scale(amax, global);
        if (SEARCH) {
            float x[NVFP4_BLOCK];
            Bfloat16::unpack(chunk[0], x);
            Bfloat16::unpack(chunk[1], x + 8);
            scale = nvfp4_search_scale(x, global, scale);
        }
        const float step = nvfp4_step(scale, global);
        const float inverse = inverse_of<Bfloat16, SEARCH>(amax, step);
        scales[here] = scale;
        uint2 codes;
        codes.x = encode<Bfloat16, SEARCH>(chunk[0], step, inverse);
        codes.y = encode<Bfloat16, SEARCH>(chunk[1], step, inverse);
        __stcs((uint2 *)packed + here, codes);
    }
}

/* ---------------------------------------------------------------------------------------------- dequantize */

/* A code's number times `step`. The code's bits, put where binary32 has its lowest exponents, are its number times
 * 2^-126; that is put right in the factor, which the caller knows to be finite. */
INLINE float decode(uint32_t code, float factor) {
    return __fmul_rn(nvfp4_float((code & 7u) << 22 | (code & 8u) << 28), factor);
}

/* A lane writes 16 bytes at a time: eight numbers of two bytes or four of four. */
enum Target { TO_BFLOAT16, TO_FLOAT16, TO_FLOAT32 };

template <Target TARGET>
INLINE uint4 dequantize_chunk(uint32_t codes, uint8_t scale, float global) {
    constexpr int COUNT = TARGET == TO_FLOAT32 ? 4 : 8;
    const float step = nvfp4_step(scale, global);
    uint32_t word[4] = {};
    if (step >= 0x1p-126f && step < 2.0f) {
        const float factor = step * 0x1p126f;
        float y[COUNT];
#pragma unroll
        for (int i = 0; i < COUNT; i++) y[i] = decode(codes >> (4 * i), factor);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (TARGET == TO_FLOAT32) word[i] = nvfp4_bits(y[i]);
            if (TARGET == TO_BFLOAT16) word[i] = convert_bf16x2(y[2 * i % COUNT], y[(2 * i + 1) % COUNT]);
            if (TARGET == TO_FLOAT16) word[i] = convert_fp16x2(y[2 * i % COUNT], y[(2 * i + 1) % COUNT]);
        }
    } else { /* as core.h has it; there NaN has other bits than the conversion instructions give it */
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const float y = nvfp4_dequantize((uint8_t)(codes >> (4 * i) & 15u), step);
            if (TARGET == TO_FLOAT32) word[i] = nvfp4_bits(y);
            if (TARGET == TO_BFLOAT16) word[i / 2] |= (uint32_t)nvfp4_to_bf16(y) << (i % 2 * 16);
            if (TARGET == TO_FLOAT16) word[i / 2] |= (uint32_t)nvfp4_to_fp16(y) << (i % 2 * 16);
        }
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

template <Target TARGET>
INLINE void dequantize(const uint8_t *packed, const uint8_t *scales, uint32_t blocks, const float *global_scale,
                       uint8_t *numbers) {
    constexpr uint32_t PIECES = TARGET == TO_FLOAT32 ? 4 : 2, DEPTH = 4;
    const float global = *global_scale;
    const uint32_t chunks = blocks * PIECES, stride = gridDim.x * blockDim.x;
    auto read = [&](uint32_t at) -> uint32_t {
        return PIECES == 2 ? __ldcs((const uint32_t *)packed + at) : (uint32_t)__ldcs((const uint16_t *)packed + at);
    };
    uint32_t at = blockIdx.x * blockDim.x + threadIdx.x;
    for (; at + (DEPTH - 1) * stride < chunks; at += DEPTH * stride) {
        uint32_t codes[DEPTH];
        uint8_t scale[DEPTH];
#pragma unroll
        for (uint32_t i = 0; i < DEPTH; i++) {
            codes[i] = read(at + i * stride);
            scale[i] = __ldg(scales + (at + i * stride) / PIECES);
        }
#pragma unroll
        for (uint32_t i = 0; i < DEPTH; i++)
            __stcs((uint4 *)numbers + (at + i * stride), dequantize_chunk<TARGET>(codes[i], scale[i], global));
    }
    for (; at < chunks; at += stride)
        __stcs((uint4 *)numbers + at, dequantize_chunk<TARGET>(read(at), __ldg(scales + at / PIECES), global));
}

/* ------------------------------------------------------------------------------------------------ kernels */

#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)

/* FEW: blocks that a multiprocessor shall hold at least, which bounds the registers. */
#define KERNELS_OF(NAME, SOURCE, FEW)                                                                      \
    KERNEL(256) amax_##NAME(const uint8_t *source, uint32_t blocks, uint32_t *slot) {                      \
        amax<SOURCE>(source, blocks, slot);                                                                \
    }                                                                                                      \
    extern "C" __global__ void __launch_bounds__(256, FEW)                                                 \
        quantize_##NAME(const uint8_t *source, uint32_t blocks, const float *global_scale, uint8_t *packed, \
                        uint8_t *scales) {                                                                 \
        quantize<SOURCE>(source, blocks, global_scale, packed, scales);                                    \
    }                                                                                                      \
    KERNEL(256) search_##NAME(const uint8_t *source, uint32_t blocks, const float *global_scale,           \
                              uint8_t *packed, uint8_t *scales) {                                          \
        quantize_searching<SOURCE>(source, blocks, global_scale, packed, scales);                          \
    }

KERNELS_OF(bfloat16, Bfloat16, 5)
KERNELS_OF(float16, Float16, 5)
KERNELS_OF(float32, Float32, 4)

KERNEL(256) amax_float8_blocks(const uint8_t *source, uint32_t blocks, uint32_t width, const float *scale_inv,
                               uint32_t first_row, uint32_t *slot) {
    amax_fp8_blocks(source, blocks, width, scale_inv, first_row, slot);
}
KERNEL(256) quantize_float8_blocks(const uint8_t *source, uint32_t blocks, uint32_t width, const float *scale_inv,
                                   uint32_t first_row, const float *global_scale, uint8_t *packed, uint8_t *scales) {
    quantize_fp8_blocks<false>(source, blocks, width, scale_inv, first_row, global_scale, packed, scales);
}
KERNEL(256) search_float8_blocks(const uint8_t *source, uint32_t blocks, uint32_t width, const float *scale_inv,
                                 uint32_t first_row, const float *global_scale, uint8_t *packed, uint8_t *scales) {
    quantize_fp8_blocks<true>(source, blocks, width, scale_inv, first_row, global_scale, packed, scales);
}

/* One thread: the global scale of all tensors whose magnitudes were raised into `slot`; 0 if that is not finite. */
KERNEL(32) global_scale(const uint32_t *slot, float *scale) {
    if (threadIdx.x == 0 && blockIdx.x == 0) *scale = *slot < 0x7f800000u ? nvfp4_global_scale(nvfp4_float(*slot)) : 0.0f;
}

KERNEL(256) dequantize_bfloat16(const uint8_t *packed, const uint8_t *scales, uint32_t blocks, const float *global_scale,
                                uint8_t *numbers) {
    dequantize<TO_BFLOAT16>(packed, scales, blocks, global_scale, numbers);
}
KERNEL(256) dequantize_float16(const uint8_t *packed, const uint8_t *scales, uint32_t blocks, const float *global_scale,
                               uint8_t *numbers) {
    dequantize<TO_FLOAT16>(packed, scales, blocks, global_scale, numbers);
}
KERNEL(256) dequantize_float32(const uint8_t *packed, const uint8_t *scales, uint32_t blocks, const float *global_scale,
                               uint8_t *numbers) {
    dequantize<TO_FLOAT32>(packed, scales, blocks, global_scale, numbers);
}
