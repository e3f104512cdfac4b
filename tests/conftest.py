"""Small collections that several rooms test with."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def feature_file(tmp_path: Path) -> Path:
    """240 clips of 5 classes as features; some lack their sound, one its picture."""
    generator = np.random.default_rng(0)
    classes = generator.integers(0, 5, 240)
    video = 2 * generator.normal(size=(5, 12))[classes] + generator.normal(size=(240, 12))
    audio = 2 * generator.normal(size=(5, 10))[classes] + generator.normal(size=(240, 10))
    audio[:9], video[20] = np.nan, np.nan
    path = tmp_path / "features.npz"
    np.savez(path, video=video, audio=audio)
    rows = "".join(f"{i},class{c}\n" for i, c in enumerate(classes))
    (tmp_path / "labels.csv").write_text("path,label\n" + rows)
    return path
