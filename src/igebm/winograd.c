/* 3x3 convolution, zero padding, stride 1, of channels-last images, by Winograd's F(4x4, 3x3):

       y = Aᵀ [ Σ_c (G w Gᵀ) ⊙ (Bᵀ x B) ] A        for each 6x6 patch x of the image, of which the 4x4 places y come

   36 multiplications where the sum over the kernel takes 144.  Lavin & Gray, arXiv:1509.09308, section 4.3.

   Patches are taken in blocks whose transforms stay in the second-level cache; a block's 36 matrix products go by panels
   of output channels, so that they are turned back before they leave the first. Sums are float32 throughout; images may
   be bfloat16. native.py compiles this file and calls `convolve`. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#define ROWS 12 /* of a product at a time: 2 x 12 of 32 registers are sums */
#else
#define LANES 8
#define ROWS 6 /* 2 x 6 of 16 */
#endif
#define PANEL (2 * LANES)
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

int panel(void) { return PANEL; }

/* LANES numbers from and to an image: float32, or bfloat16, its upper half, rounded to the nearest even. */
INLINE vec load(const void *x, size_t at, int half) {
  if (!half) return *(const vec *)((const float *)x + at);
  return (vec)(__builtin_convertvector(*(const halves *)((const uint16_t *)x + at), words) << 16);
}

INLINE void store(void *y, size_t at, vec a, int half) {
  if (!half) {
    *(vec *)((float *)y + at) = a;
    return;
  }
  words bits = (words)a;
  words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  words nan = (words)(a != a); /* rounding could carry a NaN's bits over into an infinity */
  *(halves *)((uint16_t *)y + at) = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), halves);
}

INLINE void b_transposed(const vec d[6], vec out[6]) { /* Bᵀ d */
  const vec s = d[4] - 4 * d[2], t = d[3] - 4 * d[1], u = d[4] - d[2], v = 2 * (d[3] - d[1]);
  out[0] = 4 * d[0] - 5 * d[2] + d[4];
  out[1] = s + t;
  out[2] = s - t;
  out[3] = u + v;
  out[4] = u - v;
  out[5] = 4 * d[1] - 5 * d[3] + d[5];
}

INLINE void a_transposed(const vec m[6], vec out[4]) { /* Aᵀ m */
  const vec p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
  out[0] = m[0] + p + r;
  out[1] = q + 2 * s;
  out[2] = p + 4 * r;
  out[3] = q + 8 * s + m[5];
}

/* m (rows, PANEL) = v (rows, c) u (c, PANEL), its sums in registers */
INLINE void product(int rows, int c, const float *v, const float *u, float *m) {
  vec a[ROWS][2];
#pragma GCC unroll 16
  for (int r = 0; r < rows; r++) a[r][0] = a[r][1] = (vec){0};
  for (int k = 0; k < c; k++) {
    const vec b0 = load(u, (size_t)k * PANEL, 0), b1 = load(u, (size_t)k * PANEL + LANES, 0);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
      const vec x = v[(size_t)r * c + k] - (vec){0};
      a[r][0] += x * b0;
      a[r][1] += x * b1;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; r++) {
    store(m, (size_t)r * PANEL, a[r][0], 0);
    store(m, (size_t)r * PANEL + LANES, a[r][1], 0);
  }
}

static void products(int rows, int c, const float *v, const float *u, float *m) {
  for (; rows >= ROWS; rows -= ROWS, v += (size_t)ROWS * c, m += ROWS * PANEL) product(ROWS, c, v, u, m);
  switch (rows) { /* a count that is known when compiling keeps the sums in registers */
#define CASE(n) case n: product(n, c, v, u, m); break;
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5)
#if ROWS > 6
    CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11)
#endif
  }
}

/* y = leaky(gain conv(x) + bias + add), where leaky(z) is z or slope z; its gradient is conv(in_gain leaky'(sign) x), with
   sign that y and x what came back. What is NULL is left out. */
typedef struct {
  const void *x;    /* (images, h, w, c); (images, h / 2, w / 2, c) where `up`: each number then counts four times */
  const void *sign; /* as x */
  const float *in_gain; /* (images or 1, c): `in_step` from one image's to the next */
  const float *u;   /* (36, o / PANEL, c, PANEL) = G w Gᵀ */
  const float *gain, *bias; /* (images or 1, o): `step` */
  const void *add;  /* as y */
  void *y;          /* (images, h, w, o); (images, h / 2, w / 2, o) where `down`: conv is the sum over 2x2 places */
  int images, h, w, c, o; /* c and o multiples of PANEL */
  int in_step, step;
  int up, down, half; /* half: images are bfloat16 */
  int threads;
  float slope;
} Convolution;

INLINE vec leaky(vec a, vec sign, float slope) {
  const words positive = (words)(sign > 0);
  return (vec)(((words)a & positive) | ((words)(slope * a) & ~positive));
}

/* v (36, block, c), `step` apart, = Bᵀ x B of patches first .. first + n */
INLINE void transform_in(const Convolution *q, int first, int n, size_t step, float *v, int half) {
  const int rows = (q->h + 3) / 4, columns = (q->w + 3) / 4, h = q->h >> q->up, w = q->w >> q->up, c = q->c;
  for (int t = 0; t < n; t++) {
    const int image = (first + t) / (rows * columns);
    const int i = (first + t) / columns % rows * 4 - 1, j = (first + t) % columns * 4 - 1;
    size_t at[6][6];
    int inside[6][6];
    for (int k = 0; k < 6; k++)
      for (int l = 0; l < 6; l++) {
        const int y = (i + k) >> q->up, x = (j + l) >> q->up; /* -1 stays below 0 */
        inside[k][l] = y >= 0 && y < h && x >= 0 && x < w;
        at[k][l] = inside[k][l] ? (((size_t)image * h + y) * w + x) * c : 0;
      }
    for (int k = 0; k < c; k += LANES) {
      vec rowed[6][6];
      for (int l = 0; l < 6; l++) {
        vec d[6], out[6];
        for (int r = 0; r < 6; r++) {
          d[r] = (vec){0};
          if (!inside[r][l]) continue;
          d[r] = load(q->x, at[r][l] + k, half);
          if (q->sign) d[r] = leaky(d[r], load(q->sign, at[r][l] + k, half), q->slope);
          if (q->in_gain) d[r] *= load(q->in_gain, (size_t)image * q->in_step + k, 0);
        }
        b_transposed(d, out);
        for (int r = 0; r < 6; r++) rowed[r][l] = out[r];
      }
      for (int r = 0; r < 6; r++) {
        vec out[6];
        b_transposed(rowed[r], out);
        for (int l = 0; l < 6; l++) store(v, (r * 6 + l) * step + (size_t)t * c + k, out[l], 0);
      }
    }
  }
}

/* y = Aᵀ m A of the same patches, for the channels of panel p, from m (36, block, PANEL), `step` apart */
INLINE void transform_out(const Convolution *q, int first, int n, size_t step, int p, const float *m, int half) {
  const int rows = (q->h + 3) / 4, columns = (q->w + 3) / 4, h = q->h >> q->down, w = q->w >> q->down;
  for (int t = 0; t < n; t++) {
    const int image = (first + t) / (rows * columns);
    const int i = ((first + t) / columns % rows * 4) >> q->down, j = ((first + t) % columns * 4) >> q->down;
    for (int k = 0; k < PANEL; k += LANES) {
      vec rowed[4][6], y[4][4];
      for (int l = 0; l < 6; l++) {
        vec d[6], out[4];
        for (int r = 0; r < 6; r++) d[r] = load(m, (r * 6 + l) * step + (size_t)t * PANEL + k, 0);
        a_transposed(d, out);
        for (int r = 0; r < 4; r++) rowed[r][l] = out[r];
      }
      for (int r = 0; r < 4; r++) a_transposed(rowed[r], y[r]);
      if (q->down)
        for (int r = 0; r < 2; r++)
          for (int l = 0; l < 2; l++)
            y[r][l] = y[2 * r][2 * l] + y[2 * r][2 * l + 1] + y[2 * r + 1][2 * l] + y[2 * r + 1][2 * l + 1];
      const int last = 4 >> q->down, channel = p * PANEL + k;
      const float slope = q->sign ? 1 : q->slope;
      vec gain = (vec){0} + 1, bias = {0};
      if (q->gain) gain = load(q->gain, (size_t)image * q->step + channel, 0);
      if (q->bias) bias = load(q->bias, (size_t)image * q->step + channel, 0);
      for (int r = 0; r < last && i + r < h; r++)
        for (int l = 0; l < last && j + l < w; l++) {
          const size_t at = (((size_t)image * h + i + r) * w + j + l) * q->o + channel;
          vec a = gain * y[r][l] + bias;
          if (q->add) a += load(q->add, at, half);
          store(q->y, at, leaky(a, a, slope), half);
        }
    }
  }
}

#define CACHED 2304 /* channels times patches of a block: 36 transforms of each in float32 are 324 KiB */

/* Returns 0, or 1 where there is no memory. */
int convolve(const Convolution *q) {
  const int c = q->c, panels = q->o / PANEL, patches = q->images * ((q->h + 3) / 4) * ((q->w + 3) / 4);
  if (!patches) return 0;
  int block = CACHED / c < ROWS ? ROWS : CACHED / c / ROWS * ROWS, parts = 1;
  if (patches <= block * q->threads && panels % q->threads == 0) { /* few: the threads share the channels instead, */
    parts = q->threads;                                             /* so that each weight is read once */
    block = patches < 2 * block ? (patches + ROWS - 1) / ROWS * ROWS : block;
  }
  const int jobs = (patches + block - 1) / block * parts;
  /* not powers of two, whose 36 lines would lie upon each other in the cache */
  const size_t v_step = (size_t)block * c + 16, m_step = (size_t)block * PANEL + 16;
  int failed = 0;
#pragma omp parallel num_threads(q->threads)
  {
    void *scratch = NULL;
    if (posix_memalign(&scratch, 64, 36 * (v_step + m_step) * sizeof(float))) scratch = NULL;
    if (!scratch) {
#pragma omp atomic write
      failed = 1;
    }
    float *v = scratch, *m = v + 36 * v_step;
#pragma omp for schedule(dynamic)
    for (int job = 0; job < jobs; job++) {
      if (!scratch) continue;
      const int first = job / parts * block, n = patches - first < block ? patches - first : block;
      if (q->half) transform_in(q, first, n, v_step, v, 1);
      else transform_in(q, first, n, v_step, v, 0);
      for (int p = job % parts * (panels / parts); p < (job % parts + 1) * (panels / parts); p++) {
        for (int k = 0; k < 36; k++)
          products(n, c, v + k * v_step, q->u + ((size_t)k * panels + p) * c * PANEL, m + k * m_step);
        if (q->half) transform_out(q, first, n, m_step, p, m, 1);
        else transform_out(q, first, n, m_step, p, m, 0);
      }
    }
    free(scratch);
  }
  return failed;
}
