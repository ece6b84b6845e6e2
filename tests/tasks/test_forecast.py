"""Forecasts: tables and splits, models, baselines, metrics; mistakes named."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import cbook

from s4nd.data import DataError
from s4nd.data.series.forecasts import ForecastData, load_forecast
from s4nd.data.series.tables import read_table
from s4nd.models.forecast import DLinear, S4Forecaster, fit_linear, last_value, seasonal_naive
from s4nd.tasks.forecast import ForecastConfig, ForecastEval, ForecastTask, crps
from s4nd.training.config import ConfigError, ModelConfig, OptimConfig
from s4nd.training.loop import fit

CPU = torch.device('cpu')


def write_waves(path: Path, rows: int = 300, names: str = 'date,a,b') -> str:
    """Two noisy waves of a period of 12, one ahead of the other by a quarter."""
    noise = np.random.default_rng(0).normal(0, 0.1, (rows, 2))
    angle = 2 * np.pi * np.arange(rows) / 12
    values = 5 + 3 * np.stack([np.sin(angle), np.cos(angle)], 1) + noise
    lines = [names, *(f'2020-01-{i % 28 + 1:02d},{a},{b}' for i, (a, b) in enumerate(values))]
    path.write_text('\n'.join(lines))
    return str(path)


def make_task(data: ForecastData, name: str, args: dict, **options: object) -> ForecastTask:
    config = ForecastConfig(
        seed=1, model=ModelConfig(name, args), data=data,
        optim=OptimConfig(lr=1e-2, ssm_lr=1e-2, weight_decay=0.0, warmup_epochs=0.1), **options,
    )  # fmt: skip
    return ForecastTask.from_config(config)


def test_a_table_leaves_dates_out_and_keeps_names(tmp_path: Path) -> None:
    (tmp_path / 'x.csv').write_text('\ufeffdate,OT,b\n2020-01-01 00:00,1,2\n2020-01-01 01:00,,4\n', encoding='utf-8')
    table = read_table(tmp_path / 'x.csv')
    assert table.names == ('OT', 'b')
    np.testing.assert_array_equal(table.values, [[1, 2], [np.nan, 4]])
    (tmp_path / 'plain.csv').write_text('1,2\n3,4\n')
    assert (
        read_table(tmp_path / 'plain.csv').names == ('0', '1') and len(read_table(tmp_path / 'plain.csv').values) == 2
    )


def test_a_parquet_file_is_the_same_table(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet

    columns = {'date': ['2020-01-01', '2020-01-02'], 'OT': [1.0, None], 'b': [2, 4]}
    parquet.write_table(pyarrow.table(columns), tmp_path / 'x.parquet')
    table = read_table(tmp_path / 'x.parquet')
    assert table.names == ('OT', 'b')
    np.testing.assert_array_equal(table.values, [[1, 2], [np.nan, 4]])
    (tmp_path / 'bad.parquet').write_bytes(b'PAR1')
    with pytest.raises(DataError, match='cannot be read'):
        read_table(tmp_path / 'bad.parquet')


def test_parts_are_scaled_by_the_training_part_and_reach_back(tmp_path: Path) -> None:
    root = write_waves(tmp_path / 'x.csv')
    found = load_forecast(ForecastData(root, target='b', context=20, horizon=5))
    assert {name: len(part) for name, part in found.parts.items()} == {'train': 186, 'val': 26, 'test': 56}
    values = torch.from_numpy(read_table(Path(root)).values)
    mean, std = values[:210].mean(0), values[:210].std(0, correction=0)
    past, later = found.parts['test'].at(torch.tensor([0]))
    assert torch.allclose(past[0].double(), (values[220:240] - mean) / std, atol=1e-5)
    assert torch.allclose(later[0].double(), (values[240:245] - mean) / std, atol=1e-5)
    assert found.names == ('a', 'b') and found.targets == (1,)
    alone = load_forecast(ForecastData(root, target='b', inputs='target', context=20, horizon=5))
    assert alone.names == ('b',) and alone.targets == (0,)


def test_ett_is_split_by_months(tmp_path: Path) -> None:
    np.savetxt(tmp_path / 'ETTh1.csv', np.arange(17420.0)[:, None], header='OT', comments='')
    parts = load_forecast(ForecastData(str(tmp_path / 'ETTh1.csv'), context=336, horizon=96)).parts
    assert [len(parts[name]) for name in ('train', 'val', 'test')] == [8209, 2785, 2785]  # as published


def test_baselines() -> None:
    past = torch.arange(10.0)[None, :, None]
    assert last_value(past, 3).flatten().tolist() == [9, 9, 9]
    assert seasonal_naive(past, 5, 4).flatten().tolist() == [6, 7, 8, 9, 6]
    assert seasonal_naive(past, 2, 40).flatten().tolist() == [0, 1]
    random = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, 2, generator=random, dtype=torch.float64)
    weights = torch.randn(7, 3, generator=random, dtype=torch.float64)
    y = (torch.cat([x, torch.ones(50, 1, 2)], 1).transpose(1, 2) @ weights).transpose(1, 2)
    assert torch.allclose(fit_linear(x, y, 0.0), weights, atol=1e-10)
    linear = DLinear(6, 3, window=3).double()
    bare = torch.cat([x, torch.ones(50, 1, 2)], 1).transpose(1, 2)
    assert torch.allclose((bare @ fit_linear(x, linear(x), 0.0)).transpose(1, 2), linear(x), atol=1e-9)


def test_crps_is_that_of_pairs_and_of_a_normal_distribution() -> None:
    random = torch.Generator().manual_seed(0)
    draws, wanted = (torch.randn(*shape, generator=random, dtype=torch.float64) for shape in ((7, 3, 2), (3, 2)))
    pairs = (draws[:, None] - draws[None]).abs().mean((0, 1)) / 2
    assert torch.allclose(crps(draws, wanted), (draws - wanted).abs().mean(0) - pairs, atol=1e-12)
    assert torch.allclose(crps(draws[:1], wanted), (draws[0] - wanted).abs())
    many = torch.special.ndtri((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000)  # as evenly as draws can be
    density, below = math.exp(-0.125) / math.sqrt(2 * math.pi), 0.5 * (1 + math.erf(0.5 / math.sqrt(2)))
    assert crps(many, torch.tensor(0.5)).item() == pytest.approx(
        0.5 * (2 * below - 1) + 2 * density - 1 / math.sqrt(math.pi), abs=1e-3
    )


def test_a_forecast_does_not_depend_on_level_and_scale() -> None:
    torch.manual_seed(0)
    model = S4Forecaster(2, 4, [1], 's4d', d_model=8, n_layers=1, layer_args={'d_state': 4}).eval()
    x = torch.randn(3, 10, 2)
    assert model(x).shape == (3, 4, 1)
    assert torch.allclose(model(7 * x + 3), 7 * model(x) + 3, atol=1e-4)


@pytest.mark.parametrize(
    ('name', 'args', 'epochs'),
    [
        ('s4_forecaster', {'layer': 's4d', 'd_model': 16, 'n_layers': 1, 'layer_args': {'d_state': 8}}, 6),
        ('dlinear', {'window': 5}, 15),
    ],
)
def test_training_beats_the_last_value(tmp_path: Path, name: str, args: dict, epochs: int) -> None:
    data = ForecastData(write_waves(tmp_path / 'x.csv'), target='a', context=24, horizon=6, period=12, batch_size=16)
    options = ForecastEval(picture=str(tmp_path / 'f.png'), every=epochs)
    task = make_task(data, name, args, epochs=epochs, eval=options)
    model = task.build_model()
    fit(model, task, task.config, tmp_path / 'out')
    found = task.evaluate_at(model, CPU, [])
    past, wanted = task._window('test', torch.arange(len(task.parts['test'])))
    assert found['mae_last'] == pytest.approx((wanted - past[:, -1:]).abs().mean().item(), rel=1e-5)
    assert found['mse'] < 0.2 * found['mse_last'] and found['mse_linear'] < 0.1 * found['mse_last']
    assert found['crps'] < found['mae'] and all(
        (tmp_path / name).stat().st_size > 5000 for name in ('f.png', 'f-dark.png')
    )
    again = task.load_model(tmp_path / 'out' / 'last.safetensors')
    assert task.evaluate(again, CPU) == pytest.approx(task.evaluate(model, CPU), rel=1e-5)


def test_a_diffusion_model_draws_forecasts(tmp_path: Path) -> None:
    data = ForecastData(write_waves(tmp_path / 'x.csv', 120), target='a', context=12, horizon=4, batch_size=16)
    args = {'d_model': 8, 'n_layers': 1, 'condition': 8, 'mixer_args': {'d_state': 4}}
    task = make_task(data, 'sssd_s4', args, epochs=1, eval=ForecastEval(samples=3, steps=2, limit=4))
    model = task.build_model()
    fit(model, task, task.config, tmp_path / 'out')
    numbers = torch.tensor([0, 5])
    draws = task.draws(model, CPU, numbers)
    assert draws.shape == (3, 2, 4, 1) and not torch.equal(draws[0], draws[1])
    found = task.evaluate_at(model, CPU, [])
    assert set(found) >= {'mse', 'crps', 'crps_seasonal'} and all(map(math.isfinite, found.values()))


def test_a_real_series(tmp_path: Path) -> None:
    """Monthly prices that matplotlib ships: nobody beats the last value by much, and the linear map stays sane."""
    path = cbook.get_sample_data('Stocks.csv', asfileobj=False)
    lines = [line for line in Path(path).read_text().splitlines() if line and not line.startswith('#')]
    table = [line.split(',') for line in lines]
    (tmp_path / 'x.csv').write_text('\n'.join(f'{row[0]},{row[1]}' for row in table if row[1]))
    data = ForecastData(str(tmp_path / 'x.csv'), target='IBM', context=12, horizon=3, period=12)
    task = make_task(data, 'dlinear', {'window': 3})
    found = task.evaluate_at(task.build_model().eval(), CPU, [])
    assert found['mse_last'] < found['mse_seasonal'] and found['mse_linear'] < 2 * found['mse_last']


def test_mistakes_are_named(tmp_path: Path) -> None:
    root = write_waves(tmp_path / 'x.csv')

    def load(**options: object) -> None:
        load_forecast(ForecastData(**{'root': root, 'context': 20, 'horizon': 5, **options}))

    for options, message in [
        ({'root': None}, r'data\.root must be given: a \.csv or \.parquet'),
        ({'target': 'bb'}, r"data\.target: .*x\.csv has no column 'bb'; did you mean 'b'"),
        ({'context': 290}, r'its train part, 210 of 300 rows, is too short for data\.context=290 and data\.horizon=5'),
        ({'horizon': 31}, r'its val part, 30 of 300 rows, is too short'),
        ({'split': 'ett_hour'}, r'300 rows, expected at least 14400 with data\.split=ett_hour'),
    ]:
        with pytest.raises(DataError, match=message):
            load(**options)
    lines = Path(root).read_text().splitlines()
    lines[7] = '2020-01-07,,1'
    (tmp_path / 'gap.csv').write_text('\n'.join(lines))
    with pytest.raises(DataError, match=r"column 'a' has no number in row 7; .* task=series fills in gaps"):
        load(root=str(tmp_path / 'gap.csv'))
    (tmp_path / 'word.csv').write_text('date,a\n2020-01-01,1\n2020-01-02,x\n')
    with pytest.raises(DataError, match=r"column 'a', row 2: expected a number, got 'x'"):
        read_table(tmp_path / 'word.csv')
    (tmp_path / 'twice.csv').write_text('a,a\n1,2\n')
    with pytest.raises(DataError, match="two columns are called 'a'"):
        read_table(tmp_path / 'twice.csv')
    with pytest.raises(DataError, match=r'expected a \.csv or a \.parquet file'):
        read_table(tmp_path / 'x.txt')
    with pytest.raises(ConfigError, match=r"no forecaster 's4_forcaster'; did you mean 's4_forecaster'"):
        make_task(ForecastData(root, context=20, horizon=5), 's4_forcaster', {}).build_model()
    with pytest.raises(ValueError, match='window must be odd, got 4'):
        DLinear(8, 2, window=4)
    with pytest.raises(ValueError, match=r'expected \(batch, 8, channels\), got shape \[1, 7, 2\]'):
        DLinear(8, 2)(torch.zeros(1, 7, 2))
    with pytest.raises(ValueError, match=r'expected \(batch, length, 2\), got shape \[1, 7, 3\]'):
        S4Forecaster(2, 2, d_model=4, n_layers=1)(torch.zeros(1, 7, 3))
