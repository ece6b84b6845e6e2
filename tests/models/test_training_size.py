"""The size that weights were trained at comes with them, whatever size the model was built for."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from s4nd import forget
from s4nd.layers import GridLayer
from tests.models.families import CLIPS, SMALL, build, clip, image

# Stride 4 at most, so that a side of 8 pixels is enough.
AT_8 = {
    'convnext': dict(depths=(1, 1), dims=(8, 12), img_size=8),
    'convnext s4nd everywhere': dict(depths=(1, 1), dims=(8, 12), img_size=8),
    'convnext resample': dict(depths=(1, 1), dims=(8, 12), img_size=8),
    'vit': dict(patch_size=4, img_size=8),
    'vit 1d': dict(patch_size=4, img_size=8),
    'isotropic': dict(img_size=8),
    'ccnn batchnorm': dict(img_size=8),
}


def pair(case: str) -> tuple[nn.Module, nn.Module]:
    """A model trained at 8 pixels, and another one built at 32."""
    trained = build(case, **AT_8[case])
    torch.manual_seed(5)
    other = timm.create_model(SMALL[case][0], **{**SMALL[case][1], **AT_8[case], 'img_size': 32}).eval()
    return trained, other


def through_state_dict(trained: nn.Module, other: nn.Module, folder: Path) -> nn.Module:
    other.load_state_dict(trained.state_dict())
    return other


def through_half_precision(trained: nn.Module, other: nn.Module, folder: Path) -> nn.Module:
    """All values as bfloat16, which holds no whole number above 256 exactly: grids are kept as integers."""
    other.load_state_dict(copy.deepcopy(trained).bfloat16().state_dict())
    trained.load_state_dict(other.state_dict())
    return other


def through_ema(trained: nn.Module, other: nn.Module, folder: Path) -> nn.Module:
    ema = ModelEmaV3(trained, decay=0.5)
    ema.update(trained)
    ema.update(trained)
    other.load_state_dict(ema.module.state_dict())
    return other


def through_averaging(trained: nn.Module, other: nn.Module, folder: Path) -> nn.Module:
    averaged = AveragedModel(trained, use_buffers=True)
    for _ in range(3):
        averaged.update_parameters(trained)
    other.load_state_dict(averaged.module.state_dict())
    return other


PATHS: list[Callable[[nn.Module, nn.Module, Path], nn.Module]] = [
    through_state_dict, through_half_precision, through_ema, through_averaging,
]  # fmt: skip


def same(first: nn.Module, second: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(first(x), second(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize('case', list(AT_8))
def test_a_model_trained_at_8_computes_the_same_in_one_built_at_32(
    case: str, path: Callable[[nn.Module, nn.Module, Path], nn.Module], tmp_path: Path
) -> None:
    trained, other = pair(case)
    assert other.img_size == (32, 32)
    loaded = path(trained, other, tmp_path)
    assert loaded.img_size == (8, 8)
    for size in (8, 32, (16, 24)):
        same(loaded, trained, image(size))
    for ours, theirs in zip(loaded.modules(), trained.modules(), strict=True):
        if isinstance(ours, GridLayer):
            assert ours.grid == theirs.grid


@pytest.mark.parametrize('case', list(AT_8))
def test_through_the_ways_of_timm(case: str, tmp_path: Path) -> None:
    """checkpoint_path, as in timm's scripts, with and without their wrapping, and a folder of the hub's form."""
    trained, _ = pair(case)
    name, options = SMALL[case][0], {**SMALL[case][1], **AT_8[case], 'img_size': 32}
    for file, content in (('plain', trained.state_dict()), ('wrapped', {'state_dict': trained.state_dict()})):
        torch.save(content, tmp_path / f'{file}.pth')
        loaded = timm.create_model(name, **options, checkpoint_path=str(tmp_path / f'{file}.pth')).eval()
        assert loaded.img_size == (8, 8) == loaded.pretrained_cfg['input_size'][1:]
        same(loaded, trained, image(32))
    for folder, img_size in (('as saved', {}), ('resized', {'img_size': 32})):
        save_for_hf(trained, tmp_path / folder, safe_serialization=True)
        loaded = timm.create_model(f'local-dir:{tmp_path / folder}', pretrained=True, **img_size).eval()
        assert loaded.img_size == (8, 8)
        same(loaded, trained, image(32))


def test_the_averaged_model_of_an_unlimited_kernel_has_taps() -> None:
    model = build('isotropic', bandlimit=None)
    averaged = AveragedModel(model, use_buffers=True)
    for _ in range(2):
        averaged.update_parameters(model)
    same(averaged.eval(), model, image(16))


@pytest.mark.parametrize('case', ['convnext3d s4nd everywhere', 'isotropic3d', 'convnext3d i3d'])
def test_clips_keep_their_number_of_frames_too(case: str) -> None:
    trained = build(case)
    other = build(case, num_frames=11, img_size=64)
    assert (other.num_frames, other.img_size) == (11, (64, 64))
    other.load_state_dict(trained.state_dict())
    assert (other.num_frames, other.img_size) == (6, trained.img_size)
    same(other, trained, clip(case, 9, (40, 33)))
    assert CLIPS[case][1]['num_frames'] == 6


def test_weights_edited_out_of_sight_count_after_forget() -> None:
    model, x = build('isotropic'), image(16)
    with torch.no_grad():
        before = model(x)
        for p in model.parameters():
            p.data.mul_(1.5)
        forget(model)
        assert not torch.allclose(model(x), before, rtol=1e-3)
