"""Windows of series: out of files, scaled by what is trained on; mistakes named."""

from pathlib import Path

import numpy as np
import pytest
import torch

from s4nd.data import DataError, load_series
from s4nd.data.series.sets import SeriesData, read_series
from s4nd.data.synthetic.sines import sine_waves


def test_sines_follow_from_the_seed_and_have_unit_variance() -> None:
    waves = sine_waves(200, 3, 100, 5)
    assert waves.shape == (200, 3, 100) and torch.equal(waves, sine_waves(200, 3, 100, 5))
    assert waves.square().mean().item() == pytest.approx(1, abs=0.02)
    parts = load_series(SeriesData(train_count=4, test_count=3, length=32))
    assert [len(part) for part in parts.values()] == [4, 3, 3] and parts['train'].shape[1:] == (2, 32)
    assert not torch.equal(parts['val'], parts['test'])


def test_a_csv_is_cut_into_windows_and_scaled_by_the_training_part(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(5, 3, (205, 2))
    lines = ['a,b', *(f'{first},{second}' for first, second in values)]
    lines[3] = f'{values[2, 0]},'
    (tmp_path / 'x.csv').write_text('\n'.join(lines))
    parts = load_series(SeriesData(kind='file', root=str(tmp_path / 'x.csv'), length=10))
    assert {name: tuple(part.shape) for name, part in parts.items()} == {
        'train': (16, 2, 10), 'val': (2, 2, 10), 'test': (2, 2, 10),
    }  # fmt: skip
    train = parts['train']
    assert train.isnan().sum() == 1 and train[0, 1, 2].isnan()
    assert train.nanmean((0, 2)).abs().max() < 1e-5
    expected = (values[190:200, 0] - values[:160, 0].mean()) / values[:160, 0].std()
    assert torch.allclose(parts['test'][1, 0], torch.from_numpy(expected).float(), atol=1e-4)


def test_an_array_of_windows_is_taken_as_it_is(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(20, 3, 8)).astype(np.float32)
    values[3] = np.nan  # nothing is known of it
    np.save(tmp_path / 'x.npy', values)
    parts = load_series(SeriesData(kind='file', root=str(tmp_path / 'x.npy'), length=8))
    assert sum(len(part) for part in parts.values()) == 19
    with pytest.raises(DataError, match=r'its windows have 8 samples, expected data\.length=9'):
        load_series(SeriesData(kind='file', root=str(tmp_path / 'x.npy'), length=9))


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('x.csv', b'', 'cannot be read'),
        ('x.csv', b'1,2\n3\n', r'expected rows of one length, got \[1, 2\]'),
        ('x.csv', b'a,b\n1,two\n', 'cannot be read'),
        ('x.csv', b'\xff\xfe\x00', 'cannot be read'),
        ('x.npy', b'\x93NUMPY', 'cannot be read'),
        ('x.txt', b'1', r'expected a \.csv, a \.parquet or a \.npy file'),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_series(tmp_path / name)


def test_arrays_that_are_no_series(tmp_path: Path) -> None:
    np.save(tmp_path / 'o.npy', np.array([{'a': 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / 's.npy', np.array(['a']))
    np.save(tmp_path / 'v.npy', np.zeros(5))
    for name, message in [('o', 'cannot be read'), ('s', 'expected numbers'), ('v', r'got the shape \(5,\)')]:
        with pytest.raises(DataError, match=message):
            read_series(tmp_path / f'{name}.npy')


def test_too_little_data(tmp_path: Path) -> None:
    np.save(tmp_path / 'x.npy', np.random.default_rng(0).normal(size=(40, 2)))
    with pytest.raises(DataError, match=r'data\.val_fraction=0\.1 of 2 windows .* leaves a part empty'):
        load_series(SeriesData(kind='file', root=str(tmp_path / 'x.npy'), length=20))
    values = np.random.default_rng(0).normal(size=(40, 2))
    values[:, 1] = np.nan
    np.save(tmp_path / 'x.npy', values)
    with pytest.raises(DataError, match='channel 1 has no known value'):
        load_series(SeriesData(kind='file', root=str(tmp_path / 'x.npy'), length=4))
    with pytest.raises(DataError, match=r'data\.root must be given'):
        load_series(SeriesData(kind='file'))
