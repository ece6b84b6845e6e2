"""Whole models of Mega against the released code: classifiers of text, images and sound, and language models."""

from argparse import Namespace

import pytest
import torch
from torch import Tensor

import s4nd
from tests.reference.cases import Case, check_covered, load, of_kind


def options_of(case: Case) -> dict[str, object]:
    meta = case.meta
    options = {'attention': meta['attention'], 'l_max': meta['l_max']}
    options['chunk'] = None if meta['chunk'] < 0 else meta['chunk']
    return options | ({'scale': meta['scale']} if 'scale' in meta else {})


def inputs(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x[..., None].to(dtype) if x.is_floating_point() else x


@of_kind('mega_model', 'Mega classifier')
@torch.no_grad()
def test_reference_classifiers(case: Case) -> None:
    for dtype in (torch.float64, torch.float32):
        model = s4nd.load_published(case.param, **options_of(case), dtype=dtype)
        assert model.published.format == 'mega_classifier'
        found = {'logits': model(inputs(case.given['x'], dtype), lengths=case.given.get('lengths'))}
        if 'full' in case.given:
            found['logits_full'] = model(case.given['full'])
        for name, y in found.items():
            case.check(name, y) if dtype == torch.float64 else case.check_float32(name, y, 2e-4)


@of_kind('mega_model', 'Mega language model')
@torch.no_grad()
def test_reference_language_models(case: Case) -> None:
    for dtype in (torch.float64, torch.float32):
        model = s4nd.load_published(case.param, **options_of(case), dtype=dtype)
        y = model(case.given['x'])
        case.check('logits', y) if dtype == torch.float64 else case.check_float32('logits', y, 2e-4)
    if case.meta['l_max'] is None:
        model, state, outputs = model.double(), model.init_state(len(case.given['x'])), []
        for x_t in case.given['x'].unbind(1):
            y_t, state = model.step(x_t, state)
            outputs.append(y_t)
        torch.testing.assert_close(torch.stack(outputs, 1), model(case.given['x']), atol=1e-5, rtol=1e-5)


def test_reference_is_covered() -> None:
    check_covered('mega_model', {
        'Mega classifier': {'logits', 'logits_full'}, 'Mega language model': {'logits'},
    })  # fmt: skip


def test_a_checkpoint_of_fairseq(tmp_path) -> None:
    """The file that fairseq writes, with its options beside the weights, loads as it is."""
    if not load('mega_model'):
        pytest.skip('the folder of golden files holds no Mega model')
    case = load('mega_model')['text']
    torch.save({'args': Namespace(seed=0), 'model': case.param}, tmp_path / 'checkpoint_best.pt')
    model = s4nd.load_published(tmp_path / 'checkpoint_best.pt', l_max=case.meta['l_max'], dtype=torch.float64)
    case.check('logits_full', model(case.given['full']))


def test_a_head_of_two_texts_is_refused() -> None:
    if not load('mega_model'):
        pytest.skip('the folder of golden files holds no Mega model')
    weights = dict(load('mega_model')['text'].param)
    weights['classifier.0.0.weight'] = weights['classifier.0.0.weight'].repeat(1, 2)
    with pytest.raises(ValueError, match=r'classifier\.0\.0\.weight: expected 6 features in, .* got 12'):
        s4nd.load_published(weights)
