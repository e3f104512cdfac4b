// How sinkhorn_pass's kernel is laid out: threads on rows and columns, shared memory, and what a
// block and a team do together. Free of torch.
#pragma once

#include <algorithm>

#include "pass_partials.cuh"

namespace selavi::cuda {

// A team is kLanes lanes of one warp, or kWarps warps; where kMaxCluster is above 1 it is a block,
// and the blocks of a cluster share a row. A thread keeps kColumns columns, of which kSure exist in
// every thread, and works on kRows rows at a time while the next ones arrive.
template <int kLanes_, int kWarps_, int kColumns_, int kSure_, int kCandidates_, int kRows_,
          int kMaxCluster_ = 1>
struct Shape {
  static constexpr int kLanes = kLanes_, kWarps = kWarps_, kColumns = kColumns_, kSure = kSure_;
  static constexpr int kCandidates = kCandidates_, kRows = kRows_, kMaxCluster = kMaxCluster_;
  static constexpr int kBlockWarps = kWarps > 4 ? kWarps : 4;
  static constexpr int kThreads = kBlockWarps * kWarp;
  static constexpr int kTeam =
      kLanes * kWarps;  // threads; also how far apart a thread's columns are
  static constexpr int kTeams = kThreads / kTeam;
  static constexpr int kWidth = kTeam * kColumns;  // columns of a block
  static constexpr bool kWide = kMaxCluster > 1;
  // Candidates whose sums are exchanged at one barrier: a cluster's takes long.
  static constexpr int kTogether = kWide ? kCandidates : 1;
  static constexpr int kSummed = kLanes < kWarp ? 64 : 128;  // rows that a thread sums in float
  static constexpr int kMaxRows = kTeams * kSummed;
  static constexpr bool kHoldsPotential =
      kCandidates == 1 && kColumns <= 8 && kRows * kColumns <= 24;
  static constexpr bool kHoldsSums = kColumns < 32;  // in registers; else in shared memory
  // About what a thread needs: rows now and next, exponentials, sums, potentials, all else.
  static constexpr int kRegisters = (2 * kRows + (kTogether > 1 ? kTogether * kRows : 0) +
                                     (kHoldsSums ? kCandidates : 0) + (kHoldsPotential ? 2 : 0)) *
                                        kColumns +
                                    5 * kCandidates + 66;
  static constexpr int kMinBlocks = std::max(1, 65536 / (kThreads * kRegisters));

  // Blocks, or clusters, that divide the candidates.
  __host__ __device__ static constexpr unsigned groups(int candidates) {
    return static_cast<unsigned>(candidates + kCandidates - 1) / kCandidates;
  }
};

// A thread's columns of a batch of rows, and the rows' weights as two floats each.
template <typename Number, typename S>
struct Batch {
  Number p[S::kRows][S::kColumns];
  float2 weight[S::kRows];

  __device__ __forceinline__ Batch<float, S> in_float() const {
    Batch<float, S> batch;
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      batch.weight[r] = weight[r];
#pragma unroll
      for (int j = 0; j < S::kColumns; ++j) batch.p[r][j] = to_float(p[r][j]);
    }
    return batch;
  }
};

struct Part {  // of a row's sum: sum * 2^shift
  double shift;
  float sum;
};

// Where things are in shared memory, in bytes.
template <typename S>
struct PassLayout {
  size_t exchange, weight, potential, sums, merge, value, row, far, count, bytes;

  __host__ __device__ explicit PassLayout(int rows) {
    size_t end = 0;
    exchange = take(&end, S::kWarps == 1 ? 0 : 2 * PassLayout::exchanged(), sizeof(Part));
    weight = take(&end, rows, sizeof(float2));
    potential = take(&end, S::kHoldsPotential ? 0 : S::kCandidates * S::kWidth, sizeof(float2));
    sums = take(&end, S::kHoldsSums ? 0 : S::kCandidates * S::kWidth, sizeof(float));
    merge = take(&end, S::kTeams == 1 ? 0 : S::kTeams * S::kWidth, sizeof(float));
    value = take(&end, S::kBlockWarps, sizeof(double));
    row = take(&end, rows, sizeof(uint16_t));
    far = take(&end, rows / S::kRows, sizeof(uint16_t));
    count = take(&end, S::kBlockWarps, sizeof(int));
    bytes = end;
  }

  // Parts that a block receives at a barrier.
  __host__ __device__ static constexpr int exchanged() {
    return S::kTogether * S::kRows * S::kTeams * S::kWarps * S::kMaxCluster;
  }

  __host__ __device__ static size_t take(size_t* end, int count, size_t size) {
    const size_t begin = *end;
    *end = (begin + static_cast<size_t>(count) * size + 15) / 16 * 16;
    return begin;
  }
};

// What a block works on, and where in shared memory; what is only used at the end is left out, for
// registers' sake.
template <typename S>
struct PassBlock {
  int cluster, rank;  // blocks that share a row, and which of them this is
  int64_t task, problem, first_row;
  int rows, batches;           // batches: of a team, at most
  Part* exchange;              // two buffers of send_parts
  float2 *weight, *potential;  // as two floats: of the rows with weight, of this block's columns
  float* sums;                 // a thread's where it holds none
  uint16_t *row, *far;         // the rows with weight; the teams' lists of batches for double
  int* counts;                 // the warps'

  template <typename Storage>
  __device__ __forceinline__ PassBlock(const PassArguments<Storage>& arguments,
                                       const PassPartials<float>& partials)
      : cluster(S::kWide ? cluster_blocks() : 1), rank(S::kWide ? cluster_rank() : 0) {
    const Matrices<Storage>& log_p = arguments.log_p;
    task = blockIdx.x / static_cast<unsigned>(cluster) / S::groups(arguments.candidates);
    problem = task / partials.chunks;
    first_row = task % partials.chunks * partials.chunk_rows;
    const int64_t rows_left = log_p.rows - first_row;
    rows = rows_left < partials.chunk_rows ? static_cast<int>(rows_left) : partials.chunk_rows;
    batches = partials.chunk_rows / (S::kTeams * S::kRows);
    auto* const shared = shared_memory<unsigned char>();
    const PassLayout<S> layout(partials.chunk_rows);
    exchange = reinterpret_cast<Part*>(shared + layout.exchange);
    weight = reinterpret_cast<float2*>(shared + layout.weight);
    potential = reinterpret_cast<float2*>(shared + layout.potential);
    sums = reinterpret_cast<float*>(shared + layout.sums);
    row = reinterpret_cast<uint16_t*>(shared + layout.row);
    far = reinterpret_cast<uint16_t*>(shared + layout.far);
    counts = reinterpret_cast<int*>(shared + layout.count);
  }

  // Of this block, which takes S::kCandidates. Blocks that take others of the same rows are its
  // neighbours in the grid: one finds in the L2 cache what another has read.
  __device__ __forceinline__ int first_candidate(int candidates) const {
    const unsigned index = blockIdx.x / static_cast<unsigned>(cluster);
    return static_cast<int>(index % S::groups(candidates)) * S::kCandidates;
  }
};

// The chunk's rows with weight and their weights, as two floats each. Returns how many.
template <typename S>
__device__ int gather_rows(const double* weights, int rows, float2* weight, uint16_t* row,
                           int* counts) {
  constexpr int kEach = (S::kMaxRows + S::kThreads - 1) / S::kThreads;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  double mine[kEach];
  unsigned ballots[kEach];
  int total = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int i = j * S::kThreads + thread;
    mine[j] = i < rows ? load(weights + i) : 0.0;
  }
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    ballots[j] = __ballot_sync(kAllLanes, mine[j] != 0.0);
    total += __popc(ballots[j]);
  }
  if (lane == 0) counts[warp] = total;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < S::kBlockWarps; ++w) {
    if (w == warp) before = total;
    total += counts[w];
  }
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    if (mine[j] != 0.0) {
      const int at = before + __popc(ballots[j] & ((1u << lane) - 1));
      const float high = static_cast<float>(mine[j]);
      weight[at] = make_float2(high, static_cast<float>(mine[j] - high));
      row[at] = static_cast<uint16_t>(j * S::kThreads + thread);
    }
    before += __popc(ballots[j]);
  }
  __syncthreads();
  return total;
}

// Sends parts of sums to all that share them. One barrier: `own`, of this team, alternates between
// two.
template <typename S, int kCount>
__device__ __forceinline__ void send_parts(Part* own, int cluster, int rank, int team, int warp,
                                           int lane, const Part (&part)[kCount]) {
  const int parts = S::kWide ? cluster * S::kWarps : S::kWarps;
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
    if (S::kWide) {
      if (lane < cluster) {
        in_cluster_block(own, lane)[r * parts + rank * S::kWarps + warp] = part[r];
      }
    } else if (lane == 0) {
      own[r * parts + warp] = part[r];
    }
  }
  if (S::kWide) {
    cluster_sync();
  } else if (S::kTeams > 1) {
    named_sync(1 + team, S::kTeam);
  } else {
    __syncthreads();
  }
}

// The sum of the r-th parts that have been sent.
template <typename S>
__device__ __forceinline__ Part sum_parts(const Part* own, int cluster, int lane, int r) {
  const int parts = S::kWide ? cluster * S::kWarps : S::kWarps;
  constexpr int kGroup = S::kWide ? kWarp : S::kWarps;  // lanes that together read all parts
  double shift = -infinity();
  for (int j = lane % kGroup; j < parts; j += kGroup) shift = fmax(shift, own[r * parts + j].shift);
  shift = lanes_max<kGroup>(shift);
  float sum = 0.0f;
  for (int j = lane % kGroup; j < parts; j += kGroup) {
    const Part other = own[r * parts + j];
    sum += other.sum * exp2_fast(static_cast<float>(other.shift - shift));
  }
  return {shift, lanes_sum<kGroup>(sum)};
}

}  // namespace selavi::cuda
