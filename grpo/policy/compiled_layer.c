/* What a decoder layer does between its matrix products, and back, on one core of an x86 CPU.
 *
 * `grpo/policy/compiled_layer.py` has this file compiled, calls it without Python's lock, and leaves the products of states and
 * weights to torch. Sequences are packed as `grpo.policy.attention` packs them.
 *
 * N packed tokens, H hidden size, I intermediate size, K key-value heads, g query heads per key-value head, D head size,
 * L tokens that a segment's last token sees. H, I and D are multiples of LANES.
 */
#include "../vectors.h"

#define CHUNK 32 /* queries whose scores exist at once */

/* Tokens that follow one another in a sequence; their sequence begins with a prompt that stands elsewhere, or here. */
typedef struct {
    i64 start, length, prompt_start, prompt_length;
} Segment;

/* Heads of [N, g * K, D] queries and of [N, K, D] keys and values. */
typedef struct {
    i64 kv_heads, group, size, longest; /* L of the segment where it is largest, a multiple of LANES */
    float scale;
} Heads;

/* --- Norm, gate, rotation ------------------------------------------------------------------------------------------ */

/* Root mean square norm, arXiv 1910.07467: out = x * scale * weight; the scale of every row is written too. */
void grpo_norm(const float *x, const float *weight, float *out, float *scales, i64 rows, i64 size, float eps) {
    for (i64 r = 0; r < rows; r++, x += size, out += size) {
        vec sum = zero();
        for (i64 i = 0; i < size; i += LANES) {
            vec v = load(x + i);
            sum += v * v;
        }
        scales[r] = 1.0f / sqrtf(total(sum) / size + eps);
        for (i64 i = 0; i < size; i += LANES)
            store(out + i, load(x + i) * scales[r] * load(weight + i));
    }
}

/* Adds to grad_x and grad_weight. */
void grpo_norm_backward(const float *grad, const float *x, const float *weight, const float *scales, float *grad_x,
                        float *grad_weight, i64 rows, i64 size) {
    for (i64 r = 0; r < rows; r++, x += size, grad += size, grad_x += size) {
        vec sum = zero();
        float scale = scales[r];
        for (i64 i = 0; i < size; i += LANES) {
            vec v = load(x + i), g = load(grad + i);
            sum += v * g * load(weight + i);
            store(grad_weight + i, load(grad_weight + i) + g * v * scale);
        }
        float mean = total(sum) * scale * scale * scale / size;
        for (i64 i = 0; i < size; i += LANES) {
            vec own = load(grad + i) * load(weight + i) * scale - load(x + i) * mean;
            store(grad_x + i, load(grad_x + i) + own);
        }
    }
}

/* out = silu(gate) * up */
void grpo_gate(const float *gate, const float *up, float *out, i64 size) {
    for (i64 i = 0; i < size; i += LANES) {
        vec x = load(gate + i);
        store(out + i, x / (exponential(-x) + 1.0f) * load(up + i));
    }
}

/* The gradient becomes the gate's output again. */
void grpo_gate_backward(float *grad, const float *gate, const float *up, float *grad_gate, float *grad_up, i64 size) {
    for (i64 i = 0; i < size; i += LANES) {
        vec x = load(gate + i), y = load(up + i), g = load(grad + i);
        vec share = 1.0f / (exponential(-x) + 1.0f), silu = x * share;
        store(grad_up + i, g * silu);
        store(grad_gate + i, g * y * share * (1.0f + x * (1.0f - share)));
        store(grad + i, silu * y);
    }
}

/* Rotary embedding of [N, heads, D] in the half-split layout, by angles whose [N, D] cosines and sines are given, or
 * back by them. */
void grpo_rotate(float *x, const float *cos, const float *sin, i64 rows, i64 heads, i64 size, float direction) {
    i64 half = size / 2;
    for (i64 r = 0; r < rows; r++, cos += size, sin += size)
        for (i64 h = 0; h < heads; h++, x += size)
            for (i64 i = 0; i < half; i++) {
                float a = x[i], b = x[i + half], s = direction * sin[i];
                x[i] = a * cos[i] - b * s;
                x[i + half] = b * cos[i] + a * s;
            }
}

/* --- Attention ------------------------------------------------------------------------------------------------------ */

INLINE void tile(int rows, int vectors, const float *a, i64 row, i64 column, const float *b, i64 ldb, float *out,
                 i64 ldo, i64 k, int adds) {
    vec sum[4][2];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++)
            sum[i][j] = adds ? load(out + i * ldo + j * LANES) : zero();
    for (i64 p = 0; p < k; p++) {
        vec right[2];
        UNROLL for (int j = 0; j < vectors; j++) right[j] = load(b + p * ldb + j * LANES);
        UNROLL for (int i = 0; i < rows; i++) {
            vec left = all(a[i * row + p * column]);
            UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = multiply_add(left, right[j], sum[i][j]);
        }
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++) store(out + i * ldo + j * LANES, sum[i][j]);
}

/* out[m, n] = a[m, k] b[k, n], or adds that; n is a multiple of LANES, and a's rows and columns are any distance apart. */
INLINE void product(const float *a, i64 row, i64 column, const float *b, i64 ldb, float *out, i64 ldo, i64 m, i64 n,
                    i64 k, int adds) {
    for (i64 i = 0; i < m;) {
        int rows = i + 4 <= m ? 4 : 1;
        for (i64 j = 0; j < n;) {
            int vectors = j + 2 * LANES <= n ? 2 : 1;
            const float *left = a + i * row, *right = b + j;
            float *o = out + i * ldo + j;
            if (rows == 4 && vectors == 2) tile(4, 2, left, row, column, right, ldb, o, ldo, k, adds);
            else if (rows == 4) tile(4, 1, left, row, column, right, ldb, o, ldo, k, adds);
            else if (vectors == 2) tile(1, 2, left, row, column, right, ldb, o, ldo, k, adds);
            else tile(1, 1, left, row, column, right, ldb, o, ldo, k, adds);
            j += vectors * LANES;
        }
        i += rows;
    }
}

INLINE i64 token_at(Segment segment, i64 place) {
    return place < segment.prompt_length ? segment.prompt_start + place : segment.start + place - segment.prompt_length;
}

INLINE i64 padded(i64 length) { return (length + LANES - 1) / LANES * LANES; }

/* What a segment sees of one head of [N, K, D]: as [L, D] and as [D, L]; 0 after its end. */
static void gather(Segment segment, const float *states, Heads heads, i64 head, float *rows, float *columns) {
    i64 seen = segment.prompt_length + segment.length, size = heads.size;
    for (i64 place = 0; place < padded(seen); place++) {
        const float *from = states + (token_at(segment, place) * heads.kv_heads + head) * size;
        for (i64 d = 0; d < size; d++) {
            float value = place < seen ? from[d] : 0;
            if (rows) rows[place * size + d] = value;
            if (columns) columns[d * padded(seen) + place] = value;
        }
    }
}

/* Floats that the two functions below work in. */
i64 grpo_attention_scratch(const Heads *heads) { return heads->longest * (5 * heads->size + 2 * CHUNK); }

/* Causal attention; `sums` [N, g * K] are the logarithms of the sums that the probabilities were divided by. */
void grpo_attention(const Segment *segments, i64 num_segments, const Heads *all, const float *query, const float *key,
                    const float *value, float *out, float *sums, float *scratch) {
    Heads heads = *all;
    i64 size = heads.size, num_heads = heads.group * heads.kv_heads, width = num_heads * size;
    for (i64 s = 0; s < num_segments; s++)
        for (i64 kv = 0; kv < heads.kv_heads; kv++) {
            Segment segment = segments[s];
            i64 ld = padded(segment.prompt_length + segment.length);
            float *keys = scratch, *values = keys + ld * size, *scores = values + ld * size;
            gather(segment, key, heads, kv, NULL, keys);
            gather(segment, value, heads, kv, values, NULL);
            for (i64 h = kv * heads.group; h < (kv + 1) * heads.group; h++)
                for (i64 begin = 0; begin < segment.length; begin += CHUNK) {
                    i64 rows = segment.length - begin < CHUNK ? segment.length - begin : CHUNK;
                    i64 seen = segment.prompt_length + begin, most = padded(seen + rows);
                    i64 offset = (segment.start + begin) * width + h * size;
                    product(query + offset, width, 1, keys, ld, scores, ld, rows, most, size, 0);
                    for (i64 r = 0; r < rows; r++) {
                        float *row = scores + r * ld, highest = row[0];
                        for (i64 j = seen + r + 1; j < most; j++) row[j] = -INFINITY;
                        for (i64 j = 0; j < most; j++) highest = row[j] > highest ? row[j] : highest;
                        vec sum = zero();
                        for (i64 j = 0; j < most; j += LANES) {
                            vec p = exponential((load(row + j) - highest) * heads.scale);
                            store(row + j, p);
                            sum += p;
                        }
                        float whole = total(sum);
                        for (i64 j = 0; j < most; j += LANES)
                            store(row + j, load(row + j) / whole);
                        sums[(segment.start + begin + r) * num_heads + h] = highest * heads.scale + logf(whole);
                    }
                    product(scores, ld, 1, values, size, out + offset, width, rows, size, most, 0);
                }
        }
}

/* Writes the gradient of the queries and adds to those of keys and values. */
void grpo_attention_backward(const Segment *segments, i64 num_segments, const Heads *all, const float *query,
                             const float *key, const float *value, const float *out, const float *sums,
                             const float *grad, float *grad_query, float *grad_key, float *grad_value, float *scratch) {
    Heads heads = *all;
    i64 size = heads.size, num_heads = heads.group * heads.kv_heads, width = num_heads * size;
    for (i64 s = 0; s < num_segments; s++)
        for (i64 kv = 0; kv < heads.kv_heads; kv++) {
            Segment segment = segments[s];
            i64 all_seen = segment.prompt_length + segment.length, ld = padded(all_seen);
            float *key_rows = scratch, *keys = key_rows + ld * size, *values = keys + ld * size;
            float *own_key = values + ld * size, *own_value = own_key + ld * size;
            float *scores = own_value + ld * size, *grads = scores + ld * CHUNK;
            gather(segment, key, heads, kv, key_rows, keys);
            gather(segment, value, heads, kv, NULL, values);
            memset(own_key, 0, ld * size * sizeof(float));
            memset(own_value, 0, ld * size * sizeof(float));
            for (i64 h = kv * heads.group; h < (kv + 1) * heads.group; h++)
                for (i64 begin = 0; begin < segment.length; begin += CHUNK) {
                    i64 rows = segment.length - begin < CHUNK ? segment.length - begin : CHUNK;
                    i64 seen = segment.prompt_length + begin, most = padded(seen + rows);
                    i64 offset = (segment.start + begin) * width + h * size;
                    const float *q = query + offset, *g = grad + offset;
                    product(q, width, 1, keys, ld, scores, ld, rows, most, size, 0);
                    product(g, width, 1, values, ld, grads, ld, rows, most, size, 0);
                    for (i64 r = 0; r < rows; r++) {
                        float *row = scores + r * ld, *own = grads + r * ld;
                        float sum = sums[(segment.start + begin + r) * num_heads + h];
                        for (i64 j = seen + r + 1; j < most; j++) row[j] = -INFINITY;
                        vec found = zero();
                        for (i64 d = 0; d < size; d += LANES)
                            found += load(g + r * width + d) * load(out + offset + r * width + d);
                        float mean = total(found);
                        for (i64 j = 0; j < most; j += LANES) {
                            vec p = exponential(load(row + j) * heads.scale - sum);
                            store(row + j, p);
                            store(own + j, p * (load(own + j) - mean) * heads.scale);
                        }
                    }
                    product(scores, 1, ld, g, width, own_value, size, most, size, rows, 1);
                    product(grads, 1, ld, q, width, own_key, size, most, size, rows, 1);
                    product(grads, ld, 1, key_rows, size, grad_query + offset, width, rows, size, most, 0);
                }
            for (i64 place = 0; place < all_seen; place++) {
                i64 to = (token_at(segment, place) * heads.kv_heads + kv) * size;
                for (i64 d = 0; d < size; d++) {
                    grad_key[to + d] += own_key[place * size + d];
                    grad_value[to + d] += own_value[place * size + d];
                }
            }
        }
}
