import os

import pytest
import torch
import torch.distributed as dist
import yaml

from selavi.errors import SelaviError
from selavi.models import AudioVisualModel, ModelConfig

TINY = ModelConfig(video_widths=(4, 6, 8), audio_widths=(4, 6, 8), hidden=10)


def tiny(config: ModelConfig = TINY, **kwargs) -> AudioVisualModel:
    torch.manual_seed(0)
    defaults = {"num_clusters": 5, "num_heads": 3, "video_inputs": 1}
    return AudioVisualModel(config, **(defaults | kwargs))


@pytest.mark.parametrize(
    ("clip", "spectrogram"),
    [
        ((1, 8, 32, 32), (1, 40, 64)),
        ((3, 8, 32, 32), (1, 40, 64)),
        ((1, 1, 9, 9), (1, 3, 5)),  # one frame, smaller than the strides' product
        ((1, 5, 33, 31), (1, 41, 37)),
    ],
)
def test_shapes_and_gradients(clip, spectrogram):
    model = tiny(video_inputs=clip[0])
    logits = model(torch.randn(4, *clip), torch.randn(4, *spectrogram))
    assert {m: x.shape for m, x in logits.items()} == {"video": (3, 4, 5), "audio": (3, 4, 5)}
    sum(x.log_softmax(-1)[..., 0].sum() for x in logits.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    # Not every gradient is nonzero (a bias before BatchNorm), but each weight matrix learns.
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)


def test_embeddings_have_the_announced_dimensions():
    model = tiny()
    embeddings = model.embed(torch.randn(4, 1, 8, 32, 32), torch.randn(4, 1, 40, 64))
    assert {m: x.shape[1] for m, x in embeddings.items()} == model.embedding_dims
    model.eval()
    inputs = (torch.randn(4, 1, 8, 32, 32), torch.randn(4, 1, 40, 64))
    for modality, logits in model.classify(model.embed(*inputs)).items():
        assert torch.equal(logits, model(*inputs)[modality])


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_one_modality_has_no_trace_of_the_other(modality):
    other = {"video": "audio", "audio": "video"}[modality]
    model = tiny(modalities=(modality,))
    assert model.modalities == (modality,)
    assert not any(other in name for name, _ in model.named_parameters())
    clips = {"video": torch.randn(4, 1, 8, 32, 32), "audio": torch.randn(4, 1, 40, 64)}
    assert set(model(**{modality: clips[modality]})) == {modality}
    with pytest.raises(ValueError, match="the model takes"):
        model(**clips)


def test_a_model_of_both_takes_either_alone_with_the_same_result():
    model = tiny().eval()
    video, audio = torch.randn(4, 1, 8, 32, 32), torch.randn(2, 1, 40, 64)
    both = model(video, audio)
    assert torch.equal(model(video=video)["video"], both["video"])
    assert torch.equal(model(audio=audio)["audio"], both["audio"])
    with pytest.raises(ValueError, match="the model takes"):
        model()


def test_order_of_modalities_is_fixed():
    assert tiny(modalities=("audio", "video")).modalities == ("video", "audio")
    with pytest.raises(ValueError, match="modalities"):
        tiny(modalities=())
    with pytest.raises(ValueError, match="modalities"):
        tiny(modalities=("smell",))


def test_features_are_standardised_and_passed_on():
    model = tiny(ModelConfig(video="features", audio="features"), video_inputs=6, audio_inputs=9)
    video, audio = 100 + 50 * torch.randn(64, 6), 1e-2 * torch.randn(64, 9)
    assert model.embedding_dims == {"video": 6, "audio": 9}
    for x in model.embed(video, audio).values():
        std, mean = torch.std_mean(x, 0, correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
        torch.testing.assert_close(std, torch.ones_like(std), atol=0.1, rtol=0)
    assert not list(model.encoders.parameters())


def test_bfloat16_autocast_on_the_cpu():
    model = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(4, 1, 8, 32, 32), torch.randn(4, 1, 40, 64))
        loss = sum(x.log_softmax(-1)[..., 0].sum() for x in logits.values())
    loss.backward()
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in logits.values())
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_wrapped_for_distributed_training(tmp_path):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(tiny())
        assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in model.heads.modules())
        wrapped = torch.nn.parallel.DistributedDataParallel(tiny())
        logits = wrapped(torch.randn(4, 1, 8, 32, 32), torch.randn(4, 1, 40, 64))
        sum(x.square().sum() for x in logits.values()).backward()
        assert all(p.grad is not None for p in wrapped.parameters())
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("channels", [3, 1])
def test_paper_size_forward(channels):
    config = ModelConfig(video="r2plus1d_18", audio="resnet9")
    model = AudioVisualModel(config, num_clusters=309, num_heads=10, video_inputs=channels).eval()
    assert model.embedding_dims == {"video": 512, "audio": 512}
    with torch.inference_mode():
        logits = model(torch.randn(1, channels, 30, 112, 112), torch.randn(1, 1, 257, 199))
    assert all(x.shape == (10, 1, 309) and x.isfinite().all() for x in logits.values())
    # torchvision documents 31,505,325 with the 400-way classifier.
    if channels == 3:
        assert (
            sum(p.numel() for p in model.encoders["video"].parameters()) == 31_505_325 - 513 * 400
        )
    # ResNet-9 is ResNet-18 (11,176,512 without its classifier) less every stage's second block
    # and two of the three input channels.
    second_blocks = sum(2 * 9 * width**2 + 4 * width for width in (64, 128, 256, 512))
    parameters = sum(p.numel() for p in model.encoders["audio"].parameters())
    assert parameters == 11_176_512 - second_blocks - 2 * 64 * 49


def test_config_survives_yaml():
    config = ModelConfig(video_widths=(4, 6), dropout=0.1)
    values = {name: getattr(config, name) for name in ModelConfig.__dataclass_fields__}
    text = yaml.safe_dump({k: list(v) if isinstance(v, tuple) else v for k, v in values.items()})
    assert ModelConfig(**yaml.safe_load(text)) == config


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"video": "vgg"}, "'vgg'"),
        ({"audio": "r2plus1d_18"}, "'r2plus1d_18'"),
        ({"video_widths": ()}, "video_widths"),
        ({"audio_widths": (4, 0)}, "audio_widths"),
        ({"hidden": 0}, "hidden"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_bad_config_is_told_in_one_line(values, named):
    with pytest.raises(SelaviError, match=named) as caught:
        ModelConfig(**values)
    assert "\n" not in str(caught.value)
