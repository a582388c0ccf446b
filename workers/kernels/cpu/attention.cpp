// Attention over keys and values in pages: a few new tokens of several requests, or many of one.
// A task is one key head of one request with a tile of queries: heads that share a key head are
// further queries, so no key is read twice for them. Softmax is joined chunk by chunk of keys.
#include "kernels.h"

constexpr int CHUNK = 64;  // keys at once
constexpr int TILE = 8;    // tokens of queries at once

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

template <typename T>
static void attend_tile(const Pages& p, int64_t row, int head, int first, int count, int share,
                        int queries, const T* q, int64_t q_token, T* out, int64_t out_token) {
  const int dim = p.head_dim, wide = padded(dim), lines = count * share;
  float* query = scratch(0, size_t(lines) * (2 * wide + CHUNK + 2));
  float* sums = query + lines * wide;
  float* scores = sums + lines * wide;
  float* most = scores + lines * CHUNK;
  float* total = most + lines;
  float* keys = scratch(1, size_t(2 * CHUNK) * wide);
  float* values = keys + wide * CHUNK;
  const int64_t* visible = p.visible + row * queries + first;
  const int64_t* table = p.tables + row * p.columns;
  const int64_t plane = p.plane;
  const float scale = 1.0f / sqrtf(float(dim));

  int64_t limit = 0;
  for (int t = 0; t < count; t++) limit = visible[t] > limit ? visible[t] : limit;
  if (limit > p.columns * p.block_tokens) limit = p.columns * p.block_tokens;
  memset(query, 0, sizeof(float) * lines * 2 * wide);
  for (int line = 0; line < lines; line++) {
    const T* from = q + (first + line / share) * q_token + (head * share + line % share) * dim;
    for (int i = 0; i < dim; i++) query[line * wide + i] = up(from[i]) * scale;
    most[line] = -INFINITY;
    total[line] = 0;
  }
  for (int64_t start = 0; start < limit; start += CHUNK) {
    const int length = limit - start < CHUNK ? limit - start : CHUNK;
    for (int at = 0; at < CHUNK; at += LANES) {
      const T* k[LANES];
      for (int i = 0; i < LANES; i++) {
        const int64_t key = start + at + i;
        k[i] = at + i < length ? static_cast<const T*>(p.planes) +
                                     table[key / p.block_tokens] * p.block + head * p.head +
                                     key % p.block_tokens * dim
                               : nullptr;
      }
      int d = 0;
      for (; d + LANES <= dim; d += LANES) {
        v16 rows[LANES];
        for (int i = 0; i < LANES; i++) {
          rows[i] = k[i] ? load(k[i] + d) : v16{};
          store(values + (at + i) * wide + d, k[i] ? load(k[i] + plane + d) : v16{});
        }
        transpose(rows);
        for (int i = 0; i < LANES; i++) store(keys + (d + i) * CHUNK + at, rows[i]);
      }
      for (; d < wide; d++)
        for (int i = 0; i < LANES; i++) {
          keys[d * CHUNK + at + i] = k[i] && d < dim ? up(k[i][d]) : 0.0f;
          values[(at + i) * wide + d] = k[i] && d < dim ? up(k[i][plane + d]) : 0.0f;
        }
    }
    multiply(lines, dim, CHUNK, query, wide, 1, keys, CHUNK, scores, CHUNK, false);
    for (int line = 0; line < lines; line++) {
      float* row_scores = scores + line * CHUNK;
      const int64_t seen = visible[line / share] - start;
      for (int i = seen < 0 ? 0 : seen; i < CHUNK; i++) row_scores[i] = -INFINITY;
      v16 top = load(row_scores);
      for (int i = LANES; i < CHUNK; i += LANES) {
        v16 next = load(row_scores + i);
        top = next > top ? next : top;
      }
      const float before = most[line], now = largest(top) > before ? largest(top) : before;
      v16 weights = {};
      for (int i = 0; i < CHUNK; i += LANES) {
        v16 weight = exp(load(row_scores + i) - now);
        store(row_scores + i, weight);
        weights += weight;
      }
      const float fade = before == now ? 1.0f : expf(before - now);
      total[line] = total[line] * fade + sum(weights);
      most[line] = now;
      if (fade != 1.0f)
        for (int i = 0; i < wide; i++) sums[line * wide + i] *= fade;
    }
    multiply(lines, length, wide, scores, CHUNK, 1, values, wide, sums, wide, true);
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
