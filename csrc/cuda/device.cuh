// What kernels use beyond plain CUDA, under nvcc and in the tests' CPU emulator. Free of torch.
//
// Shared memory is dynamic throughout: shared_memory<T>() is where a block's begins.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../include/half_precision.h"

#ifdef __CUDACC__
#include <cooperative_groups.h>
#else
#include "emulator.h"
#endif

namespace selavi::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr double kLog2 = 0.693147180559945309417;
constexpr double kLog2E = 1.44269504088896340736;

// The type a storage type is computed in.
template <typename Storage>
using Compute = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

#ifdef __CUDACC__

template <typename T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}

// 2^x and log2 x to about 2^-22; 2^x is 0 below -126.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float to_float(Float16 value) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(value.bits));
  return x;
}
__device__ __forceinline__ float to_float(BFloat16 value) {
  return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}
__device__ __forceinline__ void round_to(float value, Float16* out) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out->bits) : "f"(value));
}
__device__ __forceinline__ void round_to(float value, BFloat16* out) {
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out->bits) : "f"(value));
}

// Reads of what the kernel does not write.
__device__ __forceinline__ float load(const float* source) { return __ldg(source); }
__device__ __forceinline__ double load(const double* source) { return __ldg(source); }
template <typename Half>
__device__ __forceinline__ Half load(const Half* source) {
  return {__ldg(&source->bits)};
}
// What has been read from memory is read again rather than kept in registers.
__device__ __forceinline__ void forget_loads() { asm volatile("" ::: "memory"); }

// Asks for what is read soon, as far as the L2 cache.
__device__ __forceinline__ void prefetch(const void* source) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(source));
}
// Reads that are not needed again soon leave the caches first.
__device__ __forceinline__ float load_streaming(const float* source) { return __ldcs(source); }
__device__ __forceinline__ double load_streaming(const double* source) { return __ldcs(source); }
template <typename Half>
__device__ __forceinline__ Half load_streaming(const Half* source) {
  return {__ldcs(&source->bits)};
}

// Barrier `id` (1 to 15) of `threads` threads of the block, whole warps.
__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Clusters: blocks that run at the same time and reach each other's shared memory. Before sm_90 a
// cluster is one block.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ int cluster_rank() {
  return static_cast<int>(cooperative_groups::this_cluster().block_rank());
}
__device__ __forceinline__ int cluster_blocks() {
  return static_cast<int>(cooperative_groups::this_cluster().num_blocks());
}
__device__ __forceinline__ void cluster_sync() { cooperative_groups::this_cluster().sync(); }
template <typename T>
__device__ __forceinline__ T* in_cluster_block(T* own, int rank) {
  return cooperative_groups::this_cluster().map_shared_rank(own, rank);
}
#else
__device__ __forceinline__ int cluster_rank() { return 0; }
__device__ __forceinline__ int cluster_blocks() { return 1; }
__device__ __forceinline__ void cluster_sync() { __syncthreads(); }
template <typename T>
__device__ __forceinline__ T* in_cluster_block(T* own, int) {
  return own;
}
#endif

// All blocks of a cooperative launch.
__device__ __forceinline__ void grid_sync() { cooperative_groups::this_grid().sync(); }

#else  // the emulator

template <typename T>
T* shared_memory() {
  return reinterpret_cast<T*>(emulator::current()->block->shared->data());
}

// With the error of the instruction, so that a result that needs more shows.
inline float exp2_fast(float x) {
  const float y = static_cast<float>(std::exp2(static_cast<double>(x)) * (1 + 0x1p-23));
  return y < 0x1p-126f ? 0.0f : y;
}
inline float log2_fast(float x) {
  return static_cast<float>(std::log2(static_cast<double>(x)) + 0x1p-23);
}
inline float reciprocal_fast(float x) { return 1.0f / x; }

inline float to_float(Float16 value) { return widen(value); }
inline float to_float(BFloat16 value) { return widen(value); }
template <typename Half>
void round_half(float value, Half* out) {
  narrow(std::fabs(value), out);
  if (std::signbit(value)) out->bits |= 0x8000u;
}
inline void round_to(float value, Float16* out) { round_half(value, out); }
inline void round_to(float value, BFloat16* out) { round_half(value, out); }

inline void forget_loads() {}
inline void prefetch(const void*) {}
template <typename Storage>
Storage load(const Storage* source) {
  return *source;
}
template <typename Storage>
Storage load_streaming(const Storage* source) {
  return *source;
}

inline void named_sync(int id, int threads) { emulator::named_wait(id, threads); }

inline int cluster_rank() { return emulator::current()->block->rank; }
inline int cluster_blocks() { return emulator::current()->group->cluster; }
inline void cluster_sync() { emulator::wait(emulator::cluster_barrier()); }
template <typename T>
T* in_cluster_block(T* own, int rank) {
  return emulator::in_block(own, rank);
}
inline void grid_sync() {
  if (!emulator::current()->group->cooperative)
    emulator::fail("grid_sync needs a cooperative launch");
  emulator::wait(emulator::current()->group->grid_barrier);
}

#endif

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ double to_double(double value) { return value; }
template <typename Storage>
__device__ __forceinline__ double to_double(Storage value) {
  return to_float(value);
}
// A stored number in the type we compute in.
__device__ __forceinline__ double to_compute(double value) { return value; }
template <typename Storage>
__device__ __forceinline__ float to_compute(Storage value) {
  return to_float(value);
}

__device__ __forceinline__ void round_to(float value, float* out) { *out = value; }
__device__ __forceinline__ void round_to(double value, double* out) { *out = value; }
template <typename Storage>
__device__ __forceinline__ void round_to(double value, Storage* out) {
  round_to(static_cast<float>(value), out);
}

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

// Over `kLanes` neighbouring lanes (a power of two); every lane has the result.
template <int kLanes = kWarp, typename Number>
__device__ __forceinline__ Number lanes_sum(Number value) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

// NaN is passed over.
template <int kLanes = kWarp>
__device__ __forceinline__ double lanes_max(double value) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    value = fmax(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}
template <int kLanes = kWarp>
__device__ __forceinline__ float lanes_max(float value) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

template <int kLanes = kWarp>
__device__ __forceinline__ int lanes_max(int value) {
  if constexpr (kLanes == kWarp) {
    return __reduce_max_sync(kAllLanes, value);
  } else {
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      value = max(value, __shfl_xor_sync(kAllLanes, value, distance));
    }
    return value;
  }
}

// lam p + v, rounded twice as the definition rounds it: labels depend on it.
__device__ __forceinline__ double scaled(double lam, double p, double v) {
  return __dadd_rn(__dmul_rn(lam, p), v);
}

}  // namespace selavi::cuda
