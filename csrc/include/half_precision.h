// float16 and bfloat16 as stored bits, widened to float. Torch-free.
#pragma once

#include <cstdint>
#include <cstring>

namespace selavi {

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

struct BFloat16 {
  uint16_t bits;
  operator float() const { return float_from_bits(static_cast<uint32_t>(bits) << 16); }
};

struct Float16 {
  uint16_t bits;
  operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fffu) << 13;
    if (magnitude >= 0x0f800000u) return float_from_bits(sign | magnitude | 0x7f800000u);
    // Multiplying by 2^112 moves the exponent from bias 15 to 127 and makes subnormals normal.
    return float_from_bits(sign) +
           (sign != 0 ? -1.0f : 1.0f) * float_from_bits(magnitude) * float_from_bits(0x77800000u);
  }
};

}  // namespace selavi
