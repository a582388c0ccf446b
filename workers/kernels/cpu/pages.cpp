// Where the new tokens of windows live in block-paged KV, and storing them there.
#include "kernels.h"

extern "C" {
// For each of rows windows of `width` tokens after `context` stored ones the block and the offset of
// each new token (block -1: it has no place), a table of blocks to read, and how many stored tokens
// each query sees. With `counts`, the one query of a row is its token counts - 1; `columns` blocks
// are read. Follows no block that is foreign or not yet written, not even to mask it out.
void plan_pages_float32(const int64_t* block_tables, int64_t rows, int64_t most, int64_t columns,
                        int64_t block_tokens, const int64_t* context, int64_t width,
                        const int64_t* counts, int64_t* blocks, int64_t* offsets, int64_t* tables,
                        int64_t* visible) {
  for (int64_t row = 0; row < rows; row++) {
    const int64_t* own = block_tables + row * most;
    for (int64_t j = 0; j < width; j++) {
      const int64_t position = context[row] + j, number = position / block_tokens;
      blocks[row * width + j] = number < most ? own[number] : -1;
      offsets[row * width + j] = position % block_tokens;
    }
    int64_t last;
    if (counts) {
      last = context[row] + counts[row] - 1;
      visible[row] = last + 1;
    } else {
      last = context[row] + width - 1;
      for (int64_t j = 0; j < width; j++) visible[row * width + j] = context[row] + j + 1;
    }
    for (int64_t i = 0; i < columns; i++) {
      const bool usable = i < most && i <= last / block_tokens && own[i] >= 0;
      tables[row * columns + i] = usable ? own[i] : own[0];
    }
  }
}

// Zero the blocks that a new token is the first of; a block has `bytes` bytes.
void open_pages_float32(int64_t tokens, const int64_t* blocks, const int64_t* offsets, char* memory,
                        int64_t bytes) {
  for (int64_t i = 0; i < tokens; i++)
    if (blocks[i] >= 0 && offsets[i] == 0) memset(memory + blocks[i] * bytes, 0, bytes);
}

// Store keys and values [tokens, 2, kv_heads, head_bytes], tokens `given_bytes` apart, in one layer
// of the KV tensor [blocks, 2, kv_heads, block_tokens, head_bytes], of which the first three are
// `block_bytes`, `plane_bytes` and `lane_bytes` apart.
void write_pages_float32(int64_t tokens, int64_t heads, int64_t head_bytes, const int64_t* blocks,
                         const int64_t* offsets, const char* given, int64_t given_bytes,
                         char* planes, int64_t block_bytes, int64_t plane_bytes,
                         int64_t lane_bytes) {
  for (int64_t i = 0; i < tokens; i++) {
    if (blocks[i] < 0) continue;
    char* to = planes + blocks[i] * block_bytes + offsets[i] * head_bytes;
    const char* from = given + i * given_bytes;
    for (int64_t plane = 0; plane < 2; plane++)
      for (int64_t head = 0; head < heads; head++, from += head_bytes)
        memcpy(to + plane * plane_bytes + head * lane_bytes, from, head_bytes);
  }
}
}
