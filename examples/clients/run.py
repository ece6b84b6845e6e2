"""Run the client scripts whose packages are installed, say which are missing, and note what came out.

    python examples/clients/run.py [timm=FOLDER] [only=NAME,NAME] [out=out/clients] [write=docs/results/clients.md]

`timm` is a checkout of timm's repository, whose scripts are not in its package; without one, git makes it. `write` is
the file whose table is replaced. Exits with 1 where a script fails.
"""

import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).parent
# Name: (packages, script, words).
CLIENTS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "timm's scripts": (('timm', 'onnxruntime'), 'timm_scripts.py', ('small=true',)),
    'transformers': (('transformers',), 'transformers_auto.py', ()),
    'segmentation_models_pytorch': (('segmentation_models_pytorch',), '../segmentation.py', ('small=true',)),
    'torchvision detection': (('torchvision',), '../detection.py', ('small=true',)),
    'fastai': (('fastai',), 'fastai_learner.py', ()),
    'Lightning': (('lightning',), 'lightning_module.py', ()),
    'peft': (('peft', 'transformers'), 'peft_lora.py', ()),
    'captum': (('captum',), '../attribution.py', ('small=true',)),
    'pytorch-grad-cam': (('grad-cam',), 'grad_cam.py', ()),
    'torchao int8': (('torchao',), 'torchao_int8.py', ()),
    'FX and PT2E quantization': (('torchao',), 'quantization.py', ()),
    'OpenVINO': (('openvino',), 'openvino_convert.py', ()),
}


def run(name: str, out: Path, timm: str | None) -> tuple[bool, str]:
    """Whether the script of a client ends well, and its last line of output."""
    _, script, words = CLIENTS[name]
    place = [f'out={out / Path(script).stem}']
    checkout = [f'timm={timm}'] if timm and 'timm' in script else []
    command = [sys.executable, str(HERE / script), *words, *place, *checkout]
    environment = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join([str(HERE.parents[1]), os.environ.get('PYTHONPATH', '')]),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.strip() and not line.startswith('written to')]
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    return done.returncode == 0, lines[-1] if lines else ''


def versions(packages: tuple[str, ...]) -> list[str]:
    """Names with versions; raises PackageNotFoundError for one that is missing."""
    return [f'{package} {version(package)}' for package in packages]


def main(options: dict[str, str]) -> int:
    chosen = options['only'].split(',') if 'only' in options else list(CLIENTS)
    rows, failed = [], []
    for name in chosen:
        try:
            found = versions(CLIENTS[name][0])
        except PackageNotFoundError as error:
            print(f'{name}: {error.name} is missing, skipped')
            continue
        start = time.monotonic()
        well, line = run(name, Path(options.get('out', 'out/clients')), options.get('timm'))
        print(f'{name} ({time.monotonic() - start:.0f} s): {line if well else "FAILED"}', flush=True)
        if not well:
            failed.append(name)
        today = time.strftime('%Y-%m-%d')
        rows.append(f'| {name} | `{CLIENTS[name][1].removeprefix("../")}` | {", ".join(found)} | {today} | {line} |')
    if 'write' in options and not failed:
        path = Path(options['write'])
        head = path.read_text(encoding='utf-8').partition('| client |')[0]
        table = ['| client | script | versions | date | what came out |', '|---|---|---|---|---|', *rows]
        path.write_text(head + '\n'.join(table) + '\n', encoding='utf-8')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main(dict(word.partition('=')[::2] for word in sys.argv[1:])))
