/* One variant of the CPU library as a program, so that an emulator can run it: requests from standard input, results to
 * standard output, until the input ends. A request is six 32-bit numbers and the bytes they announce; see `Request`. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

typedef struct { uint32_t operation, dtype, count, global, search, bytes; } Request; /* global: its bits; all are FP32's */

enum { AMAX8, AMAX16, AMAX32, QUANTIZE, DEQUANTIZE, EXPAND };

static void put(const void *at, size_t bytes) {
    if (fwrite(at, 1, bytes, stdout) != bytes) exit(3);
}

int main(int count, char **arguments) {
    const Nvfp4Kernels *known[] = {
        &nvfp4_portable,
#ifdef NVFP4_X86
        &nvfp4_avx2,
        &nvfp4_avx512,
#endif
#ifdef NVFP4_NEON
        &nvfp4_neon,
#endif
    };
    const Nvfp4Kernels *variant = NULL;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (count == 2 && strcmp(known[i]->name, arguments[1]) == 0) variant = known[i];
    if (variant == NULL) return 2;
    nvfp4_fill_tables();
    Request r;
    while (fread(&r, sizeof r, 1, stdin) == 1) {
        const float global = nvfp4_float(r.global);
        const size_t blocks = r.count / NVFP4_BLOCK, width = r.dtype == NVFP4_FP32 ? 4 : 2;
        uint8_t *memory = malloc(r.bytes + 1), *source = memory + 1; /* misaligned, as in a file */
        uint8_t *target = malloc((size_t)r.count * 4 + 1);
        if (memory == NULL || target == NULL || fread(source, 1, r.bytes, stdin) != r.bytes) return 4;
        uint32_t amax;
        switch (r.operation) {
        case AMAX8: amax = variant->amax8(source, r.count), put(&amax, 4); break;
        case AMAX16: amax = variant->amax16(source, r.count), put(&amax, 4); break;
        case AMAX32: amax = variant->amax32(source, r.count), put(&amax, 4); break;
        case QUANTIZE:
            variant->quantize[r.dtype](source, blocks, global, (int)r.search, target, target + blocks * 8);
            put(target, blocks * 9);
            break;
        case DEQUANTIZE: /* the codes, then the block scales */
            variant->dequantize[r.dtype](source, source + blocks * 8, blocks, global, target);
            put(target, r.count * width);
            break;
        case EXPAND: variant->expand(source, r.count, global, target), put(target, (size_t)r.count * 2); break;
        default: return 5;
        }
        free(memory);
        free(target);
    }
    return 0;
}
