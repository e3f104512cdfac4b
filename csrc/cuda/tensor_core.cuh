// Products of 16-bit matrices on the tensor cores, a warp at a time (sm_80 and later).
#pragma once

#include "device.cuh"

namespace selavi::cuda {

#ifdef __CUDACC__

// Four 8 x 8 matrices of 16 bit from shared memory, transposed: lane l gives the address of row
// l % 8 of matrix l / 8 and gets, of each, elements (2 (l % 4), l / 4) and (2 (l % 4) + 1, l / 4).
__device__ __forceinline__ uint4 load_transposed(const BFloat16* row) {
  uint4 matrices;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices.x), "=r"(matrices.y), "=r"(matrices.z), "=r"(matrices.w)
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
  return matrices;
}

// sum (16, 8) += a (16, 16) b (16, 8). With g = lane / 4 and t = 2 (lane % 4), a lane holds of a
// the pairs of columns from t on of rows g and g + 8, then those from t + 8 on; of b the pairs of
// rows from t and t + 8 on of column g; of the sum columns t and t + 1 of rows g and g + 8.
__device__ __forceinline__ void multiply_add(const uint4& a, unsigned b0, unsigned b1, float* sum) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// `low` in the lower half.
__device__ __forceinline__ unsigned pack_bfloat16(float low, float high) {
  unsigned packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

#else  // the emulator

inline uint4 load_transposed(const BFloat16* row) {
  const auto slots = emulator::exchange("ldmatrix", row);
  const int lane = emulator::current()->lane;
  unsigned matrices[4];
  for (int j = 0; j < 4; ++j) {
    const auto* low = emulator::from_lane<const BFloat16*>(slots, 8 * j + 2 * (lane % 4));
    const auto* high = emulator::from_lane<const BFloat16*>(slots, 8 * j + 2 * (lane % 4) + 1);
    if (reinterpret_cast<uintptr_t>(low) % 16 != 0) emulator::fail("ldmatrix takes aligned rows");
    matrices[j] = low[lane / 4].bits | static_cast<unsigned>(high[lane / 4].bits) << 16;
  }
  return {matrices[0], matrices[1], matrices[2], matrices[3]};
}

inline void multiply_add(const uint4& a, unsigned b0, unsigned b1, float* sum) {
  struct Fragments {
    unsigned a[4], b[2];
  };
  const auto slots = emulator::exchange("mma", Fragments{{a.x, a.y, a.z, a.w}, {b0, b1}});
  const int lane = emulator::current()->lane;
  const auto half = [](unsigned pair, int k) {
    return widen(BFloat16{static_cast<uint16_t>(k % 2 == 0 ? pair & 0xffffu : pair >> 16)});
  };
  for (int j = 0; j < 4; ++j) {
    const int row = lane / 4 + j / 2 * 8, column = lane % 4 * 2 + j % 2;
    for (int k = 0; k < 16; ++k) {
      const auto left = emulator::from_lane<Fragments>(slots, row % 8 * 4 + k % 8 / 2);
      const auto right = emulator::from_lane<Fragments>(slots, column * 4 + k % 8 / 2);
      sum[j] += half(left.a[row / 8 + k / 8 * 2], k) * half(right.b[k / 8], k);
    }
  }
}

inline unsigned pack_bfloat16(float low, float high) {
  BFloat16 halves[2];
  round_to(low, &halves[0]);
  round_to(high, &halves[1]);
  return halves[0].bits | static_cast<unsigned>(halves[1].bits) << 16;
}

#endif

}  // namespace selavi::cuda
