import os

import pytest

from selavi.atomic import replacing
from selavi.errors import SelaviError


def test_the_new_file_takes_the_old_ones_place(tmp_path):
    file = tmp_path / "metrics.json"
    file.write_text("old")
    with replacing(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
        assert temporary.parent == file.parent
    assert file.read_text() == "new"
    assert os.listdir(tmp_path) == ["metrics.json"]


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file(tmp_path, error):
    file = tmp_path / "metrics.json"
    file.write_text("old")
    with pytest.raises(type(error)), replacing(file) as temporary:
        temporary.write_text("ne")
        raise error
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
    file = tmp_path / "metrics.json"
    file.write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(SelaviError, match=r"metrics.json: No space left on device; free space"),
        replacing(file) as temporary,
    ):
        temporary.write_text("new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["metrics.json"]
