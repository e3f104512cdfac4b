import pytest
import yaml

from selavi.config import config_from_dict, config_to_dict, load_config, preset_names
from selavi.errors import SelaviError

K = {"labelling.num_clusters": 7}


@pytest.mark.parametrize("name", preset_names())
def test_presets_survive_yaml(name: str) -> None:
    config = load_config(name, changes=K)
    assert config_from_dict(yaml.safe_load(yaml.safe_dump(config_to_dict(config)))) == config


def test_overrides() -> None:
    config = load_config(
        "tiny",
        changes=K,
        overrides=[
            "labelling.alignment=false",
            "training.lr=1e-3",
            "data.augment.crop_scale=[.5,1]",
        ],
    )
    assert config.labelling.alignment is False
    assert config.training.lr == 1e-3
    assert config.data.augment.crop_scale == (0.5, 1)


def test_a_runs_config_is_a_preset(tmp_path) -> None:
    config = load_config("paper", changes=K)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config_to_dict(config)))
    assert load_config(str(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lr=1"], "no setting named 'lr'"),
        (["training.lrr=1"], "no setting named 'training.lrr'"),
        (["training.lr"], "--set takes key=value"),
        (["training.lr=fast"], "training.lr is 'fast'"),
        (["training.epochs=1.5"], "training.epochs is 1.5"),
        (["training.epochs=true"], "training.epochs is True"),
        (["training.lr_schedule=linear"], "constant, cosine"),
        (["data.flip=1"], "data.flip"),
        (["data=3"], "data is 3"),
        (["data.augment.crop_scale=3"], "give a list"),
    ],
)
def test_bad_overrides_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(SelaviError, match=message):
        load_config("tiny", changes=K, overrides=overrides)


def test_unknown_preset() -> None:
    with pytest.raises(SelaviError, match="no preset 'huge'"):
        load_config("huge", changes=K)
