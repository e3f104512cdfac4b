// The levels for which row_kernels_body.h is compiled.
#pragma once

#include "row_kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SELAVI_X86_LEVELS
#endif

namespace selavi::cpu {
namespace plain {
template <typename Storage>
const RowKernels<Storage>& row_kernels();
template <typename Number>
const Gram<Number>& gram();
}  // namespace plain
#ifdef SELAVI_X86_LEVELS
namespace avx2 {
template <typename Storage>
const RowKernels<Storage>& row_kernels();
template <typename Number>
const Gram<Number>& gram();
}  // namespace avx2
namespace avx512 {
template <typename Storage>
const RowKernels<Storage>& row_kernels();
template <typename Number>
const Gram<Number>& gram();
}  // namespace avx512
namespace avx512_bfloat16 {
const Gram<float>& gram();
}
#endif
}  // namespace selavi::cpu
