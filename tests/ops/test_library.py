"""The choice of a backend."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

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


def test_auto_takes_the_gpu_backend_that_was_measured_as_the_faster(monkeypatch):
    faster = {"sinkhorn_pass": "cuda", "sinkhorn_overlap": "triton"}
    asked = []

    def choose(primitive, columns, dtype):
        asked.append((primitive, columns, dtype))
        return faster[primitive]

    with FakeTensorMode():
        on_gpu = torch.zeros(1, 4, 2, dtype=torch.bfloat16, device="cuda")
    monkeypatch.setattr(_library, "choose", choose)
    monkeypatch.setattr(
        _library,
        "_named",
        lambda backend: SimpleNamespace(**{name: (backend, name) for name in faster}),
    )
    monkeypatch.setattr(_library, "usable_on_gpu", lambda: ["cuda", "triton"])
    chosen = _library.primitives("auto", on_gpu)
    assert chosen.sinkhorn_pass == ("cuda", "sinkhorn_pass")
    assert chosen.sinkhorn_overlap == ("triton", "sinkhorn_overlap")
    assert asked == [(name, 2, torch.bfloat16) for name in faster]
    monkeypatch.setattr(_library, "usable_on_gpu", lambda: ["triton"])
    assert _library.primitives("auto", on_gpu).sinkhorn_pass == ("triton", "sinkhorn_pass")
    monkeypatch.setattr(_library, "usable_on_gpu", lambda: [])
    assert _library.primitives("auto", on_gpu) is _definition


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_gpu_backend_without_a_gpu_says_so(backend, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(_library, "is_interpreted", lambda: False)
    state = _library.backends()[backend]
    assert "no GPU" in state or "not built" in state or "not installed" in state
    with pytest.raises(RuntimeError, match=f"backend='{backend}' is not "):
        sinkhorn(LOG_P, backend=backend)


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
