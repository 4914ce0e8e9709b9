// The gradients of embed's tables: for each row, the sum of ds over the tokens that read it, without
// atomics. The tokens come sorted by row. A warp sums kTokensPerChunk of them row by row; a row whose
// tokens reach over the end of a chunk leaves a partial sum in each chunk, and a second kernel adds
// these up. So the work is the same for rows that many tokens read and for others, and grows with the
// number of tokens alone.
#include "cuda/common/launch.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/embed.h"

namespace sbrrt::cuda {
namespace {

constexpr int kChunk = kTokensPerChunk;
static_assert(kChunk == kWarpSize, "a lane looks up one token");
constexpr int kSumWarps = 4;   // each with a chunk and a strip of its own
constexpr int kJoinWarps = 8;  // that share the chunks of a row
constexpr int kRowsAtOnce = 4;  // of floats, so that loads do not wait for each other

// A table's tokens in the order of their rows. The host cannot see the values: whatever they are, no
// memory is touched that is not the op's.
struct SortedTokens {
  TableGradient table;
  int64_t num_tokens;

  __device__ int64_t token(int64_t place) const {
    return clamped(table.order[place], 0, num_tokens - 1);
  }
  // -1 before the first token, num_rows behind the last one, and for rows that the table lacks.
  __device__ int64_t row(int64_t place) const {
    if (place < 0) return -1;
    if (place >= num_tokens) return table.num_rows;
    return clamped(table.indices[token(place)], -1, table.num_rows);
  }
  __device__ bool has(int64_t row) const { return row >= 0 && row < table.num_rows; }
  __device__ static int64_t clamped(int64_t x, int64_t low, int64_t high) {
    return x < low ? low : x > high ? high : x;
  }
};

__host__ __device__ inline int64_t num_strips(int width, int n) {
  return ceil_div(width, kWarpSize * n);
}

// A chunk of a table's tokens and a strip of kWarpSize * N columns.
struct Task {
  TableGradient table;  // its `out` is null where there is no task of that number
  int table_number;
  int64_t chunk;
  int strip;
};

template <int N>
__device__ inline Task task_of(const EmbedTablesParams& p, int64_t number) {
  const int64_t strips = num_strips(p.width, N), num_chunks = num_token_chunks(p.num_tokens);
  int64_t chunk = number / strips;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    if (p.tables[i].out == nullptr) continue;
    if (chunk < num_chunks) return {p.tables[i], i, chunk, static_cast<int>(number % strips)};
    chunk -= num_chunks;
  }
  return {};
}

// The partial sum of a chunk's first row, or of its last one: [width].
__device__ inline float* partial_of(const EmbedTablesParams& p, const Task& task, int64_t chunk,
                                    bool is_last) {
  const int64_t place = task.table_number * num_token_chunks(p.num_tokens) + chunk;
  return p.partial + (2 * place + (is_last ? 1 : 0)) * p.width;
}

// The sum of ds [.., width] over the tokens that lanes begin ... end - 1 hold, in that order.
template <int N>
__device__ inline void sum_tokens(const float* ds, int64_t width, bool is_column, int64_t token,
                                  int begin, int end, float (&sums)[N]) {
  for (int first = begin; first < end; first += kRowsAtOnce) {
    float rows[kRowsAtOnce][N] = {};
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      const int64_t from = __shfl_sync(kFullMask, token, (first + i) % kWarpSize);
      if (is_column && first + i < end) load_floats(ds + from * width, rows[i]);
    }
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
#pragma unroll
      for (int j = 0; j < N; ++j) sums[j] += rows[i][j];
    }
  }
}

// Zeros in the table's rows between two, where the launcher does not fill in all of them.
template <typename T, int N>
__device__ inline void clear_between(T* out, int64_t width, int64_t low, int64_t high) {
  const float zeros[N] = {};
  for (int64_t row = low + 1; row < high; ++row) store_floats(out + row * width, zeros);
}

template <typename T, int N>
__global__ void __launch_bounds__(kSumWarps* kWarpSize)
    embed_tables_kernel(const __grid_constant__ EmbedTablesParams p) {
  await_previous_kernel();
  const Task task = task_of<N>(p, int64_t{blockIdx.x} * kSumWarps + warp_index());
  if (task.table.out == nullptr) return;
  const SortedTokens tokens{task.table, p.num_tokens};
  const int64_t first = task.chunk * kChunk, place = first + lane_index();
  const int count = static_cast<int>(first + kChunk < p.num_tokens ? kChunk : p.num_tokens - first);
  const int64_t token = place < p.num_tokens ? tokens.token(place) : 0;
  const int64_t row = tokens.row(place), before = tokens.row(place - 1);
  const unsigned starts = __ballot_sync(kFullMask, row != before);
  const int64_t next_row = tokens.row(first + count);
  const bool clears = !needs_zeros(p.num_tokens, tokens.table.num_rows);
  const int column = (task.strip * kWarpSize + lane_index()) * N;
  const bool is_column = column < p.width;
  T* out = static_cast<T*>(tokens.table.out) + column;
  for (int begin = 0, end = 0; begin < count; begin = end) {
    const unsigned later = starts & ~((2u << begin) - 1);
    end = later == 0 ? count : min(__ffs(static_cast<int>(later)) - 1, count);
    const int64_t own = __shfl_sync(kFullMask, row, begin);
    const int64_t previous = __shfl_sync(kFullMask, before, begin);
    float sums[N] = {};
    if (tokens.has(own)) sum_tokens(p.ds + column, p.width, is_column, token, begin, end, sums);
    if (!is_column) continue;
    if (clears) clear_between<T, N>(out, p.width, previous, own);
    if (!tokens.has(own)) continue;
    const bool is_begun_here = starts >> begin & 1, is_whole = end < count || next_row != own;
    if (is_begun_here && is_whole) {
      store_floats(out + own * p.width, sums);
    } else {
      store_floats(partial_of(p, task, task.chunk, is_begun_here) + column, sums);
    }
  }
  if (!clears || !is_column || first + count < p.num_tokens) return;
  clear_between<T, N>(out, p.width, tokens.row(p.num_tokens - 1), tokens.table.num_rows);
}

// How many chunks behind this one begin with the row.
__device__ inline int64_t num_continued(const SortedTokens& tokens, int64_t chunk, int64_t row) {
  int64_t count = 0;
  for (unsigned same = kFullMask; same == kFullMask; count += __popc(same)) {
    const int64_t place = (chunk + 1 + count + lane_index()) * kChunk;
    same = __ballot_sync(kFullMask, tokens.row(place) == row);
  }
  return count;
}

// A block for each chunk whose last row begins there and goes on in the next one.
template <typename T, int N>
__global__ void __launch_bounds__(kJoinWarps* kWarpSize)
    embed_join_kernel(const __grid_constant__ EmbedTablesParams p) {
  await_previous_kernel();
  SBRRT_SHARED(float, shared, [1 + kJoinWarps][kWarpSize * N]);
  const Task task = task_of<N>(p, blockIdx.x);
  const SortedTokens tokens{task.table, p.num_tokens};
  const int64_t first = task.chunk * kChunk, row = tokens.row(first + kChunk - 1);
  if (!tokens.has(row) || tokens.row(first + kChunk) != row || tokens.row(first - 1) == row) return;
  const int64_t count = num_continued(tokens, task.chunk, row);
  const int start = task.strip * kWarpSize * N, column = start + lane_index() * N;
  float sums[N] = {}, own[N] = {};
  for (int64_t chunk = warp_index(); column < p.width && chunk < count;
       chunk += kJoinWarps * kRowsAtOnce) {
    float rows[kRowsAtOnce][N] = {};
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      const int64_t other = chunk + i * kJoinWarps;
      if (other >= count) continue;
      load_floats(partial_of(p, task, task.chunk + 1 + other, false) + column, rows[i]);
    }
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
#pragma unroll
      for (int j = 0; j < N; ++j) sums[j] += rows[i][j];
    }
  }
  store_floats(shared[1 + warp_index()] + lane_index() * N, sums);
  if (warp_index() == 0) {
    if (column < p.width) load_floats(partial_of(p, task, task.chunk, true) + column, own);
    store_floats(shared[0] + lane_index() * N, own);
  }
  T* out = static_cast<T*>(tokens.table.out) + row * p.width + start;
  for_each_column_sum<1 + kJoinWarps>(
      shared[0], kWarpSize * N, min(kWarpSize * N, p.width - start),
      [&](int j, float sum) { out[j] = from_float<T>(sum); });
}

int64_t num_tables(const EmbedTablesParams& p) {
  int64_t count = 0;
  for (const TableGradient& table : p.tables) count += table.out != nullptr;
  return count;
}

template <typename T, int N>
cudaError_t launch_tables(const EmbedTablesParams& p, cudaStream_t stream) {
  const int64_t num_chunks = num_token_chunks(p.num_tokens);
  const int64_t num_tasks = num_tables(p) * num_chunks * num_strips(p.width, N);
  const dim3 sums(static_cast<unsigned>(ceil_div(num_tasks, kSumWarps)));
  const dim3 joins(num_chunks > 1 ? static_cast<unsigned>(num_tasks) : 0);
  const cudaError_t error =
      launch<embed_tables_kernel<T, N>>(sums, dim3(kSumWarps * kWarpSize), 0, stream, p);
  if (error != cudaSuccess) return error;
  return launch<embed_join_kernel<T, N>>(joins, dim3(kJoinWarps * kWarpSize), 0, stream, p);
}

}  // namespace

cudaError_t embed_tables(const EmbedTablesParams& p, cudaStream_t stream) {
  const bool is_vector = p.width % 4 == 0 && all_aligned({p.ds, p.partial});
  return with_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return is_vector ? launch_tables<T, 4>(p, stream) : launch_tables<T, 1>(p, stream);
  });
}

}  // namespace sbrrt::cuda
