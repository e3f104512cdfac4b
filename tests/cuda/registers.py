"""Compiles csrc/cuda for some GPUs and says what its kernels use; fails where registers spill.

    python tests/cuda/registers.py [sm_90 ...]
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parents[2]
TARGETS = ("sm_80", "sm_90", "sm_100")
FLAGS = """-O3 -std=c++17 --expt-relaxed-constexpr -diag-suppress=1675
    -DTORCH_TARGET_VERSION=0x020b000000000000 -DTORCH_STABLE_ONLY -DUSE_CUDA""".split()
# What ptxas -v says of a kernel.
REPORT = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads\n.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


class Usage(NamedTuple):
    kernel: str
    registers: int
    stack: int
    spilled: int


def usage(source: Path, target: str) -> list[Usage]:
    """What each kernel of `source` uses on `target`."""
    include = Path(torch.__file__).parent / "include"
    command = ["nvcc", *FLAGS, f"-arch={target}", "-Xptxas", "-v", f"-I{include}", "-c", source]
    done = subprocess.run([*command, "-o", "/dev/null"], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    found = [match.groupdict() for match in REPORT.finditer(done.stderr)]
    names = subprocess.run(
        ["c++filt", "-p"],
        input="\n".join(kernel["name"] for kernel in found),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [
        Usage(
            name.replace("selavi::cuda::", "").replace("selavi::", ""),
            int(kernel["registers"]),
            int(kernel["stack"]),
            int(kernel["stores"]) + int(kernel["loads"]),
        )
        for name, kernel in zip(names, found, strict=True)
    ]


def main(targets: list[str]) -> int:
    spills = 0
    for target in targets:
        for source in sorted((ROOT / "csrc/cuda").glob("*.cu")):
            for kernel in usage(source, target):
                print(
                    f"{target} {source.name:26} {kernel.registers:4} registers "
                    f"{kernel.stack:4} bytes of stack {kernel.spilled:4} spilled  {kernel.kernel}"
                )
                spills += kernel.spilled > 0
    print(f"{spills} kernels spill")
    return int(spills > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(TARGETS)))
