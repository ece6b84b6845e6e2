"""Static int8 quantization of a frozen model, by torch.fx and by torch.export (PT2E, from torchao).

    python examples/clients/quantization.py

A frozen model (`s4nd.export.freeze`) holds its kernels for one size as constants, so that graph tracers see through it:
convolutions and linear maps become int8, the long convolutions stay in float.
"""

import copy
import warnings

import torch
from shapes import SIZE, pictures, trained_model
from torch import nn
from torchao.quantization.pt2e import move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from s4nd.export import freeze


@torch.no_grad()
def by_fx(frozen: nn.Module, images: torch.Tensor) -> nn.Module:
    """FX graph mode: trace, observe, convert."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    prepared = prepare_fx(copy.deepcopy(frozen), get_default_qconfig_mapping('x86'), (images,))
    prepared(images)
    return convert_fx(prepared)


@torch.no_grad()
def by_export(frozen: nn.Module, images: torch.Tensor) -> nn.Module:
    """PT2E: export, observe, convert."""
    batch = torch.export.Dim('batch', min=2)
    graph = torch.export.export(frozen, (images,), dynamic_shapes=({0: batch},)).module()
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(graph, quantizer)
    prepared(images)
    converted = convert_pt2e(prepared)
    move_exported_model_to_eval(converted)
    return converted


def main() -> str:
    warnings.simplefilter('ignore')  # torch announces the end of its own quantization
    model = trained_model()
    images, _ = pictures(100)
    frozen = freeze(model, images)
    assert isinstance(torch.fx.symbolic_trace(frozen), torch.fx.GraphModule)
    test, _ = pictures(100, SIZE, seed=1)
    shown = []
    with torch.no_grad():
        decided = model(test).argmax(1)
        for name, quantize in (('FX', by_fx), ('PT2E', by_export)):
            same = 100 * (quantize(frozen, images)(test).argmax(1) == decided).float().mean().item()
            assert same > 85
            shown.append(f'{name} {same:.0f} %')
    return 'decisions as of the float model: ' + ', '.join(shown)


if __name__ == '__main__':
    print(main())
