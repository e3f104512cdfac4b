// A tile of sum_i x_i x_i^T, whose sums stay in registers while all rows go by; for
// row_kernels_body.h and gram_bfloat16.cpp.

namespace selavi::cpu::SELAVI_LEVEL {
namespace {

template <typename Number>
using Vector [[gnu::vector_size(SELAVI_VECTOR)]] = Number;

// sum + factor * vector, fused by hand: the compiler is told not to.
#if SELAVI_VECTOR == 64
SELAVI_INLINE __m512 add_product(__m512 sum, float factor, __m512 vector) {
  return _mm512_fmadd_ps(_mm512_set1_ps(factor), vector, sum);
}
SELAVI_INLINE __m512d add_product(__m512d sum, double factor, __m512d vector) {
  return _mm512_fmadd_pd(_mm512_set1_pd(factor), vector, sum);
}
#elif SELAVI_VECTOR == 32
SELAVI_INLINE __m256 add_product(__m256 sum, float factor, __m256 vector) {
  return _mm256_fmadd_ps(_mm256_set1_ps(factor), vector, sum);
}
SELAVI_INLINE __m256d add_product(__m256d sum, double factor, __m256d vector) {
  return _mm256_fmadd_pd(_mm256_set1_pd(factor), vector, sum);
}
#else
template <typename Sum, typename Number>
SELAVI_INLINE Sum add_product(Sum sum, Number factor, Sum vector) {
  return sum + factor * vector;
}
#endif

// As many sums as there are registers for.
constexpr int64_t kGramHeight = SELAVI_VECTOR == 64 ? 8 : 4;
constexpr int64_t kGramVectors = SELAVI_VECTOR == 16 ? 2 : 3;
template <typename Number>
constexpr int64_t kGramWidth = kGramVectors * SELAVI_VECTOR / static_cast<int64_t>(sizeof(Number));

template <typename Number, typename Element>
void gram_tile(const void* rows, int64_t count, int64_t stride, int64_t j, int64_t k,
               Number* tile) {
  static_assert(sizeof(Element) == sizeof(Number));
  using Sum = Vector<Number>;
  constexpr int64_t kLength = SELAVI_VECTOR / sizeof(Number);
  Sum sums[kGramHeight][kGramVectors];
  __builtin_memcpy(sums, tile, sizeof(sums));
  const auto* row = static_cast<const Element*>(rows);
  for (int64_t i = 0; i < count; ++i, row += stride) {
    Sum vectors[kGramVectors];
#pragma GCC unroll 8
    for (int64_t n = 0; n < kGramVectors; ++n) {
      __builtin_memcpy(&vectors[n], row + k + n * kLength, sizeof(Sum));
    }
#pragma GCC unroll 8
    for (int64_t m = 0; m < kGramHeight; ++m) {
#pragma GCC unroll 8
      for (int64_t n = 0; n < kGramVectors; ++n) {
        sums[m][n] = add_product(sums[m][n], row[j + m], vectors[n]);
      }
    }
  }
  __builtin_memcpy(tile, sums, sizeof(sums));
}

}  // namespace
}  // namespace selavi::cpu::SELAVI_LEVEL
