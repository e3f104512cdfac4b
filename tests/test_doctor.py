"""`selavi doctor`: it reports the machine that it runs on."""

import torch
from typer.testing import CliRunner

from selavi import doctor
from selavi.cli import app
from selavi.ops import _choice, _library, backends


def test_reports_every_backend_and_its_state():
    output = CliRunner().invoke(app, ["doctor"]).stdout
    lines = [line.split(maxsplit=1) for line in output.splitlines()]
    for name, state in backends().items():
        assert [name, state] in lines
    assert f"torch {torch.__version__}" in output


def test_says_what_auto_takes_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_library, "usable_on_gpu", lambda: ["triton"])
    assert list(doctor.on_gpu()) == ["triton, as the other cannot run"]
    monkeypatch.setattr(_library, "usable_on_gpu", lambda: ["cuda", "triton"])
    measured = {
        "measured": "h100-abc",
        "default": "cuda",
        "faster": {"sinkhorn_plan": {"2": {"64": "triton", "more": "cuda"}}},
    }
    monkeypatch.setattr(_choice, "table", lambda: measured)
    assert list(doctor.on_gpu()) == [
        "cuda but for what is below (measured: h100-abc)",
        "triton for sinkhorn_plan, K <= 64, 2 bytes an entry",
    ]
