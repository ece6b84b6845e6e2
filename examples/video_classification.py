"""Clips through the video models, and ViS4mer's head trained on stored features of a frozen encoder.

    python examples/video_classification.py [small=true] [out=out/examples/video_classification]

Each clip shows three kinds of the embedded shapes one after the other, a new scene in every frame, and its class is
their order: the mean over frames knows nothing of it. The encoder is a random ResNet-18 and stays as it is, so each
scene goes through it once; the head and, beside it, a linear classifier of the mean then train on features in a minute.
Afterwards the head runs at half and twice the frame rate, and inside the whole model. small=true: a few steps, in
seconds.
"""

import itertools
import json
import sys
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import s4nd
from s4nd.data import NORMALIZATION, ShapeSet
from s4nd.files import write_atomically

KINDS = ('fine bars', 'fine posts', 'disc')
ORDERS = tuple(itertools.permutations(KINDS))
FRAMES = 24


def through_the_models() -> None:
    """A clip (batch, channels, frames, height, width) through two registered models."""
    clip = torch.randn(1, 3, 16, 64, 64)
    mixed = timm.create_model('s4nd_convnext3d_nano', num_classes=12, img_size=64, num_frames=16).eval()
    frames = timm.create_model('s4nd_vis4mer_tiny', num_classes=12, encoder='resnet18', num_frames=16).eval()
    for model in (mixed, frames):
        # Twice the frame rate: the same clip, and every kernel steps half as far.
        print(type(model).__name__, tuple(model(clip).shape), tuple(model(clip.repeat_interleave(2, 2)).shape))


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scenes of each of KINDS as one video (1, 3, len(KINDS) · count, 32, 32), and the kind of each frame."""
    drawn = ShapeSet.draw(10 * count, seed)
    kinds = torch.tensor([drawn.classes.index(kind) for kind in KINDS])
    drawn = drawn.select(torch.isin(drawn.labels, kinds).nonzero()[:, 0])
    mean, std = (torch.tensor(values)[:, None, None] for values in NORMALIZATION['shapes'])
    video = ((drawn.at(32).float() / 255 - mean) / std).transpose(0, 1)[None]
    return video, (drawn.labels[:, None] == kinds).int().argmax(1)


@torch.no_grad()
def settle(encoder: nn.Module, video: Tensor) -> None:
    """Give a random encoder the batch statistics of these frames, as features of its initial ones hardly differ."""
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.train()
    encoder(video[0].transpose(0, 1))
    encoder.eval()


def clips(kinds: Tensor, count: int, frames: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` clips as numbers of scenes (count, frames), and the order of each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(ORDERS), (count,), generator=generator)
    orders = torch.tensor([[KINDS.index(kind) for kind in order] for order in ORDERS])
    shown = orders[labels].repeat_interleave(frames // len(KINDS), 1)  # the kind that each frame shows
    of_kind = torch.stack([(kinds == kind).nonzero()[:, 0] for kind in range(len(KINDS))])
    return of_kind[shown, torch.randint(of_kind.shape[1], shown.shape, generator=generator)], labels


def train(model: nn.Module, features: Tensor, kinds: Tensor, steps: int) -> None:
    optimizer = torch.optim.AdamW(s4nd.param_groups(model, lr=4e-3, weight_decay=0.01, ssm_lr=4e-3))
    model.train()
    for step in range(steps):
        chosen, labels = clips(kinds, 32, FRAMES, seed=step)
        loss = F.cross_entropy(model(features[chosen]), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f'step {step}/{steps}  loss {loss.item():.3f}')
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, features: Tensor, kinds: Tensor, frames: int = FRAMES) -> float:
    """Percent of 600 clips."""
    chosen, labels = clips(kinds, 600, frames, seed=1_000_000)
    return (model(features[chosen]).argmax(1) == labels).float().mean().item() * 100


class MeanClassifier(nn.Module):
    """Features (B, T, D) -> mean over frames -> linear: blind to their order."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.fc = nn.Linear(features, len(ORDERS))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(1))


def main(small: bool, out: Path) -> dict[str, float]:
    """Train both on stored features; returns accuracies in percent (chance: 100/6)."""
    torch.manual_seed(0)
    through_the_models()
    count, steps = (6, 4) if small else (200, 300)
    options = dict(num_classes=len(ORDERS), dim=64, kernel='s4d', init='legs', dt_min=0.02, dt_max=0.2)
    whole = timm.create_model('s4nd_vis4mer_tiny', encoder='resnet18', num_frames=FRAMES, **options).eval()
    (video, kinds), (test_video, test_kinds) = scenes(count, seed=0), scenes(count, seed=1)
    settle(whole.encoder, video)
    features, test_features = (whole.tokens(frames)[0] for frames in (video, test_video))  # (scenes, 512)
    head = timm.create_model('s4nd_vis4mer_tiny_head', length=FRAMES, **options)
    mean = MeanClassifier(features.shape[1])
    for model in (mean, head):
        train(model, features, kinds, steps)
    found = {'mean of the frames': accuracy(mean, test_features, test_kinds)}
    for name, rate in (('ViS4mer', 1), ('ViS4mer, half the frame rate', 0.5), ('ViS4mer, twice the frame rate', 2)):
        found[name] = accuracy(head, test_features, test_kinds, int(FRAMES * rate))
    whole.load_state_dict(head.state_dict(), strict=False)  # but for the encoder, the same names
    chosen, _ = clips(test_kinds, 4, FRAMES, seed=2)
    with torch.no_grad():
        whole_videos = test_video[0, :, chosen].transpose(0, 1)  # (4, 3, frames, 32, 32)
        torch.testing.assert_close(whole(whole_videos), head(test_features[chosen]), atol=1e-4, rtol=1e-4)
    for name, percent in found.items():
        print(f'{name:32} {percent:5.1f} %')
    text = json.dumps(found, indent=1)
    write_atomically(out / 'report.json', lambda path: path.write_text(text, encoding='utf-8'))
    return found


if __name__ == '__main__':
    given = dict(word.partition('=')[::2] for word in sys.argv[1:])
    main(given.get('small') == 'true', Path(given.get('out', 'out/examples/video_classification')))
