/* What the C files share: vectors of float32 on an x86 CPU, sixteen with AVX512 and eight with AVX2. `grpo/native.py` has
 * them compiled, for each as far as the machine can run it. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define UNROLL _Pragma("GCC unroll 8")
#define UNROLL_16 _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

typedef int64_t i64;
typedef uint16_t half; /* the bits of a bfloat16 number */

#ifdef __AVX512F__

#define LANES 16
typedef __m512 vec;

INLINE vec zero(void) { return _mm512_setzero_ps(); }
INLINE vec all(float x) { return _mm512_set1_ps(x); }
INLINE vec load(const float *from) { return _mm512_loadu_ps(from); }
INLINE void store(float *to, vec v) { _mm512_storeu_ps(to, v); }
INLINE vec multiply_add(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vec larger(vec a, vec b) { return _mm512_max_ps(a, b); } /* b if either is nan, as with smaller */
INLINE vec smaller(vec a, vec b) { return _mm512_min_ps(a, b); }
INLINE vec nearest(vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vec times_power_of_two(vec x, vec n) { return _mm512_scalef_ps(x, n); }
INLINE vec zero_where_less(vec v, vec x, float bound) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, all(bound), _CMP_NLT_UQ), v);
}
INLINE vec widened(const half *from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16));
}
INLINE vec narrowed(vec v) {
    __m512i bits = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    bits = _mm512_and_si512(bits, _mm512_set1_epi32(0xffff0000));
    return _mm512_mask_mov_ps(_mm512_castsi512_ps(bits), _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), all(NAN));
}
INLINE void store_narrow(half *to, vec v) {
    __m512i bits = _mm512_srli_epi32(_mm512_castps_si512(narrowed(v)), 16);
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(bits));
}
INLINE __m256 halves(vec v) {
    return _mm512_castps512_ps256(v) + _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
}
/* In every four lanes a0 + a2, b0 + b2, a1 + a3, b1 + b3; and a0 + a2, a1 + a3, b0 + b2, b1 + b3 of such. */
INLINE vec zipped(vec a, vec b) { return _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b); }
INLINE vec joined(vec a, vec b) { return _mm512_shuffle_ps(a, b, 0x44) + _mm512_shuffle_ps(a, b, 0xee); }

#else

#define LANES 8
typedef __m256 vec;

INLINE vec zero(void) { return _mm256_setzero_ps(); }
INLINE vec all(float x) { return _mm256_set1_ps(x); }
INLINE vec load(const float *from) { return _mm256_loadu_ps(from); }
INLINE void store(float *to, vec v) { _mm256_storeu_ps(to, v); }
INLINE vec multiply_add(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec larger(vec a, vec b) { return _mm256_max_ps(a, b); } /* b if either is nan, as with smaller */
INLINE vec smaller(vec a, vec b) { return _mm256_min_ps(a, b); }
INLINE vec nearest(vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vec times_power_of_two(vec x, vec n) {
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return x * _mm256_castsi256_ps(power);
}
INLINE vec zero_where_less(vec v, vec x, float bound) {
    return _mm256_and_ps(_mm256_cmp_ps(x, all(bound), _CMP_NLT_UQ), v);
}
INLINE vec widened(const half *from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)), 16));
}
INLINE vec narrowed(vec v) {
    __m256i bits = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    bits = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    bits = _mm256_and_si256(bits, _mm256_set1_epi32(0xffff0000));
    return _mm256_blendv_ps(_mm256_castsi256_ps(bits), all(NAN), _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
}
INLINE void store_narrow(half *to, vec v) {
    __m256i bits = _mm256_srli_epi32(_mm256_castps_si256(narrowed(v)), 16);
    bits = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0xd8);
    _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(bits));
}
INLINE __m256 halves(vec v) { return v; }
INLINE vec zipped(vec a, vec b) { return _mm256_unpacklo_ps(a, b) + _mm256_unpackhi_ps(a, b); }
INLINE vec joined(vec a, vec b) { return _mm256_shuffle_ps(a, b, 0x44) + _mm256_shuffle_ps(a, b, 0xee); }

#endif

/* bfloat16 is `half` in memory and float32 in registers: `widened` where it is loaded, `narrowed` where it is rounded, to
 * the nearest or the even one of two; nan stays nan. */
INLINE __m128 four_widened(const half *from) {
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i *)from)), 16));
}
INLINE __m128 four_narrowed(__m128 v) {
    __m128i bits = _mm_castps_si128(v), odd = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(1));
    bits = _mm_add_epi32(bits, _mm_add_epi32(odd, _mm_set1_epi32(0x7fff)));
    bits = _mm_and_si128(bits, _mm_set1_epi32(0xffff0000));
    return _mm_blendv_ps(_mm_castsi128_ps(bits), _mm_set1_ps(NAN), _mm_cmpunord_ps(v, v));
}
INLINE float one_widened(half x) {
    uint32_t bits = (uint32_t)x << 16;
    float found;
    memcpy(&found, &bits, sizeof found);
    return found;
}
INLINE float one_narrowed(float x) { return _mm_cvtss_f32(four_narrowed(_mm_set_ss(x))); }
INLINE half bits_of(float narrow) {
    uint32_t bits;
    memcpy(&bits, &narrow, sizeof bits);
    return bits >> 16;
}

/* A quarter of the sum in each lane. */
INLINE __m128 quarters(vec v) {
    __m256 half = halves(v);
    return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
}

/* The sums of four vectors. */
INLINE __m128 totals(const vec v[4]) { return quarters(joined(zipped(v[0], v[1]), zipped(v[2], v[3]))); }

INLINE float total(vec v) {
    __m128 sums = quarters(v);
    sums = _mm_hadd_ps(sums, sums);
    return _mm_cvtss_f32(_mm_hadd_ps(sums, sums));
}

/* exp to 2 units in the last place (Cephes' polynomial); 0 below -87, its value at 88 above, and nan stays nan. */
INLINE vec exponential(vec given) {
    vec x = smaller(all(88.0f), larger(all(-87.0f), given));
    vec n = nearest(x * 1.44269504088896341f);
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    return zero_where_less(times_power_of_two(y, n), given, -87.0f);
}
