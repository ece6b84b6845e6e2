"""OpenVINO: its converter on a model and on a frozen one, compared with PyTorch at one size.

python examples/clients/openvino_convert.py
"""

import warnings

import openvino
import torch
from shapes import SIZE, pictures, trained_model

from s4nd.export import freeze


def main() -> str:
    return compare(trained_model())


@torch.no_grad()
def compare(model: torch.nn.Module) -> str:
    images, _ = pictures(4)
    errors = {}
    warnings.simplefilter('ignore', torch.jit.TracerWarning)  # that a trace holds one size
    for name, source in (('model', model), ('frozen', freeze(model, images))):
        converted = openvino.convert_model(source, example_input=images, input=[-1, 3, SIZE, SIZE])
        # On CPUs that have bfloat16, OpenVINO computes in it unless told otherwise.
        compiled = openvino.compile_model(converted, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
        for rows in (images, images[:1]):
            found = torch.from_numpy(compiled(rows.numpy())[0])
            error = (found - model(rows)).abs().max() / model(rows).abs().max()
            assert error < 1e-4
            errors[name] = max(errors.get(name, 0.0), error.item())
    return 'largest relative difference ' + ', '.join(f'{name} {value:.1e}' for name, value in errors.items())


if __name__ == '__main__':
    print(main())
