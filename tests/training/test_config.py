"""The configuration: defaults, file, command line; every mistake names itself."""

from pathlib import Path

import pytest

from s4nd.tasks.images import ImageConfig
from s4nd.tasks.series import SeriesConfig
from s4nd.training.config import ConfigError, load_config, save_config

BASE = """
model: {name: some_model, args: {bandlimit: 0.5, depths: [1, 2]}}
data: {kind: shapes, size: 16}
optim: {lr: 4e-3}
"""
CONFIGS = sorted((Path(__file__).parents[2] / 'configs').rglob('*.yaml'))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / 'run_name.yaml'
    file.write_text(BASE)
    return file


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(path: Path) -> None:
    config = load_config(path, ['data.size=8', 'eval.sizes=[8,16]', 'model.args.bandlimit=null', 'data.root=/a/b=c'])
    assert isinstance(config, ImageConfig)
    assert (config.data.size, config.data.kind, config.data.batch_size) == (8, 'shapes', 128)
    assert config.model.args == {'bandlimit': None, 'depths': [1, 2]}
    assert (config.eval.sizes, config.optim.lr, config.data.root) == ([8, 16], 0.004, '/a/b=c')
    assert (config.out, config.label) == (str(Path('out/run_name')), 'run_name')


def test_the_task_chooses_the_data_options(path: Path) -> None:
    path.write_text('task: series\nmodel: {name: sssd_s4}\ndata: {length: 64}\n')
    config = load_config(path)
    assert isinstance(config, SeriesConfig) and config.data.length == 64
    with pytest.raises(ConfigError, match=r"unknown option 'data.crop_padding'"):
        load_config(path, ['data.crop_padding=4'])


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('epoch=3', r"unknown option 'epoch'; did you mean 'epochs'\?"),
        ('data.siz=3', r"unknown option 'data.siz'; did you mean 'data.size'\?"),
        ('data.sizes=[8,16x]', r"data.sizes: expected a size of at least 1, .* got '16x'"),
        ('data.stage_epochs=[3,0]', r'data.stage_epochs: expected at least 1, got 0'),
        ('optim.warm_up_epochs=3', r"did you mean 'optim.warmup_epochs'\?"),
        ('eval.resolution=3', r"unknown option 'eval.resolution'"),
        ('epochs=many', r"epochs: expected a whole number, got 'many'"),
        ('epochs=1.5', r'epochs: expected a whole number, got 1.5'),
        ('resume=perhaps', r"resume: expected true or false, got 'perhaps'"),
        ('eval.sizes=[8,big]', r"eval.sizes: expected a size of at least 1, such as 16, or 24x40 .* got 'big'"),
        ('eval.sizes=8', r'eval.sizes: expected a list'),
        ('eval.sizes=[0]', r"eval.sizes: expected a size of at least 1, .* got '0'"),
        ('data=3', r'data: expected a section with options of its own, got 3'),
        ('model.args=3', r'model.args: expected a section with options of its own, got 3'),
        ('data.kind=cifar', r"data.kind: expected one of cifar10, .*, got 'cifar'"),
        ('optim.lr=-1', r'optim.lr: expected at least 0, got -1'),
        ('optim.lr=nan', r'optim.lr: expected at least 0, got nan'),
        ('data.val_fraction=2', r'data.val_fraction: expected at most 0.9, got 2'),
        ('task=speech', r"task: expected one of image, video, series, .*got 'speech'"),
        ('epochs', r"'epochs': expected key=value"),
    ],
)
def test_a_mistake_names_the_option_its_value_and_what_was_expected(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(path, [override])


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('model: {name: x}\noptimm: {lr: 1}\n', r"run_name.yaml: unknown option 'optimm'; did you mean 'optim'\?"),
        ('- a\n- b\n', r'expected key: value lines, got a list'),
        ('model: {name: [\n', r'not valid YAML'),
        ('epochs: 3\n', r'model.name: must be given'),
    ],
)
def test_a_mistake_in_the_file(path: Path, content: str, message: str) -> None:
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'nowhere.yaml: no such configuration file'):
        load_config(tmp_path / 'nowhere.yaml')


def test_the_resolved_file_reads_back_unchanged(path: Path, tmp_path: Path) -> None:
    config = load_config(
        path, ['eval.sizes=[8,24x40]', 'data.sizes=[8,16]', 'optim.ema=0.99', 'precision=bf16', 'data.root="null"']
    )
    save_config(tmp_path / 'config.yaml', config)
    assert load_config(tmp_path / 'config.yaml') == config


@pytest.mark.parametrize('shipped', CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads_and_shows_its_launch_line(shipped: Path) -> None:
    load_config(shipped)
    assert f'python train.py configs/{shipped.parent.name}/{shipped.name}' in shipped.read_text().split('\nmodel:')[0]
