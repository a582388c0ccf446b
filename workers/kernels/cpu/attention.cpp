// Attention over keys and values in pages: a few new tokens of several requests, or many of one.
// A task is one key head of one request with a tile of queries: heads that share a key head are
// further queries, so no key is read twice for them. Softmax is joined chunk by chunk of keys.
#include "kernels.h"

constexpr int CHUNK = 64;  // keys at once
constexpr int TILE = 16;    // tokens of queries at once

#define LANE_A(S, l) ((l & S) ? 16 + l - S : l)
#define LANE_B(S, l) ((l & S) ? 16 + l : l + S)
#define SHUFFLE(F, S, a, b)                                                                     \
  __builtin_shufflevector(a, b, F(S, 0), F(S, 1), F(S, 2), F(S, 3), F(S, 4), F(S, 5), F(S, 6), \
                          F(S, 7), F(S, 8), F(S, 9), F(S, 10), F(S, 11), F(S, 12), F(S, 13),   \
                          F(S, 14), F(S, 15))

template <int S>
static inline void exchange(v16* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++)
    if (!(i & S)) {
      v16 a = rows[i], b = rows[i + S];
      rows[i] = SHUFFLE(LANE_A, S, a, b);
      rows[i + S] = SHUFFLE(LANE_B, S, a, b);
    }
}

static inline void transpose(v16* rows) {
  exchange<8>(rows);
  exchange<4>(rows);
  exchange<2>(rows);
  exchange<1>(rows);
}

static inline float largest(v16 x) {
  float parts[LANES], most = -INFINITY;
  memcpy(parts, &x, sizeof x);
  for (int i = 0; i < LANES; i++) most = parts[i] > most ? parts[i] : most;
  return most;
}

// A word of values for each lane: those of one key, or of two.
static inline v16 interleaved(const float* const* v) { return load(v[0]); }
static inline u16 interleaved(const bf16* const* v) {
  h16 first, second;
  memcpy(&first, v[0], sizeof first);
  memcpy(&second, v[1], sizeof second);
  return __builtin_convertvector(first, u16) | __builtin_convertvector(second, u16) << 16;
}

// Keys [wide / TOGETHER, CHUNK] and values [CHUNK / TOGETHER, wide] of `length` tokens from `start`
// on, in words; 0 for what is not there.
template <typename T, typename W>
static void lay_out(const Pages& p, const int64_t* table, int head, int64_t start, int length,
                    int wide, W* keys, W* values) {
  constexpr int TOGETHER = sizeof(W) / sizeof(T), BREADTH = LANES * TOGETHER;
  const T nothing[LANES] = {};
  const int dim = p.head_dim, steps = wide / TOGETHER;
  for (int at = 0; at < CHUNK; at += LANES) {
    const T* k[LANES];
    for (int i = 0; i < LANES; i++) {
      const int64_t key = start + at + i;
      k[i] = at + i < length ? static_cast<const T*>(p.planes) +
                                   table[key / p.block_tokens] * p.block + head * p.head +
                                   key % p.block_tokens * dim
                             : nullptr;
    }
    for (int d = 0; d < steps; d += LANES) {
      const int from = d * TOGETHER, there = dim - from < BREADTH ? dim - from : BREADTH;
      v16 rows[LANES] = {};
      for (int i = 0; i < LANES; i++)
        if (k[i]) memcpy(rows + i, k[i] + from, there * sizeof(T));
      transpose(rows);
      for (int i = 0; i < LANES && d + i < steps; i++)
        memcpy(keys + (d + i) * CHUNK + at, rows + i, sizeof(v16));
    }
    for (int i = 0; i < LANES; i += TOGETHER)
      for (int d = 0; d < wide; d += LANES) {
        const T* v[TOGETHER];
        T edge[TOGETHER][LANES] = {};
        for (int u = 0; u < TOGETHER; u++) {
          v[u] = k[i + u] ? k[i + u] + p.plane + d : nothing;
          if (k[i + u] && d + LANES > dim) {
            memcpy(edge[u], v[u], (dim - d) * sizeof(T));
            v[u] = edge[u];
          }
        }
        const auto made = interleaved(v);
        memcpy(values + (at + i) / TOGETHER * wide + d, &made, sizeof made);
      }
  }
}

template <typename T>
static void attend_tile(const Pages& p, int64_t row, int head, int first, int count, int share,
                        int queries, const T* q, int64_t q_token, T* out, int64_t out_token) {
  typedef typename words<T>::word W;
  constexpr int TOGETHER = sizeof(W) / sizeof(T), PAIRS = CHUNK / TOGETHER;
  const int dim = p.head_dim, wide = padded(dim), lines = count * share, steps = wide / TOGETHER;
  float* sums = scratch(0, size_t(lines) * (2 * wide + 2 * CHUNK + 2));
  float* scores = sums + lines * wide;
  float* most = scores + lines * CHUNK;
  float* total = most + lines;
  T* query = reinterpret_cast<T*>(total + lines);                        // [lines, wide]
  T* weights = reinterpret_cast<T*>(total + lines + lines * wide);       // [lines, CHUNK]
  W* keys = reinterpret_cast<W*>(scratch(1, size_t(2 * CHUNK) * wide));  // [steps, CHUNK]
  W* values = keys + steps * CHUNK;                                      // [PAIRS, wide]
  const int64_t* visible = p.visible + row * queries + first;
  const int64_t* table = p.tables + row * p.columns;
  const float scale = 1.0f / sqrtf(float(dim));

  int64_t limit = 0;
  for (int t = 0; t < count; t++) limit = visible[t] > limit ? visible[t] : limit;
  if (limit > p.columns * p.block_tokens) limit = p.columns * p.block_tokens;
  memset(sums, 0, sizeof(float) * lines * wide);
  memset(query, 0, sizeof(T) * lines * wide);
  for (int line = 0; line < lines; line++) {
    const T* from = q + (first + line / share) * q_token + (head * share + line % share) * dim;
    memcpy(query + line * wide, from, dim * sizeof(T));
    most[line] = -INFINITY;
    total[line] = 0;
  }
  for (int64_t start = 0; start < limit; start += CHUNK) {
    const int length = limit - start < CHUNK ? limit - start : CHUNK;
    lay_out<T>(p, table, head, start, length, wide, keys, values);
    multiply(lines, steps, CHUNK, reinterpret_cast<const W*>(query), steps, 1, keys, CHUNK, scores,
             CHUNK, false);
    for (int line = 0; line < lines; line++) {
      float* row_scores = scores + line * CHUNK;
      const int64_t seen = visible[line / share] - start;
      for (int i = seen < 0 ? 0 : seen; i < CHUNK; i++) row_scores[i] = -INFINITY;
      v16 top = load(row_scores);
      for (int i = LANES; i < CHUNK; i += LANES) {
        v16 next = load(row_scores + i);
        top = next > top ? next : top;
      }
      const float here = largest(top) * scale;
      const float before = most[line], now = here > before ? here : before;
      v16 sum_of = {};
      for (int i = 0; i < CHUNK; i += LANES) {
        v16 weight = exp(load(row_scores + i) * scale - now);
        store(weights + line * CHUNK + i, weight);
        sum_of += weight;
      }
      const float fade = before == now ? 1.0f : expf(before - now);
      total[line] = total[line] * fade + sum(sum_of);
      most[line] = now;
      if (fade != 1.0f)
        for (int i = 0; i < wide; i++) sums[line * wide + i] *= fade;
    }
    multiply(lines, (length + TOGETHER - 1) / TOGETHER, wide, reinterpret_cast<const W*>(weights),
             PAIRS, 1, values, wide, sums, wide, true);
  }
  for (int line = 0; line < lines; line++) {
    T* to = out + (first + line / share) * out_token + (head * share + line % share) * dim;
    const float share_of = 1.0f / total[line];
    for (int i = 0; i < dim; i++) put(to + i, sums[line * wide + i] * share_of);
  }
}

template <typename T>
static void attend(const Pages& p, int64_t rows, int64_t queries, int64_t heads, const void* q,
                   int64_t q_row, int64_t q_token, void* out) {
  const int64_t tiles = (queries + TILE - 1) / TILE, share = heads / p.kv_heads;
  const int64_t out_token = heads * p.head_dim;
#pragma omp parallel for collapse(3) schedule(dynamic)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t tile = 0; tile < tiles; tile++)
      for (int64_t head = 0; head < p.kv_heads; head++) {
        // The last tiles see most keys; they begin first.
        const int64_t first = (tiles - 1 - tile) * TILE;
        const int64_t count = queries - first < TILE ? queries - first : TILE;
        attend_tile(p, row, head, first, count, share, queries,
                    static_cast<const T*>(q) + row * q_row, q_token,
                    static_cast<T*>(out) + row * queries * out_token, out_token);
      }
}

extern "C" {
void attend_pages_float32(const Pages* pages, int64_t rows, int64_t queries, int64_t heads,
                          const void* q, int64_t q_row, int64_t q_token, void* out) {
  attend<float>(*pages, rows, queries, heads, q, q_row, q_token, out);
}
void attend_pages_bfloat16(const Pages* pages, int64_t rows, int64_t queries, int64_t heads,
                           const void* q, int64_t q_row, int64_t q_token, void* out) {
  attend<bf16>(*pages, rows, queries, heads, q, q_row, q_token, out);
}
}
