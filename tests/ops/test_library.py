"""The choice of a backend."""

import subprocess
import sys

import pytest
import torch

from selavi.ops import _definition, _library, backends, sinkhorn

LOG_P = torch.zeros(4, 2)


def test_a_missing_extension_is_told_and_auto_uses_the_definition(monkeypatch):
    monkeypatch.setattr(_library, "_BUILT", False)
    assert backends()["cpu"].startswith("not built")
    assert _library.primitives("auto", LOG_P) is _definition
    with pytest.raises(RuntimeError, match="backend='cpu' is not built: install selavi with"):
        sinkhorn(LOG_P, backend="cpu")


@pytest.mark.usefixtures("compiled")
def test_a_backend_refuses_tensors_elsewhere():
    with pytest.raises(RuntimeError, match="backend='cpu' got a tensor on meta"):
        _library.primitives("cpu", LOG_P.to("meta"))


def test_the_operators_import_torch_and_nothing_of_the_system():
    code = (
        "import sys, selavi.ops; "
        "print(sorted(m for m in sys.modules if m.startswith('selavi') and 'ops' not in m))"
    )
    output = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "['selavi']"


def test_the_operators_import_without_numpy():
    code = (
        "import sys, warnings; sys.modules['numpy'] = None; warnings.simplefilter('ignore')\n"
        "import torch, selavi.ops\n"
        "print(selavi.ops.sinkhorn(torch.zeros(4, 2)).converged.item())\n"
        "print(selavi.ops.backends()['numpy'])"
    )
    output = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.splitlines() == ["True", "not usable: NumPy is not installed"]
