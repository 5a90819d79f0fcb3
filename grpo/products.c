/* Products of float32 matrices on an x86 CPU, by the threads that torch's OpenMP has.
 *
 * `grpo/products.py` has this file compiled, and says where it is faster than what torch calls. The matrices may be
 * transposed, and parts of others: element (i, j) of one stands at data[i * row + j * column]. What a result is, to the
 * last bit, depends neither on the number of threads nor on rows and columns beside it.
 */
#include "vectors.h"

#define ROWS (LANES == 16 ? 12 : 6) /* of a tile: its sums, two vectors a row, fill the registers */
#define COLUMNS (2 * LANES)         /* of a tile, and of a panel of packed columns */
#define DEPTH 256                   /* what is summed at once: a panel of that height stays in the first cache */
#define WIDTH 768                   /* columns that are packed at once: they stay in the second */
#define BLOCK (4 * ROWS)            /* rows of a thread's turn */

typedef struct {
    const float *data;
    i64 row, column;
} Matrix;

/* Adds to or writes rows x 2 vectors of the result, of which `columns` numbers are there: left[rows, k] panel[k, COLUMNS]. */
INLINE void tile(int rows, Matrix left, const float *panel, i64 k, float *out, i64 ld, i64 columns, int adds) {
    vec sum[ROWS][2];
    UNROLL_16 for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = zero();
    for (i64 p = 0; p < k; p++, panel += COLUMNS) {
        vec first = load(panel), second = load(panel + LANES);
        UNROLL_16 for (int i = 0; i < rows; i++) {
            vec each = all(left.data[i * left.row + p * left.column]);
            sum[i][0] = multiply_add(each, first, sum[i][0]);
            sum[i][1] = multiply_add(each, second, sum[i][1]);
        }
    }
    UNROLL_16 for (int i = 0; i < rows; i++) {
        float *to = out + i * ld;
        if (columns == COLUMNS) {
            if (adds) sum[i][0] += load(to), sum[i][1] += load(to + LANES);
            store(to, sum[i][0]);
            store(to + LANES, sum[i][1]);
        } else {
            float found[COLUMNS];
            store(found, sum[i][0]);
            store(found + LANES, sum[i][1]);
            for (i64 j = 0; j < columns; j++) to[j] = (adds ? to[j] : 0) + found[j];
        }
    }
}

/* Of `rows` rows, at most BLOCK, by all panels that are packed. */
static void block(Matrix left, const float *panels, float *out, i64 ld, i64 rows, i64 columns, i64 k, int adds) {
    for (i64 j = 0; j < columns; j += COLUMNS, panels += k * COLUMNS) {
        i64 width = columns - j < COLUMNS ? columns - j : COLUMNS;
        for (i64 i = 0; i < rows;) {
            Matrix from = {left.data + i * left.row, left.row, left.column};
            float *to = out + i * ld + j;
            if (rows - i >= ROWS) tile(ROWS, from, panels, k, to, ld, width, adds), i += ROWS;
            else if (rows - i >= 4) tile(4, from, panels, k, to, ld, width, adds), i += 4;
            else if (rows - i >= 2) tile(2, from, panels, k, to, ld, width, adds), i += 2;
            else tile(1, from, panels, k, to, ld, width, adds), i += 1;
        }
    }
}

/* A panel of `columns` columns and k rows: [k, COLUMNS], 0 where there are fewer. */
static void pack(Matrix right, i64 columns, i64 k, float *panel) {
    i64 p = 0;
    if (columns < COLUMNS) memset(panel, 0, k * COLUMNS * sizeof(float));
    if (columns == COLUMNS && right.column == 1)
        for (; p < k; p++) {
            store(panel + p * COLUMNS, load(right.data + p * right.row));
            store(panel + p * COLUMNS + LANES, load(right.data + p * right.row + LANES));
        }
    if (columns == COLUMNS && right.row == 1)
        for (; p + 4 <= k; p += 4)
            for (i64 j = 0; j < COLUMNS; j += 4) {
                const float *from = right.data + p + j * right.column;
                __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + right.column);
                __m128 c = _mm_loadu_ps(from + 2 * right.column), d = _mm_loadu_ps(from + 3 * right.column);
                _MM_TRANSPOSE4_PS(a, b, c, d);
                float *to = panel + p * COLUMNS + j;
                _mm_storeu_ps(to, a);
                _mm_storeu_ps(to + COLUMNS, b);
                _mm_storeu_ps(to + 2 * COLUMNS, c);
                _mm_storeu_ps(to + 3 * COLUMNS, d);
            }
    for (; p < k; p++)
        for (i64 j = 0; j < columns; j++) panel[p * COLUMNS + j] = right.data[p * right.row + j * right.column];
}

/* Floats that `grpo_product` packs into. */
i64 grpo_product_scratch(i64 n, i64 k) {
    i64 columns = n < WIDTH ? (n + COLUMNS - 1) / COLUMNS * COLUMNS : WIDTH;
    return (k < DEPTH ? k : DEPTH) * columns;
}

/* out[m, n] = left[m, k] right[k, n], or adds that; rows of `out` are `ld` numbers apart. */
void grpo_product(const Matrix *left, const Matrix *right, float *out, i64 ld, i64 m, i64 n, i64 k, int adds,
                  float *scratch, int threads) {
#pragma omp parallel num_threads(threads)
    for (i64 column = 0; column < n; column += WIDTH) {
        i64 columns = n - column < WIDTH ? n - column : WIDTH;
        for (i64 depth = 0; depth < k; depth += DEPTH) {
            i64 height = k - depth < DEPTH ? k - depth : DEPTH;
            Matrix part = {right->data + depth * right->row + column * right->column, right->row, right->column};
#pragma omp for
            for (i64 j = 0; j < columns; j += COLUMNS) {
                Matrix from = {part.data + j * part.column, part.row, part.column};
                pack(from, columns - j < COLUMNS ? columns - j : COLUMNS, height, scratch + j * height);
            }
#pragma omp for
            for (i64 i = 0; i < m; i += BLOCK) {
                Matrix from = {left->data + i * left->row + depth * left->column, left->row, left->column};
                block(from, scratch, out + i * ld + column, ld, m - i < BLOCK ? m - i : BLOCK, columns, height,
                      adds || depth > 0);
            }
        }
    }
}
