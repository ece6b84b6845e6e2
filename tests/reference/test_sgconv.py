"""SGConv against its released code: both modes, both interpolations, inputs shorter and longer than the kernel."""

import pytest
import torch

from s4nd.interop.sgconv import load_sgconv
from tests.reference.cases import Case, check_covered, of_kind


@of_kind('sgconv', 'GConv layer')
@torch.no_grad()
def test_reference_sgconv(case: Case) -> None:
    meta = case.meta
    for dtype in (torch.float64, torch.float32):
        block = load_sgconv(case.param, length=meta['l_max'], mode=meta['mode'], dtype=dtype)
        kernel, x = block.layer.kernels[0], case.given['x'].to(dtype)
        assert block.layer.bidirectional[0] == meta['bidirectional']
        assert (kernel.scales, kernel.total_length) == (meta['num_scales'], meta['taps_before_truncation'])
        check = case.check if dtype == torch.float64 else case.check_float32
        check('y', block(x))
        check('kernel', kernel(x.shape[2]))


@of_kind('sgconv', 'GConv layer')
@torch.no_grad()
def test_reference_norm_at_the_first_call(case: Case) -> None:
    """Weights that were never run have the norm of the whole kernel, whatever the length of the input."""
    weights = case.param | {'kernel_norm_initialized': torch.tensor(False)}
    block = load_sgconv(weights, length=case.meta['l_max'], mode=case.meta['mode'], dtype=torch.float64)
    kernel = block.layer.kernels[0]
    whole = kernel(kernel.total_length).norm(dim=-1)
    torch.testing.assert_close(whole, torch.ones_like(whole), atol=1e-12, rtol=0)
    found = kernel.norm.flatten()
    true = torch.tensor(case.meta['kernel_norm_at_first_call'], dtype=torch.float64)
    torch.testing.assert_close(found, true, atol=1e-5 * float(true.max()), rtol=0)


def test_reference_is_covered() -> None:
    check_covered('sgconv', {'GConv layer': {'y', 'kernel'}})


def test_reference_errors_name_the_key() -> None:
    with pytest.raises(ValueError, match=r'no kernel_list\.0'):
        load_sgconv({'D': torch.zeros(1, 2)})
    with pytest.raises(ValueError, match="unknown mode 'cat_donut'"):
        load_sgconv({}, mode='cat_donut')
