// The gradients of embed's tables: for each row, the sum of ds over the tokens that read it, in the
// tokens' order and without atomics. A table of at most num_tokens rows has a block of threads per row;
// a larger one a block per token, of which the first token of a row does the work.
#include "cuda/common/launch.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/embed.h"

namespace sbrrt::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kRowsAtOnce = 4;  // of ds, so that loads do not wait for each other

// Whether one of the tokens 0 ... end - 1 has this index.
__device__ inline bool is_read_before(const int64_t* indices, int64_t end, int64_t index,
                                      float* shared) {
  float found = 0.0f;
  for (int64_t i = threadIdx.x; i < end; i += kThreads) found += indices[i] == index ? 1.0f : 0.0f;
  return block_max<kWarps>(found, shared) > 0.0f;
}

// Adds the rows of ds that `matches` names, bit i for token first + i, in that order.
template <int N>
__device__ inline void add_rows(const float* ds, int64_t width, int64_t first, unsigned matches,
                                float (&sums)[N]) {
  while (matches != 0) {
    float rows[kRowsAtOnce][N] = {};
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      if (matches == 0) continue;
      load_floats(ds + (first + __ffs(static_cast<int>(matches)) - 1) * width, rows[i]);
      matches &= matches - 1;
    }
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
#pragma unroll
      for (int j = 0; j < N; ++j) sums[j] += rows[i][j];
    }
  }
}

// Which row of which table the block has.
struct BlockTask {
  TableGradient table;
  int64_t row, first_token;
  bool is_token;
};

__device__ inline BlockTask task_of(const EmbedTablesParams& p, int64_t block) {
  for (int i = 0; i < 3; ++i) {
    const TableGradient& table = p.tables[i];
    if (table.out == nullptr) continue;
    const bool is_token = needs_zeros(p.num_tokens, table.num_rows);
    const int64_t count = is_token ? p.num_tokens : table.num_rows;
    if (block < count && is_token) return {table, table.indices[block], block, true};
    if (block < count) return {table, block, 0, false};
    block -= count;
  }
  return {};
}

// Blocks of kWarpSize * N columns; each warp adds up its share of every kThreads tokens.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads) embed_tables_kernel(const EmbedTablesParams p) {
  SBRRT_SHARED(float, shared, [kWarps][kWarpSize * N]);
  const BlockTask task = task_of(p, blockIdx.x);
  const int64_t* indices = task.table.indices;
  if (task.is_token) {
    if (task.row < 0 || task.row >= task.table.num_rows) return;
    if (is_read_before(indices, task.first_token, task.row, shared[0])) return;
  }
  const int start = blockIdx.y * kWarpSize * N, column = start + lane_index() * N;
  float sums[N] = {};
  for (int64_t tile = task.first_token; tile < p.num_tokens; tile += kThreads) {
    const int64_t first = tile + warp_index() * kWarpSize, token = first + lane_index();
    const bool is_match = token < p.num_tokens && indices[token] == task.row;
    const unsigned matches = __ballot_sync(kFullMask, is_match);
    if (column < p.width) add_rows(p.ds + column, p.width, first, matches, sums);
  }
  store_floats(shared[warp_index()] + lane_index() * N, sums);
  __syncthreads();
  T* out = static_cast<T*>(task.table.out) + task.row * p.width + start;
  for (int j = threadIdx.x; j < kWarpSize * N && start + j < p.width; j += kThreads) {
    float sum = shared[0][j];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) sum += shared[warp][j];
    out[j] = from_float<T>(sum);
  }
}

int64_t num_blocks(const EmbedTablesParams& p) {
  int64_t count = 0;
  for (const TableGradient& table : p.tables) {
    if (table.out == nullptr) continue;
    count += needs_zeros(p.num_tokens, table.num_rows) ? p.num_tokens : table.num_rows;
  }
  return count;
}

template <typename T, int N>
cudaError_t launch_tables(const EmbedTablesParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(num_blocks(p)),
                  static_cast<unsigned>(ceil_div(p.width, kWarpSize * N)));
  return launch<embed_tables_kernel<T, N>>(grid, dim3(kThreads), 0, stream, p);
}

}  // namespace

cudaError_t embed_tables(const EmbedTablesParams& p, cudaStream_t stream) {
  const bool is_vector = p.width % 4 == 0 && is_aligned(p.ds);
  return with_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return is_vector ? launch_tables<T, 4>(p, stream) : launch_tables<T, 1>(p, stream);
  });
}

}  // namespace sbrrt::cuda
