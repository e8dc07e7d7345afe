/* The kernels of nvfp4.cu behind plain C functions, run on the device of emulation.h. Returns the first fault, or "". */
#define NVFP4_EMULATED 1
#include "nvfp4.cu"

typedef struct {
    const void *source, *scale_inv, *global_scale;
    void *packed, *scales, *slot, *numbers;
    uint32_t blocks, width, first_row;
} Arguments;
static Arguments a;

#define BODY(NAME, ...)                                                     \
    extern "C" const char *run_##NAME(const Arguments *given, uint32_t grid, uint32_t block) { \
        a = *given;                                                         \
        fault[0] = 0;                                                       \
        body = [] { NAME(__VA_ARGS__); };                                   \
        launch(grid, block);                                                \
        return fault;                                                       \
    }
#define SOURCE (const uint8_t *)a.source
#define OUTPUTS (const float *)a.global_scale, (uint8_t *)a.packed, (uint8_t *)a.scales
#define TABLE a.width, (const float *)a.scale_inv, a.first_row

BODY(amax_bfloat16, SOURCE, a.blocks, (uint32_t *)a.slot)
BODY(amax_float16, SOURCE, a.blocks, (uint32_t *)a.slot)
BODY(amax_float32, SOURCE, a.blocks, (uint32_t *)a.slot)
BODY(amax_float8_blocks, SOURCE, a.blocks, TABLE, (uint32_t *)a.slot)
BODY(global_scale, (const uint32_t *)a.slot, (float *)a.numbers)
BODY(quantize_bfloat16, SOURCE, a.blocks, OUTPUTS)
BODY(quantize_float16, SOURCE, a.blocks, OUTPUTS)
BODY(quantize_float32, SOURCE, a.blocks, OUTPUTS)
BODY(quantize_float8_blocks, SOURCE, a.blocks, TABLE, OUTPUTS)
BODY(search_bfloat16, SOURCE, a.blocks, OUTPUTS)
BODY(search_float16, SOURCE, a.blocks, OUTPUTS)
BODY(search_float32, SOURCE, a.blocks, OUTPUTS)
BODY(search_float8_blocks, SOURCE, a.blocks, TABLE, OUTPUTS)
#define STORED (const uint8_t *)a.packed, (const uint8_t *)a.scales, a.blocks, (const float *)a.global_scale
BODY(dequantize_bfloat16, STORED, (uint8_t *)a.numbers)
BODY(dequantize_float16, STORED, (uint8_t *)a.numbers)
BODY(dequantize_float32, STORED, (uint8_t *)a.numbers)

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
