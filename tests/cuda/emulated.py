"""The CUDA kernels compiled for the CPU emulator: torch.ops.selavi_emulated, on CPU tensors."""

import os
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
SOURCES = (*sorted((ROOT / "csrc/cuda").glob("*.cu")), ROOT / "tests/cuda/test_emulator.cpp")
TORCH = Path(torch.__file__).parent
# Products are contracted as nvcc contracts them; locals that are not set start as large numbers.
FLAGS = """-std=c++17 -O1 -mfma -ffp-contract=fast -ftrivial-auto-var-init=pattern -fPIC
    -U_FORTIFY_SOURCE -Wall -Wno-unknown-pragmas
    -DTORCH_TARGET_VERSION=0x020b000000000000 -DTORCH_STABLE_ONLY""".split()


def _run(*command: str | Path) -> None:
    subprocess.run([os.environ.get("CXX", "g++"), *command], check=True)


def _newest(files: list[Path]) -> float:
    return max(file.stat().st_mtime for file in files)


def compile_kernels(folder: Path) -> Path:
    """The library in `folder`, of objects that are compiled where a source or a header is newer."""
    folder.mkdir(parents=True, exist_ok=True)
    headers = [*ROOT.glob("csrc/**/*.h"), *ROOT.glob("csrc/cuda/*.cuh"), *ROOT.glob("tests/cuda/*.h")]
    objects = [folder / f"{source.stem}.o" for source in SOURCES]
    for source, target in zip(SOURCES, objects, strict=True):
        if not target.exists() or target.stat().st_mtime < _newest([source, *headers]):
            includes = (f"-I{ROOT / 'tests/cuda'}", f"-I{TORCH / 'include'}")
            _run(*FLAGS, *includes, "-c", "-x", "c++", source, "-o", target)
    library = folder / "emulated.so"
    if not library.exists() or library.stat().st_mtime < _newest(objects):
        lib = TORCH / "lib"
        link = (f"-L{lib}", f"-Wl,-rpath,{lib}", "-Wl,--no-as-needed", "-ltorch")
        _run("-shared", *objects, "-o", library, *link)
    return library


def load(folder: Path) -> None:
    """Compile what is out of date into `folder` and register it. Schemas are those of selavi."""
    load.definitions = torch.library.Library("selavi_emulated", "DEF")  # it ends with its object
    load.definitions.define("check_emulator(Tensor like, int mistake) -> Tensor")
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("selavi::"):
            operator = getattr(torch.ops.selavi, name.split("::")[1])
            load.definitions.define(str(operator.default._schema).removeprefix("selavi::"))
    torch.ops.load_library(compile_kernels(folder))
