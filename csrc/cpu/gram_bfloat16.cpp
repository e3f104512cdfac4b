#include "instruction_sets.h"

#ifdef SELAVI_X86_LEVELS
#pragma GCC target("avx512f,avx512bf16")
#define SELAVI_LEVEL avx512_bfloat16
#define SELAVI_VECTOR 64
#include <immintrin.h>

namespace selavi::cpu::SELAVI_LEVEL {
namespace {

// Two products a sum; the factor is those of two rows, and so is each number of the vector.
SELAVI_INLINE __m512 add_product(__m512 sum, uint32_t factor, __m512 vector) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_set1_epi32(factor)),
                          reinterpret_cast<__m512bh>(vector));
}

}  // namespace
}  // namespace selavi::cpu::SELAVI_LEVEL

#include "gram_body.h"

namespace selavi::cpu::SELAVI_LEVEL {

const Gram<float>& gram() {
  static constexpr Gram<float> kernel = {kGramHeight, kGramWidth<float>, Output::kBFloat16Pairs,
                                         gram_tile<float, uint32_t>};
  return kernel;
}

}  // namespace selavi::cpu::SELAVI_LEVEL
#endif
