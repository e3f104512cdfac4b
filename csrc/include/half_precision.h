// float16 and bfloat16 as stored bits. Torch-free.
#pragma once

#include <cstdint>
#include <cstring>

#include "exponential.h"

namespace selavi {

SELAVI_INLINE float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

SELAVI_INLINE uint32_t bits_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

SELAVI_INLINE float widen(float value) { return value; }
SELAVI_INLINE double widen(double value) { return value; }

SELAVI_INLINE float widen(BFloat16 value) {
  return float_from_bits(static_cast<uint32_t>(value.bits) << 16);
}

SELAVI_INLINE float widen(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  // Multiplying by 2^112 moves the exponent from bias 15 to 127 and makes subnormals normal.
  const uint32_t finite = bits_from_float(float_from_bits(magnitude) * 0x1p112f);
  return float_from_bits(sign | (magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite));
}

// Round to nearest, ties to even. The values are finite and not negative, or NaN.
SELAVI_INLINE void narrow(float value, float* out) { *out = value; }
SELAVI_INLINE void narrow(float value, double* out) { *out = value; }

SELAVI_INLINE void narrow(float value, BFloat16* out) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out->bits = static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
}

SELAVI_INLINE void narrow(float value, Float16* out) {
  // As a float: below 2^-14 adding 1/2 leaves the subnormal's bits at the bottom of the mantissa.
  const uint32_t bits = bits_from_float(value);
  const uint32_t subnormal = bits_from_float(value + 0.5f) - 0x3f000000u;
  const uint32_t normal = (bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13;
  const uint32_t finite = value < 0x1p-14f ? subnormal : (normal < 0x7c00u ? normal : 0x7c00u);
  out->bits = static_cast<uint16_t>(value != value ? 0x7e00u : finite);
}

SELAVI_INLINE void narrow(double value, float* out) { *out = static_cast<float>(value); }
SELAVI_INLINE void narrow(double value, double* out) { *out = value; }
SELAVI_INLINE void narrow(double value, BFloat16* out) { narrow(static_cast<float>(value), out); }
SELAVI_INLINE void narrow(double value, Float16* out) { narrow(static_cast<float>(value), out); }

}  // namespace selavi
