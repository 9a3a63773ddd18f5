// Loops over rows of f32 numbers, vectorised by the compiler for the processor that runs them. No tensors here.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// One version per generation of x86 processors, chosen when the program is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif

namespace kernels {

// e^x within 2 units in the last place (Cephes' polynomial), at least 1e-38, NaN where x is.
static inline __attribute__((always_inline)) float exponential(float x) {
  x = x < -87.3f ? -87.3f : x;
  x = x > 88.3f ? 88.3f : x;
  const float rounder = 12582912.0f; // 1.5 · 2^23: adding it leaves the nearest integer in the low bits.
  const float shifted = x * 1.44269504088896341f + rounder;
  const float n = shifted - rounder;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits << 23) + 0x3f800000;
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

// y = x / rms(x) · w, row by row; `scales` gets 1 / rms(x) of each.
FOR_EVERY_PROCESSOR static void rms_norm(
    const float* x, const float* w, float* y, float* scales, int64_t rows, int64_t width, float eps) {
  for (int64_t row = 0; row < rows; ++row, x += width, y += width) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) sum += x[i] * x[i];
    const float scale = 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
    scales[row] = scale;
    for (int64_t i = 0; i < width; ++i) y[i] = x[i] * scale * w[i];
  }
}

// out[j] = a · row j, for `count` rows of `width` numbers that stand `stride` apart.
FOR_EVERY_PROCESSOR static void dots(
    const float* a, const float* rows, int64_t stride, int64_t count, int64_t width, float* out) {
  int64_t row = 0;
  for (; row + 4 <= count; row += 4, rows += 4 * stride) { // Four sums do not wait for each other.
    const float *r1 = rows + stride, *r2 = r1 + stride, *r3 = r2 + stride;
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t i = 0; i < width; ++i) {
      s0 += a[i] * rows[i], s1 += a[i] * r1[i], s2 += a[i] * r2[i], s3 += a[i] * r3[i];
    }
    out[row] = s0, out[row + 1] = s1, out[row + 2] = s2, out[row + 3] = s3;
  }
  for (; row < count; ++row, rows += stride) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) sum += a[i] * rows[i];
    out[row] = sum;
  }
}

// out += Σ weights[j] · row j, for rows as those of `dots`.
FOR_EVERY_PROCESSOR static void add_weighted(
    const float* weights, const float* rows, int64_t stride, int64_t count, int64_t width, float* out) {
  int64_t row = 0;
  for (; row + 4 <= count; row += 4, rows += 4 * stride, weights += 4) {
    const float *r1 = rows + stride, *r2 = r1 + stride, *r3 = r2 + stride;
    const float w0 = weights[0], w1 = weights[1], w2 = weights[2], w3 = weights[3];
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) out[i] += w0 * rows[i] + w1 * r1[i] + w2 * r2[i] + w3 * r3[i];
  }
  for (; row < count; ++row, rows += stride, ++weights) {
    const float weight = *weights;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) out[i] += weight * rows[i];
  }
}

// dx of rms_norm: s (g w − x s² mean(g w x)).
FOR_EVERY_PROCESSOR static void rms_norm_dx(
    const float* g, const float* x, const float* w, const float* scales, float* dx, int64_t rows, int64_t width) {
  for (int64_t row = 0; row < rows; ++row, g += width, x += width, dx += width) {
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < width; ++i) dot += g[i] * w[i] * x[i];
    const float s = scales[row];
    const float along = dot / static_cast<float>(width) * s * s;
    for (int64_t i = 0; i < width; ++i) dx[i] = s * (g[i] * w[i] - x[i] * along);
  }
}

// Columns `first` to `end` of dw of rms_norm: Σ g x s over the rows, in their order.
FOR_EVERY_PROCESSOR static void rms_norm_dw(
    const float* g, const float* x, const float* scales, float* dw, int64_t rows, int64_t width, int64_t first,
    int64_t end) {
  for (int64_t i = first; i < end; ++i) dw[i] = 0;
  for (int64_t row = 0; row < rows; ++row, g += width, x += width) {
    const float s = scales[row];
    for (int64_t i = first; i < end; ++i) dw[i] += g[i] * (x[i] * s);
  }
}

// y = silu(a) · b.
FOR_EVERY_PROCESSOR static void swiglu(const float* a, const float* b, float* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = a[i] / (1.0f + exponential(-a[i])) * b[i];
}

// da and db of swiglu.
FOR_EVERY_PROCESSOR static void swiglu_back(
    const float* g, const float* a, const float* b, float* da, float* db, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float s = 1.0f / (1.0f + exponential(-a[i]));
    const float slope = s * (1.0f + a[i] * (1.0f - s));
    db[i] = g[i] * (a[i] * s);
    da[i] = g[i] * b[i] * slope;
  }
}

// Turns the pairs (i, i + half) of `heads` heads of one token by the angles of `cos` and `sin` [2 half].
FOR_EVERY_PROCESSOR static void rotate(
    const float* x, const float* cos, const float* sin, float* y, int64_t heads, int64_t half) {
  for (int64_t head = 0; head < heads; ++head, x += 2 * half, y += 2 * half) {
#pragma omp simd
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[i], b = x[i + half];
      y[i] = a * cos[i] - b * sin[i];
      y[i + half] = b * cos[i + half] + a * sin[i + half];
    }
  }
}

// Its gradient: the transposed turn.
FOR_EVERY_PROCESSOR static void rotate_back(
    const float* g, const float* cos, const float* sin, float* dx, int64_t heads, int64_t half) {
  for (int64_t head = 0; head < heads; ++head, g += 2 * half, dx += 2 * half) {
#pragma omp simd
    for (int64_t i = 0; i < half; ++i) {
      const float a = g[i], b = g[i + half];
      dx[i] = a * cos[i] + b * sin[i + half];
      dx[i + half] = b * cos[i + half] - a * sin[i];
    }
  }
}

// The largest of n numbers.
FOR_EVERY_PROCESSOR static float largest(const float* x, int64_t n) {
  float most = -INFINITY;
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) most = x[i] > most ? x[i] : most;
  return most;
}

// y = exp(scale · (x − most)); gives the sum. x may be y.
FOR_EVERY_PROCESSOR static float exponentials(const float* x, float* y, int64_t n, float most, float scale) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const float e = exponential(scale * (x[i] - most));
    y[i] = e;
    sum += e;
  }
  return sum;
}

// x = x · factor.
FOR_EVERY_PROCESSOR static void multiply(float* x, int64_t n, float factor) {
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

// Σ a b.
FOR_EVERY_PROCESSOR static float dot(const float* a, const float* b, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// y += x.
FOR_EVERY_PROCESSOR static void add(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

// What one row of logits says beside its maximum.
struct RowSums {
  float exponentials; // Σ e^(x − most)
  float weighted;     // Σ e^(x − most) (x − most)
  float plain;        // Σ x
};

// Those sums; x becomes e^(x − most).
FOR_EVERY_PROCESSOR static RowSums row_sums(float* x, int64_t n, float most) {
  float exponentials = 0, weighted = 0, plain = 0;
#pragma omp simd reduction(+ : exponentials, weighted, plain)
  for (int64_t i = 0; i < n; ++i) {
    const float value = x[i], e = exponential(value - most);
    exponentials += e;
    weighted += e * (value - most);
    plain += value;
    x[i] = e;
  }
  return {exponentials, weighted, plain};
}

// Σ e^(x − most).
FOR_EVERY_PROCESSOR static float sum_of_exponentials(const float* x, int64_t n, float most) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += exponential(x[i] - most);
  return sum;
}

// P and dS of attention for one row of scores S and of dP: P = e^(scale S − log_sum), dS = P (dP − delta) scale, both in place.
FOR_EVERY_PROCESSOR static void softmax_back(float* s, float* dp, int64_t n, float scale, float log_sum, float delta) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float p = exponential(scale * s[i] - log_sum);
    s[i] = p;
    dp[i] = p * (dp[i] - delta) * scale;
  }
}

} // namespace kernels
