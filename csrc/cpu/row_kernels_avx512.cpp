#include "instruction_sets.h"

#ifdef SELAVI_X86_LEVELS
#pragma GCC target("avx2,fma,avx512f,avx512vl,avx512bw,avx512dq,prefer-vector-width=512")
#define SELAVI_LEVEL avx512
#define SELAVI_VECTOR 64
#define SELAVI_FMA true
#include <immintrin.h>

#include "row_kernels_body.h"
#endif
