"""Make a run's weights a file that ships: large matrices in half precision, checked against the run's own output.

    python benchmarks/ship_weights.py run=out/mini name=s4nd_isotropic_mini.cifar10 [out=s4nd/weights]

Prints the largest difference of the outputs on random inputs, relative to the largest output (at most 0.1 % is
accepted); parameters of kernels stay in single precision.
"""

import json
import sys
from pathlib import Path

import torch
from common import options
from safetensors.torch import save_file

from s4nd.files import write_atomically
from s4nd.models import load_checkpoint
from s4nd.training.checkpoint import find_weights, read_metadata

chosen = options({'run': '', 'name': '', 'out': 's4nd/weights'})
path = find_weights(chosen['run'])
model, metadata = load_checkpoint(path), read_metadata(path)
if metadata['model'] != chosen['name'].split('.')[0]:
    sys.exit(f'error: {path} holds the weights of {metadata["model"]}, expected {chosen["name"]}')
tensors = {
    key: v.half() if v.is_floating_point() and v.dim() > 1 and '.kernels.' not in key else v.clone()
    for key, v in model.state_dict().items()
}
x = torch.randn(16, model.in_chans, *model.img_size, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    before = model(x)
    model.load_state_dict(tensors)
    error = float((model(x) - before).abs().max() / before.abs().max())
print(f'{sum(v.numel() * v.element_size() for v in tensors.values()):,} bytes, outputs differ by {error:.2e}')
if not error <= 1e-3:
    sys.exit('error: half precision changes the outputs by more than 0.1 %')
kept = {key: metadata[key] for key in ('model', 'args', 'classes') if key in metadata}
kept['args'] = json.dumps({key: value for key, value in json.loads(metadata['args']).items() if key != 'in_chans'})
target = Path(chosen['out']) / f'{chosen["name"]}.safetensors'
write_atomically(target, lambda temporary: save_file(tensors, temporary, metadata=kept))
print(target)
