#include "instruction_sets.h"

#define SELAVI_LEVEL plain
#define SELAVI_VECTOR 16
#if defined(__FP_FAST_FMAF) || defined(__aarch64__)
#define SELAVI_FMA true
#else
#define SELAVI_FMA false
#endif
#include "row_kernels_body.h"
