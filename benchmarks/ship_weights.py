"""Make a run's weights files that ship: large matrices in half precision, checked against the run's own output.

    python benchmarks/ship_weights.py run=out/mini name=s4nd_isotropic_mini.cifar10 [out=s4nd/weights]

Beside the weights it writes the run's configuration, without its paths and its precision. It prints the largest
difference of the outputs on random inputs, relative to the largest output (at most 0.5 % is accepted); parameters of
kernels stay in single precision. The model card is written by hand.
"""

import json
import sys
from pathlib import Path

import torch
from common import options
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

from s4nd.audio.models import MODEL_NAME, MODELS, build_model
from s4nd.files import write_atomically
from s4nd.models import load_checkpoint
from s4nd.tasks import make_task
from s4nd.training.checkpoint import config_beside, find_weights, load_weights, read_metadata, stored_args
from s4nd.training.config import load_config

KEPT = ('task', 'model', 'args', 'classes', 'size', 'frame_rate', 'sample_rate', 'quantizer')
# What the user's machine decides.
OWN_DATA = {'root': None, 'cache': 'out/cache'}
NOTHING_HELD_OUT = ('image', 'video')  # the user's folder is measured as a whole
OWN = {
    'out': '',
    'checkpoint': None,
    'precision': 'fp32',
    'resume': False,
    'overwrite': False,
}


def load(path: Path) -> tuple[nn.Module, Tensor]:
    """The model of a weights file, and inputs for it."""
    metadata, random = read_metadata(path), torch.Generator().manual_seed(0)
    name = metadata['model']
    if name not in MODELS:
        model = load_checkpoint(path)
        size = (model.num_frames, *model.img_size) if model.num_frames else model.img_size
        return model, torch.randn(16, model.in_chans, *size, generator=random)
    model = build_model(name, stored_args(path, metadata)).eval()
    load_weights(path, model, name)
    codes = torch.randint(0, 256, (4, 4000), generator=random)
    return model, codes if name == MODEL_NAME else torch.randn(4, 8000, generator=random)


chosen = options({'run': '', 'name': '', 'out': 's4nd/weights'})
path = find_weights(chosen['run'])
metadata = read_metadata(path)
if metadata['model'] != chosen['name'].split('.')[0] and metadata['model'] not in MODELS:
    sys.exit(f'error: {path} holds the weights of {metadata["model"]}, expected {chosen["name"]}')
model, x = load(path)
tensors = {
    key: v.half() if v.is_floating_point() and v.dim() > 1 and 'kernel' not in key else v.clone()
    for key, v in model.state_dict().items()
}
with torch.no_grad():
    before = model(x)
    model.load_state_dict(tensors)
    error = float((model(x) - before).abs().max() / before.abs().max())
print(f'{sum(v.numel() * v.element_size() for v in tensors.values()):,} bytes, outputs differ by {error:.2e}')
if not error <= 5e-3:
    sys.exit('error: half precision changes the outputs by more than 0.5 %')
kept = {key: metadata[key] for key in KEPT if key in metadata}
# timm adapts the weights of three channels to other numbers of them.
args = {key: value for key, value in json.loads(metadata['args']).items() if (key, value) != ('in_chans', 3)}
kept['args'] = json.dumps(args)
prepared = make_task(load_config(config_beside(path))).data_config
if prepared:
    rounded = {key: value if key == 'input_size' else [round(x, 6) for x in value] for key, value in prepared.items()}
    kept['data_config'] = json.dumps({**rounded, 'num_classes': args['num_classes']})
target = Path(chosen['out']) / f'{chosen["name"]}.safetensors'
write_atomically(target, lambda temporary: save_file(tensors, temporary, metadata=kept))
config = OmegaConf.merge(OmegaConf.load(config_beside(path)), OWN, {'label': chosen['name']})
config.data.update({key: value for key, value in OWN_DATA.items() if key in config.data})
if config.task in NOTHING_HELD_OUT:
    config.data.val_fraction = 0.0
write_atomically(target.with_suffix('.yaml'), lambda temporary: OmegaConf.save(config, temporary))
print(target)
