/* Sampling on an x86 CPU: a token for every row, and the rows through all layers, on one core.
 *
 * `grpo/rollout/kernel.py` has this file compiled and calls it twice a step, without Python's lock. It computes what
 * `Batch._sample` and `Decoder.forward` compute with torch's operations; those say what it means. Matrices and cache
 * are float32 or bfloat16, `narrow` below: then what enters a product or leaves it is rounded where torch's autocast
 * rounds it, and sums, residuals and all of attention are float32. Weights are read where the policy has them,
 * [out, in], and nothing is packed or copied. What a row gets does not depend on the other rows, to the last bit.
 *
 * R rows, H hidden size, I intermediate size, K key-value heads, g query heads per key-value head, D head size, C cache
 * columns, V vocabulary. H, I and D are multiples of STEP.
 */
#include "../vectors.h"

#ifdef _OPENMP
#include <omp.h>
#define THREAD omp_get_thread_num()
#else
#define THREAD 0
#endif

#define LINE_BYTES 64
#define ROWS (LANES == 16 ? 4 : 3) /* of a tile: its sums, four vectors a row, fill the registers */
#define DEPTH 704                  /* columns of x and w that are multiplied at once, at most, and */
#define BLOCK_SIZE 4096            /* numbers of w: what the first cache holds beside x; twice as many of bfloat16 */
#define TOKENS 1024                /* of the vocabulary, whose logits are made at once, and */
#define BLOCK 256                  /* that are summed at once */
#define JUST_BELOW_ONE (1 - 0x1p-23)

typedef struct {
    const void *weight; /* [out, in], bfloat16 where logits and cache are, else float32 */
    const void *bias;   /* [out], the same, or NULL */
} Linear;

typedef struct {
    const float *attention_norm, *mlp_norm; /* [H] */
    const float *head_norm;                 /* [(g + 1) * K, D], or NULL */
    Linear qkv, output, gate_up, down;
} Layer;

typedef struct {
    i64 layers, hidden, intermediate, kv_heads, group, head_size, vocabulary;
    float eps;
    const Layer *layer;
    const float *embedding;  /* [V, H] */
    const void *head;        /* [V, H], as weights */
    const float *final_norm; /* [H] */
} Model;

/* `grpo.rollout.batch.Rows`. */
typedef struct {
    i64 rows, vocabulary, columns, width, narrow;
    const i64 *starts;                  /* [R] the cache column of a row's first token */
    i64 *counts;                        /* [R] tokens sampled */
    uint8_t *finished, *stopped;        /* [R] */
    i64 *tokens;                        /* [R, width] */
    float *log_probs;                   /* [R, width] */
    const float *uniform;               /* [R, width], or NULL for the most likely token */
    void *logits;                       /* [R, V] of the next token, bfloat16 if `narrow`, else float32 */
    i64 *sampled;                       /* [R] the last token */
    void *const *keys, *const *values;  /* of every layer [R, K, C, D], narrow as logits */
} Rows;

/* `grpo.types.Sampling` and `grpo.rollout.stopping.StopRules`. */
typedef struct {
    float temperature;
    i64 min_tokens, max_tokens, num_banned, num_stops;
    const i64 *banned;            /* tokens that cannot be sampled before min_tokens */
    const uint8_t *is_end;        /* [V] */
    const int16_t *const *tables; /* of every stop string [states, V] */
    int16_t *const *states;       /* of every stop string [R] */
} Rules;

/* Of a multiple of LANES numbers. */
static float maximum(const float *x, i64 size) {
    vec high = load(x);
    for (i64 i = LANES; i < size; i += LANES) high = larger(high, load(x + i));
    float lanes[LANES], highest = -INFINITY;
    store(lanes, high);
    for (int i = 0; i < LANES; i++) highest = lanes[i] > highest ? lanes[i] : highest;
    return highest;
}

INLINE const void *from(int narrow, const void *data, i64 number) {
    return (const char *)data + number * (narrow ? sizeof(half) : sizeof(float));
}

INLINE float number(int narrow, const void *data) {
    return narrow ? one_widened(*(const half *)data) : *(const float *)data;
}

/* What is multiplied at once, `STEP` numbers: with instructions for it, lanes are pairs of bfloat16. */
#ifdef __AVX512BF16__
#define STEP(narrow) ((narrow) ? 2 * LANES : LANES)
INLINE vec factors(int narrow, const void *data) { return load(data); }
INLINE vec fused(int narrow, vec a, vec b, vec sum) {
    return narrow ? _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b) : multiply_add(a, b, sum);
}
#else
#define STEP(narrow) LANES
INLINE vec factors(int narrow, const void *data) { return narrow ? widened(data) : load(data); }
INLINE vec fused(int narrow, vec a, vec b, vec sum) { return multiply_add(a, b, sum); }
#endif

/* What becomes of sums. */
typedef struct {
    const void *bias;      /* [n], narrow as x and w, or NULL */
    const float *residual; /* [m, n], or NULL */
    int adds, rounds;      /* to what is there already, before all else; the sum with the bias, to bfloat16 */
} End;

INLINE float ended(int narrow, End end, float sum, i64 column, i64 place, float before) {
    if (end.adds) sum += before;
    if (end.bias) sum += number(narrow, from(narrow, end.bias, column));
    if (end.rounds) sum = one_narrowed(sum);
    return end.residual ? sum + end.residual[place] : sum;
}

/* rows x 4 dot products of length k. Each number is loaded once and then kept in a register, which compilers must be
 * told: they would rather read memory three times, and loads are what bounds this. */
INLINE void tile(int rows, int narrow, const void *x, i64 ldx, const void *w, i64 ldw, i64 k, End end, float *out,
                 i64 ldo) {
    vec sum[ROWS][4];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < 4; j++) sum[i][j] = zero();
    for (i64 p = 0; p < k; p += STEP(narrow)) {
        vec states[ROWS];
        UNROLL for (int i = 0; i < rows; i++) {
            states[i] = factors(narrow, from(narrow, x, i * ldx + p));
            __asm__("" : "+v"(states[i]));
        }
        UNROLL for (int j = 0; j < 4; j++) {
            vec weights = factors(narrow, from(narrow, w, j * ldw + p));
            __asm__("" : "+v"(weights));
            UNROLL for (int i = 0; i < rows; i++) sum[i][j] = fused(narrow, states[i], weights, sum[i][j]);
        }
    }
    UNROLL for (int i = 0; i < rows; i++) {
        __m128 found = totals(sum[i]);
        if (end.adds) found += _mm_loadu_ps(out + i * ldo);
        if (end.bias) found += narrow ? four_widened(end.bias) : _mm_loadu_ps(end.bias);
        if (end.rounds) found = four_narrowed(found);
        if (end.residual) found += _mm_loadu_ps(end.residual + i * ldo);
        _mm_storeu_ps(out + i * ldo, found);
    }
}

/* Columns [n0, n1) of `product`, one at a time. */
INLINE void columns(int narrow, const void *x, i64 ldx, const void *w, i64 ldw, End end, float *out, i64 ldo, i64 m,
                    i64 n0, i64 n1, i64 k) {
    for (i64 i = 0; i < m; i++)
        for (i64 j = n0; j < n1; j++) {
            vec sum = zero();
            for (i64 p = 0; p < k; p += STEP(narrow)) {
                vec states = factors(narrow, from(narrow, x, i * ldx + p));
                sum = fused(narrow, states, factors(narrow, from(narrow, w, j * ldw + p)), sum);
            }
            out[i * ldo + j] = ended(narrow, end, total(sum), j, i * ldo + j, out[i * ldo + j]);
        }
}

/* out[m, n] = x[m, k] w[n, k]^T, and then as `given` says.
 *
 * A block of w, rows and columns, stays in the first cache while x passes. The block after it may be asked for
 * meanwhile, which the processor does not do by itself across rows and pages: that pays for weights, not for keys. */
INLINE void product(int asks_ahead, int narrow, const void *x, i64 ldx, const void *w, i64 ldw, End given, float *out,
                    i64 ldo, i64 m, i64 n, i64 k) {
    i64 most = narrow ? 2 * DEPTH : DEPTH, block_size = narrow ? 2 * BLOCK_SIZE : BLOCK_SIZE;
    i64 line = LINE_BYTES / (narrow ? sizeof(half) : sizeof(float));
    i64 parts = (k + most - 1) / most, depth = (k / STEP(narrow) + parts - 1) / parts * STEP(narrow);
    for (i64 p = 0; p < k; p += depth) {
        End end = {NULL, NULL, p > 0, 0};
        if (p + depth >= k) depth = k - p, end = (End){given.bias, given.residual, p > 0, given.rounds};
        i64 block = block_size / depth < 4 ? 4 : block_size / depth / 4 * 4, tiles = (m + ROWS - 1) / ROWS;
        i64 share = (depth / line + tiles - 1) / tiles * line; /* of a row of the next block, for every tile of x */
        i64 whole = n / 4 * 4;
        for (i64 begin = 0; begin < whole; begin += block) {
            i64 next = begin + block < whole ? begin + block : whole;
            for (i64 i = 0, ahead = 0; i < m; i += ROWS, ahead += share) {
                i64 to = ahead + share < depth ? ahead + share : depth, left = m - i;
                const void *states = from(narrow, x, i * ldx + p);
                for (i64 j = begin; j < next; j += 4) {
                    const void *weights = from(narrow, w, j * ldw + p);
                    float *o = out + i * ldo + j;
                    End e = end;
                    if (e.bias) e.bias = from(narrow, e.bias, j);
                    if (e.residual) e.residual += i * ldo + j;
                    for (i64 row = j + block; asks_ahead && row < j + block + 4 && row < n; row++)
                        for (i64 c = ahead; c < to; c += line)
                            _mm_prefetch((const char *)from(narrow, w, row * ldw + p + c), _MM_HINT_T1);
                    if (left >= ROWS) tile(ROWS, narrow, states, ldx, weights, ldw, depth, e, o, ldo);
                    else if (left == 3) tile(3, narrow, states, ldx, weights, ldw, depth, e, o, ldo);
                    else if (left == 2) tile(2, narrow, states, ldx, weights, ldw, depth, e, o, ldo);
                    else tile(1, narrow, states, ldx, weights, ldw, depth, e, o, ldo);
                }
            }
        }
        columns(narrow, from(narrow, x, p), ldx, from(narrow, w, p), ldw, end, out, ldo, m, whole, n, depth);
    }
}

/* `product` of states whose rows are `ldx` numbers apart; of bfloat16 it is rounded before the residual is added. */
static void linear(int narrow, const void *x, i64 ldx, Linear layer, const float *residual, float *out, i64 m, i64 n,
                   i64 k) {
    End end = {layer.bias, residual, 0, narrow};
    if (narrow) product(1, 1, x, ldx, layer.weight, k, end, out, n, m, n, k);
    else product(1, 0, x, ldx, layer.weight, k, end, out, n, m, n, k);
}

INLINE void put(int narrow, void *to, i64 number, vec v) {
    if (narrow) store_narrow((half *)to + number, v);
    else store((float *)to + number, v);
}

/* Root mean square norm, arXiv 1910.07467; if it `rounds`, to bfloat16 before the weight. */
INLINE void norm(int narrow, int rounds, const float *x, const float *weight, void *out, i64 size, float eps) {
    vec sum = zero();
    for (i64 i = 0; i < size; i += LANES) {
        vec v = load(x + i);
        sum += v * v;
    }
    float scale = 1.0f / sqrtf(total(sum) / size + eps);
    for (i64 i = 0; i < size; i += LANES) {
        vec v = load(x + i) * scale;
        put(narrow, out, i, (rounds ? narrowed(v) : v) * load(weight + i));
    }
}

static void norms(int narrow, const float *x, const float *weight, void *out, i64 rows, i64 size, float eps) {
    for (i64 r = 0; r < rows; r++) {
        if (narrow) norm(1, 0, x + r * size, weight, (half *)out + r * size, size, eps);
        else norm(0, 0, x + r * size, weight, (float *)out + r * size, size, eps);
    }
}

/* Rotary embedding of one head in the half-split layout; the sines of the first half are negative. */
static void rotate(float *x, const float *cos, const float *sin, i64 size) {
    i64 half = size / 2;
    for (i64 i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cos[i] + b * sin[i];
        x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

/* out[head] = sum over s of probs[head, s] values[s], divided by sums[head]; n vectors of 1 or 2 heads. */
INLINE void mix(int heads, int n, int narrow, const float *probs, i64 ldp, const void *values, i64 length, i64 size,
                const float *sums, float *out) {
    vec mixed[2][4];
    UNROLL for (int h = 0; h < heads; h++)
        UNROLL for (int i = 0; i < n; i++) mixed[h][i] = zero();
    for (i64 s = 0; s < length; s++) {
        vec value[4];
        UNROLL for (int i = 0; i < n; i++) {
            const void *place = from(narrow, values, s * size + i * LANES);
            value[i] = narrow ? widened(place) : load(place);
            __asm__("" : "+v"(value[i]));
        }
        UNROLL for (int h = 0; h < heads; h++) {
            vec p = all(probs[h * ldp + s]);
            UNROLL for (int i = 0; i < n; i++) mixed[h][i] = multiply_add(p, value[i], mixed[h][i]);
        }
    }
    UNROLL for (int h = 0; h < heads; h++)
        UNROLL for (int i = 0; i < n; i++)
            store(out + h * size + i * LANES, mixed[h][i] / sums[h]);
}

/* Attention of g query heads [g, D] over `length` keys and values [length, D]; there is room for g rows of scores. */
INLINE void attend(int narrow, const void *query, const void *keys, const void *values, i64 group, i64 length,
                   i64 size, float *scores, float *out) {
    i64 ld = (length + LANES - 1) / LANES * LANES;
    float sums[group], scale = 1.0f / sqrtf(size);
    End end = {NULL, NULL, 0, 0};
    product(0, narrow, query, size, keys, size, end, scores, ld, group, length, size);
    for (i64 h = 0; h < group; h++) {
        float *row = scores + h * ld;
        for (i64 s = length; s < ld; s++) row[s] = -INFINITY;
        vec sum = zero();
        float highest = maximum(row, ld);
        for (i64 s = 0; s < ld; s += LANES) {
            vec p = exponential((load(row + s) - highest) * scale);
            store(row + s, p);
            sum += p;
        }
        sums[h] = total(sum);
    }
    for (i64 h = 0; h < group;) {
        int heads = h + 2 <= group ? 2 : 1;
        for (i64 d = 0; d < size;) {
            const void *v = from(narrow, values, d);
            const float *p = scores + h * ld;
            float *o = out + h * size + d;
            int vectors = d + 4 * LANES <= size ? 4 : d + 2 * LANES <= size ? 2 : 1;
            if (heads == 2 && vectors == 4) mix(2, 4, narrow, p, ld, v, length, size, sums + h, o);
            else if (heads == 2 && vectors == 2) mix(2, 2, narrow, p, ld, v, length, size, sums + h, o);
            else if (heads == 2) mix(2, 1, narrow, p, ld, v, length, size, sums + h, o);
            else if (vectors == 4) mix(1, 4, narrow, p, ld, v, length, size, sums + h, o);
            else if (vectors == 2) mix(1, 2, narrow, p, ld, v, length, size, sums + h, o);
            else mix(1, 1, narrow, p, ld, v, length, size, sums + h, o);
            d += vectors * LANES;
        }
        h += heads;
    }
}

static void attend_narrow(const half *query, const half *keys, const half *values, i64 group, i64 length, i64 size,
                          float *scores, float *out) {
    attend(1, query, keys, values, group, length, size, scores, out);
}

static void attend_wide(const float *query, const float *keys, const float *values, i64 group, i64 length, i64 size,
                        float *scores, float *out) {
    attend(0, query, keys, values, group, length, size, scores, out);
}

static void narrow_all(const float *x, half *out, i64 size) {
    for (i64 i = 0; i < size; i += LANES) store_narrow(out + i, load(x + i));
}

/* Rotates queries and keys, puts keys and values into the cache's column, and attends: [A, g * K * D]. */
static void attention(const Model *model, i64 number, const Rows *rows, const i64 *active, i64 num_active, float *qkv,
                      const float *cos, const float *sin, i64 column, float *scores, void *out) {
    const Layer *layer = model->layer + number;
    int narrow = rows->narrow;
    i64 size = model->head_size, kv = model->kv_heads, group = model->group, heads = group * kv;
    for (i64 a = 0; a < num_active; a++) {
        i64 begin = rows->starts[active[a]], position = column - begin;
        float *states = qkv + a * (heads + 2 * kv) * size;
        for (i64 h = 0; h < heads + kv; h++) {
            float *head = states + h * size;
            if (layer->head_norm) norm(0, narrow, head, layer->head_norm + h * size, head, size, model->eps);
            rotate(head, cos + position * size, sin + position * size, size);
        }
        for (i64 h = 0; h < kv; h++) {
            i64 offset = (active[a] * kv + h) * rows->columns * size, place = (a * heads + h * group) * size;
            i64 first = begin * size, last = column * size, length = column + 1 - begin;
            float *query = states + h * group * size;
            const float *key = states + (heads + h) * size, *value = key + kv * size;
            if (narrow) {
                half *keys = (half *)rows->keys[number] + offset, *values = (half *)rows->values[number] + offset;
                narrow_all(key, keys + last, size);
                narrow_all(value, values + last, size);
                narrow_all(query, (half *)query, group * size);
                attend_narrow((half *)query, keys + first, values + first, group, length, size, scores, query);
                narrow_all(query, (half *)out + place, group * size);
            } else {
                float *keys = (float *)rows->keys[number] + offset, *values = (float *)rows->values[number] + offset;
                memcpy(keys + last, key, size * sizeof(float));
                memcpy(values + last, value, size * sizeof(float));
                attend_wide(query, keys + first, values + first, group, length, size, scores, (float *)out + place);
            }
        }
    }
}

/* Floats that each thread of `grpo_attention` works in. */
i64 grpo_attention_scratch(i64 group, i64 size, i64 length) { return group * (size + length + LANES); }

/* Attention over a bfloat16 cache: g queries [R, K, g, D], columns [first, end) of keys and values [R, K, C, D], of
 * which a row's own begin with the first that is valid [R, C]; without `valid`, with the first. */
void grpo_attention(i64 rows, i64 kv_heads, i64 group, i64 size, i64 columns, i64 first, i64 end, const uint8_t *valid,
                    const half *query, const half *keys, const half *values, half *out, float *scratch, int threads) {
#pragma omp parallel for num_threads(threads)
    for (i64 r = 0; r < rows; r++) {
        float *attended = scratch + THREAD * grpo_attention_scratch(group, size, end - first);
        i64 begin = first;
        while (valid && begin < end - 1 && !valid[r * columns + begin]) begin++;
        for (i64 h = r * kv_heads; h < (r + 1) * kv_heads; h++) {
            i64 offset = (h * columns + begin) * size, place = h * group * size;
            attend_narrow(query + place, keys + offset, values + offset, group, end - begin, size,
                          attended + group * size, attended);
            narrow_all(attended, out + place, group * size);
        }
    }
}

/* silu(gate) * up of [A, 2 I], for which the first half of a row is taken. */
static void gate(int narrow, float *gate_up, i64 rows, i64 size) {
    for (i64 r = 0; r < rows; r++) {
        float *x = gate_up + r * 2 * size;
        for (i64 i = 0; i < size; i += LANES) {
            vec v = load(x + i), up = load(x + size + i);
            v = v / (exponential(-v) + 1.0f);
            put(narrow, x, i, (narrow ? narrowed(v) : v) * up);
        }
    }
}

/* Bytes that `grpo_decode` works in. */
i64 grpo_scratch(const Model *model, i64 rows, i64 columns) {
    i64 heads = model->group * model->kv_heads, mlp = 2 * model->intermediate;
    i64 attention = (2 * heads + 2 * model->kv_heads) * model->head_size;
    i64 row = 3 * model->hidden + (attention > mlp ? attention : mlp) + TOKENS;
    return (rows * row + model->group * (columns + LANES)) * (i64)sizeof(float) + rows * (i64)sizeof(i64);
}

/* Runs the tokens sampled last, which makes the logits of the next; rows that have finished are left out. */
void grpo_decode(const Model *model, const Rows *rows, const float *cos, const float *sin, i64 column, void *scratch) {
    i64 hidden = model->hidden, intermediate = model->intermediate, vocabulary = model->vocabulary;
    i64 size = model->head_size, heads = model->group * model->kv_heads, width = (heads + 2 * model->kv_heads) * size;
    int narrow = rows->narrow;
    i64 m = 0;
    i64 *active = scratch;
    for (i64 r = 0; r < rows->rows; r++)
        if (!rows->finished[r]) active[m++] = r;
    float *states = (float *)(active + rows->rows), *next = states + m * hidden, *normed = next + m * hidden;
    float *logits = normed + m * hidden, *scores = logits + m * TOKENS;
    float *wide = scores + model->group * (rows->columns + LANES), *attended = wide + m * width;
    for (i64 a = 0; a < m; a++)
        memcpy(states + a * hidden, model->embedding + rows->sampled[active[a]] * hidden, hidden * sizeof(float));
    for (i64 l = 0; l < model->layers; l++) {
        const Layer *layer = model->layer + l;
        norms(narrow, states, layer->attention_norm, normed, m, hidden, model->eps);
        linear(narrow, normed, hidden, layer->qkv, NULL, wide, m, width, hidden);
        attention(model, l, rows, active, m, wide, cos, sin, column, scores, attended);
        linear(narrow, attended, heads * size, layer->output, states, next, m, hidden, heads * size);
        norms(narrow, next, layer->mlp_norm, normed, m, hidden, model->eps);
        linear(narrow, normed, hidden, layer->gate_up, NULL, wide, m, 2 * intermediate, hidden);
        gate(narrow, wide, m, intermediate);
        linear(narrow, wide, 2 * intermediate * (narrow ? 2 : 1), layer->down, next, states, m, hidden, intermediate);
    }
    norms(narrow, states, model->final_norm, normed, m, hidden, model->eps);
    for (i64 v = 0; v < vocabulary; v += TOKENS) {
        i64 tokens = vocabulary - v < TOKENS ? vocabulary - v : TOKENS;
        Linear head = {from(narrow, model->head, v * hidden), NULL};
        linear(narrow, normed, hidden, head, NULL, logits, m, tokens, hidden);
        for (i64 a = 0; a < m; a++) {
            const float *found = logits + a * tokens;
            i64 place = active[a] * vocabulary + v, i = 0;
            if (!narrow) memcpy((float *)rows->logits + place, found, tokens * sizeof(float));
            else
                for (half *to = (half *)rows->logits + place; i < tokens; i++) to[i] = bits_of(found[i]);
        }
    }
}

/* The token whose share of the cumulative distribution holds the uniform number, or the most likely one, and its
 * log-prob; `logits` become probabilities, and there is room for LANES more. As `grpo.rollout.sampling._invert`, it
 * finds the block of the vocabulary first, and sums in float64. Logits with nan give any token, and nan. */
static i64 draw(float *logits, i64 size, const float *uniform, float *log_prob) {
    i64 padded = (size + LANES - 1) / LANES * LANES, token = 0, num_blocks = (size + BLOCK - 1) / BLOCK, block = 0;
    double cumulative[num_blocks], before, threshold;
    for (i64 v = size; v < padded; v++) logits[v] = -INFINITY;
    float highest = maximum(logits, padded);
    if (!uniform)
        while (token < size - 1 && logits[token] != highest) token++;
    float greedy = logits[token];
    double all = 0;
    for (i64 b = 0; b < num_blocks; b++) {
        vec sum = zero();
        for (i64 v = b * BLOCK; v < padded && v < (b + 1) * BLOCK; v += LANES) {
            vec p = exponential(load(logits + v) - highest);
            store(logits + v, p);
            sum += p;
        }
        cumulative[b] = all += total(sum);
    }
    if (!uniform) {
        *log_prob = greedy - highest - (float)log(all);
        return token;
    }
    threshold = *uniform * all;
    if (!(threshold < all * JUST_BELOW_ONE)) threshold = all * JUST_BELOW_ONE;
    while (block < num_blocks - 1 && !(cumulative[block] > threshold)) block++;
    before = block ? cumulative[block - 1] : 0;
    i64 end = (block + 1) * BLOCK < size ? (block + 1) * BLOCK : size, last = block * BLOCK;
    for (token = block * BLOCK; token < end; token++) {
        before += logits[token];
        if (logits[token] > 0) last = token; /* the two sums over a block may differ in their last digits */
        if (before > threshold) break;
    }
    *log_prob = (float)log(logits[last] / all);
    return last;
}

/* Floats that each thread of `grpo_sample` works in. */
i64 grpo_sample_scratch(i64 vocabulary) { return vocabulary + LANES; }

/* Draws a token for every row that has not finished, notes it, and marks the rows that it ends. */
void grpo_sample(const Rows *rows, const Rules *rules, float *scratch, int threads) {
    i64 size = rows->vocabulary;
#pragma omp parallel for num_threads(threads)
    for (i64 r = 0; r < rows->rows; r++) {
        if (rows->finished[r]) continue;
        i64 count = rows->counts[r], place = r * rows->width + count;
        const void *logits = from(rows->narrow, rows->logits, r * size);
        float *scaled = scratch + THREAD * grpo_sample_scratch(size);
        if (rows->narrow)
            for (i64 v = 0; v < size; v++) scaled[v] = one_widened(((const half *)logits)[v]) / rules->temperature;
        else
            for (i64 v = 0; v < size; v++) scaled[v] = ((const float *)logits)[v] / rules->temperature;
        for (i64 b = 0; b < rules->num_banned && count < rules->min_tokens; b++) scaled[rules->banned[b]] = -INFINITY;
        i64 token = draw(scaled, size, rows->uniform ? rows->uniform + place : NULL, rows->log_probs + place);
        uint8_t ends = rules->is_end[token];
        for (i64 s = 0; s < rules->num_stops; s++) {
            int16_t *state = rules->states[s] + r;
            *state = rules->tables[s][(*state >> 1) * size + token];
            ends |= *state & 1;
        }
        rows->tokens[place] = rows->sampled[r] = token;
        rows->counts[r] = ++count;
        rows->stopped[r] = ends && count >= rules->min_tokens;
        rows->finished[r] = rows->stopped[r] || count == rules->max_tokens;
    }
}
