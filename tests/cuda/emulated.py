"""The CUDA kernels compiled for the CPU emulator: torch.ops.selavi_emulated, on CPU tensors."""

import os
import subprocess
import sysconfig
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
SOURCES = (*sorted((ROOT / "csrc/cuda").glob("*.cu")), ROOT / "tests/cuda/test_emulator.cpp")
TORCH = Path(torch.__file__).parent
# FMA contraction is what nvcc does; local variables that are not set start as large numbers.
FLAGS = [
    "-std=c++17",
    "-O2",
    "-ffp-contract=fast",
    "-ftrivial-auto-var-init=pattern",
    "-fPIC",
    "-shared",
    "-U_FORTIFY_SOURCE",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-mfma",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    "-DTORCH_STABLE_ONLY",
]


def _compile(source: Path, folder: Path) -> Path:
    """source's library in `folder`, compiled if a source or a header is newer."""
    library = folder / f"{source.stem}{sysconfig.get_config_var('SHLIB_SUFFIX')}"
    files = [source, *ROOT.glob("csrc/**/*.h"), *ROOT.glob("csrc/cuda/*.cuh")]
    files += ROOT.glob("tests/cuda/*.h")
    newest = max(file.stat().st_mtime for file in files)
    if not library.exists() or library.stat().st_mtime < newest:
        folder.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}")
        command = [
            os.environ.get("CXX", "g++"),
            *FLAGS,
            f"-I{ROOT / 'tests/cuda'}",
            f"-I{TORCH / 'include'}",
            *("-x", "c++", source, "-o", partial),
            *(f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-Wl,--no-as-needed", "-ltorch"),
        ]
        subprocess.run(command, check=True)
        partial.rename(library)
    return library


def load(folder: Path) -> None:
    """Compile what is out of date into `folder` and register it. Schemas are those of selavi."""
    definitions = torch.library.Library("selavi_emulated", "DEF")
    definitions.define("check_emulator(Tensor like, int mistake) -> Tensor")
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("selavi::"):
            operator = getattr(torch.ops.selavi, name.split("::")[1])
            definitions.define(str(operator.default._schema).removeprefix("selavi::"))
    load.definitions = definitions  # type: ignore[attr-defined]
    for source in SOURCES:
        torch.ops.load_library(_compile(source, folder))
