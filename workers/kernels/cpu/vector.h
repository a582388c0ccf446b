// What the kernels share: element types, vectors of sixteen floats, exp, and one small product.
//
// Everything is computed in float32; bfloat16 is converted when it is read, or multiplied in pairs,
// and rounded to nearest even when it is written. Vectors are those of GCC and Clang, which lower them to whatever the
// machine has.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

typedef float v16 __attribute__((vector_size(64)));
typedef float v8 __attribute__((vector_size(32)));
typedef float v4 __attribute__((vector_size(16)));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef uint32_t u16 __attribute__((vector_size(64)));
typedef uint16_t h16 __attribute__((vector_size(32)));
constexpr int LANES = 16;

struct bf16 {
  uint16_t bits;
};

static inline float up(float x) { return x; }
static inline float up(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
static inline void put(float* to, float x) { *to = x; }
static inline void put(bf16* to, float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to->bits = x != x ? 0x7fc0 : uint16_t(rounded);
}

static inline v16 all(float x) { return x - v16{}; }
static inline v16 load(const float* from) {
  v16 x;
  memcpy(&x, from, sizeof x);
  return x;
}
static inline v16 load(const bf16* from) {
  h16 half;
  memcpy(&half, from, sizeof half);
  return (v16)(__builtin_convertvector(half, u16) << 16);
}
static inline void store(float* to, v16 x) { memcpy(to, &x, sizeof x); }
static inline void store(bf16* to, v16 x) {
  u16 bits = (u16)x;
  u16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  rounded = (x != x) ? u16{} + 0x7fc0 : rounded;
  h16 half = __builtin_convertvector(rounded, h16);
  memcpy(to, &half, sizeof half);
}

static inline float sum(v16 x) {
  v8 low, high;
  memcpy(&low, &x, sizeof low);
  memcpy(&high, reinterpret_cast<char*>(&x) + sizeof low, sizeof high);
  low += high;
  v4 four = __builtin_shufflevector(low, low, 0, 1, 2, 3) +
            __builtin_shufflevector(low, low, 4, 5, 6, 7);
  return (four[0] + four[1]) + (four[2] + four[3]);
}

// Where the first of the highest numbers is.
template <typename T>
static inline int64_t highest(int64_t count, const T* numbers) {
  v16 tops = all(-INFINITY);
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const v16 next = load(numbers + i);
    tops = next > tops ? next : tops;
  }
  float top = -INFINITY;
  for (int lane = 0; lane < LANES; lane++) top = tops[lane] > top ? tops[lane] : top;
  for (; i < count; i++) top = up(numbers[i]) > top ? up(numbers[i]) : top;
  for (i = 0; i < count; i++)
    if (up(numbers[i]) == top) return i;
  return 0;
}

// exp by 2^n times a polynomial of degree 6 on [-ln2/2, ln2/2] (Cephes); within 2 ulp, 0 below
// -87.3, not a number where x is none.
static inline v16 exp(v16 x) {
  const v16 low = all(-87.3f), high = all(88.7f), shift = all(12582912.0f);
  v16 y = x < low ? low : x;
  y = y > high ? high : y;
  v16 shifted = y * 1.44269504f + shift;
  v16 n = shifted - shift;
  v16 r = y - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  v16 p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  i16 power = ((i16)shifted - (i16)shift) << 23;
  v16 whole = (v16)((i16)p + power);
  whole = p != p ? p : whole;
  return x < low ? v16{} : whole;
}

static inline v16 silu(v16 x) { return x / (1.0f + exp(-x)); }

static inline int padded(int count) { return (count + LANES - 1) / LANES * LANES; }

// Memory of this thread that stays between calls.
static inline float* scratch(int which, size_t floats) {
  static thread_local std::vector<float> pools[4];
  auto& pool = pools[which];
  if (pool.size() < floats + LANES) pool.resize(floats + LANES);
  auto at = (reinterpret_cast<uintptr_t>(pool.data()) + 63) / 64 * 64;
  return reinterpret_cast<float*>(at);
}

// Products take their operands in words: one number in float32, two in bfloat16 that are multiplied
// with two and summed.
template <typename T>
struct words;
template <>
struct words<float> {
  typedef float word;
};
template <>
struct words<bf16> {
  typedef uint32_t word;
};
static inline u16 load(const uint32_t* from) {
  u16 x;
  memcpy(&x, from, sizeof x);
  return x;
}
static inline v16 step(v16 total, float left, v16 right) { return total + left * right; }
static inline v16 step(v16 total, uint32_t left, u16 right) {
#ifdef __AVX512BF16__
  return (v16)_mm512_dpbf16_ps((__m512)total, (__m512bh)(__m512i)(u16{} + left),
                               (__m512bh)(__m512i)right);
#else
  total += up(bf16{uint16_t(left)}) * (v16)(right << 16);
  return total + up(bf16{uint16_t(left >> 16)}) * (v16)(right & 0xffff0000u);
#endif
}

// A tile of ROWS x (16 COLUMNS) of c (+)= a b, with a[i][k] at a + i a_row + k a_step.
template <int ROWS, int COLUMNS, typename W>
static inline void tile(int depth, const W* a, int a_row, int a_step, const W* b, int b_row,
                        float* c, int c_row, bool add) {
  v16 sums[ROWS][COLUMNS];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
    for (int j = 0; j < COLUMNS; j++) sums[i][j] = add ? load(c + i * c_row + j * LANES) : v16{};
  for (int k = 0; k < depth; k++) {
    decltype(load(b)) right[COLUMNS];
#pragma GCC unroll 8
    for (int j = 0; j < COLUMNS; j++) right[j] = load(b + k * b_row + j * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) {
      const W left = a[i * a_row + k * a_step];
#pragma GCC unroll 8
      for (int j = 0; j < COLUMNS; j++) sums[i][j] = step(sums[i][j], left, right[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
    for (int j = 0; j < COLUMNS; j++) store(c + i * c_row + j * LANES, sums[i][j]);
}

template <int COLUMNS, typename W>
static inline void strip(int rows, int depth, const W* a, int a_row, int a_step, const W* b,
                         int b_row, float* c, int c_row, bool add) {
  int i = 0;
  for (; i + 4 <= rows; i += 4)
    tile<4, COLUMNS>(depth, a + i * a_row, a_row, a_step, b, b_row, c + i * c_row, c_row, add);
  for (; i < rows; i++)
    tile<1, COLUMNS>(depth, a + i * a_row, a_row, a_step, b, b_row, c + i * c_row, c_row, add);
}

// c [rows, columns] (+)= a [rows, depth] b [depth, columns]; columns a multiple of 16.
template <typename W>
static inline void multiply(int rows, int depth, int columns, const W* a, int a_row, int a_step,
                            const W* b, int b_row, float* c, int c_row, bool add) {
  int j = 0;
  for (; j + 64 <= columns; j += 64)
    strip<4>(rows, depth, a, a_row, a_step, b + j, b_row, c + j, c_row, add);
  for (; j + 32 <= columns; j += 32)
    strip<2>(rows, depth, a, a_row, a_step, b + j, b_row, c + j, c_row, add);
  for (; j < columns; j += 16)
    strip<1>(rows, depth, a, a_row, a_step, b + j, b_row, c + j, c_row, add);
}
