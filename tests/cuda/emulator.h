// CUDA's names on the CPU, so that g++ compiles and runs the kernels of csrc/cuda: qualifiers,
// types and built-in functions, on the threads of emulated_threads.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulated_threads.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

#define threadIdx (emulator::current()->thread)
#define blockIdx (emulator::current()->block->index)
#define gridDim (emulator::current()->group->grid)
#define blockDim (dim3(static_cast<unsigned>(emulator::current()->group->threads)))

inline void __syncthreads() { emulator::wait(emulator::current()->block->barrier); }

inline int __syncthreads_or(int value) {
  emulator::Block& block = *emulator::current()->block;
  const int phase = block.phase;
  block.any[phase] |= value != 0;
  if (block.barrier.waiting.size() + 1 == block.barrier.expected) {
    block.phase = 1 - phase;
    block.any[1 - phase] = 0;
  }
  __syncthreads();
  return block.any[phase];
}

inline void check_full(unsigned mask) {
  if (mask != 0xffffffffu) emulator::fail("warp operations take all lanes");
}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  check_full(mask);
  emulator::exchange("__syncwarp", 0);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  check_full(mask);
  const int own = emulator::current()->lane;
  const auto slots = emulator::exchange("__shfl_sync", value);
  return emulator::from_lane<T>(slots, own / width * width + lane % width);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int width = 32) {
  check_full(mask);
  const int own = emulator::current()->lane, other = own ^ distance;
  const auto slots = emulator::exchange("__shfl_xor_sync", value);
  return emulator::from_lane<T>(slots, other / width == own / width ? other : own);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  check_full(mask);
  const int own = emulator::current()->lane, other = own + static_cast<int>(distance);
  const auto slots = emulator::exchange("__shfl_down_sync", value);
  return emulator::from_lane<T>(slots, other / width == own / width ? other : own);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  check_full(mask);
  const int own = emulator::current()->lane, other = own - static_cast<int>(distance);
  const auto slots = emulator::exchange("__shfl_up_sync", value);
  return emulator::from_lane<T>(slots, other >= own / width * width ? other : own);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  check_full(mask);
  const auto slots = emulator::exchange("__ballot_sync", predicate);
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (emulator::from_lane<int>(slots, lane) != 0) ballot |= 1u << lane;
  }
  return ballot;
}

inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == ~0u;
}

inline int __reduce_max_sync(unsigned mask, int value) {
  check_full(mask);
  const auto slots = emulator::exchange("__reduce_max_sync", value);
  for (int lane = 0; lane < 32; ++lane)
    value = std::max(value, emulator::from_lane<int>(slots, lane));
  return value;
}

inline void __trap() { emulator::fail("a kernel has trapped"); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T>
T __ldg(const T* pointer) {
  return *pointer;
}
template <typename T>
T __ldcs(const T* pointer) {
  return *pointer;
}
template <typename T>
void __stcs(T* pointer, T value) {
  *pointer = value;
}

// Rounded by itself, never as a part of a fused product.
inline double rounded(double x) {
  asm volatile("" : "+x"(x));
  return x;
}
inline double __dmul_rn(double a, double b) { return rounded(a * b); }
inline double __dadd_rn(double a, double b) { return rounded(a + b); }

inline int __float2int_rn(float x) {
  if (x != x) return 0;
  if (x >= 0x1p31f) return INT32_MAX;
  if (x <= -0x1p31f) return INT32_MIN;
  return static_cast<int>(std::nearbyint(x));
}
inline int __float_as_int(float x) {
  int bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float __int_as_float(int bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline unsigned __float_as_uint(float x) { return static_cast<unsigned>(__float_as_int(x)); }
inline float __uint_as_float(unsigned bits) { return __int_as_float(static_cast<int>(bits)); }
inline long long __double_as_longlong(double x) {
  long long bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline double __longlong_as_double(long long bits) {
  double x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// As CUDA has them: overloads in the global namespace.
using std::max;
using std::min;
