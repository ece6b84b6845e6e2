"""What every model promises to code that we did not write, as tests/layers/test_contract.py for layers."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.utils import ModelEma, ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import s4nd
from audio.models import DiffusionSaShiMi, SaShiMi, WaveClassifier
from s4nd.models.ccnn import CCNN
from s4nd.models.sssd import SSSDS4
from tests.concurrency import check_threads
from tests.models.families import CLIPS, SMALL, build, clip, enliven, image, size_of, without_state

Inputs = tuple[Tensor, ...]


class Embedded(nn.Module):
    """SaShiMi from what stands for its codes, so that there is an input to differentiate by."""

    def __init__(self) -> None:
        super().__init__()
        self.model = SaShiMi(4, d_model=8, n_layers=1, pool=(2,), d_state=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.model.head(self.model.backbone(x))


class Denoiser(nn.Module):
    """A denoiser with everything but the noisy signal held fixed."""

    def __init__(self, model: nn.Module, *rest: Tensor) -> None:
        super().__init__()
        self.model, self.rest = model, rest
        nn.init.normal_(model.leave[-1].weight, std=0.3)  # it begins at zero

    def forward(self, x: Tensor) -> Tensor:
        rest = [value.to(x.dtype) if value.is_floating_point() else value for value in self.rest]
        return self.model(x, *(value.expand(x.shape[0], *value.shape[1:]) for value in rest))


def _vis4mer(**options) -> nn.Module:
    args = dict(dim=16, d_state=4, num_classes=5, drop_path_rate=0.0, proj_drop_rate=0.0)
    return timm.create_model('s4nd_vis4mer_tiny', encoder='test_resnet', chunk=3, img_size=32, **args, **options)


def _sssd() -> nn.Module:
    args = dict(d_model=4, n_layers=2, condition=8, mixer_args={'d_state': 4}, diffusion={'steps': 10})
    mask = torch.arange(12) % 3 > 0
    return Denoiser(SSSDS4(2, **args), torch.tensor([3]), torch.zeros(1, 2, 12), ~mask.expand(1, 2, 12))


# Name: (model, input of the training size, input of another).
OTHERS: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    'ccnn 1': (
        lambda: CCNN(3, 5, spatial_dims=1, grid=24, dim=8, mixer_args={'hidden': 4}),
        (torch.randn(2, 3, 24), torch.randn(2, 3, 36)),
    ),
    'ccnn 3': (
        lambda: CCNN(3, 5, spatial_dims=3, grid=(4, 6, 6), dim=8, mixer_args={'hidden': 4}),
        (torch.randn(2, 3, 4, 6, 6), torch.randn(2, 3, 5, 8, 6)),
    ),
    'vis4mer head': (
        lambda: timm.create_model(
            's4nd_vis4mer_tiny_head', in_chans=6, dim=16, d_state=4, length=8, proj_drop_rate=0.0
        ),
        (torch.randn(2, 8, 6), torch.randn(2, 11, 6)),
    ),
    'vis4mer': (lambda: _vis4mer(num_frames=4), (torch.randn(2, 3, 4, 32, 32), torch.randn(2, 3, 6, 32, 32))),
    'vis4mer trained encoder': (
        lambda: _vis4mer(num_frames=4, freeze=False, tokens='patch'),
        (torch.randn(2, 3, 4, 32, 32), torch.randn(2, 3, 5, 32, 32)),
    ),
    'sashimi': (Embedded, (torch.randn(2, 12, 8), torch.randn(2, 15, 8))),
    'sashimi diffusion': (
        lambda: Denoiser(DiffusionSaShiMi(d_model=8, n_layers=1, pool=(2,), condition=8, steps=5), torch.tensor([3])),
        (torch.randn(2, 12), torch.randn(2, 15)),
    ),
    'wave classifier': (
        lambda: WaveClassifier(5, 64, dims=(4, 8), depths=(1,), pool=(4,), reach=16, d_state=4),
        (torch.randn(2, 64), torch.randn(2, 32)),
    ),
    'sssd': (_sssd, (torch.randn(2, 2, 12),)),
}
EVERY = pytest.mark.parametrize('case', [*SMALL, *CLIPS, *OTHERS])
OF_IMAGES = pytest.mark.parametrize('case', [*SMALL])
OF_CLIPS = pytest.mark.parametrize('case', [*CLIPS, 'ccnn 3'])


def make(case: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Inputs]:
    """A model in evaluation mode, an input of its training size and, where it takes one, another size."""
    if case in SMALL:
        inputs: Inputs = (image(size_of(case)), image((size_of(case) + 16, size_of(case))))
        model = build(case)
    elif case in CLIPS:
        size = CLIPS[case][1]['img_size']
        inputs, model = (clip(case), clip(case, 7, (size, size + 8))), build(case)
    else:
        torch.manual_seed(0)
        model, inputs = OTHERS[case][0]().eval(), OTHERS[case][1]
        enliven(model)
    return model.to(dtype), tuple(x.to(dtype) for x in inputs)


@torch.no_grad()
def fresh_output(model: nn.Module, x: Tensor) -> Tensor:
    """What a copy without any memory computes."""
    return copy.deepcopy(model).eval()(x)


def nudge(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)


AVERAGES: dict[str, Callable[[nn.Module], Any]] = {
    'v3': lambda m: ModelEmaV3(m, decay=0.9),
    'v3-warmup': lambda m: ModelEmaV3(m, decay=0.9, use_warmup=True, foreach=False),
    'v2': lambda m: ModelEmaV2(m, decay=0.9),
    'v1': lambda m: ModelEma(m, decay=0.9),
    'swa': lambda m: AveragedModel(m),
    'swa-buffers': lambda m: AveragedModel(m, use_buffers=True),
    'ema-buffers': lambda m: AveragedModel(m, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
}


class TestAverages:
    """Every way to average weights and to merge state dicts gives a model that computes what was averaged."""

    @EVERY
    @torch.no_grad()
    def test_averages_of_one_model_are_that_model(self, case: str) -> None:
        model, inputs = make(case)
        again = copy.deepcopy(model)
        averages = {name: average(model) for name, average in AVERAGES.items()}
        for averaged in averages.values():
            for _ in range(3):
                averaged.update_parameters(model) if isinstance(averaged, AveragedModel) else averaged.update(model)
        true = [model(x) for x in inputs]
        for name, averaged in averages.items():
            module = (averaged.ema if isinstance(averaged, ModelEma) else averaged.module).eval()
            found = [module(x) for x in inputs]
            again.load_state_dict(module.state_dict())
            for y, expected, x in zip(found, true, inputs, strict=True):
                assert torch.allclose(y, expected, atol=1e-4, rtol=1e-4), name
                assert torch.allclose(again(x), y, atol=1e-6, rtol=1e-6), name

    @EVERY
    @torch.no_grad()
    def test_soups(self, case: str) -> None:
        """The mean of the state dicts of two models, buffers and all, in several dtypes."""
        model, inputs = make(case)
        other = copy.deepcopy(model)
        nudge(other)
        middle = copy.deepcopy(model)
        for a, b, c in zip(middle.parameters(), model.parameters(), other.parameters(), strict=True):
            a.copy_((b + c) / 2)
        states = model.state_dict(), other.state_dict()
        for dtype in (torch.float32, torch.float64):
            soup = {key: (states[0][key].to(dtype) + states[1][key].to(dtype)) / 2 for key in states[0]}
            found = copy.deepcopy(model)
            found.load_state_dict(soup)
            for x in inputs:
                torch.testing.assert_close(found(x), middle(x), atol=1e-4, rtol=1e-4)


class TestMemory:
    """In evaluation a model computes what a fresh copy does, whatever changed its weights."""

    @EVERY
    def test_fused_steps_between_evaluations(self, case: str) -> None:
        model, inputs = make(case)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02, fused=True)
        for _ in range(2):
            model.train()
            model(inputs[0]).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            model.eval()
            for x in inputs:
                true = fresh_output(model, x)
                with torch.no_grad():
                    torch.testing.assert_close(model(x), true, atol=1e-5, rtol=1e-5)

    @EVERY
    @torch.no_grad()
    def test_edits_behind_autograds_back(self, case: str) -> None:
        model, inputs = make(case)
        model(inputs[0])
        for parameter in model.parameters():
            parameter.data.mul_(1.1)
        torch.testing.assert_close(model(inputs[0]), fresh_output(model, inputs[0]), atol=1e-5, rtol=1e-5)
        flat = nn.utils.parameters_to_vector(model.parameters())
        nn.utils.vector_to_parameters(flat, model.parameters())
        model(inputs[0])
        flat.mul_(1.1)
        torch.testing.assert_close(model(inputs[0]), fresh_output(model, inputs[0]), atol=1e-5, rtol=1e-5)

    @EVERY
    @torch.no_grad()
    def test_threads_at_several_sizes(self, case: str) -> None:
        model, inputs = make(case)
        inputs = (*inputs, *(x[:1] for x in inputs))
        true = [fresh_output(model, x) for x in inputs]
        check_threads(model, inputs, true, calls=20, atol=1e-5, rtol=1e-4)

    @EVERY
    @torch.no_grad()
    def test_replicas_share_no_memory(self, case: str) -> None:
        """A shallow copy with other weights, as DataParallel makes them, does not answer with ours."""
        model, inputs = make(case)
        true = model(inputs[0])
        twice = {key: 1.1 * value for key, value in model.named_parameters()}
        other = torch.func.functional_call(model, twice, (inputs[0],))
        edited = copy.deepcopy(model)
        for key, parameter in edited.named_parameters():
            parameter.copy_(twice[key])
        torch.testing.assert_close(other, fresh_output(edited, inputs[0]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(inputs[0]), true, atol=1e-6, rtol=1e-6)


class TestDerivatives:
    @EVERY
    def test_directional(self, case: str) -> None:
        """The double backward of autograd.functional, torch.func and forward mode agree."""
        model, inputs = make(case, torch.float64)
        x = inputs[0]
        v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
        _, by_double_backward = torch.autograd.functional.jvp(model, x, v)
        _, by_func = torch.func.jvp(model, (x,), (v,))
        assert by_func.norm() > 0
        assert (by_double_backward - by_func).norm() <= 1e-8 * by_func.norm()

    @EVERY
    def test_hessian_vector_product(self, case: str) -> None:
        model, inputs = make(case, torch.float64)
        x = inputs[0]
        v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
        _, ours = torch.autograd.functional.hvp(lambda x: model(x).square().sum(), x, v)
        _, true = torch.func.jvp(torch.func.grad(lambda x: model(x).square().sum()), (x,), (v,))
        assert true.norm() > 0
        assert (ours - true).norm() <= 1e-6 * true.norm()

    @EVERY
    def test_per_sample_gradients(self, case: str) -> None:
        model, inputs = make(case, torch.float64)
        x = inputs[0]
        parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}

        def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(model, parameters, (x[None],)).square().sum()

        found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
        for row in range(len(x)):
            true = torch.autograd.grad(loss(parameters, x[row]), list(parameters.values()), materialize_grads=True)
            for key, gradient in zip(parameters, true, strict=True):
                torch.testing.assert_close(found[key][row], gradient, atol=1e-8, rtol=1e-5)


class TestFormats:
    @pytest.mark.parametrize('case', [*SMALL, *CLIPS, 'ccnn 3'])
    @pytest.mark.parametrize('training', [False, True])
    def test_memory_formats(self, case: str, training: bool) -> None:
        model, inputs = make(case, torch.float64)
        model.train(training)
        layout = torch.channels_last if inputs[0].dim() == 4 else torch.channels_last_3d
        with torch.set_grad_enabled(training):
            for x in inputs:
                true = model(x)
                other = copy.deepcopy(model).to(memory_format=layout)
                for y in (other(x.contiguous(memory_format=layout)), other(x)):
                    torch.testing.assert_close(y, true, atol=1e-8, rtol=1e-8)
        if training:
            other.zero_grad()
            other(x.contiguous(memory_format=layout)).square().sum().backward()
            model.zero_grad()
            model(x).square().sum().backward()
            for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
                torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-7, rtol=1e-7)

    @EVERY
    def test_traced(self, case: str) -> None:
        """torch.jit.trace passes its own check, from a fresh model and from one that remembers taps."""
        model, inputs = make(case)
        for warm in (False, True):
            with torch.no_grad():
                true = model(inputs[0]) if warm else None
                traced = torch.jit.trace(model, inputs[0], check_trace=True)
                true = fresh_output(model, inputs[0]) if true is None else true
                torch.testing.assert_close(traced(inputs[0]), true, atol=1e-5, rtol=1e-5)
                rows = torch.cat([inputs[0], inputs[0][:1]])
                torch.testing.assert_close(traced(rows)[:2], true, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize('case', ['convnext', 'vit', 'isotropic', 'ccnn 1', 'convnext3d', 'wave classifier'])
    @torch.no_grad()
    def test_a_trace_refuses_other_sizes(self, case: str) -> None:
        model, inputs = make(case)
        traced = torch.jit.trace(model, inputs[0])
        with pytest.raises(RuntimeError, match='shape'):
            traced(inputs[1])

    @pytest.mark.parametrize(
        'case', ['convnext', 'vit', 'vit 1d', 'isotropic', 'ccnn batchnorm', 'convnext3d', 'ccnn 1']
    )
    def test_exporting_dynamic_sizes_is_refused(self, case: str) -> None:
        model, inputs = make(case)
        x = inputs[0]
        for dynamic in (torch.export.Dim.AUTO, torch.export.Dim.DYNAMIC):
            with pytest.raises(ValueError, match=r'one size.*sizes=\[16,24,32\]'):
                torch.export.export(model, (x,), dynamic_shapes=({x.dim() - 1: dynamic},))
        batch = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim('batch')},)).module()
        rows = torch.cat([x, x[:1]])
        torch.testing.assert_close(batch(rows), model(rows), atol=1e-5, rtol=1e-4)


class TestInputs:
    @pytest.mark.parametrize('case', [*SMALL, *CLIPS, *(case for case in OTHERS if case != 'sashimi')])
    def test_whole_numbers_are_refused(self, case: str) -> None:
        model, inputs = make(case)
        with pytest.raises(ValueError, match=r'floating-point numbers, got torch\.int64'):
            model(torch.ones_like(inputs[0], dtype=torch.int64))

    @EVERY
    @pytest.mark.parametrize('training', [False, True])
    def test_no_rows(self, case: str, training: bool) -> None:
        model, inputs = make(case)
        with torch.no_grad():
            shape = model(inputs[0]).shape
        model.train(training)
        with torch.set_grad_enabled(training):
            assert model(inputs[0][:0]).shape == (0, *shape[1:])


class TestCausality:
    """No output sees a later input, by gradients."""

    @pytest.mark.parametrize('mixer', ['s4nd', 'i3d', 's3d'])
    @pytest.mark.parametrize('case', ['isotropic3d', 'convnext3d'])
    def test_clips(self, case: str, mixer: str) -> None:
        args = without_state(CLIPS[case][1])
        name = CLIPS[case][0]
        model = timm.create_model(name, **{**args, 'bandlimit': None}, mixer=mixer, causal=True).double().eval()
        x = clip(case)[:1].double().requires_grad_()
        (gradient,) = torch.autograd.grad(model.forward_features(x)[:, :, 2].square().sum(), x)
        assert gradient[:, :, 3:].abs().max() <= 1e-12 * gradient.abs().max()
        assert gradient[:, :, 2].abs().max() > 0

    @pytest.mark.parametrize('case', ['sashimi', 'ccnn causal'])
    def test_sequences(self, case: str) -> None:
        if case == 'sashimi':
            model, axis = Embedded().double(), 1
            x = torch.randn(2, 12, 8, dtype=torch.float64, requires_grad=True)
        else:
            causal = CCNN(3, 5, spatial_dims=1, grid=24, dim=8, mixer_args={'hidden': 4, 'causal': True})
            model, axis = causal.double().eval().forward_features, 2
            x = torch.randn(2, 3, 24, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(model(x).select(axis, 7).square().sum(), x)
        later, now = gradient.narrow(axis, 8, x.shape[axis] - 8), gradient.select(axis, 7)
        assert later.abs().max() <= 1e-12 * gradient.abs().max() and now.abs().max() > 0


class TestReparametrizations:
    @EVERY
    def test_pruned(self, case: str) -> None:
        model, inputs = make(case)
        kernels = [kernel for layer in model.modules() if isinstance(layer, s4nd.S4ND) for kernel in layer.kernels]
        kernels = [kernel for kernel in kernels if hasattr(kernel, 'C')]
        if not kernels:
            pytest.skip('no state-space kernel')
        for kernel in kernels:
            prune.l1_unstructured(kernel, 'C', 0.5)
        for _ in range(2):
            model.train()
            model(inputs[0]).square().sum().backward()
        model.eval()
        with torch.no_grad():
            before = model(inputs[0])
            for kernel in kernels:
                kernel.C_orig.mul_(3)
            after = model(inputs[0])
            for kernel in kernels:
                prune.remove(kernel, 'C')
            torch.testing.assert_close(after, fresh_output(model, inputs[0]), atol=1e-5, rtol=1e-5)
            assert not torch.allclose(after, before)

    @EVERY
    @torch.no_grad()
    def test_swapped_parameters(self, case: str) -> None:
        model, inputs = make(case)
        before = model(inputs[0])
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            after = model.double()(inputs[0].double())
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
        torch.testing.assert_close(after.float(), before, atol=1e-3, rtol=1e-3)


class TestHabits:
    def test_every_family_is_found_and_former_names_still_build(self) -> None:
        names = timm.list_models('s4nd*')
        ours = [name for name in timm.list_models() if s4nd.models.is_ours(name) and not name.startswith('conv2d_')]
        assert names == ours
        assert {name.split('_')[1] for name in names} == {
            'ccnn', 'convnext', 'convnext3d', 'isotropic', 'isotropic3d', 'vis4mer', 'vit',
        }  # fmt: skip
        with pytest.warns(UserWarning, match='deprecated model name ccnn_mini to current s4nd_ccnn_mini'):
            model = timm.create_model('ccnn_mini', dim=8, img_size=16)
        assert model.pretrained_cfg['architecture'] == 's4nd_ccnn_mini' and s4nd.models.is_ours('ccnn_mini')

    @pytest.mark.parametrize(
        ('name', 'options', 'shape', 'said'),
        [
            ('s4nd_isotropic_mini', dict(dim=8, depths=(1,)), (24, 24), ('32 x 32', '24', '24')),
            ('s4nd_isotropic_mini', dict(dim=8, depths=(1,)), (24, 20), ('32 x 32', '(24, 20)', '24,20')),
            ('s4nd_isotropic3d_mini', dict(dim=8, depths=(1,)), (4, 24, 24), ('32 x 32', '24', '24')),
            ('s4nd_vit_tiny_patch16', dict(embed_dim=8, depths=(1,)), (32, 32), ('224 x 224', '32', '32')),
            ('s4nd_convnext_micro', dict(dims=(4, 4, 4, 4), depths=(1,) * 4), (64, 64), ('224 x 224', '64', '64')),
            ('s4nd_ccnn_mini', dict(dim=8, depths=(1,)), (24, 24), ('32 x 32', '24', '24')),
            ('s4nd_ccnn_mini', dict(dim=8, depths=(1,), spatial_dims=1), (24,), ('32', '24', '24')),
            ('s4nd_vis4mer_tiny', dict(encoder='test_resnet', dim=8), (2, 32, 32), ('160 x 160', '32', '32')),
        ],
    )
    @pytest.mark.parametrize('features', [False, True])
    def test_another_size_in_training_is_said_once(
        self, name: str, options: dict, shape: tuple[int, ...], said: tuple[str, str, str], features: bool
    ) -> None:
        """timm's --img-size reaches the images alone; the hint names the option that reaches the model."""
        model = timm.create_model(name, features_only=features, **options).train()
        x = torch.randn(2, 3, *shape)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter('always')
            model.eval()(x)
            for _ in range(3):
                model.train()(x)
        assert len(found) == 1
        grid, argument, word = said
        assert f'training at {" x ".join(map(str, shape[-2:]))} with a model made for {grid}:' in str(found[0].message)
        assert f'give img_size={argument} (in timm: --model-kwargs img_size={word})' in str(found[0].message)
        assert found[0].filename == __file__

    @pytest.mark.parametrize('options', [{'img_size': 16}, {}])
    def test_no_hint_where_the_size_was_given_or_is_met(self, options: dict) -> None:
        model = timm.create_model('s4nd_isotropic_mini', dim=8, depths=(1,), **options).train()
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            for size in (24, 16) if options else (32, 32):
                model(image(size))

    def test_embed_dim(self) -> None:
        assert build('vit').embed_dim == build('vit').num_features

    def test_aliasing_is_said_once_at_the_users_line(self) -> None:
        model = build('isotropic', bandlimit=1.0)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter('default')
            for _ in range(3):
                model(image(12))
        assert len(found) == 1
        assert found[0].filename == __file__
