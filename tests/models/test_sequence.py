"""The model of sequences: padding changes nothing, chunks and steps equal the whole, heads, pools, bad input."""

from typing import Any

import pytest
import torch
from torch import Tensor

from s4nd.layers.named import NAMES, make_block, make_layer
from s4nd.models.sequence import HEADS, SequenceModel

DOUBLE = torch.float64
LENGTHS = [11, 4, 1]
ARGS: dict[str, dict[str, Any]] = {
    'attention': {'num_heads': 2, 'chunk': 4}, 'mega': {'d_state': 4, 'chunk': 4}, 'ckconv': {'l_max': 6},
    'sgconv': {'l_max': 6, 'd_state': 4}, 'dss-softmax': {'l_max': 6, 'd_state': 8}, 'gss': {'d_state': 8, 'd_ssm': 3},
}  # fmt: skip
ENDLESS = tuple(name for name in NAMES if name not in ('ckconv', 'sgconv', 'dss-softmax'))
ONE_SIDED = ('liquid', 'lmu-cell', 'gss')


def make(layer: str = 's4', **options: Any) -> SequenceModel:
    torch.manual_seed(0)
    args = {'layer_args': ARGS.get(layer, {'d_state': 8}), 'd_model': 6, 'n_layers': 2, 'dtype': DOUBLE} | options
    return SequenceModel(3, 5, layer, **args)


def clips(length: int = 11) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, length, 3, dtype=DOUBLE)


@pytest.mark.parametrize('bidirectional', [False, True])
@pytest.mark.parametrize('layer', NAMES)
def test_padding_changes_nothing(layer: str, bidirectional: bool) -> None:
    """Outputs and all gradients of a padded batch are those of its clips one by one, whatever the padding holds."""
    if bidirectional and layer in ONE_SIDED:
        return
    model, x = make(layer, bidirectional=bidirectional, ff=2), clips()
    lengths = torch.tensor(LENGTHS)
    weight = torch.randn(3, 11, 5, dtype=DOUBLE)
    alone = [model(x[i : i + 1, :n]) for i, n in enumerate(LENGTHS)]
    sum((y * weight[i, : y.shape[1]]).sum() for i, y in enumerate(alone)).backward()
    true = {name: p.grad.clone() for name, p in model.named_parameters()}
    x = x.masked_fill((torch.arange(11) >= lengths[:, None])[..., None], torch.nan).requires_grad_()
    model.zero_grad()
    y = model(x, lengths=lengths)
    for i, one in enumerate(alone):
        torch.testing.assert_close(y[i, : LENGTHS[i]], one[0], atol=1e-10, rtol=0)
        assert (y[i, LENGTHS[i] :] == 0).all()
    (y * weight).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, true[name], atol=1e-9, rtol=1e-9)
    assert x.grad.isfinite().all() and (x.grad[1, 4:] == 0).all() and (x.grad[1, :4] != 0).any()


@pytest.mark.parametrize('head', ['last', 'mean'])
@pytest.mark.parametrize('pool', [(), (2, 3)])
def test_heads_and_pools_over_real_samples(head: str, pool: tuple[int, ...]) -> None:
    model, x = make(head=head, pool=pool, expand=2 if pool else 1, bidirectional=True, norm='batch'), clips()
    model.eval()
    y = model(x, lengths=torch.tensor(LENGTHS))
    assert y.shape == (3, 5)
    for i, n in enumerate(LENGTHS):
        torch.testing.assert_close(y[i], model(x[i : i + 1, :n])[0], atol=1e-10, rtol=0)
    features = make(head=head, norm='batch').eval().features(x)
    assert features.shape == (3, 11, 6)


@pytest.mark.parametrize(('layer', 'prenorm'), [('s4d', True), ('s4d', False), ('mega', True), ('mega', False)])
def test_batch_norm_over_real_samples(layer: str, prenorm: bool) -> None:
    """In training too: a batch of clips of equal length, and the same with padding behind it."""
    model = make(layer, norm='batch', prenorm=prenorm, bidirectional=True, ff=1)
    x = clips(7)
    padded = torch.cat([x, torch.full((3, 5, 3), 1e3, dtype=DOUBLE)], 1)
    other = make(layer, norm='batch', prenorm=prenorm, bidirectional=True, ff=1)
    y = model(padded, lengths=torch.tensor([7, 7, 7]))
    torch.testing.assert_close(y[:, :7], other(x), atol=1e-9, rtol=0)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('layer', ENDLESS)
def test_chunks_and_steps_equal_the_whole(layer: str, head: str) -> None:
    """With the gradients, which pass from chunk to chunk through the state."""
    model, x = make(layer, head=head, ff=1), clips(9)
    true = model(x)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(true.square().sum(), parameters)
    for size in (1, 4):
        state, outputs = model.init_state(3), []
        for part in x.split(size, 1):
            y, state = model(part, state)
            outputs.append(y)
        y = torch.cat(outputs, 1) if head == 'step' else outputs[-1]
        torch.testing.assert_close(y, true, atol=1e-10, rtol=0)
        found = torch.autograd.grad(y.square().sum(), parameters)
        for one, other in zip(found, gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-8)
    state, system = model.init_state(3), model.system()
    for i, sample in enumerate(x.unbind(1)):
        y, state = model.step(sample, state, system)
        if head == 'step':
            torch.testing.assert_close(y, true[:, i], atol=1e-10, rtol=0)
    torch.testing.assert_close(y, true[:, -1] if head == 'step' else true, atol=1e-10, rtol=0)


TIMED = ('s4d', 's4', 'lmu', 'lssl', 'ema', 'dss-exp', 'nplr', 's5', 'gss', 'mega', 'lmu-cell')


@pytest.mark.parametrize('layer', TIMED)
def test_irregular_samples(layer: str) -> None:
    """Equal steps are the regular path, chunks equal the whole, and steps of padding count for nothing."""
    model, x, lengths = make(layer, ff=1), clips(), torch.tensor(LENGTHS)
    torch.testing.assert_close(model(x, dt=torch.ones(3, 11, dtype=DOUBLE)), model(x), atol=1e-10, rtol=0)
    dt = torch.rand(3, 11, dtype=DOUBLE) + 0.2
    y = model(x, dt=dt)
    first, state = model(x[:, :5], model.init_state(3), dt=dt[:, :5])
    second, _ = model(x[:, 5:], state, dt=dt[:, 5:])
    torch.testing.assert_close(torch.cat([first, second], 1), y, atol=1e-10, rtol=0)
    empty = dt.masked_fill(torch.arange(11) >= lengths[:, None], torch.nan)
    padded = model(x, lengths=lengths, dt=empty)
    for i, n in enumerate(LENGTHS):
        torch.testing.assert_close(padded[i, :n], y[i, :n], atol=1e-10, rtol=0)


def test_irregular_samples_from_both_sides_and_pooled() -> None:
    x, dt = clips(), torch.rand(3, 11, dtype=DOUBLE) + 0.2
    model = make('s5', bidirectional=True, head='mean', pool=(2,), expand=2)
    y = model(x, lengths=torch.tensor(LENGTHS), dt=dt)
    for i, n in enumerate(LENGTHS):
        torch.testing.assert_close(y[i], model(x[i : i + 1, :n], dt=dt[i : i + 1, :n])[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(model(x, dt=torch.ones_like(dt)), model(x), atol=1e-10, rtol=0)


def test_tokens() -> None:
    torch.manual_seed(0)
    model = SequenceModel(7, 7, 's4d', d_model=6, n_layers=1, tokens=True, dtype=DOUBLE)
    tokens = torch.randint(0, 7, (3, 9))
    y = model(tokens)
    lengths = torch.tensor([9, 5, 2])
    padded = tokens.masked_fill(torch.arange(9) >= lengths[:, None], -100)
    torch.testing.assert_close(model(padded, lengths=lengths)[1, :5], y[1, :5], atol=1e-12, rtol=0)
    first, state = model(tokens[:, :4], model.init_state(3))
    second, _ = model(tokens[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), y, atol=1e-10, rtol=0)
    with pytest.raises(ValueError, match=r'whole numbers \(batch, length\), got torch.float64'):
        model(tokens.double())


def test_dropout_tied_over_samples() -> None:
    block = make_block(50, 's4d', dropout=0.5, tie_dropout=True, norm=None)
    x = torch.randn(2, 50, 40)
    kept = (block(x) - x) != 0
    assert (kept.all(-1) == kept.any(-1)).all() and 20 < kept.all(-1).sum() < 80
    free = make_block(50, 's4d', dropout=0.5, norm=None)
    assert not ((free(x) - x) != 0).all(-1).any()


def test_glu_is_an_option() -> None:
    assert make_block(4, 's4', glu=True).layer.linear.out_features == 8
    assert make_block(4, 's4', glu=False).layer.linear.out_features == 4
    assert make_block(4, 's4', layer_args={'channels': 3}).layer.linear.in_features == 12


@pytest.mark.parametrize(('call', 'says'), [
    (lambda: make()(clips(), lengths=torch.tensor([12, 4, 1])), r'from 1 to 11, .* got \[12, 4, 1\]'),
    (lambda: make()(clips(), lengths=torch.tensor([11, 0, 1])), r'from 1 to 11, .* got \[11, 0, 1\]'),
    (lambda: make()(clips(), lengths=torch.tensor([11, -2, 1])), r'from 1 to 11, .* got \[11, -2, 1\]'),
    (lambda: make()(clips(), lengths=torch.tensor([11, 2])), r'whole numbers \(3,\), got torch.int64 of shape \[2\]'),
    (lambda: make()(clips(), lengths=torch.tensor([11.0, 2.0, 1.0])), r'whole numbers \(3,\), got torch.float32'),
    (lambda: make()(clips(), make().init_state(3), lengths=torch.tensor(LENGTHS)), 'streams have no padding'),
    (lambda: make()(clips()[..., :2]), r'\(batch, length, 3\), got shape \[3, 11, 2\]'),
    (lambda: make()(clips()[:, :0]), r'\(batch, length, 3\), got shape \[3, 0, 3\]'),
    (lambda: make(head='max'), "unknown head 'max': expected one of step, last, mean"),
    (lambda: make(pool=(2,)), "no output per step: expected head 'last' or 'mean'"),
    (lambda: make(pool=(2,), head='mean').init_state(1), 'cannot stream'),
    (lambda: make(n_layers=0), 'n_layers must be at least 1, got 0'),
    (lambda: make(drop_out=0.1), "SequenceModel takes no 'drop_out'; did you mean 'dropout'"),
    (lambda: SequenceModel(3, 5, [torch.nn.Identity()], ff=2), 'blocks that are built take no further keywords'),
    (lambda: make('s6'), "unknown layer 's6': expected one of s4d, s4"),
    (lambda: make_layer('s5', 4, rank=2), r"layer 's5' has no option \['rank'\]"),
    (lambda: make('gss', bidirectional=True), "layer 'gss' has no two-sided form"),
    (lambda: make('attention')(clips(), dt=torch.ones(3, 11)), 'attention counts samples and knows no time'),
    (lambda: make('attention', norm='batch'), "'attention' is a whole block, which has no such norm"),
])  # fmt: skip
def test_bad_input(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
