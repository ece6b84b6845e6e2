"""Four stages learn within a short run: what reaches the head at the start, and what some updates make of it."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from s4nd.optim import param_groups

NANO = dict(num_classes=2, img_size=32, num_frames=4, in_chans=1)


def drifts(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random pictures that drift to the left or the right, (count, 1, 4, 32, 32), and which. A frame does not tell."""
    pictures = F.interpolate(torch.randn(count, 1, 8, 8, generator=generator), scale_factor=4)
    right = torch.arange(count) % 2
    shifts = 3 * (2 * right - 1)
    frames = [torch.stack([p.roll(int(s), -1) for p, s in zip(pictures, t * shifts, strict=True)]) for t in range(4)]
    return torch.stack(frames, 2), right


def order_share(**options) -> float:
    """How far the logits move when the frames are exchanged, as a share of their spread over clips."""
    torch.manual_seed(0)
    model = timm.create_model('s4nd_convnext3d_nano', **NANO, **options).eval()
    clips, _ = drifts(16, torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, shuffled = model(clips), model(clips[:, :, [2, 0, 3, 1]])
    return ((logits - shuffled).norm() / (logits - logits.mean(0)).norm()).item()


@pytest.mark.parametrize('mixer', ['s4nd', 'i3d', 's3d'])
def test_the_order_of_frames_reaches_the_head(mixer: str) -> None:
    """With a layer scale of 1e-6 nothing arrives: the model averages over single frames."""
    assert order_share(mixer=mixer) > 0.05 > 1e-3 > order_share(mixer=mixer, ls_init_value=1e-6)


def test_a_direction_is_learned_within_75_updates() -> None:
    """With a layer scale of 1e-6, at this rate or a larger one, 100 updates end at chance."""
    torch.manual_seed(0)
    model = timm.create_model('s4nd_convnext3d_nano', **NANO)
    optimizer = torch.optim.AdamW(param_groups(model, 1e-3, 0.02, 1e-3))
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=10)
    generator = torch.Generator().manual_seed(0)
    for _ in range(75):
        clips, right = drifts(16, generator)
        optimizer.zero_grad()
        F.cross_entropy(model(clips), right).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warmup.step()
    clips, right = drifts(64, generator)
    with torch.no_grad():
        assert (model.eval()(clips).argmax(1) == right).float().mean() > 0.9
