// exp(x) for x <= 0, written so that a compiler vectorises the loop around it. Torch-free.
#pragma once

#include <cstdint>
#include <cstring>

namespace selavi {

template <typename T>
struct ExpTraits;

template <>
struct ExpTraits<float> {
  using Bits = int32_t;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kLog2Hi = 0.693359375f;
  static constexpr float kLog2Lo = -2.12194440e-4f;
  static constexpr float kUnderflow = -87.0f;
  static constexpr int kBias = 127;
  static constexpr int kMantissa = 23;
  static constexpr int kDegree = 7;
};

template <>
struct ExpTraits<double> {
  using Bits = int64_t;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLog2Hi = 6.93147180369123816490e-01;
  static constexpr double kLog2Lo = 1.90821492927058770002e-10;
  static constexpr double kUnderflow = -708.0;
  static constexpr int kBias = 1023;
  static constexpr int kMantissa = 52;
  static constexpr int kDegree = 13;
};

// Relative error below 1e-7 (float) and 3e-16 (double). 0 below kUnderflow and at -inf; NaN stays
// NaN.
template <typename T>
inline __attribute__((always_inline)) T exp_nonpositive(T x) {
  using Traits = ExpTraits<T>;
  using Bits = typename Traits::Bits;
  constexpr T kInverseLog2 = static_cast<T>(1.44269504088896340736);
  const T clamped = x < Traits::kUnderflow ? Traits::kUnderflow : x;
  // x = n log 2 + r with |r| <= log(2) / 2, then exp(r) by its Taylor series.
  const T shifted = clamped * kInverseLog2 + Traits::kRound;
  const T n = shifted - Traits::kRound;
  const T r = (clamped - n * Traits::kLog2Hi) - n * Traits::kLog2Lo;
  T series = T(1);
#pragma GCC unroll 16
  for (int degree = Traits::kDegree; degree > 0; --degree) {
    series = T(1) + series * r * (T(1) / static_cast<T>(degree));
  }
  Bits bits;
  Bits round_bits;
  const T round = Traits::kRound;
  std::memcpy(&bits, &shifted, sizeof(bits));
  std::memcpy(&round_bits, &round, sizeof(bits));
  const Bits exponent = (bits - round_bits + Traits::kBias) << Traits::kMantissa;
  T scale;
  std::memcpy(&scale, &exponent, sizeof(scale));
  return x < Traits::kUnderflow ? T(0) : series * scale;
}

}  // namespace selavi
