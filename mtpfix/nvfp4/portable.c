/* The variant for any processor: core.h in loops, and the tables that the others share. */
#include "kernels.h"

float nvfp4_scale_values[NVFP4_TABLE_SIZE];
float nvfp4_scale_reciprocals[NVFP4_TABLE_SIZE];

void nvfp4_fill_tables(void) {
    for (int i = 0; i < NVFP4_TABLE_SIZE; i++) {
        const int code = i + NVFP4_TABLE_FIRST;
        const float value = code >= 1 && code <= 126 ? nvfp4_from_e4m3((uint8_t)code) : 1.0f;
        nvfp4_scale_values[i] = value;
        nvfp4_scale_reciprocals[i] = 1.0f / value;
    }
}

static uint32_t amax8(const uint8_t *x, size_t count) {
    uint8_t amax = 0;
    for (size_t i = 0; i < count; i++) {
        const uint8_t bits = x[i] & 0x7f;
        amax = bits > amax ? bits : amax;
    }
    return amax;
}

static uint32_t amax16(const uint8_t *x, size_t count) {
    int16_t amax = 0; /* signed, because SSE2 has no unsigned maximum of words */
    for (size_t i = 0; i < count; i++) {
        int16_t bits;
        memcpy(&bits, x + 2 * i, 2);
        bits &= 0x7fff;
        amax = bits > amax ? bits : amax;
    }
    return (uint32_t)amax;
}

static uint32_t amax32(const uint8_t *x, size_t count) {
    int32_t amax = 0;
    for (size_t i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, x + 4 * i, 4);
        bits &= 0x7fffffff;
        amax = bits > amax ? bits : amax;
    }
    return (uint32_t)amax;
}

static inline void load_block(const uint8_t *x, int dtype, float block[NVFP4_BLOCK]) {
    uint16_t halves[NVFP4_BLOCK];
    if (dtype == NVFP4_FP32) {
        memcpy(block, x, 4 * NVFP4_BLOCK);
        return;
    }
    memcpy(halves, x, sizeof halves);
    for (int i = 0; i < NVFP4_BLOCK; i++)
        block[i] = dtype == NVFP4_BF16 ? nvfp4_from_bf16(halves[i]) : nvfp4_from_fp16(halves[i]);
}

static inline void quantize(const uint8_t *x, int dtype, size_t blocks, float global, int search, uint8_t *packed,
                            uint8_t *scales) {
    const size_t width = NVFP4_BLOCK * (dtype == NVFP4_FP32 ? 4 : 2);
    for (size_t b = 0; b < blocks; b++) {
        float block[NVFP4_BLOCK];
        load_block(x + b * width, dtype, block);
        scales[b] = nvfp4_quantize_block(block, global, search, packed + b * NVFP4_BLOCK / 2);
    }
}

static void quantize_bf16(const uint8_t *x, size_t blocks, float global, int search, uint8_t *packed,
                          uint8_t *scales) {
    quantize(x, NVFP4_BF16, blocks, global, search, packed, scales);
}

static void quantize_fp16(const uint8_t *x, size_t blocks, float global, int search, uint8_t *packed,
                          uint8_t *scales) {
    quantize(x, NVFP4_FP16, blocks, global, search, packed, scales);
}

static void quantize_fp32(const uint8_t *x, size_t blocks, float global, int search, uint8_t *packed,
                          uint8_t *scales) {
    quantize(x, NVFP4_FP32, blocks, global, search, packed, scales);
}

/* A block has 16 values: round those once, then look them up. */
static inline void dequantize(const uint8_t *packed, const uint8_t *scales, int dtype, size_t blocks, float global,
                              uint8_t *target) {
    for (size_t b = 0; b < blocks; b++) {
        const float step = nvfp4_step(scales[b], global);
        float values[16];
        uint16_t halves[16];
        for (int i = 0; i < 16; i++) values[i] = nvfp4_dequantize((uint8_t)i, step);
        if (dtype != NVFP4_FP32)
            for (int i = 0; i < 16; i++)
                halves[i] = dtype == NVFP4_BF16 ? nvfp4_to_bf16(values[i]) : nvfp4_to_fp16(values[i]);
        for (int i = 0; i < NVFP4_BLOCK / 2; i++) {
            const uint8_t pair = packed[b * NVFP4_BLOCK / 2 + (size_t)i];
            const size_t at = b * NVFP4_BLOCK + 2 * (size_t)i;
            if (dtype == NVFP4_FP32) {
                memcpy(target + 4 * at, &values[pair & 15], 4);
                memcpy(target + 4 * at + 4, &values[pair >> 4], 4);
            } else {
                memcpy(target + 2 * at, &halves[pair & 15], 2);
                memcpy(target + 2 * at + 2, &halves[pair >> 4], 2);
            }
        }
    }
}

static void dequantize_bf16(const uint8_t *packed, const uint8_t *scales, size_t blocks, float global,
                            uint8_t *target) {
    dequantize(packed, scales, NVFP4_BF16, blocks, global, target);
}

static void dequantize_fp16(const uint8_t *packed, const uint8_t *scales, size_t blocks, float global,
                            uint8_t *target) {
    dequantize(packed, scales, NVFP4_FP16, blocks, global, target);
}

static void dequantize_fp32(const uint8_t *packed, const uint8_t *scales, size_t blocks, float global,
                            uint8_t *target) {
    dequantize(packed, scales, NVFP4_FP32, blocks, global, target);
}

static void expand(const uint8_t *codes, size_t count, float scale_inv, uint8_t *target) {
    for (size_t i = 0; i < count; i++) {
        const uint32_t bits = nvfp4_bits(nvfp4_from_fp8_block(codes[i], scale_inv));
        const uint16_t half = (uint16_t)(bits >> 16);
        memcpy(target + 2 * i, &half, 2);
    }
}

const Nvfp4Kernels nvfp4_portable = {
    "portable",
    amax8,
    amax16,
    amax32,
    {quantize_bf16, quantize_fp16, quantize_fp32},
    {dequantize_bf16, dequantize_fp16, dequantize_fp32},
    expand,
};
