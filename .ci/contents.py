"""What wheel and sdist hold: python .ci/contents.py dist."""

import sys
import tarfile
import zipfile
from pathlib import Path

(wheel,) = Path(sys.argv[1]).glob('*.whl')
(sdist,) = Path(sys.argv[1]).glob('*.tar.gz')
with zipfile.ZipFile(wheel) as archive:
    names = archive.namelist()
with tarfile.open(sdist) as archive:
    sources = [name.partition('/')[2] for name in archive.getnames()]

tops = {name.partition('/')[0] for name in names}
if {top for top in tops if not top.endswith('.dist-info')} != {'s4nd'}:
    sys.exit(f'{wheel}: expected one package, got {sorted(tops)}')
needed = ['s4nd/audio/tasks.py', 's4nd/configs/cifar10/s4nd_isotropic_mini.yaml', 's4nd/__main__.py', 's4nd/py.typed']
missing = [name for name in needed if name not in names]
stray = [name for name in names if name in ('s4nd/audio.py', 's4nd/_checkout.py')]
stray += [name for name in names + sources if name.endswith(('.pyc', '.onnx', '.log', '.wav')) or '__pycache__' in name]
stray += [name for name in sources if name.split('/')[0] in ('out', 'dist', 'data', '.venv')]
if missing or stray:
    sys.exit(f'missing: {missing}, stray: {stray}')
for path in (wheel, sdist):
    print(f'{path.name}: {path.stat().st_size / 1e6:.1f} MB')
