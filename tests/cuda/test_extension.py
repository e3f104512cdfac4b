"""The extension with its CUDA kernels compiles, links and loads; without a GPU its CPU ones run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("csrc", "selavi", "setup.py", "pyproject.toml", "README.md", "LICENSE")
LOADED = """
import torch
from selavi.ops import backends, sinkhorn

names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("selavi::")]
has = torch._C._dispatch_has_kernel_for_dispatch_key
missing = [name for name in names if name != "selavi::solve" and not has(name, "CUDA")]
assert len(names) == 9 and not missing, (names, missing)
assert backends()["cuda"] in ("available", "not usable: torch finds no GPU of its kind"), backends()
assert sinkhorn(torch.randn(200, 5).log_softmax(-1), backend="cpu").converged
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc was not found")
def test_the_extension_loads_with_its_cuda_kernels(tmp_path):
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    for built in (tmp_path / "selavi").rglob("*.so"):
        built.unlink()
    environment = os.environ | {
        "SELAVI_BUILD_CUDA": "1",
        "SELAVI_BUILD_NUMPY": "0",
        "TORCH_CUDA_ARCH_LIST": "9.0",
        "PYTHONPATH": str(tmp_path),
    }
    for command in (["setup.py", "-q", "build_ext", "--inplace"], ["-c", LOADED]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
