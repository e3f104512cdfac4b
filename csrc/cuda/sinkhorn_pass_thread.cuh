// What a thread of sinkhorn_pass's kernel holds, and what it does with its columns. Free of torch.
#pragma once

#include "potential.cuh"
#include "sinkhorn_pass_shape.cuh"

namespace selavi::cuda {

template <typename Storage, typename S>
struct PassThread {
  static constexpr int kRows = S::kRows, kColumns = S::kColumns, kCandidates = S::kCandidates;
  static constexpr int kTogether = S::kTogether;
  using Exponentials = float[kRows][kColumns];

  const PassArguments<Storage>& arguments;
  const PassBlock<S>& block;
  const int count;  // the block's rows with weight
  const int thread = static_cast<int>(threadIdx.x);
  const int team = thread / S::kTeam, member = thread % S::kTeam, lane = thread % kWarp;
  const int warp = member / kWarp, team_lane = member % S::kLanes;
  const double lam;
  const Scale scale;
  uint16_t* far_batches;  // of the team: step << 7 | a bit a candidate
  int columns, first_column;
  int mine = 0;              // columns of this thread
  const double* problem_v;   // the first candidate's
  const Storage* problem_p;  // this thread's first column in the block's first row
  unsigned tried = 0;        // a bit a candidate: whether its v is a number
  float quantum[kCandidates];
  float2 held_potential[S::kHoldsPotential ? kColumns : 1];
  float held_mass[kCandidates][S::kHoldsSums ? kColumns : 1];
  double value[kCandidates];
  float kept_sum[kCandidates];  // lane i keeps a row's until its logarithm is due
  float2 kept_weight = make_float2(0.0f, 0.0f);
  int parity = 0;     // of the exchange that is next
  int far_count = 0;  // batches of the team that are to be done in double

  __device__ __forceinline__ PassThread(const PassArguments<Storage>& arguments,
                                        const PassBlock<S>& block, int count)
      : arguments(arguments),
        block(block),
        count(count),
        lam(arguments.lam[block.problem]),
        scale(lam) {
    const Matrices<Storage>& log_p = arguments.log_p;
    // A block holds the columns [rank * slice, rank * slice + slice).
    columns = static_cast<int>(log_p.columns);
    far_batches = block.far + team * block.batches;
    const int slice = (columns + block.cluster - 1) / block.cluster;
    first_column = block.rank * slice + member;
    const int past = min(columns, block.rank * slice + slice);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) mine += first_column + j * S::kTeam < past;
    problem_v = arguments.v + first_pair(block.problem) * log_p.columns;
    problem_p = log_p.data + block.problem * log_p.problem_stride +
                block.first_row * log_p.row_stride + first_column * log_p.column_stride;
#pragma unroll
    for (int s = 0; s < kCandidates; ++s) {
      value[s] = 0.0;
      kept_sum[s] = 1.0f;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) mass(s, j) = 0.0f;
    }
  }

  // Of the block's first candidate among the candidates of all problems, or of all tasks.
  __device__ __forceinline__ int64_t first_pair(int64_t problem_or_task) const {
    return problem_or_task * arguments.candidates + block.first_candidate(arguments.candidates);
  }

  __device__ __forceinline__ int steps() const {
    return (count + S::kTeams * kRows - 1) / (S::kTeams * kRows);
  }

  // Of this thread's column j, for candidate s.
  __device__ __forceinline__ float2 potential(int s, int j) const {
    if constexpr (S::kHoldsPotential) {
      return held_potential[j];
    } else {
      return block.potential[s * S::kWidth + j * S::kTeam + member];
    }
  }
  // Volatile where columns are many, or registers would keep all of them until the exponentials.
  __device__ __forceinline__ float potential_hi(int s, int j) const {
    if constexpr (S::kHoldsPotential || S::kColumns <= 8) {
      return potential(s, j).x;
    } else {
      const volatile float& hi = block.potential[s * S::kWidth + j * S::kTeam + member].x;
      return hi;
    }
  }
  __device__ __forceinline__ float& mass(int s, int j) {
    if constexpr (S::kHoldsSums) {
      return held_mass[s][j];
    } else {
      return block.sums[s * S::kWidth + j * S::kTeam + member];
    }
  }

  __device__ __forceinline__ void load_potentials() {
#pragma unroll
    for (int s = 0; s < kCandidates; ++s) {
      quantum[s] = 1.0f;
      if (s >= arguments.candidates - block.first_candidate(arguments.candidates)) continue;
      const double* const v = problem_v + s * arguments.log_p.columns;
      if (v[0] == v[0]) tried |= 1u << s;
      double largest = 0.0;
      for (int j = 0; j < mine; ++j) {
        const double size = fabs(v[first_column + j * S::kTeam]);
        if (size < infinity()) largest = fmax(largest, size);
      }
      quantum[s] = quantum_of(lanes_max(largest), lam);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const float2 split = j < mine ? split_potential(v[first_column + j * S::kTeam], quantum[s])
                                      : make_float2(-infinity(), 0.0f);
        if constexpr (S::kHoldsPotential) {
          held_potential[j] = split;
        } else if (team == 0) {
          block.potential[s * S::kWidth + j * S::kTeam + member] = split;
        }
      }
    }
  }

  // Where this thread's columns begin in a batch's row r, and the row's weight: 0 past the last.
  __device__ __forceinline__ const Storage* row_at(int step, int r, float2* weight) const {
    const int entry = (step * S::kTeams + team) * kRows + r;
    *weight = entry < count ? block.weight[entry] : make_float2(0.0f, 0.0f);
    return problem_p + block.row[min(entry, count - 1)] * arguments.log_p.row_stride;
  }

  template <typename Stride>
  __device__ __forceinline__ void load_columns(const Storage* row, Stride stride,
                                               Storage (&p)[kColumns]) const {
#pragma unroll
    for (int j = 0; j < kColumns; ++j, row += S::kTeam * stride) {
      p[j] = j < S::kSure || j < mine ? load(row) : Storage{};
    }
  }

  __device__ __forceinline__ void load_rows(int step, Batch<Storage, S>* batch) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const Storage* const row = row_at(step, r, &batch->weight[r]);
      if (arguments.log_p.column_stride == 1) {
        load_columns(row, 1, batch->p[r]);
      } else {
        load_columns(row, arguments.log_p.column_stride, batch->p[r]);
      }
    }
  }

  __device__ __forceinline__ void keep_weights(int step, const float2 (&weight)[kRows]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (team_lane == (step * kRows + r) % S::kLanes) kept_weight = weight[r];
    }
  }

  // Lanes take the logarithms of their rows' sums at the same time.
  __device__ __forceinline__ void take_logarithms() {
    const double weight = static_cast<double>(kept_weight.x) + kept_weight.y;
#pragma unroll
    for (int s = 0; s < kCandidates; ++s) {
      value[s] += weight * log(static_cast<double>(kept_sum[s]));
      kept_sum[s] = 1.0f;
    }
    kept_weight = make_float2(0.0f, 0.0f);
  }

  // Sends this warp's parts to its team. Returns where the team's are.
  template <int kCount>
  __device__ __forceinline__ const Part* send(const Part (&part)[kCount]) {
    if constexpr (S::kWarps == 1) {
      return part;
    } else {
      Part* const own =
          block.exchange + parity * PassLayout<S>::exchanged() + team * kCount * S::kWarps;
      send_parts<S>(own, block.cluster, block.rank, team, warp, lane, part);
      parity ^= 1;
      return own;
    }
  }
  // A batch's sums over the team's warps, of their parts from the first-th on.
  __device__ __forceinline__ void sum(const Part* sent, int first, Part (&whole)[kRows]) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if constexpr (S::kWarps == 1) {
        whole[r] = sent[first + r];
      } else {
        whole[r] = sum_parts<S>(sent, block.cluster, lane, first + r);
      }
    }
  }

  // Adds a batch of rows, given their exponentials and their sums: this warp's part and the whole.
  __device__ __forceinline__ void add_rows(int s, int step, const float2 (&weight)[kRows],
                                           const Exponentials& e, const Part* part,
                                           const Part* whole) {
    float factor[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float inverse = reciprocal_fast(whole[r].sum);
      factor[r] = fmaf(weight[r].y, inverse, weight[r].x * inverse);
      if (S::kWarps > 1) factor[r] *= exp2_fast(static_cast<float>(part[r].shift - whole[r].shift));
      if (team_lane == 0) {
        value[s] += (static_cast<double>(weight[r].x) + weight[r].y) * (whole[r].shift * kLog2);
      }
      if (team_lane == (step * kRows + r) % S::kLanes) kept_sum[s] = whole[r].sum;
    }
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      float sum = factor[0] * e[0][j];
#pragma unroll
      for (int r = 1; r < kRows; ++r) sum = fmaf(factor[r], e[r][j], sum);
      mass(s, j) += sum;
    }
  }

  // A shift for each row. Returns whether all are near enough to 0 for float.
  __device__ __forceinline__ bool near_shifts(int s, const float (&p)[kRows][kColumns],
                                              float (&shift)[kRows]) const {
    float top[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) top[r] = -infinity();
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const float hi = potential_hi(s, j);
#pragma unroll
      for (int r = 0; r < kRows; ++r) top[r] = fmaxf(top[r], fmaf(scale.hi, p[r][j], hi));
    }
    const float per_quantum = __int_as_float((254 << 23) - __float_as_int(quantum[s]));
    bool near = quantum[s] <= kLargestQuantum;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int quanta = lanes_max<S::kLanes>(__float2int_rn(top[r] * per_quantum));
      near &= static_cast<unsigned>(quanta) + kMostQuanta <= 2u * kMostQuanta;
      shift[r] = static_cast<float>(quanta) * quantum[s];
    }
    return S::kLanes < kWarp ? __all_sync(kAllLanes, near) : near;
  }

  // This thread's exponentials of a batch, and the warp's parts: their shift is infinite where the
  // rows cannot be done in float.
  __device__ __forceinline__ void near_rows(int s, const Batch<float, S>& batch, Exponentials& e,
                                            Part* part) const {
    float shift[kRows], sum[kRows];
    const bool near = near_shifts(s, batch.p, shift);
#pragma unroll
    for (int r = 0; r < kRows; ++r) sum[r] = 0.0f;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const float2 split = potential(s, j);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        e[r][j] = exp2_fast(fmaf(scale.hi, batch.p[r][j], split.x - shift[r]) +
                            fmaf(scale.lo, batch.p[r][j], split.y));
        sum[r] += e[r][j];
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sum[r] = lanes_sum<S::kLanes>(sum[r]);
      part[r] = {near ? shift[r] : infinity(), sum[r]};
    }
  }

  // Adds a batch in float for the candidates [first, first + kTogether). Returns a bit for each
  // that a warp of the team could not do.
  __device__ __forceinline__ int add_near(int first, int step, const Batch<float, S>& batch) {
    Exponentials e[kTogether];
    Part part[kTogether * kRows] = {};
    if ((tried >> first & ((1u << kTogether) - 1)) == 0) return 0;
#pragma unroll
    for (int t = 0; t < kTogether; ++t) {
      if (tried >> (first + t) & 1) near_rows(first + t, batch, e[t], part + t * kRows);
    }
    const Part* const sent = send(part);
    int far = 0;
#pragma unroll
    for (int t = 0; t < kTogether; ++t) {
      const int s = first + t;
      if (!(tried >> s & 1)) continue;
      Part whole[kRows];
      sum(sent, t * kRows, whole);
      if (whole[0].shift == infinity()) {
        far |= 1 << s;
      } else {
        add_rows(s, step, batch.weight, e[t], part + t * kRows, whole);
      }
    }
    return far;
  }

  // Adds a batch in float where that can be done, and lists it for add_far_batch where it cannot.
  __device__ __forceinline__ void add_batch(int step, const Batch<float, S>& batch) {
    keep_weights(step, batch.weight);
    int far = 0;  // a bit a candidate
#pragma unroll
    for (int s = 0; s < kCandidates; s += kTogether) far |= add_near(s, step, batch);
    if (far != 0) {
      if (member == 0) far_batches[far_count] = static_cast<uint16_t>(step << 7 | far);
      ++far_count;
    }
    if ((step + 1) * kRows % S::kLanes == 0) take_logarithms();
  }

  // This thread's exponentials of a row, in double up to the exponent, and the warp's part.
  __device__ __forceinline__ Part far_row(int s, const Storage* row, float (&e)[kColumns]) const {
    // Not from problem_v: nvcc would keep a pointer for each candidate, and registers would spill.
    const int64_t pair = first_pair(block.problem) + s;
    const double* const v = arguments.v + pair * arguments.log_p.columns + first_column;
    const auto x = [&](int j) {
      const Storage p = load(row + j * S::kTeam * arguments.log_p.column_stride);
      return scaled(lam, to_float(p), v[j * S::kTeam]);
    };
    double top = -infinity();
#pragma unroll 1
    for (int j = 0; j < mine; ++j) top = fmax(top, x(j));
    top = lanes_max<S::kLanes>(top);
    const double finite_top = top > -infinity() ? top : 0.0;
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      e[j] = j < mine ? exp2_fast(static_cast<float>((x(j) - finite_top) * kLog2E)) : 0.0f;
      sum += e[j];
    }
    return {top * kLog2E, lanes_sum<S::kLanes>(sum)};
  }

  // Adds a batch that add_batch listed, in double; `batch` is 0 where the team has none left.
  __device__ __forceinline__ void add_far_batch(int batch) {
    const int step = batch >> 7;
    float2 weight[kRows];
    const Storage* rows[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) rows[r] = row_at(step, r, &weight[r]);
    keep_weights(step, weight);
#pragma unroll
    for (int s = 0; s < kCandidates; ++s) {
      if (!(batch >> s & 1)) continue;
      Exponentials e;
      Part part[kRows], whole[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) part[r] = far_row(s, rows[r], e[r]);
      sum(send(part), 0, whole);
      add_rows(s, step, weight, e, part, whole);
    }
    take_logarithms();
  }

  // The teams' sums for candidate s, added up in order, become the chunk's partials.
  __device__ __forceinline__ void merge(int s, const PassPartials<float>& partials) {
    auto* const shared = shared_memory<unsigned char>();
    const PassLayout<S> layout(partials.chunk_rows);
    auto* const sums = reinterpret_cast<float*>(shared + layout.merge);
    auto* const warp_values = reinterpret_cast<double*>(shared + layout.value);
    const int64_t at = first_pair(block.task) + s;
    float* const out = partials.mass + at * arguments.log_p.columns;
    const double warp_value = lanes_sum(warp == 0 ? value[s] : 0.0);
    __syncthreads();  // what was there has been read
    if (lane == 0) warp_values[thread / kWarp] = warp_value;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      if (S::kTeams > 1) {
        sums[team * S::kWidth + j * S::kTeam + member] = mass(s, j);
      } else if (j < mine) {
        out[first_column + j * S::kTeam] = mass(s, j);
      }
    }
    __syncthreads();
    if (S::kTeams > 1) {
      for (int k = thread; k < columns; k += S::kThreads) {
        double sum = 0.0;
        for (int t = 0; t < S::kTeams; ++t) sum += sums[t * S::kWidth + k];
        out[k] = static_cast<float>(sum);
      }
    }
    if (thread == 0 && block.rank == 0) {
      double sum = 0.0;
      for (int w = 0; w < S::kBlockWarps; ++w) sum += warp_values[w];
      partials.value[at] = sum;
    }
  }
};

}  // namespace selavi::cuda
