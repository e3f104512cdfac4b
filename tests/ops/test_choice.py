"""The table of the faster GPU backend, and its reader."""

import json

import pytest
import torch

from selavi.ops import _choice


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Writes a table and has it read."""

    def write(content):
        monkeypatch.setattr(_choice, "PATH", tmp_path / "table.json")
        _choice.PATH.write_text(json.dumps(content))
        _choice.table.cache_clear()

    yield write
    _choice.table.cache_clear()


def test_a_measured_range_decides_and_the_rest_keeps_to_the_default(table):
    faster = {"sinkhorn_pass": {"2": {"64": "triton", "more": "triton"}}}
    table({"measured": "h100-0000000", "default": "cuda", "faster": faster})
    chosen = {k: _choice.choose("sinkhorn_pass", k, torch.bfloat16) for k in (2, 64, 65, 1025)}
    assert chosen == {2: "triton", 64: "triton", 65: "cuda", 1025: "triton"}
    assert _choice.choose("sinkhorn_pass", 2, torch.float32) == "cuda"
    assert _choice.choose("sinkhorn_plan", 2, torch.bfloat16) == "cuda"


def test_the_table_that_is_shipped():
    content = json.loads(_choice.PATH.read_text())
    assert set(content) == {"measured", "default", "faster"}
    assert (content["measured"] is None) == (content["faster"] == {})
    assert set(content["faster"]) <= set(_choice.PRIMITIVES)
    backends = {
        b for sizes in content["faster"].values() for r in sizes.values() for b in r.values()
    }
    assert backends | {content["default"]} <= {"cuda", "triton"}
