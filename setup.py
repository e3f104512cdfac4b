"""Builds the compiled operators: selavi/_C for torch, selavi/ops/_numpy for arrays.

SELAVI_BUILD_CUDA and SELAVI_BUILD_NUMPY = auto (default) | 1 | 0 say whether csrc/cuda and
csrc/numpy are compiled; FORCE_CUDA=1 means SELAVI_BUILD_CUDA=1. All else is in pyproject.toml.
"""

import os
import platform
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

ROOT = Path(__file__).parent
TORCH_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # stable ABI of torch 2.11 and later
# No contraction to FMA: labels are compared in the arithmetic of their definition. -fopenmp-simd is
# for the directives that allow vectorised sums; it starts no threads.
CXX = ["-O3", "-std=c++17", "-Wall", "-ffp-contract=off", "-fopenmp-simd"]
if platform.machine() == "x86_64":
    # GCC moves eight bytes through an MMX register and leaves it so: the next long double is NaN.
    CXX.append("-mno-mmx")


def sources(folder: str, suffix: str) -> list[str]:
    return sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / folder).glob(f"*{suffix}")
    )


def decide(part: str, missing: str, default: str = "auto") -> bool:
    """Whether to build csrc/`part`. Says so, and stops where a demand cannot be met."""
    variable = f"SELAVI_BUILD_{part.upper()}"
    wanted = os.environ.get(variable, default)
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"selavi: {variable}={wanted!r} is not one of auto, 0, 1")
    if wanted == "0":
        missing = f"{variable}=0"
    if wanted == "1" and missing:
        sys.exit(f"selavi: {part} was demanded, but {missing}")
    print(f"selavi: {f'not building {part}: {missing}' if missing else f'building {part}'}")
    return not missing


cuda_sources = sources("cuda", ".cu")
if not cuda_sources:
    no_cuda = "this version has no CUDA kernels"
else:
    no_cuda = "" if CUDA_HOME else "nvcc was not found; set CUDA_HOME to the CUDA toolkit"
forced = os.environ.get("FORCE_CUDA", "0") not in ("", "0")
cuda = decide("cuda", no_cuda, default="1" if forced else "auto")
extensions = [
    (CUDAExtension if cuda else CppExtension)(
        "selavi._C",
        ["csrc/registration.cpp", *sources("cpu", ".cpp"), *(cuda_sources if cuda else [])],
        extra_compile_args={
            "cxx": [*CXX, TORCH_ABI, "-DTORCH_STABLE_ONLY"],
            "nvcc": ["-O3", "-std=c++17", TORCH_ABI, "-DTORCH_STABLE_ONLY", "-DUSE_CUDA"],
        },
        py_limited_api=True,
    )
]
if decide("numpy", "" if find_spec("pybind11") else "pybind11 was not found"):
    import pybind11

    extensions.append(
        Extension(
            "selavi.ops._numpy",
            sources("numpy", ".cpp"),
            include_dirs=[pybind11.get_include()],
            extra_compile_args=[*CXX, "-fvisibility=hidden", "-g0"],
            language="c++",
        )
    )
setup(ext_modules=extensions, cmdclass={"build_ext": BuildExtension})
