"""The configuration of a run: dataclasses of plain values, presets in YAML, one-key changes."""

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml

from selavi.data.config import DataConfig
from selavi.errors import SelaviError
from selavi.labelling.config import LabellingConfig
from selavi.models.config import ModelConfig
from selavi.training.config import TrainingConfig


@dataclass(frozen=True)
class Config:
    """Everything that determines a run's labels, besides the clips."""

    labelling: LabellingConfig
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0


def preset_names() -> list[str]:
    """The presets that come with the package."""
    files = resources.files("selavi.presets").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def preset_for_this_machine() -> tuple[str, str]:
    """The preset to use where none is named, and why."""
    if torch.cuda.is_available():
        return "paper", f"found the GPU {torch.cuda.get_device_name()}"
    return "tiny", "no GPU found"


def load_config(
    preset: str, *, overrides: Sequence[str] = (), changes: Mapping[str, Any] | None = None
) -> Config:
    """A preset with changes.

    Args:
        preset: a name from `preset_names`, or a YAML file such as a run's ``config.yaml``.
        overrides: ``key=value`` texts with dotted keys, e.g. ``labelling.alignment=false``;
            values are YAML.
        changes: dotted keys to values, applied first.

    Raises SelaviError for an unknown preset, key or a value that cannot be used.
    """
    values = _read_preset(preset)
    for key, value in (changes or {}).items():
        _set(values, key, value)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise SelaviError(f"--set takes key=value, got {override!r}")
        try:
            _set(values, key, yaml.safe_load(text))
        except yaml.YAMLError:
            raise SelaviError(f"--set {override!r}: the value is not valid YAML") from None
    return config_from_dict(values)


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """The inverse of `config_to_dict`; missing keys take their defaults, unknown ones raise."""
    return _build(Config, values, "")


def config_to_dict(config: Config) -> dict[str, Any]:
    """Nested dicts, lists, numbers and strings, as YAML and checkpoints hold them."""
    return _plain(asdict(config))


def _read_preset(preset: str) -> dict[str, Any]:
    if preset in preset_names():
        text = resources.files("selavi.presets").joinpath(f"{preset}.yaml").read_text()
    elif Path(preset).is_file():
        try:
            text = Path(preset).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SelaviError(f"cannot read the preset {preset}: {error}") from None
    else:
        raise SelaviError(
            f"no preset {preset!r}: use one of {', '.join(preset_names())} or a YAML file"
        )
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        raise SelaviError(f"the preset {preset} is not valid YAML") from None
    if not isinstance(values, dict):
        raise SelaviError(f"the preset {preset} is not a mapping of settings")
    return values


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for name in path:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise SelaviError(f"no setting named {dotted!r}")
    values[last] = value


def _build(cls: Any, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise SelaviError(f"{prefix.rstrip('.')} is {values!r}: give a mapping of settings")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in fields(cls)}
    if unknown := sorted(set(values) - known):
        raise SelaviError(
            f"no setting named {prefix + str(unknown[0])!r}: use one of {', '.join(sorted(known))}"
        )
    arguments = {}
    for name, value in values.items():
        hint, key = hints[name], prefix + name
        if is_dataclass(hint):
            arguments[name] = _build(hint, value, key + ".")
        else:
            arguments[name] = _convert(hint, value, key)
    return cls(**arguments)


def _convert(hint: Any, value: Any, key: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        if value in (choices := typing.get_args(hint)):
            return value
        raise SelaviError(f"{key} is {value!r}: use one of {', '.join(map(str, choices))}")
    if origin in (tuple, Sequence):
        if isinstance(value, list | tuple):
            kind = typing.get_args(hint)[0]
            return tuple(_convert(kind, item, key) for item in value)
        raise SelaviError(f"{key} is {value!r}: give a list")
    if origin in (typing.Union, types.UnionType):
        return value
    wrong_bool = isinstance(value, bool) != (hint is bool)
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-5 as a text
        except ValueError:
            pass
    if wrong_bool or not isinstance(value, hint):
        raise SelaviError(f"{key} is {value!r}: give a value of type {hint.__name__}")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
