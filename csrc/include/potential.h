// What a Potential points to, and aligned memory. Torch-free, header-only; for the callers of the
// row kernels, not for code that is compiled for several instruction sets.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "softmax_row.h"

namespace selavi {

// `count` numbers or more, aligned to 64 bytes.
template <typename Number>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : lines_((static_cast<size_t>(count) * sizeof(Number) + sizeof(Line)) / sizeof(Line)) {}
  Number* data() { return lines_.data()->numbers; }

 private:
  struct alignas(64) Line {
    Number numbers[64 / sizeof(Number)];
  };
  std::vector<Line> lines_;
};

// Owns what a Potential points to.
template <typename Number>
class PotentialParts {
 public:
  PotentialParts(const double* v, double lam, int64_t count);
  Potential<Number> view() { return {scale_, unit_, quantum_, hi_.data(), lo_.data()}; }

 private:
  Number scale_;
  double unit_, quantum_;
  Scratch<Number> hi_, lo_;
};

template <>
inline PotentialParts<double>::PotentialParts(const double* v, double lam, int64_t count)
    : scale_(lam), unit_(1.0), quantum_(0.0), hi_(padded(count)), lo_(padded(count)) {
  std::fill(std::copy_n(v, count, hi_.data()), hi_.data() + padded(count), 0.0);
}

// The quantum is as small as softmax_row lets it be for rows whose largest log_p is above -kUsual;
// it falls back to double for others.
template <>
inline PotentialParts<float>::PotentialParts(const double* v, double lam, int64_t count)
    : hi_(padded(count)), lo_(padded(count)) {
  scale_ = static_cast<float>(lam / kLog2);
  unit_ = lam / scale_;
  constexpr double kUsual = 64.0;
  double largest = scale_ * kUsual;
  for (int64_t k = 0; k < count; ++k) {
    if (std::isfinite(v[k])) largest = std::max(largest, std::abs(v[k]) / unit_);
  }
  quantum_ = std::exp2(std::ceil(std::log2(std::max(largest, 1.0))) - 23.0);
  for (int64_t k = 0; k < padded(count); ++k) {
    const double value = k < count ? v[k] / unit_ : 0.0;
    const double hi = round_to(value, quantum_);
    hi_.data()[k] = static_cast<float>(hi);
    lo_.data()[k] = std::isfinite(hi) ? static_cast<float>(value - hi) : 0.0f;
  }
}

}  // namespace selavi
