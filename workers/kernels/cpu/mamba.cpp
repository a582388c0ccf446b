// The Mamba-2 mixer between its two projections, over windows of several requests and over the
// tokens of one prompt. A task is one group of heads of one request (of one prompt: one head),
// from convolution to gated norm, so what it computes stays in its caches.
#include "kernels.h"

static inline float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

// The rows of one head's state: s <- decay s + sum over u of fold[u] x[u] b[u]; y[j] = s . c[j].
// x, b and c have `row` elements from token to token, y has y_row.
typedef void FoldHead(float* s, int head_dim, int size, float decay, const float* fold, int folds,
                      const float* x, const float* b, const float* c, int reads, int row, float* y,
                      int y_row);

template <int SIZE>
static void fold_head(float* s, int head_dim, int, float decay, const float* fold, int folds,
                      const float* x, const float* b, const float* c, int reads, int row, float* y,
                      int y_row) {
  constexpr int N = SIZE / LANES;
  for (int i = 0; i < head_dim; i++, s += SIZE) {
    v16 state[N];
#pragma GCC unroll 8
    for (int k = 0; k < N; k++) state[k] = load(s + k * LANES) * decay;
    for (int u = 0; u < folds; u++) {
      const v16 scale = all(fold[u] * x[u * row + i]);
#pragma GCC unroll 8
      for (int k = 0; k < N; k++) state[k] += scale * load(b + u * row + k * LANES);
    }
#pragma GCC unroll 8
    for (int k = 0; k < N; k++) store(s + k * LANES, state[k]);
    for (int j = 0; j < reads; j++) {
      v16 total = state[0] * load(c + j * row);
#pragma GCC unroll 8
      for (int k = 1; k < N; k++) total += state[k] * load(c + j * row + k * LANES);
      y[j * y_row + i] = sum(total);
    }
  }
}

static void fold_head_of_any_size(float* s, int head_dim, int size, float decay, const float* fold,
                                  int folds, const float* x, const float* b, const float* c,
                                  int reads, int row, float* y, int y_row) {
  for (int i = 0; i < head_dim; i++, s += size) {
    for (int n = 0; n < size; n++) {
      float value = s[n] * decay;
      for (int u = 0; u < folds; u++) value += fold[u] * x[u * row + i] * b[u * row + n];
      s[n] = value;
    }
    for (int j = 0; j < reads; j++) {
      float total = 0;
#pragma omp simd reduction(+ : total)
      for (int n = 0; n < size; n++) total += s[n] * c[j * row + n];
      y[j * y_row + i] = total;
    }
  }
}

static FoldHead* fold_head_of(int64_t size) {
  switch (size) {
    case 16: return fold_head<16>;
    case 32: return fold_head<32>;
    case 64: return fold_head<64>;
    case 128: return fold_head<128>;
    default: return fold_head_of_any_size;
  }
}

// Gated norm of one group of one token: out = y silu(gate) / rms * weight. y is overwritten.
template <typename T>
static inline void gated_norm(float* y, const T* gate, const T* weight, T* out, int count,
                              float eps) {
  float squares = 0;
  int i = 0;
  v16 total = {};
  for (; i + LANES <= count; i += LANES) {
    v16 value = load(y + i) * silu(load(gate + i));
    store(y + i, value);
    total += value * value;
  }
  squares = sum(total);
  for (; i < count; i++) {
    float z = up(gate[i]);
    y[i] *= z / (1.0f + expf(-z));
    squares += y[i] * y[i];
  }
  float scale = 1.0f / sqrtf(squares / count + eps);
  for (i = 0; i + LANES <= count; i += LANES)
    store(out + i, load(y + i) * scale * load(weight + i));
  for (; i < count; i++) put(out + i, y[i] * scale * up(weight[i]));
}

// Convolution and SiLU of `count` channels over `tokens` tokens; in [kernel - 1 + tokens, in_row].
template <typename T, typename I>
static inline void convolve(const I* in, int64_t in_row, int tokens, int count, int kernel,
                            const T* taps, int64_t taps_row, const T* bias, float* out,
                            int64_t out_row) {
  for (int t = 0; t < tokens; t++) {
    int i = 0;
    for (; i + LANES <= count; i += LANES) {
      v16 value = bias ? load(bias + i) : v16{};
      for (int k = 0; k < kernel; k++)
        value += load(taps + k * taps_row + i) * load(in + (t + k) * in_row + i);
      store(out + t * out_row + i, silu(value));
    }
    for (; i < count; i++) {
      float value = bias ? up(bias[i]) : 0.0f;
      for (int k = 0; k < kernel; k++)
        value += up(taps[k * taps_row + i]) * up(in[(t + k) * in_row + i]);
      out[t * out_row + i] = value / (1.0f + expf(-value));
    }
  }
}

// One group of heads of one request: `a` accepted drafts, then a window of `width` tokens.
template <typename T>
static void window_group(const Mamba& m, const Slots& slots, int64_t layer, int64_t slot, int a,
                         int width, int group, const T* projected, T* out) {
  const int share = m.heads / m.groups, wide = share * m.head_dim, size = m.size;
  const int64_t inner = m.heads * m.head_dim, channels = inner + 2 * m.groups * size;
  const int64_t token = inner + channels + m.heads;
  const int kept = m.kernel - 1, count = wide + 2 * size, seen = a + width;
  T* conv = static_cast<T*>(slots.conv) + slot * slots.conv_slot + layer * slots.conv_layer;
  T* stored = static_cast<T*>(slots.inputs) + slot * slots.inputs_slot + layer * slots.inputs_layer;
  float* dts = slots.steps + slot * slots.steps_slot + layer * slots.steps_layer;
  float* in = scratch(0, size_t(kept + seen) * count);
  float* mixed = scratch(1, size_t(seen) * count);

  // x, B and C of this group lie apart among the channels, and side by side here.
  const int64_t from[3] = {int64_t(group) * wide, inner + int64_t(group) * size,
                           inner + (m.groups + group) * int64_t(size)};
  const int lengths[3] = {wide, size, size};
  int at = 0;
  for (int part = 0; part < 3; part++) {
    const int64_t first = from[part];
    const int length = lengths[part];
    T* history = conv + first * kept;
    for (int k = 0; k < kept; k++)
      for (int i = 0; i < length; i++) in[k * count + at + i] = up(history[i * kept + k]);
    for (int u = 0; u < a; u++)
      for (int i = 0; i < length; i++)
        in[(kept + u) * count + at + i] = up(stored[u * channels + first + i]);
    for (int j = 0; j < width; j++) {
      const T* given = projected + j * token + inner + first;
      for (int i = 0; i < length; i++) in[(kept + a + j) * count + at + i] = up(given[i]);
      if (j > 0)  // a draft: only its input stays behind
        memcpy(stored + (j - 1) * channels + first, given, length * sizeof(T));
    }
    for (int k = 0; k < kept; k++)
      for (int i = 0; i < length; i++)
        put(history + i * kept + k, in[(a + 1 + k) * count + at + i]);
    const T* bias = static_cast<const T*>(m.conv_bias);
    convolve(in + at, count, seen, length, int(m.kernel),
             static_cast<const T*>(m.taps) + first, channels, bias ? bias + first : nullptr,
             mixed + at, count);
    at += length;
  }
  const float *b = mixed + wide, *c = mixed + a * count + wide + size;

  // C_j . B_u for the tokens after the first of the window, the same for all heads of the group.
  float scores[16][16];
  for (int j = 1; j < width; j++)
    for (int u = 1; u <= j; u++) {
      float total = 0;
#pragma omp simd reduction(+ : total)
      for (int n = 0; n < size; n++) total += c[j * count + n] * b[(a + u) * count + n];
      scores[j][u] = total;
    }

  FoldHead* fold_rows = fold_head_of(size);
  float* y = scratch(2, size_t(width) * wide);
  for (int h = 0; h < share; h++) {
    const int head = group * share + h;
    float dt[16], fold[16];
    double sums[16], running = 0;  // differences of large sums lose digits, hence double
    for (int t = 0; t < seen; t++) {
      dt[t] = t < a ? dts[t * m.heads + head]
                    : softplus(up(projected[(t - a) * token + inner + channels + head]) +
                               m.dt_bias[head]);
      running += double(dt[t] * m.rate[head]);
      sums[t] = running;
    }
    for (int j = 1; j < width; j++) dts[(j - 1) * m.heads + head] = dt[a + j];
    const float decay = expf(float(sums[a]));
    for (int u = 0; u <= a; u++) fold[u] = dt[u] * expf(float(sums[a] - sums[u]));
    float* state = slots.ssm + slot * slots.ssm_slot + layer * slots.ssm_layer +
                   int64_t(head) * m.head_dim * size;
    const float* x = mixed + h * m.head_dim;
    float* read = y + h * m.head_dim;
    fold_rows(state, int(m.head_dim), size, decay, fold, a + 1, x, b, c, width, count, read, wide);
    const float skip = m.skip[head];
    for (int j = 0; j < width; j++) {
      float* row = read + j * wide;
      const float* own = x + (a + j) * count;
      const float carried = expf(float(sums[a + j] - sums[a]));
      for (int i = 0; i < m.head_dim; i++) row[i] = row[i] * carried + skip * own[i];
      for (int u = 1; u <= j; u++) {
        const float weight = scores[j][u] * dt[a + u] * expf(float(sums[a + j] - sums[a + u]));
        const float* other = x + (a + u) * count;
        for (int i = 0; i < m.head_dim; i++) row[i] += weight * other[i];
      }
    }
  }
  for (int j = 0; j < width; j++)
    gated_norm(y + j * wide, projected + j * token + group * wide,
               static_cast<const T*>(m.norm) + group * wide, out + j * inner + group * wide, wide,
               float(m.eps));
}

template <typename T>
static void windows(const Mamba& m, const Slots& slots, int64_t layer, int64_t rows, int64_t width,
                    const int64_t* slot, const int64_t* pending, const void* projected, void* out) {
  const int64_t inner = m.heads * m.head_dim;
  const int64_t token = 2 * inner + 2 * m.groups * m.size + m.heads;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t group = 0; group < m.groups; group++) {
      window_group(m, slots, layer, slot[row], pending[row] > 1 ? pending[row] - 1 : 0, width,
                   group, static_cast<const T*>(projected) + row * width * token,
                   static_cast<T*>(out) + row * width * inner);
    }
}

constexpr int CHUNK = 64;

// The recurrence of one head over `tokens` tokens in chunks: inside a chunk a masked product,
// between chunks the state (state-space duality, arXiv 2405.21060, section 6).
static void scan_head(const Mamba& m, int head, int tokens, const float* mixed, int64_t channels,
                      const float* dt, const float* scores, float* state, float* y) {
  const int p = m.head_dim, wide = padded(p), size = m.size, group = head / (m.heads / m.groups);
  const int64_t inner = m.heads * p;
  float* transposed = scratch(0, size_t(size) * wide);
  float* x = scratch(1, size_t(CHUNK) * wide);
  float* weights = scratch(2, size_t(CHUNK) * CHUNK);
  float* part = scratch(3, size_t(CHUNK) * (wide + 2 * size));
  float* b = part + CHUNK * wide;  // B and C of a chunk, close together: rows of `mixed` are
  float* c = b + CHUNK * size;     // so far apart that they would evict each other
  memset(transposed, 0, sizeof(float) * size * wide);
  memset(x, 0, sizeof(float) * CHUNK * wide);
  for (int i = 0; i < p; i++)
    for (int n = 0; n < size; n++) transposed[n * wide + i] = state[i * size + n];
  for (int first = 0; first < tokens; first += CHUNK) {
    const int length = tokens - first < CHUNK ? tokens - first : CHUNK;
    const float* inputs = mixed + first * channels;
    float sums[CHUNK] = {}, step[CHUNK] = {};
    double running = 0;
    for (int t = 0; t < length; t++) {
      step[t] = dt[(first + t) * m.heads + head];
      running += double(step[t] * m.rate[head]);
      sums[t] = float(running);
    }
    for (int t = 0; t < length; t++) {
      const float* row = inputs + t * channels;
      memcpy(x + t * wide, row + head * p, sizeof(float) * p);
      memcpy(b + t * size, row + inner + group * size, sizeof(float) * size);
      memcpy(c + t * size, row + inner + (m.groups + group) * size, sizeof(float) * size);
    }
    const float* cb = scores + ((first / CHUNK) * m.groups + group) * CHUNK * CHUNK;
    for (int t = 0; t < length; t++) {
      for (int u = 0; u <= t; u += LANES) {
        v16 weight = exp(sums[t] - load(sums + u)) * load(step + u) * load(cb + t * CHUNK + u);
        store(weights + t * CHUNK + u, weight);
      }
      for (int u = t + 1; u < padded(t + 1); u++) weights[t * CHUNK + u] = 0;
    }
    // What the state before the chunk gives, decayed, and what its own tokens give.
    multiply(length, size, wide, c, size, 1, transposed, wide, part, wide, false);
    for (int t = 0; t < length; t++) {
      const float carried = expf(sums[t]);
      for (int i = 0; i < wide; i++) part[t * wide + i] *= carried;
    }
    for (int t = 0; t < length; t += LANES) {
      const int rows = length - t < LANES ? length - t : LANES;
      multiply(rows, t + rows, wide, weights + t * CHUNK, CHUNK, 1, x, wide, part + t * wide, wide,
               true);
    }
    const float skip = m.skip[head];
    for (int t = 0; t < length; t++) {
      float* row = y + (first + t) * inner + head * p;
      for (int i = 0; i < p; i++) row[i] = part[t * wide + i] + skip * x[t * wide + i];
    }
    // The state after the chunk.
    const float whole = expf(sums[length - 1]);
    for (int t = 0; t < length; t++) {
      const float scale = step[t] * expf(sums[length - 1] - sums[t]);
      for (int i = 0; i < wide; i++) x[t * wide + i] *= scale;
    }
    for (int i = 0; i < size * wide; i++) transposed[i] *= whole;
    multiply(size, length, wide, b, 1, size, x, wide, transposed, wide, true);
  }
  for (int i = 0; i < p; i++)
    for (int n = 0; n < size; n++) state[i * size + n] = transposed[n * wide + i];
}

template <typename T>
static void sequence(const Mamba& m, int64_t tokens, int64_t bounded, double least, void* history_,
                     float* state, const void* projected_, float* mixed, float* dt, float* scores,
                     float* y, void* out) {
  const int64_t inner = m.heads * m.head_dim, channels = inner + 2 * m.groups * m.size;
  const int64_t token = inner + channels + m.heads, kept = m.kernel - 1;
  const int64_t chunks = (tokens + CHUNK - 1) / CHUNK;
  const T* projected = static_cast<const T*>(projected_);
  T* history = static_cast<T*>(history_);
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
      const int64_t first = chunk * CHUNK;
      const int length = tokens - first < CHUNK ? tokens - first : CHUNK;
      const T* bias = static_cast<const T*>(m.conv_bias);
      const T* taps = static_cast<const T*>(m.taps);
      int edge = 0;
      if (first == 0 && kept > 0) {
        // The first tokens look back into the history.
        edge = kept < length ? kept : length;
        T* rows = reinterpret_cast<T*>(scratch(0, size_t(kept + edge) * channels));
        for (int k = 0; k < kept; k++)
          for (int64_t i = 0; i < channels; i++) rows[k * channels + i] = history[i * kept + k];
        for (int t = 0; t < edge; t++)
          memcpy(rows + (kept + t) * channels, projected + t * token + inner, sizeof(T) * channels);
        convolve(rows, channels, edge, channels, int(m.kernel), taps, channels, bias, mixed,
                 channels);
      }
      if (length > edge)
        convolve(projected + (first + edge - kept) * token + inner, token, length - edge, channels,
                 int(m.kernel), taps, channels, bias, mixed + (first + edge) * channels, channels);
      for (int t = first; t < first + length; t++)
        for (int h = 0; h < m.heads; h++) {
          float step = softplus(up(projected[t * token + inner + channels + h]) + m.dt_bias[h]);
          dt[t * m.heads + h] = t < bounded && step < least ? float(least) : step;
        }
    }
#pragma omp for collapse(2) schedule(static)
    for (int64_t chunk = 0; chunk < chunks; chunk++)
      for (int64_t group = 0; group < m.groups; group++) {
        const int64_t first = chunk * CHUNK;
        const int length = tokens - first < CHUNK ? tokens - first : CHUNK, size = m.size;
        const float* b = mixed + first * channels + inner + group * size;
        float* transposed = scratch(0, size_t(size) * CHUNK);
        for (int n = 0; n < size; n++)
          for (int u = 0; u < CHUNK; u++)
            transposed[n * CHUNK + u] = u < length ? b[u * channels + n] : 0.0f;
        multiply(length, size, CHUNK, b + m.groups * size, channels, 1, transposed, CHUNK,
                 scores + (chunk * m.groups + group) * CHUNK * CHUNK, CHUNK, false);
      }
#pragma omp for schedule(dynamic)
    for (int64_t head = 0; head < m.heads; head++)
      scan_head(m, head, tokens, mixed, channels, dt, scores, state + head * m.head_dim * m.size, y);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t group = 0; group < m.groups; group++) {
        const int64_t wide = inner / m.groups, at = group * wide;
        gated_norm(y + t * inner + at, projected + t * token + at,
                   static_cast<const T*>(m.norm) + at, static_cast<T*>(out) + t * inner + at,
                   int(wide), float(m.eps));
      }
  }
  // The last inputs, oldest first, are the history of the tokens that follow.
  for (int64_t i = 0; i < channels; i++)
    for (int64_t k = 0; k < kept; k++) {
      const int64_t from = tokens - kept + k;
      history[i * kept + k] =
          from < 0 ? history[i * kept + k + tokens] : projected[from * token + inner + i];
    }
}

extern "C" {
void mamba_windows_float32(const Mamba* m, const Slots* slots, int64_t layer, int64_t rows,
                           int64_t width, const int64_t* slot, const int64_t* pending,
                           const void* projected, void* out) {
  windows<float>(*m, *slots, layer, rows, width, slot, pending, projected, out);
}
void mamba_windows_bfloat16(const Mamba* m, const Slots* slots, int64_t layer, int64_t rows,
                            int64_t width, const int64_t* slot, const int64_t* pending,
                            const void* projected, void* out) {
  windows<bf16>(*m, *slots, layer, rows, width, slot, pending, projected, out);
}
void mamba_sequence_float32(const Mamba* m, int64_t tokens, int64_t bounded, double least,
                            void* history, float* state, const void* projected, float* mixed,
                            float* dt, float* scores, float* y, void* out) {
  sequence<float>(*m, tokens, bounded, least, history, state, projected, mixed, dt, scores, y, out);
}
void mamba_sequence_bfloat16(const Mamba* m, int64_t tokens, int64_t bounded, double least,
                             void* history, float* state, const void* projected, float* mixed,
                             float* dt, float* scores, float* y, void* out) {
  sequence<bf16>(*m, tokens, bounded, least, history, state, projected, mixed, dt, scores, y, out);
}
}
