// What stands between mixers, and products of few rows: residual sum with RMS norm, the squared
// ReLU, x W^T for small matrices, and routed experts.
#include "kernels.h"

// x += added (unless null); out = x / rms(x) * weight.
template <typename T>
static void add_norm(int64_t rows, int64_t size, T* x, const T* added, const T* weight, double eps,
                     T* out) {
#pragma omp parallel for schedule(static) if (rows * size > 16384)
  for (int64_t row = 0; row < rows; row++) {
    T* at = x + row * size;
    const T* plus = added ? added + row * size : nullptr;
    v16 squares = {};
    float rest = 0;
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
      v16 value = load(at + i);
      if (plus) {
        store(at + i, value + load(plus + i));
        value = load(at + i);  // rounded as it is kept
      }
      squares += value * value;
    }
    for (; i < size; i++) {
      if (plus) put(at + i, up(at[i]) + up(plus[i]));
      rest += up(at[i]) * up(at[i]);
    }
    const float scale = 1.0f / sqrtf((sum(squares) + rest) / size + float(eps));
    T* to = out + row * size;
    for (i = 0; i + LANES <= size; i += LANES)
      store(to + i, load(at + i) * scale * load(weight + i));
    for (; i < size; i++) put(to + i, up(at[i]) * scale * up(weight[i]));
  }
}

constexpr int PANEL = 64;  // outputs whose weights lie side by side, a word of each in a step
constexpr int COLUMNS = PANEL / LANES;

// A panel times ROWS rows of x: out[r][0..64).
template <int ROWS, typename W>
static inline void panel_rows(int64_t steps, const W* x, const W* w, float* out) {
  constexpr int TURNS = ROWS == 1 ? 2 : 1;  // sums enough to hide the latency of each
  v16 sums[TURNS][ROWS][COLUMNS] = {};
  int64_t k = 0;
  for (; k + TURNS <= steps; k += TURNS)
#pragma GCC unroll 2
    for (int turn = 0; turn < TURNS; turn++)
#pragma GCC unroll 4
      for (int j = 0; j < COLUMNS; j++) {
        auto right = load(w + (k + turn) * PANEL + j * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
          sums[turn][r][j] = step(sums[turn][r][j], x[r * steps + k + turn], right);
      }
  for (; k < steps; k++)
    for (int r = 0; r < ROWS; r++)
      for (int j = 0; j < COLUMNS; j++)
        sums[0][r][j] =
            step(sums[0][r][j], x[r * steps + k], load(w + k * PANEL + j * LANES));
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; j++) {
      v16 total = sums[0][r][j];
      if (TURNS == 2) total += sums[TURNS - 1][r][j];
      store(out + r * PANEL + j * LANES, total);
    }
}

// A panel times the first rows of x, of which `left` are left: as many as suit; returns how many.
template <typename W>
static inline int panel(int64_t left, int64_t steps, const W* x, const W* w, float* out) {
  if (left >= 6 && left != 8) return panel_rows<6>(steps, x, w, out), 6;
  if (left >= 4) return panel_rows<4>(steps, x, w, out), 4;
  if (left >= 2) return panel_rows<2>(steps, x, w, out), 2;
  return panel_rows<1>(steps, x, w, out), 1;
}

static inline v16 square_relu(v16 x) {
  v16 positive = x > 0.0f ? x : x * 0.0f;  // what is not a number stays so
  return positive * positive;
}

template <typename T>
static inline v16 rounded(v16 x) {
  T kept[LANES];
  store(kept, x);
  return load(kept);
}

constexpr int64_t ROWS_AT_ONCE = 96;  // of one task, while its panel is in the cache

// x W^T + bias, rounded to T and kept as O; `steps` is how often a panel steps over its inputs.
template <typename T, typename W, typename O>
static void linear(int64_t rows, int64_t steps, int64_t count, const W* x, const W* panels,
                   const T* bias, bool relu2, O* out) {
  const int64_t blocks = (count + PANEL - 1) / PANEL;
  const int64_t pieces = (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
#pragma omp parallel for collapse(2) schedule(static) if (rows * steps * count > 32768)
  for (int64_t block = 0; block < blocks; block++)
    for (int64_t piece = 0; piece < pieces; piece++) {
      const int64_t from = block * PANEL, length = count - from < PANEL ? count - from : PANEL;
      const int64_t last = (piece + 1) * ROWS_AT_ONCE < rows ? (piece + 1) * ROWS_AT_ONCE : rows;
      const W* w = panels + block * steps * PANEL;
      float part[6 * PANEL];
      for (int64_t row = piece * ROWS_AT_ONCE; row < last;) {
        const int made = panel(last - row, steps, x + row * steps, w, part);
        for (int r = 0; r < made; r++, row++) {
          O* to = out + row * count + from;
          int64_t i = 0;
          for (; i + LANES <= length; i += LANES) {
            v16 value = load(part + r * PANEL + i);
            if (bias) value += load(bias + from + i);
            store(to + i, rounded<T>(relu2 ? square_relu(value) : value));
          }
          for (; i < length; i++) {
            float value = part[r * PANEL + i] + (bias ? up(bias[from + i]) : 0.0f);
            if (relu2) value = value > 0 ? value * value : 0 * value;
            T kept;
            put(&kept, value);
            put(to + i, up(kept));
          }
        }
      }
    }
}

// COUNT rows of w, [in] each, times x.
template <int COUNT, typename T>
static inline void dots(int64_t in, const float* x, const T* w, float* out) {
  v16 sums[COUNT] = {};
  int64_t i = 0;
  for (; i + LANES <= in; i += LANES) {
    v16 left = load(x + i);
#pragma GCC unroll 8
    for (int c = 0; c < COUNT; c++) sums[c] += left * load(w + c * in + i);
  }
#pragma GCC unroll 8
  for (int c = 0; c < COUNT; c++) {
    float total = sum(sums[c]);
    for (int64_t k = i; k < in; k++) total += x[k] * up(w[c * in + k]);
    out[c] = total;
  }
}

template <typename T>
static void square_relu(int64_t count, T* x) {
  const int64_t whole = count / LANES * LANES;
#pragma omp parallel for schedule(static) if (count > 65536)
  for (int64_t i = 0; i < whole; i += LANES) store(x + i, square_relu(load(x + i)));
  for (int64_t i = whole; i < count; i++) {
    float value = up(x[i]);
    put(x + i, value > 0 ? value * value : 0 * value);
  }
}

// The sum over the parts that the chosen experts of each token have made, `wide` floats each.
template <typename T>
static void join(int64_t tokens, int64_t chosen, int64_t narrow, int64_t wide, const float* parts,
                 T* out) {
#pragma omp parallel for schedule(static) if (tokens * chosen * narrow > 65536)
  for (int64_t token = 0; token < tokens; token++) {
    const float* own = parts + token * chosen * wide;
    T* to = out + token * narrow;
    int64_t i = 0;
    for (; i + LANES <= narrow; i += LANES) {
      v16 total = load(own + i);
      for (int64_t k = 1; k < chosen; k++) total += load(own + k * wide + i);
      store(to + i, total);
    }
    for (; i < narrow; i++) {
      float total = 0;
      for (int64_t k = 0; k < chosen; k++) total += own[k * wide + i];
      put(to + i, total);
    }
  }
}

constexpr int64_t TASKS_AT_ONCE = 48;  // of one expert, so that its rows stay in the cache

// Tasks (pairs of token and expert, by number) in the order of their experts, cut into groups.
struct Groups {
  int32_t* tasks;   // [count]
  int32_t* begins;  // [number + 1], into tasks
  int64_t number = 0;

  Groups(int64_t count, int64_t experts, const int64_t* indices) {
    tasks = reinterpret_cast<int32_t*>(scratch(3, 2 * count + experts + 2));
    begins = tasks + count;
    int32_t* next = begins + count + 1;
    memset(next, 0, experts * sizeof(int32_t));
    for (int64_t task = 0; task < count; task++) next[indices[task]]++;
    int32_t before = 0;
    for (int64_t expert = 0; expert < experts; expert++) {
      const int32_t own = next[expert];
      for (int32_t at = 0; at < own; at += TASKS_AT_ONCE) begins[number++] = before + at;
      next[expert] = before;
      before += own;
    }
    begins[number] = before;
    for (int64_t task = 0; task < count; task++) tasks[next[indices[task]]++] = task;
  }
};

// As `experts`, with the matrices of all `count` experts in panels, as one [count hidden, narrow] and
// one [narrow, count hidden]; hidden is a multiple of PANEL. What is between them is rounded to T.
// Tokens that chose the same expert read it together.
template <typename T, typename W>
static void experts_in_panels(int64_t tokens, int64_t chosen, int64_t narrow, int64_t hidden,
                              int64_t count, const T* x, const int64_t* indices,
                              const float* weights, const W* up, const W* down, float* parts,
                              T* out) {
  constexpr int64_t TOGETHER = sizeof(W) / sizeof(T);
  const int64_t wide = (narrow + PANEL - 1) / PANEL * PANEL;
  const int64_t in = narrow / TOGETHER, steps = hidden / TOGETHER;
  const Groups groups(tokens * chosen, count, indices);
#pragma omp parallel for schedule(dynamic) if (tokens * chosen * narrow * steps > 131072)
  for (int64_t group = 0; group < groups.number; group++) {
    const int32_t* tasks = groups.tasks + groups.begins[group];
    const int64_t rows = groups.begins[group + 1] - groups.begins[group];
    const int64_t expert = indices[tasks[0]];
    T* own = reinterpret_cast<T*>(scratch(2, rows * (narrow + hidden)));
    T* inner = own + rows * narrow;
    for (int64_t row = 0; row < rows; row++)
      memcpy(own + row * narrow, x + tasks[row] / chosen * narrow, narrow * sizeof(T));
    float part[6 * PANEL];
    const W* w = up + expert * hidden * in;
    for (int64_t at = 0; at < hidden; at += PANEL, w += in * PANEL)
      for (int64_t row = 0; row < rows;) {
        const W* given = reinterpret_cast<const W*>(own) + row * in;
        const int made = panel(rows - row, in, given, w, part);
        for (int r = 0; r < made; r++, row++)
          for (int i = 0; i < PANEL; i += LANES)
            store(inner + row * hidden + at + i,
                  square_relu(load(part + r * PANEL + i)) * weights[tasks[row]]);
      }
    w = down + expert * steps * PANEL;
    for (int64_t at = 0; at < narrow; at += PANEL, w += count * steps * PANEL)
      for (int64_t row = 0; row < rows;) {
        const W* given = reinterpret_cast<const W*>(inner) + row * steps;
        const int made = panel(rows - row, steps, given, w, part);
        for (int r = 0; r < made; r++, row++)
          memcpy(parts + tasks[row] * wide + at, part + r * PANEL, PANEL * sizeof(float));
      }
  }
  join(tokens, chosen, narrow, wide, parts, out);
}

// For each token the sum over its chosen experts of weight * down(relu2(up x)).
template <typename T>
static void experts(int64_t tokens, int64_t chosen, int64_t narrow, int64_t hidden, const T* x,
                    const int64_t* indices, const float* weights, const T* up_, const T* down,
                    float* parts, T* out) {
  const int64_t wide = padded(narrow);
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < tokens * chosen; task++) {
    const int64_t token = task / chosen, expert = indices[task];
    float* own = scratch(1, narrow + hidden);
    float* inner = own + narrow;
    for (int64_t i = 0; i < narrow; i++) own[i] = up(x[token * narrow + i]);
    const T* first = up_ + expert * hidden * narrow;
    int64_t at = 0;
    for (; at + 8 <= hidden; at += 8) dots<8>(narrow, own, first + at * narrow, inner + at);
    for (; at < hidden; at++) dots<1>(narrow, own, first + at * narrow, inner + at);
    for (int64_t i = 0; i < hidden; i++)
      inner[i] = (inner[i] > 0 ? inner[i] * inner[i] : 0 * inner[i]) * weights[task];
    const T* w = down + expert * hidden * narrow;
    float* part = parts + task * wide;
    int64_t i = 0;
    for (; i + 4 * LANES <= narrow; i += 4 * LANES) {
      v16 sums[4] = {};
      for (int64_t k = 0; k < hidden; k++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) sums[j] += inner[k] * load(w + k * narrow + i + j * LANES);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) store(part + i + j * LANES, sums[j]);
    }
    for (; i < narrow; i++) {
      float total = 0;
      for (int64_t k = 0; k < hidden; k++) total += inner[k] * up(w[k * narrow + i]);
      part[i] = total;
    }
  }
  join(tokens, chosen, narrow, wide, parts, out);
}

// Sigmoid router: the best of scores + bias, and the scores of these, scaled.
static void route(int64_t tokens, int64_t count, int64_t chosen, const float* logits,
                  const float* bias, bool normalised, double scaling, int64_t* indices,
                  float* weights) {
  for (int64_t token = 0; token < tokens; token++) {
    float* scores = scratch(0, 2 * count);
    float* choice = scores + count;
    for (int64_t i = 0; i < count; i++) {
      scores[i] = 1.0f / (1.0f + expf(-logits[token * count + i]));
      choice[i] = scores[i] + bias[i];
    }
    float total = 0;
    for (int64_t k = 0; k < chosen; k++) {
      int64_t best = 0;
      for (int64_t i = 1; i < count; i++)
        if (choice[i] > choice[best]) best = i;
      choice[best] = -INFINITY;
      indices[token * chosen + k] = best;
      weights[token * chosen + k] = scores[best];
      total += scores[best];
    }
    const float scale = float(scaling) / (normalised ? total + 1e-20f : 1.0f);
    for (int64_t k = 0; k < chosen; k++) weights[token * chosen + k] *= scale;
  }
}

#define EXPORT(T, W, NAME)                                                                       \
  void add_norm_##NAME(int64_t rows, int64_t size, void* x, const void* added,                  \
                       const void* weight, double eps, void* out) {                             \
    add_norm<T>(rows, size, static_cast<T*>(x), static_cast<const T*>(added),                   \
                static_cast<const T*>(weight), eps, static_cast<T*>(out));                      \
  }                                                                                             \
  void linear_##NAME(int64_t rows, int64_t steps, int64_t count, const void* x, const void* w,  \
                     const void* bias, int64_t relu2, void* out) {                              \
    linear(rows, steps, count, static_cast<const W*>(x), static_cast<const W*>(w),              \
           static_cast<const T*>(bias), relu2 != 0, static_cast<T*>(out));                      \
  }                                                                                             \
  void scores_##NAME(int64_t rows, int64_t steps, int64_t count, const void* x, const void* w,  \
                     const void* bias, float* out) {                                            \
    linear(rows, steps, count, static_cast<const W*>(x), static_cast<const W*>(w),              \
           static_cast<const T*>(bias), false, out);                                            \
  }                                                                                             \
  void square_relu_##NAME(int64_t count, void* x) { square_relu<T>(count, static_cast<T*>(x)); } \
  void experts_##NAME(int64_t tokens, int64_t chosen, int64_t narrow, int64_t hidden,           \
                      const void* x, const int64_t* indices, const float* weights,              \
                      const void* up, const void* down, float* parts, void* out) {              \
    experts<T>(tokens, chosen, narrow, hidden, static_cast<const T*>(x), indices, weights,      \
               static_cast<const T*>(up), static_cast<const T*>(down), parts,                   \
               static_cast<T*>(out));                                                           \
  }                                                                                             \
  void experts_in_panels_##NAME(int64_t tokens, int64_t chosen, int64_t narrow, int64_t hidden, \
                                int64_t count, const void* x, const int64_t* indices,           \
                                const float* weights, const void* up, const void* down,         \
                                float* parts, void* out) {                                      \
    experts_in_panels<T, W>(tokens, chosen, narrow, hidden, count, static_cast<const T*>(x),    \
                            indices, weights, static_cast<const W*>(up),                        \
                            static_cast<const W*>(down), parts, static_cast<T*>(out));          \
  }

extern "C" {
// Whether this processor multiplies pairs of bfloat16, so that large products are quick as well.
int64_t multiplies_bfloat16() {
#ifdef __AVX512BF16__
  return 1;
#else
  return 0;
#endif
}
EXPORT(float, float, float32)
EXPORT(bf16, uint32_t, bfloat16)
void highest_float32(int64_t rows, int64_t count, const float* numbers, int64_t* out) {
  for (int64_t row = 0; row < rows; row++) out[row] = highest(count, numbers + row * count);
}
void route_float32(int64_t tokens, int64_t count, int64_t chosen, const float* logits,
                   const float* bias, int64_t normalised, double scaling, int64_t* indices,
                   float* weights) {
  route(tokens, count, chosen, logits, bias, normalised != 0, scaling, indices, weights);
}
}
