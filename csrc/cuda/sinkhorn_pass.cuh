// sinkhorn_pass for 16-bit and float log_p in one read: a team of threads shares a row. Each thread
// keeps fixed columns: their sums over all its rows stay in registers, or in shared memory where
// they are many. Free of torch.
//
// Rows of more than 8,192 columns, up to 131,072, are shared by the blocks of a cluster. GPUs
// without clusters read such rows twice (sinkhorn_pass_general.cuh), and those with some 100 KB of
// shared memory a block already rows above 4,096; all do above 131,072. A block takes up to 7
// candidates of up to 2,048 columns; a cluster, of up to 16,384. Wider rows, and an eighth
// candidate, are other blocks' at the same time: they find in the L2 cache what the first has read,
// so memory is read once as long as they keep pace. One cluster has no room for them: a candidate
// takes 12 bytes a column of registers and shared memory.
#pragma once

#include "sinkhorn_pass_thread.cuh"

namespace selavi::cuda {

template <typename Storage, typename S>
__global__ void __launch_bounds__(S::kThreads, S::kMinBlocks)
    pass_kernel(PassArguments<Storage> arguments, PassPartials<float> partials) {
  const Matrices<Storage>& log_p = arguments.log_p;
  const PassBlock<S> block(arguments, partials);
  const double* const weights = arguments.row_marginal + block.problem * log_p.rows;
  const int count =
      gather_rows<S>(weights + block.first_row, block.rows, block.weight, block.row, block.counts);
  if (threadIdx.x == 0 && block.rank == 0) partials.rows[block.task] = count;
  if (count == 0) return;

  PassThread<Storage, S> thread(arguments, block, count);
  thread.load_potentials();
  if (thread.tried == 0) return;
  __syncthreads();
  if (S::kWide) cluster_sync();  // all blocks of the cluster have begun

  Batch<Storage, S> next;
  thread.load_rows(0, &next);
  const int steps = thread.steps();
  for (int step = 0; step < steps; ++step) {
    const Batch<float, S> batch = next.in_float();
    if (step + 1 < steps) thread.load_rows(step + 1, &next);
    thread.add_batch(step, batch);
  }
  thread.take_logarithms();

  // The batches that are too far from 0 for float, in double.
  __syncthreads();
  for (int at = 0; __syncthreads_or(at < thread.far_count); ++at) {
    thread.add_far_batch(at < thread.far_count ? thread.far_batches[at] : 0);
  }

#pragma unroll
  for (int s = 0; s < S::kCandidates; ++s) {
    if (thread.tried >> s & 1) thread.merge(s, partials);
  }
  if (S::kWide) cluster_sync();  // none leaves while another writes to it
}

}  // namespace selavi::cuda
