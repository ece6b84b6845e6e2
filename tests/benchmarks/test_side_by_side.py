"""The side-by-side comparison: every variant runs, the delay is what it says, the command writes and reuses results."""

import gzip
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audio.io import write_audio

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def comparison(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, found as where it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import side_by_side

    return side_by_side


def test_every_variant_trains_in_every_model(comparison: ModuleType) -> None:
    from small_models import VARIANTS, LineModel, plane_model, wave_model

    for name, variant in VARIANTS.items():
        for model, x, shape in [
            (LineModel(20, 3, 4, variant), torch.randn(2, 1, 4, 5), (2, 3)),
            (LineModel(20, None, 1, variant), torch.randn(2, 20), (2, 20)),
            (wave_model(100, 3, variant), torch.randn(2, 100), (2, 3)),
            (plane_model(4, 1, 3, variant), torch.randn(2, 1, 4, 4), (2, 3)),
        ]:
            y = variant.freeze(model)(x)
            assert y.shape == shape, name
            y.square().sum().backward()
            still = {key.rpartition('.')[2] for key, p in model.named_parameters() if p.grad is None}
            assert still == set(variant.frozen), name


def test_the_compared_kernels_are_listed(comparison: ModuleType) -> None:
    from small_models import VARIANTS

    from s4nd.kernels import KERNELS

    assert {variant.kernel for variant in VARIANTS.values()} == set(KERNELS)
    assert {name for pairs in comparison.CLAIMS.values() for pair in pairs for name in pair} <= set(VARIANTS)


class Shift(nn.Module):
    """The right answer to the delay, at any number of samples."""

    def __init__(self, fraction: float, gain: float) -> None:
        super().__init__()
        self.fraction, self.gain = fraction, gain

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x.roll(round(self.fraction * x.shape[1]), 1)


def test_delay(comparison: ModuleType) -> None:
    """The right answer explains everything and silence nothing, at every size; the signals are the same ones."""
    from small_tasks import DELAY, SAMPLES, DelayTask

    task = DelayTask(4, seed=0)
    sizes = [str(SAMPLES // 2), str(SAMPLES), str(2 * SAMPLES)]
    right = task.evaluate_at(Shift(DELAY / SAMPLES, 1.0), torch.device('cpu'), sizes)
    assert list(right) == [f'accuracy@{size}' for size in sizes]
    assert min(right.values()) > 99.99
    silent = task.evaluate_at(Shift(DELAY / SAMPLES, 0.0), torch.device('cpu'), sizes)
    assert max(map(abs, silent.values())) < 10
    waves = next(iter(task.train_batches(0)))
    torch.testing.assert_close(task.signals(waves, 2 * SAMPLES)[:, ::2], task.signals(waves, SAMPLES))
    assert abs(torch.cat([task.signals(w, SAMPLES) for w in task.train_batches(0)]).var() - 1) < 0.1
    assert (next(iter(task.train_batches(1))) != waves).all()


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """A little noise in the layout of both packs, as options of the command."""
    rng = np.random.default_rng(0)
    for part, count in (('train', 70), ('t10k', 20)):
        images, labels = rng.integers(0, 256, (count, 28, 28)), np.arange(count) % 10
        for values, name in ((images, 'images-idx3'), (labels, 'labels-idx1')):
            head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, '>i4').tobytes()
            path = tmp_path / f'{part}-{name}-ubyte.gz'
            path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))
    for digit in range(10):
        for index in (0, 5, 10, 11):
            noise = 0.1 * torch.from_numpy(rng.standard_normal(4000)).float()
            write_audio(tmp_path / 'recordings' / f'{digit}_somebody_{index}.wav', noise, 8000)
    return [f'fashion={tmp_path}', f'digits={tmp_path / "recordings"}']


def test_the_command(comparison: ModuleType, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kernels, four tasks, a few updates: results, table, picture; a second start trains only what is missing."""
    out = tmp_path / 'out'
    trained: list[str] = []

    def train(setting: object, name: str, *rest: object) -> dict:
        trained.append(name)
        return original(setting, name, *rest)

    original = comparison.train
    monkeypatch.setattr(comparison, 'train', train)
    words = [*data, 'budget=0.01', f'out={out}']
    monkeypatch.setattr(sys, 'argv', ['side_by_side.py', *words, 'kernels=s4d-lin'])
    comparison.main()
    assert trained == ['s4d-lin'] * 4
    monkeypatch.setattr(sys, 'argv', ['side_by_side.py', *words, 'kernels=s4d-lin,s4d-lin-fixed-b'])
    comparison.main()
    assert trained == ['s4d-lin'] * 4 + ['s4d-lin-fixed-b'] * 4
    results = {path.stem: json.loads(path.read_text()) for path in (out / 'runs').glob('*.json')}
    assert len(results) == 8
    for result in results.values():
        assert len(result['accuracy']) == 3 and result['updates'] == round(
            0.01 * comparison.SETTINGS[result['task']].updates
        )
    one, other = results['images_s4d-lin_0'], results['images_s4d-lin-fixed-b_0']
    assert one['parameters'] - other['parameters'] == 2 * 2 * 32  # B of two axes in two blocks, N = 32
    text = (out / 'side_by_side.md').read_text('utf-8')
    assert text.count('| `s4d-lin` |') == text.count('| `s4d-lin-fixed-b` |') == 4
    difference = one['accuracy'][1] - other['accuracy'][1]
    row = next(line for line in text.splitlines() if '`s4d-lin` − `s4d-lin-fixed-b`' in line)
    assert row.endswith(f'| {difference:+.1f} |')
    assert (out / 'side_by_side.png').stat().st_size > 10_000


def test_a_run_that_diverges_is_a_result(comparison: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*_: object) -> dict:
        raise comparison.NonFiniteError('the loss is nan')

    monkeypatch.setattr(comparison, 'fit', fit)
    result = comparison.train(comparison.SETTINGS['delay'], 'ema', 0, 1, '')
    assert result['error'] == 'the loss is nan' and all(value != value for value in result['accuracy'])


def test_memory(comparison: ModuleType) -> None:
    """What two products keep: the inputs of the second (the input of the model and the weights do not count)."""
    first, second = nn.Linear(4, 8, bias=False), nn.Linear(8, 2, bias=False)
    x = torch.randn(5, 4)
    assert comparison.memory(nn.Sequential(first, second), x) == 5 * 8 * 4
    assert comparison.memory(nn.Sequential(first, nn.Sigmoid(), second), x) == 5 * 8 * 4


@pytest.mark.parametrize(('words', 'message'), [
    (['tasks=pixels'], 'fashion: no data given, expected fashion=FOLDER'),
    (['tasks=words'], "tasks: unknown name 'words', expected some of pixels"),
    (['kernels=s5d'], "kernels: unknown name 's5d', expected some of s4d-lin"),
    (['color=red'], 'unknown option color'),
])  # fmt: skip
def test_bad_words(comparison: ModuleType, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'argv', ['side_by_side.py', *words])
    with pytest.raises(SystemExit, match=message):
        comparison.main()
