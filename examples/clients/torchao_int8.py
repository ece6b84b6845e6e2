"""torchao: int8 weights in the linear layers of a ConvNeXt; the state-space parameters stay as they are.

python examples/clients/torchao_int8.py
"""

import copy

import timm
import torch
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

import s4nd  # noqa: F401  (registers the models)


@torch.no_grad()
def main() -> str:
    torch.manual_seed(0)
    model = timm.create_model(
        's4nd_convnext_micro', img_size=32, depths=(1, 1, 2, 1), dims=(32, 64, 96, 128), num_classes=10, d_state=8,
        ls_init_value=1.0,
    ).eval()  # fmt: skip
    errors = {}
    for config in (Int8WeightOnlyConfig(), Int8DynamicActivationInt8WeightConfig()):
        small = copy.deepcopy(model)
        quantize_(small, config)
        for size in (32, 64):
            x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(size))
            error = (small(x) - model(x)).norm() / model(x).norm()
            assert 0 < error < 0.1
            errors[f'{type(config).__name__} at {size}'] = error.item()
    return 'relative error ' + ', '.join(f'{name} {100 * value:.1f} %' for name, value in errors.items())


if __name__ == '__main__':
    print(main())
