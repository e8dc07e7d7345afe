/* A CUDA device on the CPU, for tests: the built-in names that nvfp4.cu uses, and a launch that runs it.
 *
 * The 32 lanes of a warp are coroutines that meet at every shuffle; a lane that ends while others shuffle, a load or
 * store that is not aligned to its size, and an odd block of threads are recorded as faults. Warps run one after the
 * other, which is one of the orders a device may take. The conversion instructions are written from their description
 * in the PTX manual ("cvt"), in double precision, and share nothing with core.h.
 */
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint2 { uint32_t x, y; };
struct uint4 { uint32_t x, y, z, w; };
struct dim3 { uint32_t x; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
static inline uint32_t max(uint32_t a, uint32_t b) { return a > b ? a : b; }
static inline uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* ------------------------------------------------------------------------------------------------ lanes */

static char fault[200];
static void report(const char *text) {
    if (!fault[0]) snprintf(fault, sizeof fault, "%s", text);
}

#define STACK 65536
static ucontext_t lanes[32], scheduler;
static char *stacks;
static bool ended[32];
static uint32_t current, exchanged[2][32], meetings[32];
static void (*body)(void);

static void switch_to(uint32_t lane) {
    const uint32_t from = current;
    current = lane;
    threadIdx.x = threadIdx.x / 32 * 32 + lane;
    swapcontext(&lanes[from], &lanes[lane]);
}

static uint32_t exchange(uint32_t value, uint32_t source) {
    const uint32_t me = current, round = meetings[me]++ % 2;
    exchanged[round][me] = value;
    for (int i = 0; i < 32; i++)
        if (ended[i]) {
            report("a lane shuffles after another has ended");
            return value;
        }
    switch_to((me + 1) % 32);
    return exchanged[round][source];
}

static void run_lane(void) {
    body();
    ended[current] = true;
    for (uint32_t i = 1; i <= 32; i++) {
        const uint32_t next = (current + i) % 32;
        if (!ended[next]) switch_to(next);
    }
    swapcontext(&lanes[current], &scheduler);
}

static void launch(uint32_t grid, uint32_t block) {
    if (!stacks) stacks = (char *)malloc(32 * STACK);
    if (block == 0 || block % 32) return report("the block of threads is not a multiple of 32");
    gridDim.x = grid;
    blockDim.x = block;
    for (uint32_t b = 0; b < grid; b++)
        for (uint32_t warp = 0; warp < block / 32; warp++) {
            memset(ended, 0, sizeof ended);
            memset(meetings, 0, sizeof meetings);
            for (int i = 0; i < 32; i++) {
                getcontext(&lanes[i]);
                lanes[i].uc_stack.ss_sp = stacks + i * STACK;
                lanes[i].uc_stack.ss_size = STACK;
                lanes[i].uc_link = 0;
                makecontext(&lanes[i], run_lane, 0);
            }
            blockIdx.x = b;
            threadIdx.x = warp * 32;
            current = 0;
            swapcontext(&scheduler, &lanes[0]);
            for (int i = 1; i < 32; i++)
                if (meetings[i] != meetings[0]) report("lanes of a warp met at different shuffles");
        }
}

static inline uint32_t as_bits(uint32_t value) { return value; }
static inline uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
template <class T>
static inline T from_bits(uint32_t bits) {
    T value;
    memcpy(&value, &bits, 4);
    return value;
}
template <class T>
static inline T __shfl_xor_sync(uint32_t, T value, int mask) {
    return from_bits<T>(exchange(as_bits(value), current ^ (uint32_t)mask));
}
template <class T>
static inline T __shfl_sync(uint32_t, T value, int source) {
    return from_bits<T>(exchange(as_bits(value), (uint32_t)source % 32));
}

/* ------------------------------------------------------------------------------------------------ memory */

template <class T>
static inline void check_aligned(const T *at) {
    if ((unsigned long long)at % sizeof(T)) report("an access is not aligned");
}
template <class T>
static inline T __ldg(const T *at) {
    check_aligned(at);
    return *at;
}
template <class T>
static inline T __ldcs(const T *at) {
    check_aligned(at);
    return *at;
}
template <class T>
static inline void __stcs(T *at, T value) {
    check_aligned(at);
    *at = value;
}
static inline void atomicMax(uint32_t *at, uint32_t value) { *at = max(*at, value); }

/* ------------------------------------------------------------------------------------------------ numbers */

static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t shift) {
    return (uint32_t)(((((unsigned long long)high << 32) | low) << (shift & 31)) >> 32);
}
static inline uint32_t max_u16x2(uint32_t a, uint32_t b) {
    return max(a >> 16, b >> 16) << 16 | max(a & 0xffffu, b & 0xffffu);
}

/* cvt.rn.satfinite.e2m1x2.f32: to the nearest of 0 0.5 1 1.5 2 3 4 6, ties to the one with an even mantissa bit; the
 * sign bit stays; NaN becomes the largest positive number; what is beyond the range becomes the largest of its sign. */
static inline uint32_t convert_e2m1(float value) {
    static const double numbers[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    if (isnan(value)) return 7;
    const double magnitude = fmin(fabs((double)value), 6.0);
    uint32_t nearest = 0;
    for (uint32_t code = 1; code < 8; code++) {
        const double now = fabs(numbers[code] - magnitude), before = fabs(numbers[nearest] - magnitude);
        if (now < before || (now == before && code % 2 == 0)) nearest = code;
    }
    return nearest | (signbit(value) ? 8u : 0u);
}
static inline uint32_t convert_e2m1x8(const float y[8]) {
    uint32_t packed = 0;
    for (int i = 0; i < 8; i++) packed |= convert_e2m1(y[i]) << (4 * i);
    return packed;
}

static inline double number_of_e4m3(uint32_t code) {
    const int exponent = (int)(code >> 3 & 15), mantissa = (int)(code & 7);
    const double magnitude = exponent ? ldexp(8 + mantissa, exponent - 10) : ldexp(mantissa, -9);
    return code & 0x80 ? -magnitude : magnitude;
}

/* To a format with `bits` after the leading one and exponents from `least` to `most`, ties to even. */
static inline uint32_t round_number(float value, int bits, int least, int most, uint32_t nan) {
    const int width = most - least + 2 >= 100 ? 8 : 5;
    const uint32_t sign = signbit(value) ? 0x8000u : 0, infinity = ((1u << width) - 1) << bits;
    if (isnan(value)) return nan;
    if (isinf(value)) return sign | infinity;
    int exponent;
    const double magnitude = fabs((double)value);
    if (magnitude == 0) return sign;
    frexp(magnitude, &exponent);
    exponent = exponent - 1 < least ? least : exponent - 1;
    const double units = nearbyint(ldexp(magnitude, bits - exponent)); /* ties to even */
    const uint32_t rounded = (uint32_t)units + ((uint32_t)(exponent - least) << bits); /* a carry raises the exponent */
    return sign | (rounded > infinity ? infinity : rounded);
}
static inline uint32_t convert_fp16(float value) { return round_number(value, 10, -14, 15, 0x7fffu); }
static inline uint32_t convert_bf16(float value) { return round_number(value, 7, -126, 127, 0x7fffu); }
static inline uint32_t convert_fp16x2(float low, float high) { return convert_fp16(low) | convert_fp16(high) << 16; }
static inline uint32_t convert_bf16x2(float low, float high) { return convert_bf16(low) | convert_bf16(high) << 16; }
static inline uint32_t convert_from_e4m3x2(uint32_t pair) {
    uint32_t halves = 0;
    for (int i = 0; i < 2; i++) {
        const uint32_t code = pair >> (8 * i) & 0xffu;
        const uint32_t half = (code & 0x7f) == 0x7f ? 0x7fffu : convert_fp16((float)number_of_e4m3(code));
        halves |= half << (16 * i);
    }
    return halves;
}
static inline float convert_from_fp16(uint32_t half) {
    const int exponent = (int)(half >> 10 & 31), mantissa = (int)(half & 1023);
    double magnitude = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    if (exponent == 31) magnitude = mantissa ? NAN : INFINITY;
    return (float)(half & 0x8000u ? -magnitude : magnitude);
}
