"""The video task: what the model sees, on which grid, and what is counted."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s4nd.data import ClipFiles, DataError, MovingSet, Splits
from s4nd.data.clips.options import VideoData
from s4nd.tasks import Resampled
from s4nd.tasks.clips import VideoConfig, VideoEval, VideoModel, VideoTask
from s4nd.training.config import ConfigError
from tests.data.clips.test_files import write_frames
from tests.data.synthetic.test_moving import items

CPU = torch.device('cpu')


class Probe(nn.Module):
    """Gives fixed scores and remembers its input."""

    def __init__(self, best: int | None = None) -> None:
        super().__init__()
        self.scores = torch.zeros(12)
        if best is not None:
            self.scores[best] = 3.0
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.scores.expand(len(x), -1)


def make(frame_by_frame: bool = False, evaluation: VideoEval | None = None, **options: object) -> VideoTask:
    data = VideoData(size=8, frame_rate=4.0, seconds=1.0, batch_size=6, **options)
    config = VideoConfig(
        data=data, model=VideoModel('probe', frame_by_frame=frame_by_frame), eval=evaluation or VideoEval()
    )
    return VideoTask(config, Splits(MovingSet.draw(items(), 12, 0), None, MovingSet.draw(items(), 24, 1)))


def test_the_model_sees_normalized_clips_on_the_training_grid() -> None:
    task, probe = make(), Probe()
    for clips, labels in task.train_batches(0):
        assert clips.shape == (6, 1, 4, 8, 8) and clips.dtype == torch.uint8
        assert task.loss(probe, (clips, labels)).item() == pytest.approx(np.log(12))
        assert torch.allclose(probe.seen[-1], (clips / 255 - 0.19) / 0.13, atol=1e-6)
    assert len(probe.seen) == 2 and task.monitor == 'accuracy@8'
    assert (
        task.metadata['size'] == '8' and task.metadata['frame_rate'] == '4fps' and 'bounce' in task.metadata['classes']
    )


def test_frame_by_frame_the_scores_of_the_frames_are_averaged() -> None:
    task = make(frame_by_frame=True)
    clips, _ = next(iter(task.train_batches(0)))

    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert images.shape == (24, 1, 8, 8)
            return images.mean((2, 3)).expand(-1, 12)

    expected = ((clips / 255 - 0.19) / 0.13).mean((1, 2, 3, 4))
    assert torch.allclose(task.scores(Mean(), clips)[:, 0], expected, atol=1e-5)
    assert task.model_grid == {'img_size': [8, 8]} and make().model_grid == {'img_size': [8, 8], 'num_frames': 4}


@pytest.mark.parametrize('limit', [None, 12])
def test_sizes_and_frame_rates_are_axes_of_their_own(limit: int | None) -> None:
    task, probe = make(evaluation=VideoEval(limit=limit)), Probe(best=3)
    results = task.evaluate_at(probe, CPU, ['8', '16', '2fps', '4fps', '8fps'])
    names = ['8', '16', '2fps', '4fps', '8fps']
    assert list(results) == [f'{metric}@{name}' for name in names for metric in ('accuracy', 'cross_entropy')]
    assert set(np.round([results[f'accuracy@{name}'] for name in names], 3)) == {8.333}
    expected = (11 * np.log(11 + np.exp(3)) + np.log(11 + np.exp(3)) - 3) / 12
    assert results['cross_entropy@16'] == pytest.approx(expected, abs=1e-5)
    # Batches hold as many pixels as in training, and a grid that is asked for twice is measured once.
    shapes = [tuple(x.shape) for x in probe.seen]
    count = 12 if limit else 24
    expected = [(6, 1, 4, 8, 8)] * (count // 6) + [(2, 1, 4, 16, 16)] * (count // 2)
    assert shapes == expected + [(6, 1, 2, 8, 8)] * (count // 6) + [(3, 1, 8, 8, 8)] * (count // 3)


def test_epochs_are_watched_on_the_held_out_clips() -> None:
    task = make()
    assert task.evaluate(Probe(best=0), CPU)['accuracy@8'] == pytest.approx(100 / 12, abs=1e-3)
    task.splits = Splits(task.splits.train, task.splits.test.select(torch.tensor([1, 13, 2])), task.splits.test)
    assert task.evaluate(Probe(best=1), CPU)['accuracy@8'] == pytest.approx(200 / 3, abs=1e-3)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'evaluation': VideoEval(weights='best')}, 'eval.weights=best needs held-out clips'),
        (
            {'evaluation': VideoEval(frame_rates=[0.25])},
            r'eval\.frame_rates: expected 1 to 10000 frames in 1 s, got 0\.25',
        ),
    ],
)
def test_configurations_that_cannot_be_run(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)
    for rate, seconds in ((4.0, 0.1), (4.0, 1e9), (1e300, 1e300)):
        with pytest.raises(ConfigError, match=r'data\.frame_rate: expected 1 to 10000 frames in \S+ s'):
            VideoTask(VideoConfig(data=VideoData(frame_rate=rate, seconds=seconds)), make().splits)


def test_broken_and_short_clips_are_reported(tmp_path) -> None:
    for name, count in (('a', 4), ('b', 1), ('c', 4)):
        write_frames(tmp_path / name, count)
    (tmp_path / 'c' / 'frame_1.png').write_bytes(b'')
    files = ClipFiles(tmp_path, ('a', 'b', 'c'), torch.tensor([0, 1, 0]), ('x', 'y'), stored_rate=4.0)
    data = VideoData(kind='folder', size=8, frame_rate=4.0, seconds=1.0, batch_size=2, workers=0)
    task = VideoTask(VideoConfig(data=data), Splits(files, None, files))
    for batch in task.train_batches(0):
        assert torch.isfinite(task.loss(Probe(), batch))
    assert task.evaluate(Probe(best=1), CPU)['accuracy@8'] == 50.0
    assert task.short == ['b'] and [text.partition(':')[0] for text in task.skipped] == ['c']
    # The pictures are normalized as those of a folder of images are.
    probe = Probe()
    task.evaluate(probe, CPU)
    assert probe.seen[0][0, :, 0, 0, 0].tolist() == pytest.approx(
        [(4 / 255 - mean) / std for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))], abs=1e-4
    )
    nothing = files.select(torch.tensor([2]))
    task.splits = Splits(files, None, nothing)
    with pytest.raises(DataError, match='nothing to evaluate on'):
        task.evaluate(Probe(), CPU)


def test_resampled_clips_have_the_frames_and_pixels_of_training() -> None:
    task, probe = make(), Probe()
    results = task.evaluate_at(Resampled(probe, task), CPU, ['4', '16', '2fps', '8fps'])
    assert {tuple(x.shape[1:]) for x in probe.seen} == {(1, 4, 8, 8)} and 'accuracy@8fps' in results
    # Frames in between are interpolated: a ramp in time stays one, read at the middles of other parts.
    ramp = torch.arange(8.0)[None, None, :, None, None].expand(1, 1, 8, 16, 16)
    assert torch.allclose(task.resample(ramp)[0, 0, :, 0, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]))
    images = make(frame_by_frame=True)
    images.evaluate_at(Resampled(probe, images), CPU, ['16'])
    assert probe.seen[-1].shape[1:] == (1, 8, 8)
