"""transformers: Auto classes, a pipeline, TimmBackbone and the Trainer on a folder that `s4nd.save_for_hf` wrote.

python examples/clients/transformers_auto.py [out=out/clients/transformers]
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from shapes import MEAN, SIZE, STD, accuracy, classes, pictures, trained_model
from torch.utils.data import Dataset
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    TimmBackbone,
    TimmBackboneConfig,
    Trainer,
    TrainingArguments,
    pipeline,
)

import s4nd


class Pairs(Dataset):
    def __init__(self, count: int) -> None:
        self.images, self.labels = pictures(count)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {'pixel_values': self.images[index], 'labels': self.labels[index]}


def main(out: Path) -> str:
    ours = trained_model()
    s4nd.save_for_hf(ours, out / 'model', classes(), {'mean': MEAN, 'std': STD})
    model = AutoModelForImageClassification.from_pretrained(out / 'model').eval()
    for size in (SIZE, 2 * SIZE):
        images, _ = pictures(4, size)
        with torch.no_grad():
            torch.testing.assert_close(model(images).logits, ours(images), atol=1e-5, rtol=1e-5)
    processor = AutoImageProcessor.from_pretrained(out / 'model')
    classify = pipeline('image-classification', model=model, image_processor=processor)
    (best, *_) = classify(Image.new('RGB', (40, 24), 'gray'))
    assert best['label'] in classes()

    options = {'img_size': 32, 'depths': (1, 1, 1, 1), 'dims': (8, 12, 16, 24), 'd_state': 8}
    config = TimmBackboneConfig(
        backbone='s4nd_convnext_micro', use_pretrained_backbone=False, out_indices=(1, 2, 3), **options
    )
    maps = TimmBackbone(config)(torch.randn(1, 3, 64, 96)).feature_maps
    assert [tuple(level.shape[-2:]) for level in maps] == [(8, 12), (4, 6), (2, 3)]

    arguments = TrainingArguments(
        output_dir=str(out / 'trainer'), max_steps=4, per_device_train_batch_size=20, learning_rate=1e-3, use_cpu=True,
        report_to=[], save_steps=4, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=Pairs(100), eval_dataset=Pairs(40))
    trainer.train()
    again = AutoModelForImageClassification.from_pretrained(out / 'trainer' / 'checkpoint-4').eval()
    with torch.no_grad():
        images, _ = pictures(4)
        torch.testing.assert_close(again(images).logits, model.eval()(images).logits, atol=1e-5, rtol=1e-5)
    return (
        f'Auto class equal to the model at {SIZE} and {2 * SIZE} pixels ({accuracy(ours):.0f} % right), pipeline; '
        f'TimmBackbone 3 levels; Trainer 4 steps, its checkpoint reloads'
    )


if __name__ == '__main__':
    options = dict(word.partition('=')[::2] for word in sys.argv[1:])
    print(main(Path(options.get('out', 'out/clients/transformers'))))
