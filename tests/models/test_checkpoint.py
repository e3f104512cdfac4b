"""The official layout, written here from torchvision's modules, read by `load_official`."""

import argparse

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.video import r2plus1d_18

from selavi.errors import SelaviError
from selavi.models import load_official

HEADS, CLUSTERS, HIDDEN = 2, 7, 12


class Wrapped(nn.Module):
    """An encoder or a head under the name that the release gives it."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.add_module(name, module)
        self.inner = [module]

    def forward(self, x):
        return self.inner[0](x)


def released_head() -> nn.Module:
    return Wrapped(
        "block_forward",
        nn.Sequential(
            nn.Identity(),
            nn.Dropout(0.3),
            nn.Linear(512, HIDDEN, bias=False),
            nn.Identity(),
            nn.BatchNorm1d(HIDDEN),
            nn.Identity(),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(HIDDEN, CLUSTERS),
        ),
    )


@pytest.fixture(scope="module")
def released() -> nn.ModuleDict:
    torch.manual_seed(0)
    video, audio = r2plus1d_18(weights=None), ResNet(BasicBlock, [1, 1, 1, 1])
    video.fc = audio.fc = nn.Identity()
    audio.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    modules = nn.ModuleDict(
        {"video_network": Wrapped("base", video), "audio_network": Wrapped("base", audio)}
        | {f"mlp_{m}{h}": released_head() for m in "va" for h in range(HEADS)}
    )
    for module in modules.modules():  # so that every statistic matters
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, 0, 0.1)
    return modules.eval()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_logits_equal_those_of_the_released_modules(released, prefix, tmp_path):
    state = {prefix + key: value for key, value in released.state_dict().items()}
    content = {"model": state, "epoch": 200, "dist": "default", "selflabels": torch.zeros(9, 2)}
    torch.save(content, tmp_path / "ckp.pth")
    model = load_official(tmp_path / "ckp.pth").eval()
    assert (model.num_heads, model.num_clusters) == (HEADS, CLUSTERS)

    clips, spectrograms = torch.randn(2, 3, 4, 32, 32), torch.randn(2, 1, 40, 50)
    with torch.inference_mode():
        logits = model(clips, spectrograms)
        for modality, x in (("video", clips), ("audio", spectrograms)):
            embedding = released[f"{modality}_network"](x)
            each = [released[f"mlp_{modality[0]}{h}"](embedding) for h in range(HEADS)]
            torch.testing.assert_close(logits[modality], torch.stack(each), atol=1e-5, rtol=1e-5)


def test_one_head_has_no_number(released):
    state = {
        key.replace("mlp_v0", "mlp_v").replace("mlp_a0", "mlp_a"): value
        for key, value in released.state_dict().items()
        if not key.startswith(("mlp_v1", "mlp_a1"))
    }
    model = load_official(state)
    assert model.num_heads == 1
    assert torch.equal(model.heads["audio"].bias[0], state["mlp_a.block_forward.8.bias"])


def without(state, key):
    return {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda s: without(s, "mlp_a1.block_forward.8.bias"), "lacks 1 .*mlp_a1.block_forward.8"),
        (lambda s: without(s, "video_network.base.stem.0.weight"), "lacks 1 .*stem.0.weight"),
        (lambda s: s | {"fc.weight": torch.zeros(3)}, "unknown 1 tensor.*fc.weight"),
        (lambda s: s | {"mlp_a0.block_forward.8.bias": torch.zeros(3)}, "unfit 1 .*mlp_a0"),
        (lambda s: s | {"mlp_a0.block_forward.8.bias": "x"}, "unfit 1 .*mlp_a0"),
        (lambda s: {"mlp_v0.weight": torch.zeros(7, 512)}, "no `mlp_v"),
        (lambda s: {"model": 3}, "no mapping"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(released, damage, named):
    with pytest.raises(SelaviError, match=named) as caught:
        load_official(damage(dict(released.state_dict())))
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_told_in_one_line(tmp_path):
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "empty.pth").touch()
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"model": argparse.Namespace()}, tmp_path / "code.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "list.pth").read_bytes()[:200])
    for name in ("text.pth", "empty.pth", "list.pth", "code.pth", "cut.pth", "absent.pth"):
        with pytest.raises(SelaviError, match=name) as caught:
            load_official(tmp_path / name)
        assert "\n" not in str(caught.value)
