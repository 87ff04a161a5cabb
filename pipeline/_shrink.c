/* The converter's way to a smaller image, in one pass each for luma and chroma; `resizing.py` does the same by OpenCV,
 * in several. The arithmetic is OpenCV's for 8 bits, without IPP:
 *
 * gray (BGR2GRAY)    (3735 B + 19235 G + 9798 R + 2^14) >> 15
 * GaussianBlur       weights of 8 bits; rows first, exactly, then columns: (sum + 2^15) >> 16; edges are mirrored
 * INTER_CUBIC        weights of 11 bits; rows first, exactly, then columns in float32, or in whole numbers for those
 *                    values of a row that do not fill a vector of eight; edges are repeated
 * INTER_AREA         of two by two: (a + b + c + d + 2) >> 2
 * INTER_LINEAR       see `_native.c`
 * BGR2YCrCb          Y = (1868 B + 9617 G + 4899 R + 2^13) >> 14, Cb = (9241 (B - Y) + 128.5 * 2^14) >> 14,
 *                    Cr with 11682 (R - Y)
 */
#include "_pixels.h"

#if defined(__x86_64__)
#define SMALLEST 8 /* pixels: of a side; what is smaller is OpenCV's */
#define PAD 16     /* bytes before and after a row, for its edges and for loads of 16 bytes */
#define VECTOR 8   /* values that OpenCV sums at once */

AVX2 static inline int nearest(double value) { return _mm_cvtsd_si32(_mm_set_sd(value)); } /* half to even */

AVX2 static void cubic_weights(float x, int16_t *out) {
    const float A = -0.75f;
    float w[4];
    w[0] = ((A * (x + 1) - 5 * A) * (x + 1) + 8 * A) * (x + 1) - 4 * A;
    w[1] = ((A + 2) * x - (A + 3)) * x * x + 1;
    w[2] = ((A + 2) * (1 - x) - (A + 3)) * (1 - x) * (1 - x) + 1;
    w[3] = 1.f - w[0] - w[1] - w[2];
    for (int k = 0; k < 4; k++) out[k] = weight(w[k]);
}

/* 16 bytes in each half. */
AVX2 static inline __m256i load_two(const uint8_t *low, const uint8_t *high) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)low)),
                                   _mm_loadu_si128((const __m128i *)high), 1);
}

/* ---- luma: gray, low-pass, cubic ---- */

/* Eight pixels BGR to gray, as 32 bits. */
AVX2 static inline __m256i gray8(const uint8_t *bgr) {
    const __m256i bg = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 1, -1, 3, -1, 4, -1, 6, -1, 7, -1, 9, -1, 10, -1));
    const __m256i r = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(2, -1, -1, -1, 5, -1, -1, -1, 8, -1, -1, -1, 11, -1, -1, -1));
    __m256i bytes = load_two(bgr, bgr + 12);
    __m256i sum = _mm256_add_epi32(
        _mm256_madd_epi16(_mm256_shuffle_epi8(bytes, bg), _mm256_set1_epi32(3735 | 19235 << 16)),
        _mm256_madd_epi16(_mm256_shuffle_epi8(bytes, r), _mm256_set1_epi32(9798)));
    return _mm256_srli_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(1 << 14)), 15);
}

static inline uint8_t gray1(const uint8_t *bgr) {
    return (bgr[0] * 3735 + bgr[1] * 19235 + bgr[2] * 9798 + (1 << 14)) >> 15;
}

AVX2 static void gray_row(const uint8_t *bgr, uint8_t *out, int width) {
    int x = 0;
    for (; x + 18 <= width; x += 16) { /* the last load reaches 4 bytes further */
        __m256i packed = _mm256_packus_epi32(gray8(bgr + 3 * x), gray8(bgr + 3 * x + 24)); /* 0-3 8-11 | 4-7 12-15 */
        packed = _mm256_permute4x64_epi64(packed, 0xd8);
        packed = _mm256_packus_epi16(packed, packed);
        packed = _mm256_permute4x64_epi64(packed, 0xd8);
        _mm_storeu_si128((__m128i *)(out + x), _mm256_castsi256_si128(packed));
    }
    for (; x < width; x++) out[x] = gray1(bgr + 3 * x);
}

static int mirrored(int at, int size) { return at < 0 ? -at : at < size ? at : 2 * size - 2 - at; }

/* taps: of the outer, the inner neighbors and the middle, 256 together. Stored less 2^15, as signed. */
AVX2 static void blur_row(uint8_t *row, int16_t *out, int width, const int *taps) {
    const __m256i t0 = _mm256_set1_epi16(taps[0]), t1 = _mm256_set1_epi16(taps[1]), t2 = _mm256_set1_epi16(taps[2]);
    const __m256i sign = _mm256_set1_epi16((short)0x8000);
    for (int k = 1; k <= 2; k++) row[-k] = row[k], row[width - 1 + k] = row[width - 1 - k]; /* mirrored */
#define AT(k) _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(row + x + (k))))
    for (int x = 0; x < width; x += 16) {
        __m256i sum = _mm256_add_epi16(_mm256_mullo_epi16(AT(0), t2),
                                       _mm256_mullo_epi16(_mm256_add_epi16(AT(-1), AT(1)), t1));
        if (taps[0]) sum = _mm256_add_epi16(sum, _mm256_mullo_epi16(_mm256_add_epi16(AT(-2), AT(2)), t0));
        _mm256_store_si256((__m256i *)(out + x), _mm256_xor_si256(sum, sign));
    }
#undef AT
}

AVX2 static void blur_rows(int16_t *const *rows, uint8_t *out, int width, const int *taps) {
    const __m256i outer = _mm256_set1_epi16(taps[0]), mid = _mm256_set1_epi32(taps[1] | taps[2] << 16);
    const __m256i inner = _mm256_set1_epi32(taps[1]), bias = _mm256_set1_epi32((1 << 23) + (1 << 15));
    const __m256i zero = _mm256_setzero_si256();
    for (int x = 0; x < width; x += 16) {
#define ROW(k) _mm256_load_si256((const __m256i *)(rows[k] + x))
        __m256i a = ROW(1), b = ROW(2), c = ROW(3);
        __m256i low = _mm256_add_epi32(_mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), mid),
                                       _mm256_madd_epi16(_mm256_unpacklo_epi16(c, zero), inner));
        __m256i high = _mm256_add_epi32(_mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), mid),
                                        _mm256_madd_epi16(_mm256_unpackhi_epi16(c, zero), inner));
        if (taps[0]) {
            a = ROW(0), b = ROW(4);
            low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), outer));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), outer));
        }
#undef ROW
        low = _mm256_srli_epi32(_mm256_add_epi32(low, bias), 16);
        high = _mm256_srli_epi32(_mm256_add_epi32(high, bias), 16);
        __m256i packed = _mm256_packus_epi32(low, high); /* the order of the pixels */
        packed = _mm256_permute4x64_epi64(_mm256_packus_epi16(packed, packed), 0xd8);
        _mm_storeu_si128((__m128i *)(out + x), _mm256_castsi256_si128(packed));
    }
}

typedef struct {
    int32_t *starts;  /* for two values: where in a row the 16 bytes begin */
    uint8_t *picks;   /* for eight values, 64 bytes: values 0 1, 4 5, 2 3, 6 7, four pixels of 16 bits each */
    int16_t *weights; /* in that order */
} Cubic;

AVX2 static void plan_cubic(const Cubic *cubic, int width, double scale) {
    static const int slots[4] = {0, 2, 1, 3}; /* of the pairs 0 1, 2 3, 4 5, 6 7 */
    for (int x = 0; x < (width + 7) / 8 * 8; x++) {
        float after;
        int first = locate(x < width ? x : width - 1, scale, &after) - 1;
        int slot = x / 8 * 8 + 2 * slots[x / 2 % 4] + x % 2;
        if (x % 2 == 0) cubic->starts[x / 2] = first;
        cubic_weights(after, cubic->weights + 4 * slot);
        for (int k = 0; k < 4; k++) {
            cubic->picks[8 * slot + 2 * k] = first + k - cubic->starts[x / 2];
            cubic->picks[8 * slot + 2 * k + 1] = 0x80;
        }
    }
}

AVX2 static inline __m256i four(const uint8_t *row, const Cubic *cubic, int value, int half) {
    const int32_t *start = cubic->starts + value / 2 + half;
    __m256i bytes = load_two(row + start[0], row + start[2]);
    int at = 4 * value + 16 * half;
    __m256i picked = _mm256_shuffle_epi8(bytes, _mm256_load_si256((const __m256i *)(cubic->picks + 2 * at)));
    return _mm256_madd_epi16(picked, _mm256_load_si256((const __m256i *)(cubic->weights + at)));
}

AVX2 static void cubic_row(uint8_t *row, int width, const Cubic *cubic, float *out, int values) {
    memset(row - PAD, row[0], PAD);
    memset(row + width, row[width - 1], PAD);
    for (int x = 0; x < values; x += 8)
        _mm256_store_ps(out + x, _mm256_cvtepi32_ps(_mm256_hadd_epi32(four(row, cubic, x, 0), four(row, cubic, x, 1))));
}

AVX2 static inline __m256i cubic8(float *const *rows, int x, const __m256 *w) {
    __m256 sum = _mm256_add_ps(_mm256_mul_ps(_mm256_load_ps(rows[2] + x), w[2]),
                               _mm256_mul_ps(_mm256_load_ps(rows[3] + x), w[3]));
    sum = _mm256_add_ps(_mm256_mul_ps(_mm256_load_ps(rows[1] + x), w[1]), sum);
    return _mm256_cvtps_epi32(_mm256_add_ps(_mm256_mul_ps(_mm256_load_ps(rows[0] + x), w[0]), sum));
}

AVX2 static void cubic_rows(float *const *rows, const int16_t *weights, uint8_t *out, int values, int as_floats) {
    __m256 w[4];
    for (int k = 0; k < 4; k++) w[k] = _mm256_set1_ps(weights[k] * (1.f / (2048 * 2048)));
    for (int x = 0; x < values; x += 16) {
        __m256i packed = _mm256_packs_epi32(cubic8(rows, x, w), cubic8(rows, x + 8, w));
        packed = _mm256_permute4x64_epi64(packed, 0xd8);
        packed = _mm256_permute4x64_epi64(_mm256_packus_epi16(packed, packed), 0xd8);
        _mm_storeu_si128((__m128i *)(out + x), _mm256_castsi256_si128(packed));
    }
    for (int x = as_floats; x < values; x++) {
        int sum = 1 << 21;
        for (int k = 0; k < 4; k++) sum += (int)rows[k][x] * weights[k];
        sum >>= 22;
        out[x] = sum < 0 ? 0 : sum > 255 ? 255 : sum;
    }
}

enum { GRAY = -1 }; /* of three channels, in place of the number of one */

static void load_row(const Py_buffer *source, int y, int channel, uint8_t *out, int width) {
    const uint8_t *row = (const uint8_t *)source->buf + y * source->strides[0];
    if (channel == GRAY) gray_row(row, out, width);
    else if (source->ndim == 2) memcpy(out, row, width);
    else for (int x = 0; x < width; x++) out[x] = row[3 * x + channel];
}

static void store_row(const Py_buffer *target, int y, int channel, const uint8_t *line) {
    uint8_t *row = (uint8_t *)target->buf + y * target->strides[0];
    if (target->ndim == 2) memcpy(row, line, target->shape[1]);
    else for (int x = 0; x < target->shape[1]; x++) row[3 * x + channel] = line[x];
}

/* Memory for rows and tables, in pieces that are aligned for vectors of 32 bytes. */
typedef struct {
    char *start, *next;
} Memory;

static int allocate(Memory *memory, size_t bytes) {
    bytes = (bytes + 4095) / 4096 * 4096;
    memory->start = memory->next = aligned_alloc(64, bytes);
    if (memory->start) memset(memory->start, 0, bytes);
    return memory->start != NULL;
}

static void *take(Memory *memory, size_t bytes) {
    memory->next += (bytes + 31) / 32 * 32;
    return memory->next - (bytes + 31) / 32 * 32;
}

/* Returns 0 when there is no memory. */
AVX2 static int shrink_plane(const Py_buffer *source, const Py_buffer *target, int channel, double fx, double fy,
                             const int *taps_x, const int *taps_y) {
    int h = source->shape[0], w = source->shape[1], out_h = target->shape[0], out_w = target->shape[1];
    int full_h = nearest(h * fy), full_w = nearest(w * fx); /* before it is cut, or its last row or column repeated */
    int values = full_w < out_w ? full_w : out_w, blur = taps_x[2] != 256 || taps_y[2] != 256;
    size_t wide = (w + 2 * PAD + 63) / 32 * 32, room = (out_w + 47) / 16 * 16;
    Memory memory;
    if (!allocate(&memory, 18 * wide + 35 * room + 1024)) return 0;
    uint8_t *plain = (uint8_t *)take(&memory, wide) + PAD, *smooth = (uint8_t *)take(&memory, wide) + PAD;
    uint8_t *line = take(&memory, room);
    int16_t *blurred[8];
    float *ready[4];
    for (int k = 0; k < 8; k++) blurred[k] = take(&memory, 2 * wide);
    for (int k = 0; k < 4; k++) ready[k] = take(&memory, 4 * room);
    Cubic cubic = {take(&memory, 2 * room), take(&memory, 8 * room), take(&memory, 8 * room)};
    plan_cubic(&cubic, values, 1. / fx);
    int as_floats = full_w / VECTOR * VECTOR; /* values of a row; of three channels, a vector holds values of all */
    if (target->ndim == 3) as_floats = (3 * full_w / VECTOR * VECTOR - channel + 2) / 3;
    int last_read = -1, last_ready = -1;
    for (int y = 0; y < out_h; y++) {
        if (y < full_h) {
            float after, *rows[4];
            int16_t weights[4], *five[5];
            int first = locate(y, 1. / fy, &after) - 1, last = within(first + 3, h);
            cubic_weights(after, weights);
            while (last_ready < last) {
                last_ready++;
                if (blur) {
                    while (last_read < last_ready + 2 && last_read + 1 < h) {
                        last_read++;
                        load_row(source, last_read, channel, plain, w);
                        blur_row(plain, blurred[last_read % 8], w, taps_x);
                    }
                    for (int k = 0; k < 5; k++) five[k] = blurred[mirrored(last_ready - 2 + k, h) % 8];
                    blur_rows(five, smooth, w, taps_y);
                } else load_row(source, last_ready, channel, smooth, w);
                cubic_row(smooth, w, &cubic, ready[last_ready % 4], values);
            }
            for (int k = 0; k < 4; k++) rows[k] = ready[within(first + k, h) % 4];
            cubic_rows(rows, weights, line, values, as_floats);
            memset(line + values, line[values - 1], out_w - values);
        }
        store_row(target, y, channel, line);
    }
    free(memory.start);
    return 1;
}

/* ---- chroma: halves, linear, Cb and Cr ---- */

/* Sums of two neighbors, of eight pixels in a row: six of 16 bits in each half. */
AVX2 static inline __m256i sums(const uint8_t *row) {
    const __m256i pairs = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11, -1, -1, -1, -1));
    return _mm256_maddubs_epi16(_mm256_shuffle_epi8(load_two(row, row + 12), pairs), _mm256_set1_epi8(1));
}

AVX2 static void halve_row(const uint8_t *above, const uint8_t *below, uint8_t *out, int width) {
    int x = 0;
    for (; 2 * x + 10 <= width; x += 4) { /* the last load reaches 4 bytes further than eight pixels */
        __m256i sum = _mm256_add_epi16(sums(above + 6 * x), sums(below + 6 * x));
        sum = _mm256_srli_epi16(_mm256_add_epi16(sum, _mm256_set1_epi16(2)), 2);
        sum = _mm256_packus_epi16(sum, sum);
        _mm_storel_epi64((__m128i *)(out + 3 * x), _mm256_castsi256_si128(sum));
        _mm_storel_epi64((__m128i *)(out + 3 * x + 6), _mm256_extracti128_si256(sum, 1));
    }
    for (; x < width / 2; x++)
        for (int value = 3 * x; value < 3 * x + 3; value++) {
            int at = value + 3 * x;
            out[value] = (above[at] + above[at + 3] + below[at] + below[at + 3] + 2) >> 2;
        }
}

/* Pixels of B, G, R and nothing, 16 bits each, kept with four bits less. */
AVX2 static void linear_row(const uint8_t *row, const int32_t *starts, const uint64_t *weights, int16_t *out,
                            int width) {
    const __m256i pick = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    for (int x = 0; x < width; x += 4) {
        __m256i mixed[2];
        for (int k = 0; k < 2; k++) { /* pixels 0 and 2, then 1 and 3: packing puts them in order */
            int a = x + k, b = x + k + 2;
            __m256i picked = _mm256_shuffle_epi8(load_two(row + starts[a], row + starts[b]), pick);
            __m256i shares = _mm256_setr_epi64x(weights[a], weights[a], weights[b], weights[b]);
            mixed[k] = _mm256_srli_epi32(_mm256_madd_epi16(picked, shares), 4);
        }
        _mm256_store_si256((__m256i *)(out + 4 * x), _mm256_packs_epi32(mixed[0], mixed[1]));
    }
}

AVX2 static void linear_rows(const int16_t *above, const int16_t *below, int w0, int w1, uint8_t *blue, uint8_t *red,
                             int width) {
    const __m256i first = _mm256_set1_epi16(w0), second = _mm256_set1_epi16(w1), two = _mm256_set1_epi16(2);
    const __m256i to_y = _mm256_set1_epi64x(1868 | 9617ll << 16 | 4899ll << 32), half = _mm256_set1_epi32(1 << 13);
    const __m256i middle = _mm256_set1_epi32((128 << 14) + (1 << 13)), low16 = _mm256_set1_epi32(0xffff);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int x = 0; x < width; x += 8) {
        __m256i bgr[2];
        for (int k = 0; k < 2; k++) {
            __m256i a = _mm256_mulhi_epi16(_mm256_load_si256((const __m256i *)(above + 4 * x + 16 * k)), first);
            __m256i b = _mm256_mulhi_epi16(_mm256_load_si256((const __m256i *)(below + 4 * x + 16 * k)), second);
            bgr[k] = _mm256_srai_epi16(_mm256_add_epi16(_mm256_add_epi16(a, b), two), 2);
        }
        __m256i y = _mm256_hadd_epi32(_mm256_madd_epi16(bgr[0], to_y), _mm256_madd_epi16(bgr[1], to_y));
        y = _mm256_srli_epi32(_mm256_add_epi32(y, half), 14);
        __m256 f = _mm256_castsi256_ps(bgr[0]), g = _mm256_castsi256_ps(bgr[1]);
        __m256i b = _mm256_and_si256(_mm256_castps_si256(_mm256_shuffle_ps(f, g, 0x88)), low16);
        __m256i r = _mm256_and_si256(_mm256_castps_si256(_mm256_shuffle_ps(f, g, 0xdd)), low16);
        __m256i cr = _mm256_mullo_epi32(_mm256_sub_epi32(r, y), _mm256_set1_epi32(11682));
        __m256i cb = _mm256_mullo_epi32(_mm256_sub_epi32(b, y), _mm256_set1_epi32(9241));
        cr = _mm256_srai_epi32(_mm256_add_epi32(cr, middle), 14);
        cb = _mm256_srai_epi32(_mm256_add_epi32(cb, middle), 14);
        __m256i both = _mm256_permutevar8x32_epi32(_mm256_packs_epi32(cr, cb), order);
        both = _mm256_packus_epi16(both, both);
        _mm_storel_epi64((__m128i *)(red + x), _mm256_castsi256_si128(both));
        _mm_storel_epi64((__m128i *)(blue + x), _mm256_extracti128_si256(both, 1));
    }
}

/* Returns 0 when there is no memory, and for sizes that OpenCV copies or averages. */
AVX2 static int shrink_chroma(const Py_buffer *source, const Py_buffer *blue, const Py_buffer *red, double fx,
                              double fy) {
    int h = source->shape[0], w = source->shape[1], out_h = blue->shape[0], out_w = blue->shape[1];
    int half_h = (h + 1) / 2, half_w = (w + 1) / 2; /* an odd last row or column is left out, the one before repeated */
    int full_h = nearest(half_h * fy), full_w = nearest(half_w * fx), values = full_w < out_w ? full_w : out_w;
    if ((full_h == half_h && full_w == half_w) || (1. / fx == 2 && 1. / fy == 2)) return 0;
    size_t room = (out_w + 47) / 16 * 16;
    Memory memory;
    if (!allocate(&memory, 3 * half_w + 30 * room + 1024)) return 0;
    uint8_t *half = take(&memory, 3 * half_w + 32), *blue_line = take(&memory, room), *red_line = take(&memory, room);
    int16_t *above = take(&memory, 8 * room), *below = take(&memory, 8 * room), *swap;
    uint64_t *weights = take(&memory, 8 * room);
    int32_t *starts = take(&memory, 4 * room);
    for (int x = 0; x < values; x++) {
        float after;
        int left = locate(x, 1. / fx, &after);
        if (left < 0) left = 0, after = 0;
        if (left >= half_w - 1) left = half_w - 1, after = 0;
        starts[x] = 3 * left;
        weights[x] = (weight(1.f - after) | weight(after) << 16) * 0x100000001ull; /* for two of the three channels */
    }
    int has_above = -1, has_below = -1; /* rows of halves that are mixed */
    for (int y = 0; y < out_h; y++) {
        if (y < full_h) {
            float after;
            int first = locate(y, 1. / fy, &after), rows[2] = {within(first, half_h), within(first + 1, half_h)};
            if (rows[0] == has_below) {
                swap = above, above = below, below = swap;
                has_below = has_above, has_above = rows[0];
            }
            for (int k = 0; k < 2; k++) {
                if (rows[k] == (k ? has_below : has_above)) continue;
                int upper = 2 * (rows[k] < h / 2 ? rows[k] : h / 2 - 1);
                const uint8_t *from = (const uint8_t *)source->buf + upper * source->strides[0];
                halve_row(from, from + source->strides[0], half, w);
                if (w % 2) memcpy(half + 3 * half_w - 3, half + 3 * half_w - 6, 3);
                linear_row(half, starts, weights, k ? below : above, values);
            }
            has_above = rows[0], has_below = rows[1];
            linear_rows(above, below, weight(1.f - after), weight(after), blue_line, red_line, values);
            memset(blue_line + values, blue_line[values - 1], out_w - values);
            memset(red_line + values, red_line[values - 1], out_w - values);
        }
        memcpy((uint8_t *)blue->buf + y * blue->strides[0], blue_line, out_w);
        memcpy((uint8_t *)red->buf + y * red->strides[0], red_line, out_w);
    }
    free(memory.start);
    return 1;
}

/* ---- Python ---- */

static int is_plane(const Py_buffer *view) {
    return view->ndim == 2 && view->itemsize == 1 && view->shape[0] > 0 && view->shape[1] > 0 && view->strides[1] == 1;
}

static int is_shrunk(const Py_buffer *source, double fx, double fy) {
    return source->shape[0] >= SMALLEST && source->shape[1] >= SMALLEST && source->shape[0] <= 1 << 20 &&
           source->shape[1] <= 1 << 20 && fx >= 1 / 4.5 && fx <= 1 && fy >= 1 / 4.5 && fy <= 1;
}

static int is_target(const Py_buffer *target) { return target->shape[0] <= 1 << 20 && target->shape[1] <= 1 << 20; }

PyObject *native_shrink(PyObject *module, PyObject *arguments) {
    PyObject *arrays[2];
    Py_buffer views[2], *source = views, *target = views + 1;
    double fx, fy;
    int x[3], y[3], done = 0;
    if (!PyArg_ParseTuple(arguments, "OOdd(iii)(iii)", arrays, arrays + 1, &fx, &fy, x, x + 1, x + 2, y, y + 1, y + 2) ||
        !hold(arrays, views, 2))
        return NULL;
    int gray = is_image(source) && is_plane(target), bgr = is_image(source) && is_image(target);
    if ((gray || bgr || (is_plane(source) && is_plane(target))) && is_target(target) && is_shrunk(source, fx, fy) &&
        (nearest(source->shape[0] * fy) != source->shape[0] || nearest(source->shape[1] * fx) != source->shape[1])) {
        Py_BEGIN_ALLOW_THREADS
        done = 1;
        for (int channel = gray ? GRAY : 0; done && channel < (bgr ? 3 : gray ? 0 : 1); channel++)
            done = shrink_plane(source, target, channel, fx, fy, x, y);
        Py_END_ALLOW_THREADS
    }
    release(views, 2);
    return PyBool_FromLong(done);
}

PyObject *native_chroma(PyObject *module, PyObject *arguments) {
    PyObject *arrays[3];
    Py_buffer views[3], *blue = views + 1, *red = views + 2;
    double fx, fy;
    int done = 0;
    if (!PyArg_ParseTuple(arguments, "OOOdd", arrays, arrays + 1, arrays + 2, &fx, &fy) || !hold(arrays, views, 3))
        return NULL;
    if (is_image(views) && is_shrunk(views, fx, fy) && is_plane(blue) && is_plane(red) && is_target(blue) &&
        blue->shape[0] == red->shape[0] && blue->shape[1] == red->shape[1]) {
        Py_BEGIN_ALLOW_THREADS
        done = shrink_chroma(views, blue, red, fx, fy);
        Py_END_ALLOW_THREADS
    }
    release(views, 3);
    return PyBool_FromLong(done);
}
#endif
