"""DSS and GSS against released code: every version of DSS, GSS both ways, its language model, initial sizes."""

import re

import pytest
import torch

from s4nd import GSS, hippo
from s4nd.interop.dss import load_dss, load_gss, load_gss_language_model
from s4nd.layers.block import GatedLayer
from tests.reference.cases import Case, check_covered, of_kind

DTYPES = (torch.float64, torch.float32)


def dss_of(case: Case, dtype: torch.dtype) -> GatedLayer:
    meta = case.meta
    block = load_dss(case.param, case.given['x'].shape[2], version=meta['version'], dtype=dtype)
    assert block.layer.bidirectional[0] == meta['bidirectional']
    assert (block.layer.kernels[0].log_dt.shape[1] == 2) == meta['sep_dt_re_im']
    return block


@of_kind('dss', 'DSS layer')
@torch.no_grad()
def test_reference_dss(case: Case) -> None:
    for dtype in DTYPES:
        block, x = dss_of(case, dtype), case.given['x'].to(dtype)
        check = case.check if dtype == torch.float64 else case.check_float32
        check('y', block(x))
        check('kernel', block.layer.kernels[0](x.shape[2]))
    if case.meta['version'] == 'exp' and not case.meta['bidirectional']:
        block, x = dss_of(case, torch.float64), case.given['x']
        case.check('y', block(x, block.init_state(len(x)))[0])


@of_kind('dss', 'DSS layer')
def test_reference_dss_version_by_name(case: Case) -> None:
    if case.meta['version'] in ('clip', 'exp-no-scale'):
        return  # their names are those of others
    case.check('y', load_dss(case.param, case.given['x'].shape[2], dtype=torch.float64)(case.given['x']).detach())


@of_kind('dss', 'Im of Lambda at init')
def test_reference_dss_spectrum(case: Case) -> None:
    """N stored modes: half of the eigenvalues of a HiPPO matrix of size 2N."""
    w = hippo.nplr('legs', 2 * case.meta['N'])[0]
    for name in ('imag', 'imag_ref32'):
        case.check(name, -w.imag)


@of_kind('gss', 'GSS')
@torch.no_grad()
def test_reference_gss(case: Case) -> None:
    meta, x = case.meta, case.given['x'].transpose(1, 2)
    for dtype in DTYPES:
        layer = load_gss(case.param, reverse=meta['reverse_seq'], lambda_imag_exp=meta['lambda_imag_exp'], dtype=dtype)
        check = case.check if dtype == torch.float64 else case.check_float32
        check('y', layer(x.to(dtype)).transpose(1, 2))
        check('kernel', layer.kernel(x.shape[2])[0])
        if dtype == torch.float64 and not meta['reverse_seq']:
            case.check('y', layer(x, layer.init_state(len(x)))[0].transpose(1, 2))


@of_kind('gss', 'GatedStateSpacesLM')
@torch.no_grad()
def test_reference_gss_language_model(case: Case) -> None:
    x = case.given['x']
    for dtype in DTYPES:
        model = load_gss_language_model(case.param, lambda_imag_exp=case.meta['lambda_imag_exp'], dtype=dtype)
        if dtype == torch.float32:
            case.check_float32('logits', model(x), 2e-4)
    model = load_gss_language_model(case.param, dtype=torch.float64)
    case.check('logits', model(x))
    first, state = model(x[:, :7], model.init_state(len(x)))
    outputs, system = [first], model.system()
    for token in x[:, 7:].unbind(1):
        y, state = model.step(token, state, system)
        outputs.append(y[:, None])
    case.check('logits', torch.cat(outputs, 1))


@of_kind('gss', 'parameter counts')
def test_reference_gss_counts(case: Case) -> None:
    sizes = {key: re.fullmatch(r'GSS_dim(\d+)_default', key) for key in case.meta}
    counts = {int(match[1]): case.meta[key] for key, match in sizes.items() if match}
    assert counts
    for d_model, count in counts.items():
        layer = GSS(d_model, d_ssm=256, d_state=1024, device='meta')
        assert sum(p.numel() for p in layer.parameters()) == count


def test_reference_is_covered() -> None:
    check_covered('dss', {'DSS layer': {'y', 'kernel'}, 'Im of Lambda at init': {'imag', 'imag_ref32'}})
    check_covered('gss', {'GatedStateSpacesLM': {'logits'}, 'GSS': {'y', 'kernel'}, 'parameter counts': set()})


def test_reference_errors_name_the_key() -> None:
    with pytest.raises(ValueError, match='no D in the published weights'):
        load_dss({'kernel.W': torch.zeros(1, 2, 4, 2)}, 8)
    with pytest.raises(ValueError, match="unknown version 'exp2'"):
        load_dss({}, 8, version='exp2')
    with pytest.raises(ValueError, match=r'no a\.to_u\.0\.weight'):
        load_gss({'a.norm.weight': torch.zeros(4)}, 'a.')
