"""torchvision's RetinaNet on the feature pyramid of an S4ND backbone: a few steps of training, then boxes at two sizes.

    python examples/detection.py [small=true] [backbone=s4nd_convnext_micro] [out=out/examples/detection]

Levels of `features_only` go through torchvision's FeaturePyramidNetwork into the detector. The images of a batch differ
in size, and none is square: torchvision pads them to one batch, the backbone takes whatever size that has. The scenes
are colored boxes on noise. small=true: a few steps on small images, in seconds.
"""

import json
import sys
from collections import OrderedDict
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, box_iou

import s4nd
from s4nd.files import write_atomically


class Pyramid(nn.Module):
    """The levels of a timm backbone, brought to one width: (B, 3, H, W) -> {'0': (B, 64, H/8, W/8), …}."""

    out_channels = 64

    def __init__(self, name: str, img_size: tuple[int, int]) -> None:
        super().__init__()
        self.levels = timm.create_model(name, features_only=True, out_indices=(1, 2, 3), img_size=img_size)
        self.pyramid = FeaturePyramidNetwork(self.levels.feature_info.channels(), self.out_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.pyramid(OrderedDict((str(i), level) for i, level in enumerate(self.levels(x))))


def scene(height: int, width: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """An image (3, height, width) with one box, red (class 1) or blue (class 2), and its description."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.5 + 0.05 * torch.randn(3, height, width, generator=generator)
    top, left, tall, wide = (torch.rand(4, generator=generator) * 0.3 + torch.tensor([0.1, 0.1, 0.25, 0.25])).tolist()
    label = seed % 2 + 1
    corners = [round(left * width), round(top * height), round((left + wide) * width), round((top + tall) * height)]
    image[:, corners[1] : corners[3], corners[0] : corners[2]] = 0.1
    image[0 if label == 1 else 2, corners[1] : corners[3], corners[0] : corners[2]] = 0.9
    return image.clamp(0, 1), {'boxes': torch.tensor([corners], dtype=torch.float32), 'labels': torch.tensor([label])}


@torch.no_grad()
def found_boxes(model: RetinaNet, height: int, width: int, count: int) -> float:
    """Share of scenes whose best detection overlaps the box by half and is of its class."""
    right = 0
    for seed in range(10_000, 10_000 + count):
        image, target = scene(height, width, seed)
        (found,) = model.eval()([image])
        if len(found['boxes']):
            overlap = box_iou(found['boxes'][:1], target['boxes']).item()
            right += overlap >= 0.5 and found['labels'][0] == target['labels'][0]
    return int(right) / count


def main(backbone: str, small: bool, out: Path) -> dict[str, float]:
    torch.manual_seed(0)
    side, steps, batch = (64, 2, 2) if small else (96, 150, 8)
    anchors = AnchorGenerator(tuple((side // 6, side // 4, side // 3) for _ in range(3)), ((0.6, 1.0, 1.7),) * 3)
    model = RetinaNet(
        Pyramid(backbone, (side, side * 4 // 3)), num_classes=3, anchor_generator=anchors,
        min_size=side, max_size=4 * side, detections_per_img=5,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(s4nd.param_groups(model, lr=1e-3, weight_decay=0.05))
    model.train()
    for step in range(steps):
        # Wide and tall pictures in one batch.
        pairs = [
            scene(*((side, side * 4 // 3), (side * 4 // 3, side))[i % 2], seed=step * batch + i) for i in range(batch)
        ]
        losses = model([image for image, _ in pairs], [target for _, target in pairs])
        loss = sum(losses.values())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f'step {step}/{steps}  ' + '  '.join(f'{name} {value.item():.3f}' for name, value in losses.items()))
    report = {'loss': loss.item()}
    for times in (1, 2):
        model.transform.min_size = (times * side,)
        model.transform.max_size = 4 * times * side
        height, width = times * side, times * side * 4 // 3
        report[f'found@{height}x{width}'] = found_boxes(model, height, width, 2 if small else 50)
    write_atomically(out / 'report.json', lambda path: path.write_text(json.dumps(report, indent=2), encoding='utf-8'))
    print(f'{json.dumps(report)}\nwritten to {out}')
    return report


if __name__ == '__main__':
    options = dict(word.partition('=')[::2] for word in sys.argv[1:])
    main(
        options.get('backbone', 's4nd_convnext_micro'),
        options.get('small') == 'true',
        Path(options.get('out', 'out/examples/detection')),
    )
