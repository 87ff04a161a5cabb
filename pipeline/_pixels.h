/* What `_native.c` and `_shrink.c` share. */
#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if defined(__x86_64__)
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2")))

/* Where a position of the result lies in the source: returns the first of two neighbors, `*after` is how far behind. */
AVX2 static inline int locate(int at, double scale, float *after) {
    float place = (float)((at + 0.5) * scale - 0.5);
    int first = (int)place - (place < 0); /* it is at least -0.5 */
    *after = place - first;
    return first;
}

AVX2 static inline int weight(float share) { return _mm_cvtss_si32(_mm_set_ss(share * 2048.f)); /* half to even */ }

static inline int within(int at, int size) { return at < 0 ? 0 : at < size ? at : size - 1; }

/* Rows of pixels of three bytes. */
static inline int is_image(const Py_buffer *view) {
    return view->ndim == 3 && view->itemsize == 1 && view->shape[0] > 0 && view->shape[1] > 0 && view->shape[2] == 3 &&
           view->strides[1] == 3 && view->strides[2] == 1;
}

static inline void release(Py_buffer *views, int count) {
    while (count) PyBuffer_Release(views + --count);
}

/* The arrays' memory, of the first to read and of the others to write; returns 0, with an error set, if it has none. */
static inline int hold(PyObject *const *arrays, Py_buffer *views, int count) {
    for (int held = 0; held < count; held++)
        if (PyObject_GetBuffer(arrays[held], views + held, PyBUF_STRIDES | (held ? PyBUF_WRITABLE : 0))) {
            release(views, held);
            return 0;
        }
    return 1;
}

PyObject *native_shrink(PyObject *module, PyObject *arguments); /* of _shrink.c */
PyObject *native_chroma(PyObject *module, PyObject *arguments);
#endif
