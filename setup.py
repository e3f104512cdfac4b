"""Builds the compiled operators: selavi/_C for torch, selavi/ops/_numpy for arrays.

SELAVI_BUILD_CUDA and SELAVI_BUILD_NUMPY = auto (default) | 1 | 0 say whether csrc/cuda and
csrc/numpy are compiled; auto compiles csrc/cuda where nvcc and a GPU are found, and FORCE_CUDA=1
means SELAVI_BUILD_CUDA=1. CUDA_HOME says where nvcc is if it is not on the PATH,
TORCH_CUDA_ARCH_LIST for which GPUs to compile. All else is in pyproject.toml.
"""

import os
import platform
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from setuptools import Extension, setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension

ROOT = Path(__file__).parent
TORCH_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # stable ABI of torch 2.11 and later
# No contraction to FMA: labels are compared in the arithmetic of their definition. -fopenmp-simd is
# for the directives that allow vectorised sums; it starts no threads.
CXX = ["-O3", "-std=c++17", "-Wall", "-ffp-contract=off", "-fopenmp-simd"]
if platform.machine() == "x86_64":
    # GCC moves eight bytes through an MMX register and leaves it so: the next long double is NaN.
    CXX.append("-mno-mmx")
NVCC = ["-O3", "-std=c++17", "-diag-suppress=1675", TORCH_ABI, "-DTORCH_STABLE_ONLY", "-DUSE_CUDA"]
# CUDA 12.8 is the first that knows sm_100.
newest = tuple(map(int, (torch.version.cuda or "0.0").split("."))) >= (12, 8)
os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0;10.0+PTX" if newest else "8.0;9.0+PTX")


def sources(folder: str, suffix: str) -> list[str]:
    return sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / folder).glob(f"*{suffix}")
    )


def decide(part: str, missing: str, reluctant: str = "", default: str = "auto") -> bool:
    """Whether to build csrc/`part`: not where something is missing, and only on demand where there
    is a reason to be reluctant. Says so, and stops where a demand cannot be met.
    """
    variable = f"SELAVI_BUILD_{part.upper()}"
    wanted = os.environ.get(variable, default)
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"selavi: {variable}={wanted!r} is not one of auto, 0, 1")
    if wanted == "0":
        missing = f"{variable}=0"
    if wanted == "1" and missing:
        sys.exit(f"selavi: {part} was demanded, but {missing}")
    if wanted == "auto":
        missing = missing or reluctant
    print(f"selavi: {f'not building {part}: {missing}' if missing else f'building {part}'}")
    return not missing


def cuda_libraries(nvcc: Path) -> list[str]:
    """Where the toolkit's libraries are. nvcc itself knows, even where it is a link or a script."""
    plan = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=True
    )
    return re.findall(r'"-L([^"]+)"', plan.stderr)


nvcc = Path(CUDA_HOME or "/usr/local/cuda") / "bin" / "nvcc"
forced = os.environ.get("FORCE_CUDA", "0") not in ("", "0")
cuda = decide(
    "cuda",
    "" if nvcc.exists() else "nvcc was not found; set CUDA_HOME to the CUDA toolkit",
    "" if torch.cuda.is_available() else "torch finds no GPU; SELAVI_BUILD_CUDA=1 builds it anyway",
    default="1" if forced else "auto",
)
extensions = [
    # Not a CUDAExtension, which needs libtorch_cuda to load: this one loads without, for its CPU
    # kernels. The CUDA runtime is inside; what it needs of torch is looked up in what libtorch has.
    CppExtension(
        "selavi._C",
        [
            "csrc/registration.cpp",
            *sources("cpu", ".cpp"),
            *(sources("cuda", ".cu") if cuda else []),
        ],
        extra_compile_args={"cxx": [*CXX, TORCH_ABI, "-DTORCH_STABLE_ONLY"], "nvcc": NVCC},
        library_dirs=cuda_libraries(nvcc) if cuda else [],
        extra_link_args=["-Wl,--no-as-needed", "-ltorch", "-l:libcudart_static.a", "-ldl", "-lrt"]
        if cuda
        else [],
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
