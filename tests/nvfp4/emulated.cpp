/* The kernels of nvfp4.cu on the device of emulation.h, each behind a function that takes what cuLaunchKernel does: the
 * size of the grid and of its blocks, and an array of pointers to the arguments. Returns the first fault, or "". */
#define NVFP4_EMULATED 1
#include <utility>

#include "nvfp4.cu"

static void **arguments;

template <class... Types, size_t... Places>
static void call(void (*kernel)(Types...), std::index_sequence<Places...>) {
    kernel(*(Types *)arguments[Places]...);
}

template <class... Types>
static const char *start(void (*kernel)(Types...), void (*lane)(void), uint32_t grid, uint32_t block, void **given,
                         uint32_t count) {
    (void)kernel;
    if (count != sizeof...(Types)) return "the number of arguments is not the kernel's";
    arguments = given;
    fault[0] = 0;
    body = lane;
    launch(grid, block);
    return fault;
}

template <class... Types>
static void call_all(void (*kernel)(Types...)) {
    call(kernel, std::index_sequence_for<Types...>());
}

#define LAUNCHED(NAME)                                                                                          \
    extern "C" const char *launch_##NAME(uint32_t grid, uint32_t block, void **given, uint32_t count) {        \
        return start(NAME, [] { call_all(NAME); }, grid, block, given, count);                                 \
    }
LAUNCHED(amax_bfloat16)
LAUNCHED(amax_float16)
LAUNCHED(amax_float32)
LAUNCHED(amax_float8_blocks)
LAUNCHED(quantize_bfloat16)
LAUNCHED(quantize_float16)
LAUNCHED(quantize_float32)
LAUNCHED(quantize_float8_blocks)
LAUNCHED(search_bfloat16)
LAUNCHED(search_float16)
LAUNCHED(search_float32)
LAUNCHED(search_float8_blocks)
LAUNCHED(global_scale)
LAUNCHED(dequantize_bfloat16)
LAUNCHED(dequantize_float16)
LAUNCHED(dequantize_float32)

/* How many binary32 patterns in [first, last], apart from -0.0 and NaN, the FP4 instruction and core.h encode apart. */
extern "C" uint32_t differing_codes(uint32_t first, uint32_t last) {
    uint32_t bad = 0;
    for (unsigned long long bits = first; bits <= last; bits++) {
        const float value = from_bits<float>((uint32_t)bits);
        if ((uint32_t)bits == 0x80000000u || isnan(value)) continue;
        bad += convert_e2m1(value) != nvfp4_to_e2m1(value);
    }
    return bad;
}

/* Of all quotients x / d with x of `bits` significant bits and d in [first, last], a run of patterns in [1, 2): how
 * many the reciprocal with one correction rounds unlike the division. `corrected` 0 leaves the correction out. */
extern "C" unsigned long long differing_quotients(int bits, uint32_t first, uint32_t last, int corrected) {
    unsigned long long bad = 0;
    for (uint32_t pattern = first; pattern <= last; pattern++) {
        const float d = from_bits<float>(pattern), inverse = 1.0f / d;
        uint32_t now = 0;
        for (uint32_t x = 1u << (bits - 1); x < 1u << bits; x++) {
            const float number = (float)x, quotient = number * inverse;
            const float better = __builtin_fmaf(__builtin_fmaf(-quotient, d, number), inverse, quotient);
            now += (corrected ? better : quotient) != number / d;
        }
        bad += now;
    }
    return bad;
}
