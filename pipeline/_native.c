/* What OpenCV does in several passes, in one: an optional module. Without it, and for all that it leaves to OpenCV,
 * Python calls OpenCV, which makes the same bytes.
 *
 * The arithmetic is OpenCV's for 8-bit INTER_LINEAR (modules/imgproc/src/resize.cpp): weights of 11 bits, rows first,
 * kept with four bits less (`h >> 4`), then columns: `((w0 * h0 >> 16) + (w1 * h1 >> 16) + 2) >> 2`. All but the weights
 * is integer, and these are computed in its order of float and double, without fused steps (see pyproject.toml).
 */
#include "_pixels.h"

#if defined(__x86_64__)
#define NARROWEST 6   /* pixels: a row holds the 16 bytes that are loaded at once */
#define WIDEST 16384  /* pixels: more is OpenCV's */

/* A value is one channel of one pixel of the result. Four that lie beside each other come from two neighbors among its
 * pixels, so, when shrinking at most twofold, from 12 neighboring bytes of a source row: one load and one shuffle. */
typedef struct {
    uint32_t *picks;   /* for a value: which two bytes of the 16 that are loaded it is mixed of, each as 16 bits */
    uint32_t *weights; /* and their weights, 16 bits each */
    int32_t *starts;   /* for four values: where in a source row the 16 bytes begin */
} Columns;

/* Fill tables for `width` pixels out of `source`, mirrored if `flip`; `first` and `pair` have room for width + 4. */
AVX2 static void plan(const Columns *columns, int32_t *first, uint32_t *pair, int width, int source, int flip) {
    double scale = 1. / ((double)width / source);
    int padded = (width + 3) / 4 * 4, last_start = 3 * source - 16;
    for (int x = 0; x < width; x++) {
        float after;
        int left = locate(x, scale, &after), to = flip ? width - 1 - x : x;
        if (left < 0) left = 0, after = 0;
        if (left >= source - 1) left = source - 1, after = 0;
        first[to] = 3 * left;
        pair[to] = (uint32_t)weight(1.f - after) | (uint32_t)weight(after) << 16;
    }
    for (int x = width; x < padded + 1; x++) first[x] = first[width - 1], pair[x] = 0;
    for (int x = 0; x < padded; x += 4)
        for (int quad = 0; quad < 3; quad++) { /* four pixels are three times four values */
            int a = first[x + quad], b = first[x + quad + 1], start = a < b ? a : b, value = 3 * x + 4 * quad;
            if (start > last_start) start = last_start;
            columns->starts[value / 4] = start;
            for (int k = 4 * quad; k < 4 * quad + 4; k++, value++) {
                uint32_t byte = first[x + k / 3] + k % 3 - start; /* its neighbor is 3 further; 0x80 picks a zero */
                columns->picks[value] = byte * 0x10001u + 0x80038000u;
                columns->weights[value] = pair[x + k / 3];
            }
        }
}

AVX2 static inline __m256i eight(const uint8_t *row, const Columns *columns, int value) {
    const int32_t *start = columns->starts + value / 4;
    __m128i low = _mm_loadu_si128((const __m128i *)(row + start[0]));
    __m128i high = _mm_loadu_si128((const __m128i *)(row + start[1]));
    __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    __m256i both = _mm256_shuffle_epi8(bytes, _mm256_load_si256((const __m256i *)(columns->picks + value)));
    __m256i mixed = _mm256_madd_epi16(both, _mm256_load_si256((const __m256i *)(columns->weights + value)));
    return _mm256_srli_epi32(mixed, 4);
}

AVX2 static void mix_columns(const uint8_t *row, const Columns *columns, int16_t *out, int values) {
    for (int value = 0; value < values; value += 16) {
        __m256i packed = _mm256_packs_epi32(eight(row, columns, value), eight(row, columns, value + 8));
        _mm256_store_si256((__m256i *)(out + value), _mm256_permute4x64_epi64(packed, 0xd8));
    }
}

AVX2 static inline __m256i between(const int16_t *above, const int16_t *below, __m256i w0, __m256i w1) {
    __m256i a = _mm256_mulhi_epi16(_mm256_load_si256((const __m256i *)above), w0);
    __m256i b = _mm256_mulhi_epi16(_mm256_load_si256((const __m256i *)below), w1);
    return _mm256_srai_epi16(_mm256_add_epi16(_mm256_add_epi16(a, b), _mm256_set1_epi16(2)), 2);
}

AVX2 static void mix_rows(const int16_t *above, const int16_t *below, int w0, int w1, uint8_t *out, int values) {
    __m256i first = _mm256_set1_epi16(w0), second = _mm256_set1_epi16(w1);
    int value = 0;
    for (; value + 32 <= values; value += 32) {
        __m256i low = between(above + value, below + value, first, second);
        __m256i high = between(above + value + 16, below + value + 16, first, second);
        __m256i packed = _mm256_packus_epi16(low, high);
        _mm256_storeu_si256((__m256i *)(out + value), _mm256_permute4x64_epi64(packed, 0xd8));
    }
    for (; value < values; value++) out[value] = ((above[value] * w0 >> 16) + (below[value] * w1 >> 16) + 2) >> 2;
}

/* Have a row brought into the caches: processors do not foresee that a mirrored one is read from its end. */
static void fetch(const uint8_t *row, int size) {
    for (int at = 0; at < size; at += 64) _mm_prefetch((const char *)row + at, _MM_HINT_T0);
}

/* Returns 0 when there is no memory. */
AVX2 static int resize_pixels(const Py_buffer *source, const Py_buffer *target, int flip) {
    int source_height = source->shape[0], source_width = source->shape[1];
    int height = target->shape[0], width = target->shape[1];
    size_t values = 3 * (size_t)width, room = (values + 31) / 16 * 16; /* of each table; a multiple of 64 bytes */
    char *memory = aligned_alloc(64, room * (4 + 4 + 2 + 2 + 4 + 4 + 4));
    if (!memory) return 0;
    Columns columns = {(uint32_t *)memory, (uint32_t *)memory + room, (int32_t *)memory + 2 * room};
    int16_t *above = (int16_t *)(memory + 12 * room), *below = above + room, *swap;
    memset(memory, 0, 12 * room); /* the values past the last one, up to a multiple of 16 */
    plan(&columns, (int32_t *)(memory + 16 * room), (uint32_t *)(memory + 20 * room), width, source_width, flip);

    double scale = 1. / ((double)height / source_height);
    int has_above = -1, has_below = -1; /* source rows whose columns are mixed */
    for (int y = 0; y < height; y++) {
        float after;
        int first = locate(y, scale, &after), upper = within(first, source_height);
        int lower = within(first + 1, source_height);
        if (upper == has_below) {
            swap = above, above = below, below = swap;
            has_below = has_above, has_above = upper;
        }
        const uint8_t *rows = source->buf;
        if (upper != has_above) mix_columns(rows + upper * source->strides[0], &columns, above, values);
        if (lower != has_below) {
            mix_columns(rows + lower * source->strides[0], &columns, below, values);
            fetch(rows + within(lower + 2, source_height) * source->strides[0], 3 * source_width);
        }
        has_above = upper, has_below = lower;
        uint8_t *out = (uint8_t *)target->buf + y * target->strides[0];
        mix_rows(above, below, weight(1.f - after), weight(after), out, values);
    }
    free(memory);
    return 1;
}

/* Neither what OpenCV averages over areas, exact halves included, nor what is too narrow to load 16 bytes of. */
static int is_ours(const Py_buffer *source, const Py_buffer *target) {
    Py_ssize_t *from = source->shape, *to = target->shape;
    return is_image(source) && is_image(target) && from[0] <= 2 * to[0] && from[1] <= 2 * to[1] &&
           !(from[0] == 2 * to[0] && from[1] == 2 * to[1]) && from[1] >= NARROWEST && from[1] <= WIDEST &&
           to[1] <= WIDEST && from[0] <= WIDEST && to[0] <= WIDEST;
}

static PyObject *resize(PyObject *module, PyObject *arguments) {
    PyObject *arrays[2];
    Py_buffer views[2];
    int flip, done = 0;
    if (!PyArg_ParseTuple(arguments, "OOp", arrays, arrays + 1, &flip) || !hold(arrays, views, 2)) return NULL;
    if (is_ours(views, views + 1)) {
        Py_BEGIN_ALLOW_THREADS
        done = resize_pixels(views, views + 1, flip);
        Py_END_ALLOW_THREADS
    }
    release(views, 2);
    return PyBool_FromLong(done);
}

static PyMethodDef methods[] = {
    {"resize", resize, METH_VARARGS,
     "resize(source, target, flip)\n--\n\nWhether it has filled `target`, bilinear; otherwise it is left to OpenCV."},
    {"shrink", native_shrink, METH_VARARGS,
     "shrink(source, target, fx, fy, taps_x, taps_y)\n--\n\nWhether it has filled `target`: low-pass, then cubic."},
    {"chroma", native_chroma, METH_VARARGS,
     "chroma(source, blue, red, fx, fy)\n--\n\nWhether it has filled `blue` and `red` with Cb and Cr: halves, linear."},
    {NULL, NULL, 0, NULL},
};

static int usable(PyObject *module) {
    if (__builtin_cpu_supports("avx2")) return 0;
    PyErr_SetString(PyExc_ImportError, "this processor has no AVX2");
    return -1;
}
#else
static PyMethodDef methods[] = {{NULL, NULL, 0, NULL}};

static int usable(PyObject *module) {
    PyErr_SetString(PyExc_ImportError, "written for x86-64 alone");
    return -1;
}
#endif

static PyModuleDef_Slot slots[] = {{Py_mod_exec, usable}, {0, NULL}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", "Optional compiled loops; see _native.c.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
