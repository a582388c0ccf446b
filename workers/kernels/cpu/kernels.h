// What kernels are called with, from Python and by one another (step.cpp calls all of them).
#pragma once
#include "vector.h"

struct Mamba {
  const void* taps;       // [kernel, channels]
  const void* conv_bias;  // [channels] or null
  const void* norm;       // [inner]
  const float* rate;      // [heads]: A
  const float* skip;      // [heads]: D
  const float* dt_bias;   // [heads]
  int64_t heads, head_dim, groups, size, kernel;
  double eps;
};

// Where the state of the slots is; strides in elements. One layer is `layer` strides in.
struct Slots {
  void* conv;  // [slots, layers, channels, kernel - 1]
  float* ssm;  // [slots, layers, heads, head_dim, size]
  void* inputs;  // [slots, layers, W, channels]
  float* steps;  // [slots, layers, W, heads]
  int64_t conv_slot, conv_layer, ssm_slot, ssm_layer;
  int64_t inputs_slot, inputs_layer, steps_slot, steps_layer;
};

struct Pages {
  const void* planes;  // [blocks, 2, kv_heads, block_tokens, head_dim], tokens side by side
  const int64_t* tables;   // [rows, columns]
  const int64_t* visible;  // [rows, queries]
  int64_t columns, kv_heads, block_tokens, head_dim;
  int64_t block, plane, head;  // elements from one to the next
};

#define KERNELS(NAME)                                                                            \
  void add_norm_##NAME(int64_t rows, int64_t size, void* x, const void* added,                  \
                       const void* weight, double eps, void* out);                              \
  void attend_pages_##NAME(const Pages* pages, int64_t rows, int64_t queries, int64_t heads,    \
                           const void* q, int64_t q_row, int64_t q_token, void* out);           \
  void experts_##NAME(int64_t tokens, int64_t chosen, int64_t narrow, int64_t hidden,           \
                      const void* x, const int64_t* indices, const float* weights,              \
                      const void* up, const void* down, float* parts, void* out);               \
  void experts_in_panels_##NAME(int64_t tokens, int64_t chosen, int64_t narrow, int64_t hidden, \
                                int64_t count, const void* x, const int64_t* indices,           \
                                const float* weights, const void* up, const void* down,         \
                                float* parts, void* out);                                       \
  void linear_##NAME(int64_t rows, int64_t steps, int64_t count, const void* x, const void* w,  \
                     const void* bias, int64_t relu2, void* out);                               \
  void mamba_windows_##NAME(const Mamba* m, const Slots* slots, int64_t layer, int64_t rows,    \
                            int64_t width, const int64_t* slot, const int64_t* pending,         \
                            const void* projected, void* out);

extern "C" {
KERNELS(float32)
KERNELS(bfloat16)
void open_pages_float32(int64_t tokens, const int64_t* blocks, const int64_t* offsets, char* memory,
                        int64_t bytes);
void plan_pages_float32(const int64_t* block_tables, int64_t rows, int64_t most, int64_t columns,
                        int64_t block_tokens, const int64_t* context, int64_t width,
                        const int64_t* counts, int64_t* blocks, int64_t* offsets, int64_t* tables,
                        int64_t* visible);
void route_float32(int64_t tokens, int64_t count, int64_t chosen, const float* logits,
                   const float* bias, int64_t normalised, double scaling, int64_t* indices,
                   float* weights);
void write_pages_float32(int64_t tokens, int64_t heads, int64_t head_bytes, const int64_t* blocks,
                         const int64_t* offsets, const char* given, int64_t given_bytes,
                         char* planes, int64_t block_bytes, int64_t plane_bytes,
                         int64_t lane_bytes);
}
#undef KERNELS
