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
}
#ifdef SELAVI_X86_LEVELS
namespace avx2 {
template <typename Storage>
const RowKernels<Storage>& row_kernels();
}
namespace avx512 {
template <typename Storage>
const RowKernels<Storage>& row_kernels();
}
#endif
}  // namespace selavi::cpu
