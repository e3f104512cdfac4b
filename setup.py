"""Builds selavi/_C, the compiled operators. Everything else is in pyproject.toml.

SELAVI_BUILD_CUDA = auto (default) | 1 | 0 says whether csrc/cuda is compiled; FORCE_CUDA=1 means 1.
"""

import os
import sys
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

ROOT = Path(__file__).parent
TORCH_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # stable ABI of torch 2.11 and later


def sources(folder: str, suffix: str) -> list[str]:
    return sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / folder).glob(f"*{suffix}")
    )


def use_cuda(cuda_sources: list[str]) -> bool:
    """Decide whether to build CUDA kernels, say so, and stop where the demand cannot be met."""
    forced = os.environ.get("FORCE_CUDA", "0") not in ("", "0")
    wanted = os.environ.get("SELAVI_BUILD_CUDA", "1" if forced else "auto")
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"selavi: SELAVI_BUILD_CUDA={wanted!r} is not one of auto, 0, 1")
    if wanted == "0":
        missing = "SELAVI_BUILD_CUDA=0"
    elif not cuda_sources:
        missing = "this version has no CUDA kernels"
    elif CUDA_HOME is None:
        missing = "nvcc was not found; set CUDA_HOME to the CUDA toolkit"
    else:
        missing = ""
    if wanted == "1" and missing:
        sys.exit(f"selavi: CUDA was demanded, but {missing}")
    print(f"selavi: building for CPU {f'only ({missing})' if missing else 'and CUDA'}")
    return not missing


cuda_sources = sources("cuda", ".cu")
cuda = use_cuda(cuda_sources)
extension = (CUDAExtension if cuda else CppExtension)(
    "selavi._C",
    ["csrc/registration.cpp", *sources("cpu", ".cpp"), *(cuda_sources if cuda else [])],
    extra_compile_args={
        # No contraction to FMA: labels are compared in the arithmetic of their definition.
        "cxx": [
            "-O3",
            "-std=c++17",
            "-Wall",
            "-ffp-contract=off",
            "-fopenmp-simd",  # only the directives that allow vectorised sums; no threads
            TORCH_ABI,
            "-DTORCH_STABLE_ONLY",
        ],
        "nvcc": ["-O3", "-std=c++17", TORCH_ABI, "-DTORCH_STABLE_ONLY", "-DUSE_CUDA"],
    },
    py_limited_api=True,
)
setup(
    ext_modules=[extension],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
