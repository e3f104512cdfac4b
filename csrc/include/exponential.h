// Exponentials and logarithms written so that a compiler vectorises the loop around them.
// Torch-free. Everything is always_inline: the callers are compiled for several instruction sets.
#pragma once

#include <cstdint>
#include <cstring>

#define SELAVI_INLINE inline __attribute__((always_inline))

namespace selavi {

// a * b + c, rounded once where the instruction set can.
template <bool kFma>
SELAVI_INLINE float multiply_add(float a, float b, float c) {
  if constexpr (kFma) return __builtin_fmaf(a, b, c);
  return a * b + c;
}

template <bool kFma>
SELAVI_INLINE double multiply_add(double a, double b, double c) {
  if constexpr (kFma) return __builtin_fma(a, b, c);
  return a * b + c;
}

// 2^y for y < 100 with relative error below 1e-7; 0 for y < -125.5 and -inf; NaN stays NaN. Twice
// the series times half the power of two: so the least result above 0 is no (slow) denormal.
// `least` is kLeastExponent, from where the compiler does not see it: else it makes branches of it.
constexpr float kLeastExponent = -126.0f;
template <bool kFma>
SELAVI_INLINE float exp2_below_100(float y, float least) {
  constexpr float kRound = 12582912.0f + 126.0f;  // 1.5 * 2^23: leaves n + 126 in the low bits
  const float clamped = least > y ? least : y;
  const float shifted = clamped + kRound;
  const float r = clamped - (shifted - kRound), square = r * r;
  // Minimax on [-1/2, 1/2], in pairs to shorten the chain.
  const float high = multiply_add<kFma>(
      2 * 1.535336196e-4f, square, multiply_add<kFma>(2 * 1.339887502e-3f, r, 2 * 9.618436918e-3f));
  const float middle = multiply_add<kFma>(2 * 5.550332367e-2f, r, 2 * 0.2402264774f);
  const float low = multiply_add<kFma>(2 * 0.6931471825f, r, 2.0f);
  const float series = multiply_add<kFma>(multiply_add<kFma>(high, square, middle), square, low);
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits <<= 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return series * scale;
}

// e^x for x <= 0 with relative error below 3e-16; 0 below -708 and at -inf; NaN stays NaN.
SELAVI_INLINE double exp_nonpositive(double x) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  constexpr double kUnderflow = -708.0;
  constexpr double kInverseLog2 = 1.44269504088896340736;
  constexpr double kLog2Hi = 6.93147180369123816490e-01;
  constexpr double kLog2Lo = 1.90821492927058770002e-10;
  const double clamped = x < kUnderflow ? kUnderflow : x;
  const double shifted = clamped * kInverseLog2 + kRound;
  const double n = shifted - kRound;
  const double r = (clamped - n * kLog2Hi) - n * kLog2Lo;
  double series = 1.0;  // Taylor
#pragma GCC unroll 16
  for (int degree = 13; degree > 0; --degree) series = 1.0 + series * r * (1.0 / degree);
  uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + 1023) << 52;
  double scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return x < kUnderflow ? 0.0 : series * scale;
}

// log x for normal x > 0 with relative error below 1e-15; NaN and inf give NaN.
template <bool kFma = false>
SELAVI_INLINE double log_positive(double x) {
  constexpr uint64_t kHalfRoot = 0x3fe6a09e667f3bcd;  // sqrt(1/2)
  constexpr uint64_t kTwo52 = 0x4330000000000000;
  constexpr double kLog2 = 0.693147180559945309417;
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const uint64_t above = bits - kHalfRoot;  // x = 2^n m with m in [sqrt(1/2), sqrt(2))
  const uint64_t mantissa_bits = (above & 0x000fffffffffffff) + kHalfRoot;
  const uint64_t exponent_bits = ((above + (uint64_t{1024} << 52)) >> 52) | kTwo52;
  double m, n;
  std::memcpy(&m, &mantissa_bits, sizeof(m));
  std::memcpy(&n, &exponent_bits, sizeof(n));
  n -= 4503599627370496.0 + 1024.0;
  const double s = (m - 1.0) / (m + 1.0), square = s * s;
  double series = 1.0 / 23;  // log m = 2 artanh s
#pragma GCC unroll 16
  for (int odd = 21; odd > 0; odd -= 2) series = multiply_add<kFma>(series, square, 1.0 / odd);
  return n * kLog2 + 2.0 * s * series + (x - x);
}

}  // namespace selavi
