"""Stages that make the taps of their layers at once: the same numbers, and nothing for code that comes in between."""

import copy
from collections.abc import Callable, Iterator

import pytest
import timm
import torch
from accelerate import cpu_offload
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from s4nd import S4ND
from s4nd.kernels import S4DKernel
from s4nd.layers import together
from s4nd.layers.together import made_ahead
from s4nd.models.s4nd_convnext import ConvNeXtBlock
from tests.concurrency import check_threads

MODELS: dict[str, tuple[str, dict]] = {
    'isotropic': ('s4nd_isotropic_mini', dict(img_size=12, dim=8, d_state=4, depths=(3, 1))),
    'isotropic ranks': ('s4nd_isotropic_mini', dict(img_size=(9, 7), dim=8, d_state=4, depths=(2,), tensor_rank=3)),
    'isotropic circle': ('s4nd_isotropic_mini', dict(img_size=9, dim=8, depths=(2,), padding_mode='circular')),
    'isotropic kernels': ('s4nd_isotropic_mini', dict(img_size=9, dim=8, depths=(3,), kernel=('s4d', 's4'))),
    'convnext': ('s4nd_convnext_micro', dict(img_size=(64, 96), dims=(8, 16), depths=(2, 2), d_state=4)),
    'vit': ('s4nd_vit_base_patch16', dict(img_size=48, patch_size=8, embed_dim=16, depths=(3,), d_state=4)),
    'vit 1d': ('s4nd_vit_base_patch16_1d', dict(img_size=48, embed_dim=16, depths=(3,), d_state=4, kernel='s4d')),
    'clips': ('s4nd_isotropic3d_mini', dict(img_size=12, num_frames=5, patch=2, dim=8, depths=(2,))),
    'clips held': (
        's4nd_isotropic3d_mini',
        dict(img_size=12, num_frames=5, patch=2, dim=8, depths=(2,), time_padding='replicate', causal=True),
    ),
}
EVERY = pytest.mark.parametrize('case', MODELS)
Edit = Callable[[nn.Module], object]


def build(case: str = 'isotropic', dtype: torch.dtype = torch.float64) -> nn.Module:
    name, args = MODELS[case]
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **args).to(dtype).train()


def example(model: nn.Module, more: int = 0) -> Tensor:
    frames = [] if model.num_frames is None else [model.num_frames + more]
    size = [length + more * 2 for length in model.img_size]
    return torch.randn(2, 3, *frames, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    y = model(x)
    wanted = [p for p in model.parameters() if p.requires_grad]
    return [y, *torch.autograd.grad(y.square().sum(), wanted)]


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many systems each evaluation of S4D kernels had side by side."""
    counts: list[int] = []
    whole = S4DKernel._taps

    def counted(self: S4DKernel, length: int, step: float, cells: bool) -> Tensor:
        counts.append(self.C.shape[0] if self.C.dim() == 5 else 1)
        return whole(self, length, step, cells)

    monkeypatch.setattr(S4DKernel, '_taps', counted)
    return counts


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Edit]:
    """A twin of a model whose layers evaluate their kernels one by one."""

    def twin(model: nn.Module) -> nn.Module:
        other = copy.deepcopy(model)
        for module in other.modules():
            if isinstance(module, S4ND):
                module.kernels.apply(lambda kernel: kernel.register_forward_hook(lambda *given: None))
            if hasattr(type(module), 'mixes_as_is'):
                module.register_forward_pre_hook(lambda *given: None)
        return other

    return twin


@EVERY
@pytest.mark.parametrize('more', [0, 3], ids=['training size', 'larger'])
def test_equals_one_by_one(case: str, more: int, alone: Edit, evaluations: list[int]) -> None:
    model = build(case)
    x = example(model, more)
    found = gradients(model, x)
    together = sorted(evaluations)
    evaluations.clear()
    true = gradients(alone(model), x)
    assert set(evaluations) == {1} and sum(together) == len(evaluations)
    assert len(together) < len(evaluations)
    for ours, theirs in zip(found, true, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-9)


def test_a_stage_evaluates_once(evaluations: list[int]) -> None:
    model = build()  # stages of three layers and of one, two axes each
    gradients(model, example(model))
    assert evaluations == [6, 2]
    evaluations.clear()
    model.eval()
    with torch.no_grad():
        model(example(model))
    assert evaluations == [2] * 4  # from memory next time, so each layer makes its own
    evaluations.clear()
    with torch.no_grad():
        model(example(model))
    assert evaluations == []


def test_a_cpu_takes_what_its_cache_holds(evaluations: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    x = example(model)
    true = gradients(model, x)
    each = sum(parameter.numel() for parameter in model.stages[0].blocks[0].mixer.kernels[0].parameters())
    for count, expected in ((4, [4, 2, 2]), (1, [1] * 8), (0, [1] * 8)):
        monkeypatch.setattr(together, 'IN_CACHE', count * each)
        evaluations.clear()
        for ours, theirs in zip(gradients(model, x), true, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-9)
        assert evaluations == expected


def _checkpointed(model: nn.Module) -> None:
    for stage in model.stages:
        stage.blocks = nn.Sequential(*(checkpoint_wrapper(block) for block in stage.blocks))


def _patched(model: nn.Module) -> None:
    for stage in model.stages:
        for block in stage.blocks:
            whole = block.forward
            block.forward = lambda x, whole=whole: checkpoint(whole, x, use_reentrant=False)


def _patched_mixers(model: nn.Module) -> None:
    for stage in model.stages:
        for block in stage.blocks:
            whole = block.mixer.forward
            block.mixer.forward = lambda x, whole=whole: checkpoint(whole, x, use_reentrant=False)


def _subclassed(model: nn.Module) -> None:
    class Own(type(model.stages[0].blocks[0])):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x, use_reentrant=False)

    for stage in model.stages:
        for block in stage.blocks:
            block.__class__ = Own


def _whole_stages(model: nn.Module) -> None:
    for stage in model.stages:
        whole = stage.forward
        stage.forward = lambda x, whole=whole: checkpoint(whole, x, use_reentrant=False)


def _pruned(model: nn.Module) -> None:
    prune.random_unstructured(model.stages[0].blocks[0].mixer.kernels[1], 'B', 0.0)


EDITS: list[Edit] = [
    lambda model: model.set_grad_checkpointing(),
    _checkpointed, _patched, _patched_mixers, _subclassed, _whole_stages, _pruned,
    lambda model: cpu_offload(model, torch.device('cpu')),
]  # fmt: skip
NAMES = ['timm', 'wrapped', 'patched', 'mixers', 'subclass', 'stages', 'pruned', 'offloaded']


@pytest.mark.parametrize('edit', EDITS, ids=NAMES)
@pytest.mark.parametrize('case', ['isotropic', 'convnext'])
def test_what_comes_between_is_respected(case: str, edit: Edit) -> None:
    model = build(case)
    x = example(model)
    y, *true = gradients(model, x)
    edit(model)
    if edit is EDITS[-1]:
        torch.testing.assert_close(model(x), y, atol=1e-11, rtol=1e-9)
        return
    found = gradients(model, x)
    torch.testing.assert_close(found[0], y, atol=1e-11, rtol=1e-9)
    assert sum(g.norm() for g in found[1:]) == pytest.approx(sum(g.norm() for g in true).item())


def test_weights_that_change_between_forward_passes(alone: Edit) -> None:
    model = build()
    x = example(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        torch.testing.assert_close(model(x), alone(model)(x), atol=1e-11, rtol=1e-9)
        model(x).square().sum().backward()
        optimizer.step()


def test_a_forward_pass_that_fails_leaves_nothing_behind(alone: Edit) -> None:
    model = build()
    x = example(model)
    handle = model.stages[0].blocks[1].out.register_forward_hook(lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(x)
    handle.remove()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    layer = model.stages[0].blocks[0].mixer
    torch.testing.assert_close(layer(x[:, :1].expand(-1, 8, -1, -1)), alone(layer)(x[:, :1].expand(-1, 8, -1, -1)))


def test_threads(alone: Edit) -> None:
    model = build()
    inputs = (example(model), example(model, 2))
    true = [alone(model)(x).detach() for x in inputs]
    check_threads(model, inputs, true, calls=10, atol=1e-9, rtol=1e-9)


def test_layers_take_only_what_was_made_for_them(evaluations: list[int]) -> None:
    layers = [S4ND(4, (6, 6), d_state=4) for _ in range(3)]
    x = torch.randn(1, 4, 6, 6)
    with made_ahead([request for layer in layers[:2] for request in layer.requests([6, 6])]):
        assert evaluations == [4]
        for layer in layers[:2]:
            layer(x)
        assert evaluations == [4]
        layers[2](x)
        layers[0](torch.randn(1, 4, 6, 9))
        assert evaluations == [4, 2, 1]  # the first axis asks for what it did before
    layers[0](x)
    assert evaluations[-1] == 2


def test_blocks_of_others_are_left_alone(evaluations: list[int]) -> None:
    class Block(ConvNeXtBlock):
        pass

    model = build('convnext', torch.float32)
    for stage in model.stages:
        stage.blocks = nn.Sequential(*(Block(block.mixer.d_model, block.mixer) for block in stage.blocks))
    model(example(model).float())
    assert max(evaluations) <= 2
