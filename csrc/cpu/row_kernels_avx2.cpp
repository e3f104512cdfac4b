#include "instruction_sets.h"

#ifdef SELAVI_X86_LEVELS
#pragma GCC target("avx2,fma")
#define SELAVI_LEVEL avx2
#define SELAVI_VECTOR 32
#define SELAVI_FMA true
#include <immintrin.h>

#include "row_kernels_body.h"
#endif
