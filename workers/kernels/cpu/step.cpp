// The layers of a model over a window of each request in one call, and its drafts in one: a small
// model's kernels take microseconds each, and so does every call into them from Python.
#include "kernels.h"

struct Product {  // x W^T + bias, as `linear` takes it; without panels there is none
  const void* panels;
  const void* bias;
  int64_t steps, count;
};

enum Kind : int64_t { MAMBA, ATTENTION, EXPERTS, MLP };

struct Layer {
  int64_t kind, index;  // the index among the layers that keep the same state
  const void* norm;
  Product in, out;  // around the mixer; up and down of an MLP or of the shared expert
  const Mamba* mamba;
  Product gate, narrow, widen;  // the router, in float32; into the latent dimension and back
  const float* correction;
  const void* up;    // of the experts, as `experts` takes it, or `experts_in_panels`
  const void* down;
  int64_t in_panels;
};

struct Model {
  const Layer* layers;
  const void* final_norm;
  int64_t count, size, widest;  // layers; hidden size; columns of the widest product
  int64_t heads, kv_heads, head_dim;
  int64_t experts, chosen, latent, hidden, normalised;
  double scaling, eps;
};

struct Drafting {  // what drafting needs beside the layers of its block
  const void* embeddings;  // [vocab, size]
  const void* embedding_norm;
  const void* hidden_norm;
  Product combine, score;
};

// Keys and values [blocks, layers, 2, kv_heads, block_tokens, head_dim]; strides in elements.
struct Paged {
  void* memory;  // null where there are no layers
  int64_t block_tokens, block, layer, plane, head;
};

// Requests of one call. With `counts`, only token counts - 1 of each is wanted.
struct Batch {
  int64_t rows, width, most;
  const int64_t* tables;   // [rows, most]
  const int64_t* context;  // [rows]
  const int64_t* counts;   // [rows] or null
  const int64_t* slots;    // [rows], of Mamba layers
  const int64_t* pending;  // [rows], likewise
};

template <typename T>
struct Kernels;
#define KERNELS(T, NAME)                                  \
  template <>                                             \
  struct Kernels<T> {                                     \
    static constexpr auto add_norm = add_norm_##NAME;     \
    static constexpr auto attend = attend_pages_##NAME;   \
    static constexpr auto experts = experts_##NAME;       \
    static constexpr auto in_panels = experts_in_panels_##NAME; \
    static constexpr auto linear = linear_##NAME;         \
    static constexpr auto windows = mamba_windows_##NAME; \
  };
KERNELS(float, float32)
KERNELS(bf16, bfloat16)

// Places in one piece of memory, one after the other.
class Places {
 public:
  explicit Places(char* memory) : begin_(memory), at_(memory) {}
  template <typename T>
  T* take(int64_t count) {
    T* place = reinterpret_cast<T*>(at_);
    at_ += (count * sizeof(T) + 63) / 64 * 64;
    return place;
  }
  size_t taken() const { return at_ - begin_; }

 private:
  char *begin_, *at_;
};

template <typename T>
struct Buffers {
  T *x, *normed, *mixed, *wide, *inner;  // [tokens, size] three times, [tokens, widest] twice
  float *given, *logits, *scale, *parts;
  int64_t *indices, *blocks, *offsets, *tables, *visible, *context, *counts, *ids;

  Buffers(const Model& m, const Batch& batch, Places& places) {
    const int64_t tokens = batch.rows * batch.width;
    for (T** each : {&x, &normed, &mixed}) *each = places.take<T>(tokens * m.size);
    for (T** each : {&wide, &inner}) *each = places.take<T>(tokens * m.widest);
    given = places.take<float>(tokens * m.size);
    logits = places.take<float>(tokens * m.experts);
    scale = places.take<float>(tokens * m.chosen);
    parts = places.take<float>(tokens * m.chosen * ((m.latent + 63) / 64 * 64));
    indices = places.take<int64_t>(tokens * m.chosen);
    for (int64_t** each : {&blocks, &offsets, &visible}) *each = places.take<int64_t>(tokens);
    tables = places.take<int64_t>(batch.rows * batch.most);
    for (int64_t** each : {&context, &counts, &ids}) *each = places.take<int64_t>(batch.rows);
  }

  // In memory of this thread that stays between calls and grows with the largest.
  static Buffers kept(const Model& m, const Batch& batch) {
    Places measure(nullptr);
    Buffers(m, batch, measure);
    static thread_local std::vector<char> pool;
    if (pool.size() < measure.taken() + 64) pool.resize(measure.taken() + 64);
    Places places(reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(pool.data()) + 63) / 64 * 64));
    return Buffers(m, batch, places);
  }
};

template <typename T>
class Pass {
 public:
  Pass(const Model& model, const Batch& batch, const Slots* slots, const Paged& kv)
      : m_(model), slots_(slots), kv_(kv), batch_(batch), at(Buffers<T>::kept(model, batch)) {}

  // Where this window's tokens live, and blocks that they are the first of zeroed.
  void plan(const Batch& batch, const Paged* other) {
    batch_ = batch;
    int64_t furthest = 0;
    for (int64_t row = 0; row < batch.rows; row++)
      furthest = batch.context[row] > furthest ? batch.context[row] : furthest;
    columns_ = (furthest + batch.width - 1) / kv_.block_tokens + 1;
    columns_ = columns_ < batch.most ? columns_ : batch.most;
    plan_pages_float32(batch.tables, batch.rows, batch.most, columns_, kv_.block_tokens,
                       batch.context, batch.width, batch.counts, at.blocks, at.offsets, at.tables,
                       at.visible);
    for (const Paged* paged : {&kv_, other})
      if (paged && paged->memory)
        open_pages_float32(batch.rows * batch.width, at.blocks, at.offsets,
                           static_cast<char*>(paged->memory), paged->block * sizeof(T));
  }

  // All layers on the residual stream x [rows, width, size], which changes.
  void run(T* x, T* out) {
    int64_t tokens = batch_.rows * batch_.width;
    norm(tokens, x, nullptr, m_.count ? m_.layers[0].norm : m_.final_norm, m_.count ? at.normed : out);
    for (int64_t i = 0; i < m_.count; i++) {
      const Layer& layer = m_.layers[i];
      switch (layer.kind) {
        case MAMBA:
          product(tokens, layer.in, at.normed, at.wide);
          Kernels<T>::windows(layer.mamba, slots_, layer.index, batch_.rows, batch_.width,
                              batch_.slots, batch_.pending, at.wide, at.inner);
          product(tokens, layer.out, at.inner, at.mixed);
          break;
        case ATTENTION:
          attend(layer, tokens);
          if (batch_.counts) {
            keep_last(x, m_.size, m_.size);
            tokens = batch_.rows;
          }
          product(tokens, layer.out, at.inner, at.mixed);
          break;
        case EXPERTS: experts(layer, tokens); break;
        case MLP:
          product(tokens, layer.in, at.normed, at.wide, true);
          product(tokens, layer.out, at.wide, at.mixed);
      }
      const bool last = i + 1 == m_.count;
      norm(tokens, x, at.mixed, last ? m_.final_norm : m_.layers[i + 1].norm, last ? out : at.normed);
    }
  }

  void product(int64_t tokens, const Product& p, const T* x, T* out, bool relu2 = false) {
    Kernels<T>::linear(tokens, p.steps, p.count, x, p.panels, p.bias, relu2, out);
  }

  void norm(int64_t tokens, const T* x, const T* added, const void* weight, T* out) {
    Kernels<T>::add_norm(tokens, m_.size, const_cast<T*>(x), added, weight, m_.eps, out);
  }

 private:
  const Model& m_;
  const Slots* slots_;
  const Paged& kv_;
  Batch batch_;
  int64_t columns_ = 0;

 public:
  const Buffers<T> at;

 private:
  // From [rows, width, from] the wanted token of each request to [rows, to], in place.
  void keep_last(T* x, int64_t from, int64_t to) {
    for (int64_t row = 0; row < batch_.rows; row++)
      memmove(x + row * to, x + (row * batch_.width + batch_.counts[row] - 1) * from,
              to * sizeof(T));
  }

  void attend(const Layer& layer, int64_t tokens) {
    const int64_t query = m_.heads * m_.head_dim, fused = layer.in.count, bytes = sizeof(T);
    product(tokens, layer.in, at.normed, at.wide);
    T* planes = static_cast<T*>(kv_.memory) + layer.index * kv_.layer;
    write_pages_float32(tokens, m_.kv_heads, m_.head_dim * bytes, at.blocks, at.offsets,
                        reinterpret_cast<const char*>(at.wide + query), fused * bytes,
                        reinterpret_cast<char*>(planes), kv_.block * bytes, kv_.plane * bytes,
                        kv_.head * bytes);
    const Pages pages{planes,       at.tables,   at.visible, columns_,  m_.kv_heads, kv_.block_tokens,
                      m_.head_dim, kv_.block, kv_.plane,  kv_.head};
    if (batch_.counts) {
      keep_last(at.wide, fused, query);
      Kernels<T>::attend(&pages, batch_.rows, 1, m_.heads, at.wide, query, query, at.inner);
    } else {
      Kernels<T>::attend(&pages, batch_.rows, batch_.width, m_.heads, at.wide,
                         batch_.width * fused, fused, at.inner);
    }
  }

  void experts(const Layer& layer, int64_t tokens) {
    for (int64_t i = 0; i < tokens * m_.size; i++) at.given[i] = up(at.normed[i]);
    linear_float32(tokens, layer.gate.steps, layer.gate.count, at.given, layer.gate.panels,
                   layer.gate.bias, false, at.logits);
    route_float32(tokens, m_.experts, m_.chosen, at.logits, layer.correction, m_.normalised,
                  m_.scaling, at.indices, at.scale);
    const T* given = at.normed;
    if (layer.narrow.panels) product(tokens, layer.narrow, given, at.wide), given = at.wide;
    T* mixed = layer.widen.panels ? at.inner : at.mixed;
    if (layer.in_panels)
      Kernels<T>::in_panels(tokens, m_.chosen, m_.latent, m_.hidden, m_.experts, given, at.indices,
                            at.scale, layer.up, layer.down, at.parts, mixed);
    else
      Kernels<T>::experts(tokens, m_.chosen, m_.latent, m_.hidden, given, at.indices, at.scale,
                          layer.up, layer.down, at.parts, mixed);
    if (layer.widen.panels) product(tokens, layer.widen, at.inner, at.mixed);
    if (!layer.in.panels) return;
    product(tokens, layer.in, at.normed, at.wide, true);
    product(tokens, layer.out, at.wide, at.inner);
    for (int64_t i = 0; i < tokens * m_.size; i++)
      put(at.mixed + i, up(at.mixed[i]) + up(at.inner[i]));
  }
};

// As `HybridModel.verify`; x [rows, width, size] are the embeddings, and change.
template <typename T>
static void verify(const Model& m, const Batch& batch, const Slots& slots, const Paged& kv,
                   const Paged& draft_kv, void* x, void* out) {
  Pass<T> pass(m, batch, &slots, kv);
  pass.plan(batch, &draft_kv);
  pass.run(static_cast<T*>(x), static_cast<T*>(out));
}

// As `HybridModel.drafts`; embedding and hidden are [rows, width, size], out is [rows, drafts].
template <typename T>
static void drafts(const Model& m, const Drafting& d, Batch batch, const Paged& kv, int64_t drafts,
                   const void* embedding_, const void* hidden_, int64_t* out) {
  Pass<T> pass(m, batch, nullptr, kv);
  const Buffers<T>& at = pass.at;
  const T *embedding = static_cast<const T*>(embedding_), *hidden = static_cast<const T*>(hidden_);
  for (int64_t draft = 0; draft < drafts; draft++) {
    const int64_t tokens = batch.rows * batch.width, bytes = m.size * sizeof(T);
    pass.plan(batch, nullptr);
    pass.norm(tokens, embedding, nullptr, d.embedding_norm, at.normed);
    pass.norm(tokens, hidden, nullptr, d.hidden_norm, at.mixed);
    for (int64_t token = 0; token < tokens; token++) {
      memcpy(at.wide + 2 * token * m.size, at.normed + token * m.size, bytes);
      memcpy(at.wide + (2 * token + 1) * m.size, at.mixed + token * m.size, bytes);
    }
    pass.product(tokens, d.combine, at.wide, at.x);
    pass.run(at.x, at.mixed);
    pass.product(batch.rows, d.score, at.mixed, at.wide);
    for (int64_t row = 0; row < batch.rows; row++) {
      const int64_t best = highest(d.score.count, at.wide + row * d.score.count);
      out[row * drafts + draft] = best;
      memcpy(at.inner + row * m.size, static_cast<const T*>(d.embeddings) + best * m.size, bytes);
      at.context[row] = batch.context[row] + batch.counts[row];
    }
    for (int64_t row = 0; row < batch.rows; row++) at.counts[row] = 1;
    memcpy(at.x, at.mixed, batch.rows * bytes);
    embedding = at.inner, hidden = at.x;
    batch.width = 1, batch.context = at.context, batch.counts = at.counts;
  }
}

#define EXPORT(T, NAME)                                                                         \
  void verify_##NAME(const Model* m, const Batch* batch, const Slots* slots, const Paged* kv,   \
                     const Paged* draft_kv, void* x, void* out) {                               \
    verify<T>(*m, *batch, *slots, *kv, *draft_kv, x, out);                                      \
  }                                                                                             \
  void drafts_##NAME(const Model* m, const Drafting* d, const Batch* batch, const Paged* kv,    \
                     int64_t count, const void* embedding, const void* hidden, int64_t* out) {  \
    drafts<T>(*m, *d, *batch, *kv, count, embedding, hidden, out);                              \
  }

extern "C" {
EXPORT(float, float32)
EXPORT(bf16, bfloat16)
}
