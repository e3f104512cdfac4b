// The emulator itself, on kernels whose results are known: each writes its verdict to out (4,).
#include "../../csrc/cuda/launcher.h"

namespace selavi::cuda {
namespace {

// Sums over lanes, a block and a cluster of two blocks by its peers' shared memory.
__global__ void sums(double* out) {
  auto* shared = shared_memory<double>();
  const int thread = static_cast<int>(threadIdx.x);
  const double lanes = lanes_sum(static_cast<double>(thread + 1));
  if (thread % kWarp == 0) shared[thread / kWarp] = lanes;
  __syncthreads();
  if (thread == 0) shared[4] = shared[0] + shared[1] + 1000.0 * cluster_rank();
  cluster_sync();
  if (thread == 0 && cluster_rank() == 0) {
    out[0] = lanes;
    out[1] = *in_cluster_block(shared + 4, 0) + *in_cluster_block(shared + 4, 1);
    out[2] = shared[5];
  }
  cluster_sync();
}

__global__ void all_blocks(double* memory, double* out) {
  const int block = static_cast<int>(blockIdx.x);
  if (threadIdx.x == 0) memory[block] = block + 1;
  grid_sync();
  if (threadIdx.x == 0 && block == 0) {
    out[3] = 0.0;
    for (unsigned j = 0; j < gridDim.x; ++j) out[3] += memory[j];
  }
}

__global__ void deadlock() {
  if (threadIdx.x < 32) __syncthreads();
}

__global__ void divergence() {
  if (threadIdx.x < 16) {
    __syncwarp();
  } else {
    lanes_sum(1);
  }
}

__global__ void overflow() { shared_memory<double>()[threadIdx.x] = 1.0; }

Tensor check_emulator(const Tensor& like, int64_t mistake) {
  Launcher launcher(like);
  Tensor out = torch::stable::new_empty(like, {4}, ScalarType::Double);
  launcher.launch("sums", {dim3(2), 64, 6 * sizeof(double), 2}, sums, mutable_doubles(out));
  launcher.launch("all_blocks", {dim3(5), 64, 0, 1, true}, all_blocks, launcher.allocate<double>(5),
                  mutable_doubles(out));
  if (mistake == 1) launcher.launch("deadlock", {dim3(1), 64}, deadlock);
  if (mistake == 2) launcher.launch("divergence", {dim3(1), 32}, divergence);
  if (mistake == 3) launcher.launch("overflow", {dim3(1), 64, 62 * sizeof(double)}, overflow);
  return out;
}

}  // namespace
}  // namespace selavi::cuda

SELAVI_CUDA_LIBRARY(m) { m.impl("check_emulator", TORCH_BOX(&selavi::cuda::check_emulator)); }
