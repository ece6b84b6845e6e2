"""Every example runs, at a size of seconds."""

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / 'examples'
CHECKOUT = Path(os.environ.get('TIMM_REPOSITORY', EXAMPLES.parent / 'out' / 'timm-repository'))

# What the example needs of timm's scripts, where these are not to hand: the arguments, the class folders, the names.
STAND_IN = """
import argparse, json, pathlib, timm, torch
from timm.data import create_dataset

parser = argparse.ArgumentParser()
for name in ('data-dir', 'model', 'num-classes', 'device', 'model-kwargs', 'img-size', 'output', 'experiment', 'opt',
             'lr', 'warmup-epochs', 'epochs', 'checkpoint', 'results-file', 'results-format'):
    parser.add_argument('--' + name)
parser.add_argument('-j')
parser.add_argument('-b')
for name in ('no-aug', 'channels-last', 'model-ema'):
    parser.add_argument('--' + name, action='store_true')
args = parser.parse_args()
grid = int(args.model_kwargs.removeprefix('img_size='))
model = timm.create_model(args.model, num_classes=int(args.num_classes), img_size=grid)
splits = [create_dataset('', args.data_dir, split=split) for split in ('train', 'validation')]
assert [len(split) for split in splits] == [20, 20] and len(splits[0].reader.class_to_idx) == 10
if args.checkpoint is None:
    folder = pathlib.Path(args.output) / args.experiment
    folder.mkdir(parents=True)
    torch.save({'arch': args.model, 'state_dict': model.state_dict()}, folder / 'last.pth.tar')
else:
    timm.models.load_checkpoint(model, args.checkpoint)
    size = int(args.img_size)
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 10) and model.img_size == (grid, grid)
    pathlib.Path(args.results_file).write_text(json.dumps({'top1': float(size)}))
"""


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f'example_{Path(name).name}', EXAMPLES / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_segmentation(tmp_path: Path) -> None:
    pytest.importorskip('segmentation_models_pytorch', reason='needs the extra examples')
    report = example('segmentation').main('tu-s4nd_convnext_tiny', True, tmp_path)
    assert set(report) == {'loss', 'mean_iou@32', 'mean_iou@64'} and 0 < report['loss'] < 3
    assert json.loads((tmp_path / 'report.json').read_text()) == report


def test_detection(tmp_path: Path) -> None:
    report = example('detection').main('s4nd_convnext_micro', True, tmp_path)
    assert set(report) == {'loss', 'found@64x85', 'found@128x170'} and 0 < report['loss'] < 10
    assert json.loads((tmp_path / 'report.json').read_text()) == report


def test_attribution(tmp_path: Path) -> None:
    pytest.importorskip('captum', reason='needs the extra examples')
    agreement = example('attribution').main(None, True, tmp_path)
    # The same scene, so the same pixels made the decision.
    assert agreement > 0.9
    with Image.open(tmp_path / 'attribution.png') as picture:
        assert picture.width > picture.height


def test_video_classification(tmp_path: Path) -> None:
    found = example('video_classification').main(True, tmp_path)
    assert len(found) == 4 and all(0 <= percent <= 100 for percent in found.values())
    assert json.loads((tmp_path / 'report.json').read_text()) == found


def test_timm_scripts_learn_of_the_models_and_find_the_images(tmp_path: Path) -> None:
    for name in ('train.py', 'validate.py'):
        (tmp_path / 'timm').mkdir(exist_ok=True)
        (tmp_path / 'timm' / name).write_text(STAND_IN)
    scripts = example('clients/timm_scripts')
    results = scripts.train_and_validate('s4nd_isotropic_mini', True, tmp_path / 'timm', tmp_path / 'out')
    assert results == {'top1@16': 16.0, 'top1@32': 32.0}


@pytest.mark.skipif(not (CHECKOUT / 'train.py').is_file(), reason=f'no checkout of timm in {CHECKOUT}')
def test_timm_scripts_themselves(tmp_path: Path) -> None:
    results = example('clients/timm_scripts').main('s4nd_isotropic_mini', True, CHECKOUT, tmp_path)
    assert set(results) == {'top1@16', 'top1@32', 'infer', 'train'} and results['infer'] > results['train'] > 0


def test_app() -> None:
    app = example('app/app')
    (name,) = app.image_models()[:1]
    seen, figure = app.sweep(name, Image.new('RGB', (50, 40), 'gray'))
    assert [picture.size for picture in seen] == [(256, 256)] * len(app.SIZES) and len(figure.axes[0].lines) == 4
    rate, wave = app.listen(app.sound_models()[0], None, None, 0.05, 0.9, 0)
    beginning = (2 * rate, (16000 * np.ones((400, 2))).astype(np.int16))
    _, longer = app.listen(app.sound_models()[0], None, beginning, 0.05, 0.9, 0)
    assert wave.shape == (round(0.05 * rate),) and longer.shape == (200 + len(wave),)
    assert abs(float(longer[:200].mean()) - 16000 / 32767) < 0.1


def test_app_is_a_page() -> None:
    pytest.importorskip('gradio')
    assert example('app/app').build().title == 's4nd'
