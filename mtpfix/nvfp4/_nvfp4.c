/* The CPU library's door: checks sizes, lets go of the interpreter, and calls the variant that fits the processor.
 *
 * Memory is given as an object with a buffer, whose size is checked, or as an address, whose size is the caller's
 * word. Nothing here starts a thread; callers split rows between theirs.
 */
#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>
#include <fenv.h>

#include "kernels.h"

#define FP8_BLOCK 128  /* rows, and columns, under one weight_scale_inv */
#define STRIP 4096     /* columns of an FP8 row that are converted at a time; a multiple of FP8_BLOCK */
#define LARGEST ((size_t)1 << 56)

static const Nvfp4Kernels *variants[4]; /* those this processor can run, the best first */
static const Nvfp4Kernels *chosen;

static void find_variants(void) {
    size_t count = 0;
#ifdef NVFP4_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) {
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
            variants[count++] = &nvfp4_avx512;
        variants[count++] = &nvfp4_avx2;
    }
#endif
#ifdef NVFP4_NEON
    variants[count++] = &nvfp4_neon; /* every 64-bit ARM processor has it */
#endif
    variants[count] = &nvfp4_portable;
    chosen = variants[0];
}

/* ------------------------------------------------------------------------------------------------ memory */

typedef struct {
    Py_buffer view;
    uint8_t *at;
    int held;
} Memory;

static int open_memory(PyObject *object, size_t bytes, int writable, const char *what, Memory *memory) {
    memory->held = 0;
    if (PyLong_Check(object)) {
        memory->at = (uint8_t *)PyLong_AsVoidPtr(object);
        if (memory->at == NULL && bytes) {
            if (!PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "the address of %s is 0", what);
            return -1;
        }
        return 0;
    }
    if (PyObject_GetBuffer(object, &memory->view, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) return -1;
    memory->held = 1;
    memory->at = memory->view.buf;
    if ((size_t)memory->view.len < bytes) {
        PyErr_Format(PyExc_ValueError, "%s has %zd bytes, %zu are needed", what, memory->view.len, bytes);
        return -1;
    }
    return 0;
}

static void close_memory(Memory *memory) {
    if (memory->held) PyBuffer_Release(&memory->view);
    memory->held = 0;
}

static size_t width_of(int dtype) { return dtype == NVFP4_FP32 ? 4 : 2; }

static int check_count(size_t count, int dtype) {
    if (dtype < 0 || dtype >= NVFP4_DTYPES) {
        PyErr_SetString(PyExc_ValueError, "dtype is 0 (BF16), 1 (FP16) or 2 (FP32)");
        return -1;
    }
    if (count > LARGEST || count % NVFP4_BLOCK) {
        PyErr_Format(PyExc_ValueError, "%zu numbers are not whole blocks of 16", count);
        return -1;
    }
    return 0;
}

static int check_matrix(size_t rows, size_t columns, size_t first) {
    if (columns > LARGEST || rows > LARGEST || (columns && rows > LARGEST / columns)) {
        PyErr_SetString(PyExc_ValueError, "the matrix is too large");
        return -1;
    }
    if (columns % NVFP4_BLOCK || first >= FP8_BLOCK) {
        PyErr_Format(PyExc_ValueError, "%zu columns are not whole blocks of 16, or the first row is not below %d",
                     columns, FP8_BLOCK);
        return -1;
    }
    return 0;
}

static int check_global(double global) {
    if (global >= 0x1p-149 && global <= 0x1.fffffep127) return 0;
    PyErr_SetString(PyExc_ValueError, "the global scale is not a finite positive binary32 number");
    return -1;
}

/* Subnormal numbers count, whatever another library has set for this thread. */
static void enter(fenv_t *saved) {
    fegetenv(saved);
    fesetenv(FE_DFL_ENV);
}

static void leave(const fenv_t *saved) { fesetenv(saved); }

static float load_scale(const uint8_t *scales, size_t at) {
    float scale;
    memcpy(&scale, scales + 4 * at, 4);
    return scale;
}

#define SUMS 8 /* that the squares are spread over, so that a vector can hold them and their order is fixed */

typedef struct { double squares[SUMS], errors[SUMS]; } Sums;

static float load_number(const uint8_t *x, int dtype, size_t at) {
    uint16_t half;
    float value;
    if (dtype == NVFP4_FP32) {
        memcpy(&value, x + 4 * at, 4);
        return value;
    }
    memcpy(&half, x + 2 * at, 2);
    return dtype == NVFP4_BF16 ? nvfp4_from_bf16(half) : nvfp4_from_fp16(half);
}

/* Add the squares of at most STRIP numbers, and of what their codes and scales differ from them. */
static inline void add_squares(const uint8_t *x, int dtype, size_t blocks, float global, const uint8_t *packed,
                               const uint8_t *scales, Sums *sums) {
    float back[STRIP];
    chosen->dequantize[NVFP4_FP32](packed, scales, blocks, global, (uint8_t *)back);
    for (size_t at = 0; at < blocks * NVFP4_BLOCK; at += SUMS)
        for (size_t i = 0; i < SUMS; i++) {
            const double number = (double)load_number(x, dtype, at + i), error = number - (double)back[at + i];
            sums->squares[i] += number * number;
            sums->errors[i] += error * error;
        }
}

static void add_strip(const uint8_t *x, int dtype, size_t blocks, float global, const uint8_t *packed,
                      const uint8_t *scales, Sums *sums) {
    switch (dtype) { /* each a loop of its own */
    case NVFP4_BF16: add_squares(x, NVFP4_BF16, blocks, global, packed, scales, sums); break;
    case NVFP4_FP16: add_squares(x, NVFP4_FP16, blocks, global, packed, scales, sums); break;
    default: add_squares(x, NVFP4_FP32, blocks, global, packed, scales, sums);
    }
}

static PyObject *total(const Sums *sums) {
    double squares = 0, errors = 0;
    for (int i = 0; i < SUMS; i++) squares += sums->squares[i], errors += sums->errors[i];
    return Py_BuildValue("(dd)", squares, errors);
}

/* Expand a row's columns from `begin` to `end`, at most STRIP, to BF16; `scales` are those of its row of blocks. */
static void expand_strip(const uint8_t *row, const uint8_t *scales, size_t begin, size_t end, uint8_t *strip) {
    for (size_t at = begin; at < end; at += FP8_BLOCK)
        chosen->expand(row + at, end - at < FP8_BLOCK ? end - at : FP8_BLOCK, load_scale(scales, at / FP8_BLOCK),
                       strip + 2 * (at - begin));
}

/* ------------------------------------------------------------------------------------------------ functions */

static PyObject *amax(PyObject *self, PyObject *args) {
    PyObject *source;
    Py_ssize_t count;
    int dtype;
    Memory x;
    (void)self;
    if (!PyArg_ParseTuple(args, "Oin:amax", &source, &dtype, &count)) return NULL;
    if (dtype < 0 || dtype >= NVFP4_DTYPES || count < 0 || (size_t)count > LARGEST)
        return PyErr_Format(PyExc_ValueError, "no such dtype or count: %d, %zd", dtype, count);
    if (open_memory(source, (size_t)count * width_of(dtype), 0, "the source", &x) < 0) return close_memory(&x), NULL;
    uint32_t bits;
    float value;
    Py_BEGIN_ALLOW_THREADS
    bits = (dtype == NVFP4_FP32 ? chosen->amax32 : chosen->amax16)(x.at, (size_t)count);
    Py_END_ALLOW_THREADS
    close_memory(&x);
    value = dtype == NVFP4_FP32   ? nvfp4_float(bits)
            : dtype == NVFP4_BF16 ? nvfp4_from_bf16((uint16_t)bits)
                                  : nvfp4_from_fp16((uint16_t)bits);
    return PyFloat_FromDouble((double)value);
}

static PyObject *amax_fp8(PyObject *self, PyObject *args) {
    PyObject *source, *scale_inv;
    Py_ssize_t rows, columns, first;
    Memory x = {0}, s = {0};
    (void)self;
    if (!PyArg_ParseTuple(args, "OOnnn:amax_fp8", &source, &scale_inv, &rows, &columns, &first)) return NULL;
    if (rows < 0 || columns < 0 || first < 0 || check_matrix((size_t)rows, (size_t)columns, (size_t)first) < 0)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "a size is negative");
    const size_t across = ((size_t)columns + FP8_BLOCK - 1) / FP8_BLOCK;
    const size_t down = ((size_t)(rows + first) + FP8_BLOCK - 1) / FP8_BLOCK;
    float largest = 0.0f;
    PyObject *result = NULL;
    if (open_memory(source, (size_t)rows * (size_t)columns, 0, "the source", &x) < 0) goto done;
    if (open_memory(scale_inv, across * down * 4, 0, "weight_scale_inv", &s) < 0) goto done;
    Py_BEGIN_ALLOW_THREADS
    fenv_t saved;
    enter(&saved);
    uint32_t most = 0;
    for (size_t row = 0; row < (size_t)rows; row++)
        for (size_t block = 0; block < across; block++) {
            const size_t begin = block * FP8_BLOCK, left = (size_t)columns - begin;
            const uint8_t *codes = x.at + row * (size_t)columns + begin;
            const uint32_t code = chosen->amax8(codes, left < FP8_BLOCK ? left : FP8_BLOCK);
            const float scale = load_scale(s.at, (row + (size_t)first) / FP8_BLOCK * across + block);
            const uint32_t bits = nvfp4_bits(nvfp4_from_fp8_block((uint8_t)code, scale)) & 0x7fffffffu;
            most = bits > most ? bits : most;
        }
    largest = nvfp4_float(most);
    leave(&saved);
    Py_END_ALLOW_THREADS
    result = PyFloat_FromDouble((double)largest);
done:
    close_memory(&x);
    close_memory(&s);
    return result;
}

static PyObject *quantize(PyObject *self, PyObject *args) {
    PyObject *source, *packed, *scales;
    Py_ssize_t count;
    int dtype, search;
    double given; /* becomes binary32 only where subnormal numbers count */
    Memory x = {0}, p = {0}, s = {0};
    PyObject *result = NULL;
    (void)self;
    if (!PyArg_ParseTuple(args, "OindpOO:quantize", &source, &dtype, &count, &given, &search, &packed, &scales))
        return NULL;
    if (check_count((size_t)count, dtype) < 0 || check_global(given) < 0) return NULL;
    const size_t blocks = (size_t)count / NVFP4_BLOCK;
    if (open_memory(source, (size_t)count * width_of(dtype), 0, "the source", &x) < 0) goto done;
    if (open_memory(packed, blocks * NVFP4_BLOCK / 2, 1, "the place for codes", &p) < 0) goto done;
    if (open_memory(scales, blocks, 1, "the place for scales", &s) < 0) goto done;
    Py_BEGIN_ALLOW_THREADS
    fenv_t saved;
    enter(&saved);
    chosen->quantize[dtype](x.at, blocks, (float)given, search, p.at, s.at);
    leave(&saved);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    close_memory(&x);
    close_memory(&p);
    close_memory(&s);
    return result;
}

static PyObject *quantize_fp8(PyObject *self, PyObject *args) {
    PyObject *source, *scale_inv, *packed, *scales;
    Py_ssize_t rows, columns, first;
    int search;
    double given; /* becomes binary32 only where subnormal numbers count */
    Memory x = {0}, i = {0}, p = {0}, s = {0};
    PyObject *result = NULL;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOnnndpOO:quantize_fp8", &source, &scale_inv, &rows, &columns, &first, &given,
                          &search, &packed, &scales))
        return NULL;
    if (rows < 0 || columns < 0 || first < 0 || check_matrix((size_t)rows, (size_t)columns, (size_t)first) < 0)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "a size is negative");
    if (check_global(given) < 0) return NULL;
    const size_t width = (size_t)columns, blocks = width / NVFP4_BLOCK;
    const size_t across = (width + FP8_BLOCK - 1) / FP8_BLOCK;
    const size_t down = ((size_t)(rows + first) + FP8_BLOCK - 1) / FP8_BLOCK;
    if (open_memory(source, (size_t)rows * width, 0, "the source", &x) < 0) goto done;
    if (open_memory(scale_inv, across * down * 4, 0, "weight_scale_inv", &i) < 0) goto done;
    if (open_memory(packed, (size_t)rows * width / 2, 1, "the place for codes", &p) < 0) goto done;
    if (open_memory(scales, (size_t)rows * blocks, 1, "the place for scales", &s) < 0) goto done;
    Py_BEGIN_ALLOW_THREADS
    fenv_t saved;
    uint8_t strip[STRIP * 2];
    enter(&saved);
    for (size_t row = 0; row < (size_t)rows; row++)
        for (size_t begin = 0; begin < width; begin += STRIP) {
            const size_t end = width - begin < STRIP ? width : begin + STRIP;
            const uint8_t *row_scales = i.at + (row + (size_t)first) / FP8_BLOCK * across * 4;
            expand_strip(x.at + row * width, row_scales, begin, end, strip);
            chosen->quantize[NVFP4_BF16](strip, (end - begin) / NVFP4_BLOCK, (float)given, search,
                                         p.at + (row * width + begin) / 2, s.at + row * blocks + begin / NVFP4_BLOCK);
        }
    leave(&saved);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    close_memory(&x);
    close_memory(&i);
    close_memory(&p);
    close_memory(&s);
    return result;
}

static PyObject *dequantize(PyObject *self, PyObject *args) {
    PyObject *packed, *scales, *target;
    Py_ssize_t count;
    int dtype;
    double given; /* becomes binary32 only where subnormal numbers count */
    Memory p = {0}, s = {0}, t = {0};
    PyObject *result = NULL;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOindO:dequantize", &packed, &scales, &dtype, &count, &given, &target)) return NULL;
    if (check_count((size_t)count, dtype) < 0 || check_global(given) < 0) return NULL;
    const size_t blocks = (size_t)count / NVFP4_BLOCK;
    if (open_memory(packed, blocks * NVFP4_BLOCK / 2, 0, "the codes", &p) < 0) goto done;
    if (open_memory(scales, blocks, 0, "the scales", &s) < 0) goto done;
    if (open_memory(target, (size_t)count * width_of(dtype), 1, "the place for numbers", &t) < 0) goto done;
    Py_BEGIN_ALLOW_THREADS
    fenv_t saved;
    enter(&saved);
    chosen->dequantize[dtype](p.at, s.at, blocks, (float)given, t.at);
    leave(&saved);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    close_memory(&p);
    close_memory(&s);
    close_memory(&t);
    return result;
}

static PyObject *measure_error(PyObject *self, PyObject *args) {
    PyObject *source, *packed, *scales;
    Py_ssize_t count;
    int dtype;
    double given;
    Memory x = {0}, p = {0}, s = {0};
    PyObject *result = NULL;
    Sums sums = {{0}, {0}};
    (void)self;
    if (!PyArg_ParseTuple(args, "OindOO:measure_error", &source, &dtype, &count, &given, &packed, &scales)) return NULL;
    if (check_count((size_t)count, dtype) < 0 || check_global(given) < 0) return NULL;
    const size_t blocks = (size_t)count / NVFP4_BLOCK, width = width_of(dtype), most = STRIP / NVFP4_BLOCK;
    if (open_memory(source, (size_t)count * width, 0, "the source", &x) < 0) goto done;
    if (open_memory(packed, blocks * NVFP4_BLOCK / 2, 0, "the codes", &p) < 0) goto done;
    if (open_memory(scales, blocks, 0, "the scales", &s) < 0) goto done;
    Py_BEGIN_ALLOW_THREADS
    fenv_t saved;
    enter(&saved);
    for (size_t b = 0; b < blocks; b += most)
        add_strip(x.at + b * NVFP4_BLOCK * width, dtype, blocks - b < most ? blocks - b : most, (float)given,
                  p.at + b * NVFP4_BLOCK / 2, s.at + b, &sums);
    leave(&saved);
    Py_END_ALLOW_THREADS
    result = total(&sums);
done:
    close_memory(&x);
    close_memory(&p);
    close_memory(&s);
    return result;
}

static PyObject *measure_error_fp8(PyObject *self, PyObject *args) {
    PyObject *source, *scale_inv, *packed, *scales;
    Py_ssize_t rows, columns;
    double given;
    Memory x = {0}, i = {0}, p = {0}, s = {0};
    PyObject *result = NULL;
    Sums sums = {{0}, {0}};
    (void)self;
    if (!PyArg_ParseTuple(args, "OOnndOO:measure_error_fp8", &source, &scale_inv, &rows, &columns, &given, &packed,
                          &scales))
        return NULL;
    if (rows < 0 || columns < 0 || check_matrix((size_t)rows, (size_t)columns, 0) < 0)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "a size is negative");
    if (check_global(given) < 0) return NULL;
    const size_t width = (size_t)columns, blocks = width / NVFP4_BLOCK;
    const size_t across = (width + FP8_BLOCK - 1) / FP8_BLOCK, down = ((size_t)rows + FP8_BLOCK - 1) / FP8_BLOCK;
    if (open_memory(source, (size_t)rows * width, 0, "the source", &x) < 0) goto done;
    if (open_memory(scale_inv, across * down * 4, 0, "weight_scale_inv", &i) < 0) goto done;
    if (open_memory(packed, (size_t)rows * width / 2, 0, "the codes", &p) < 0) goto done;
    if (open_memory(scales, (size_t)rows * blocks, 0, "the scales", &s) < 0) goto done;
    Py_BEGIN_ALLOW_THREADS
    fenv_t saved;
    uint8_t strip[STRIP * 2];
    enter(&saved);
    for (size_t row = 0; row < (size_t)rows; row++)
        for (size_t begin = 0; begin < width; begin += STRIP) {
            const size_t end = width - begin < STRIP ? width : begin + STRIP;
            expand_strip(x.at + row * width, i.at + row / FP8_BLOCK * across * 4, begin, end, strip);
            add_strip(strip, NVFP4_BF16, (end - begin) / NVFP4_BLOCK, (float)given, p.at + (row * width + begin) / 2,
                      s.at + row * blocks + begin / NVFP4_BLOCK, &sums);
        }
    leave(&saved);
    Py_END_ALLOW_THREADS
    result = total(&sums);
done:
    close_memory(&x);
    close_memory(&i);
    close_memory(&p);
    close_memory(&s);
    return result;
}

static PyObject *list_variants(PyObject *self, PyObject *args) {
    (void)self;
    (void)args;
    PyObject *names = PyList_New(0);
    for (size_t i = 0; names && i < sizeof variants / sizeof *variants && variants[i]; i++) {
        PyObject *name = PyUnicode_FromString(variants[i]->name);
        if (!name || PyList_Append(names, name) < 0) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

static PyObject *use(PyObject *self, PyObject *name) {
    (void)self;
    for (size_t i = 0; i < sizeof variants / sizeof *variants && variants[i]; i++)
        if (PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, variants[i]->name) == 0) {
            chosen = variants[i];
            return Py_NewRef(Py_None);
        }
    return PyErr_Format(PyExc_ValueError, "this processor has no variant %R", name);
}

static PyObject *used(PyObject *self, PyObject *args) {
    (void)self;
    (void)args;
    return PyUnicode_FromString(chosen->name);
}

static PyMethodDef methods[] = {
    {"amax", amax, METH_VARARGS, "amax(source, dtype, count): the largest magnitude; NaN is above all."},
    {"amax_fp8", amax_fp8, METH_VARARGS, "amax_fp8(source, scale_inv, rows, columns, first)"},
    {"quantize", quantize, METH_VARARGS, "quantize(source, dtype, count, global_scale, search, packed, scales)"},
    {"quantize_fp8", quantize_fp8, METH_VARARGS,
     "quantize_fp8(source, scale_inv, rows, columns, first, global_scale, search, packed, scales)"},
    {"dequantize", dequantize, METH_VARARGS, "dequantize(packed, scales, dtype, count, global_scale, target)"},
    {"measure_error", measure_error, METH_VARARGS,
     "measure_error(source, dtype, count, global_scale, packed, scales): sums of squares: of numbers, of their errors."},
    {"measure_error_fp8", measure_error_fp8, METH_VARARGS,
     "measure_error_fp8(source, scale_inv, rows, columns, global_scale, packed, scales): the same."},
    {"variants", list_variants, METH_NOARGS, "The variants that this processor can run, the best first."},
    {"use", use, METH_O, "use(name): run this variant from now on."},
    {"used", used, METH_NOARGS, "The variant that runs."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_nvfp4", "NVFP4 on the CPU, on memory.", -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__nvfp4(void) {
    nvfp4_fill_tables();
    find_variants();
    return PyModule_Create(&module);
}
