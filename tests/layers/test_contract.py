"""What every layer promises to code that we did not write: optimizers, transforms, threads, memory formats, hooks."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from s4nd import GSS, S4, S4ND, S5, GSSHybrid, LiquidS4, LocalAttention, Mega, param_groups
from s4nd.kernels import KERNELS
from s4nd.kernels.ckconv import SIREN, MAGNet
from s4nd.layers import LMU, CKConv, GatedLayer, GridLayer, Residual, S5Gate
from s4nd.models._mixers import ClipS4ND
from tests.concurrency import check_threads

DOUBLE = torch.float64
# Name: (layer of a dtype, shape of an input).
LAYERS: dict[str, tuple[Callable[[torch.dtype], nn.Module], tuple[int, ...]]] = {
    's4nd-1': (lambda d: S4ND(4, (7,), d_state=4, dtype=d), (2, 4, 7)),
    's4nd-2': (lambda d: S4ND(4, (5, 6), d_state=4, tensor_rank=2, dtype=d), (2, 4, 5, 6)),
    's4nd-3': (lambda d: S4ND(4, (2, 3, 4), d_state=4, bidirectional=(False, True, True), dtype=d), (2, 4, 2, 3, 4)),
    's4nd-circular': (
        lambda d: S4ND(4, (5, 6), d_state=4, padding_mode=('circular', 'zeros'), bidirectional=(True, False), dtype=d),
        (2, 4, 5, 6),
    ),
    's4nd-s4': (lambda d: S4ND(4, (5, 6), 's4', d_state=4, dtype=d), (2, 4, 5, 6)),
    's4nd-fft': (lambda d: fft(S4ND(4, (5, 6), d_state=4, channels=2, dtype=d)), (2, 4, 5, 6)),
    's4': (lambda d: S4(4, d_state=4, dtype=d), (2, 4, 9)),
    's4-lssl': (lambda d: S4(4, kernel='lssl', d_state=4, dtype=d), (2, 4, 9)),
    's5': (lambda d: S5(4, d_state=8, dtype=d), (2, 4, 9)),
    's5-two-sided': (lambda d: S5(4, d_state=8, bidirectional=True, dtype=d), (2, 4, 9)),
    's5-published': (
        lambda d: S5(4, d_state=8, bidirectional=True, cell='published', discretization='bilinear', dtype=d),
        (2, 4, 9),
    ),
    's5-full': (lambda d: S5(4, d_state=8, conj_sym=False, C_init='complex_normal', dtype=d), (2, 4, 9)),
    'liquid-pb': (lambda d: LiquidS4(4, d_state=4, degree=3, dtype=d), (2, 4, 9)),
    'liquid-kb': (lambda d: LiquidS4(4, d_state=4, mode='kb', dtype=d), (2, 4, 9)),
    'liquid-allcombs': (lambda d: LiquidS4(4, 's4d', d_state=4, degree=3, mode='allcombs', dtype=d), (2, 4, 9)),
    'liquid-exact': (lambda d: LiquidS4(4, 's4d', d_state=4, mode='exact', dtype=d), (2, 4, 9)),
    'lmu': (
        lambda d: LMU(
            4,
            memories=2,
            d_state=3,
            theta=6.0,
            train_theta=True,
            hidden_to_memory=True,
            memory_to_memory=True,
            input_to_hidden=True,
            dtype=d,
        ),
        (2, 4, 9),
    ),
    's4-untied': (
        lambda d: S4(4, d_state=4, channels=2, kernel_args={'dt_tied': False, 'real': 'free'}, dtype=d),
        (2, 4, 9),
    ),
    's4-tridiagonal': (
        lambda d: S4(4, kernel='lssl', d_state=4, kernel_args={'structure': 'tridiagonal'}, dtype=d),
        (2, 4, 9),
    ),
    's4-dss': (
        lambda d: S4(4, kernel='dss-exp', d_state=4, kernel_args={'dt_split': True, 'scaled': False}, dtype=d),
        (2, 4, 9),
    ),
    's4-sgconv': (
        lambda d: S4(4, kernel='sgconv', d_state=2, l_max=8, kernel_args={'mode': 'sum'}, dtype=d),
        (2, 4, 9),
    ),
    'gated': (lambda d: GatedLayer(S4(4, d_state=4, dtype=d), 4, dtype=d), (2, 4, 9)),
    's5-block': (
        lambda d: Residual(S5Gate(S5(4, d_state=8, dtype=d), gate='full_glu', dtype=d), 4, norm='scalar', dtype=d),
        (2, 4, 9),
    ),
    'gss': (lambda d: GSS(4, d_ssm=2, d_state=8, dtype=d), (2, 4, 9)),
    'gss-reverse': (lambda d: GSS(4, d_ssm=3, d_state=8, reverse=True, dtype=d), (2, 4, 9)),
    'hybrid': (lambda d: GSSHybrid(4, 2, chunk=4, num_heads=2, d_ssm=2, d_state=8, dtype=d), (2, 4, 9)),
    'attention': (lambda d: LocalAttention(4, num_heads=2, chunk=4, dtype=d), (2, 4, 9)),
    'mega': (lambda d: Mega(4, d_state=4, dtype=d), (2, 4, 9)),
    'mega-two-sided': (lambda d: Mega(4, chunk=4, d_state=4, bidirectional=True, dtype=d), (2, 4, 9)),
    'mega-laplace': (
        lambda d: Mega(4, d_state=4, attention='laplace', norm='scale', prenorm=False, dtype=d),
        (2, 4, 9),
    ),
    'mega-relu2': (
        lambda d: Mega(4, chunk=4, d_state=4, attention='relu2', max_length=4, norm='rms', dtype=d),
        (2, 4, 9),
    ),
    's4nd-ckconv': (
        lambda d: S4ND(4, (5, 6), 'ckconv', kernel_args={'hidden': 4, 'network': 'siren'}, dtype=d),
        (2, 4, 5, 6),
    ),
    'ckconv-1': (lambda d: CKConv(4, (7,), hidden=4, dtype=d), (2, 4, 7)),
    'ckconv-2': (lambda d: CKConv(4, (5, 6), hidden=4, dtype=d), (2, 4, 5, 6)),
}
CAUSAL = (
    'liquid-allcombs', 'liquid-exact', 'lmu', 's4-untied', 's4-tridiagonal', 's4-dss', 'gated', 's5-block', 's4',
    's4-lssl', 's5', 's5-full', 'liquid-pb', 'liquid-kb', 'gss', 'hybrid', 'attention', 'mega', 'mega-laplace',
    'mega-relu2',
)  # fmt: skip
# Causal layers that do not stream; the others have two-sided axes, which do not count.
CAUSAL_AXES: dict[str, Callable[[], nn.Module]] = {
    'S4ND': lambda: S4ND(4, (9, 4), d_state=4, bidirectional=(False, True)),
    'clips': lambda: ClipS4ND(4, (9, 4, 4), causal=True, d_state=4),
    'clips that replicate': lambda: ClipS4ND(4, (9, 4, 4), causal=True, time_padding='replicate', d_state=4),
    'CKConv': lambda: CKConv(4, (9,), hidden=4, causal=True),
}
EVERY = pytest.mark.parametrize('name', LAYERS)


def fft(layer: S4ND) -> S4ND:
    layer.method = 'fft'
    return layer


def make(name: str, dtype: torch.dtype = DOUBLE) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    return build(dtype), torch.randn(shape, dtype=dtype)


def fresh_output(layer: nn.Module, x: Tensor) -> Tensor:
    """What a copy without any memory computes."""
    clone = copy.deepcopy(layer).eval()
    with torch.no_grad():
        return clone(x)


class TestDerivatives:
    """Second derivatives and the transforms of torch.func equal those of plain autograd."""

    @EVERY
    def test_gradcheck(self, name: str) -> None:
        layer, x = make(name)
        names = [key for key, _ in layer.named_parameters()]
        inputs = (x, *(p.detach().clone() for p in layer.parameters()))

        def call(x: Tensor, *values: Tensor) -> Tensor:
            return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

        inputs = tuple(t.requires_grad_() for t in inputs)
        assert torch.autograd.gradcheck(call, inputs, atol=1e-4, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, inputs, atol=1e-4, fast_mode=True)

    @EVERY
    def test_directional_derivatives(self, name: str) -> None:
        """Forward mode, the double backward of autograd.functional and torch.func agree."""
        layer, x = make(name)
        v = torch.randn_like(x)
        _, by_double_backward = torch.autograd.functional.jvp(layer, x, v)
        _, by_func = torch.func.jvp(layer, (x,), (v,))
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, v)
            by_dual = torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent
        assert by_func.norm() > 0
        torch.testing.assert_close(by_double_backward, by_func, atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(by_dual, by_func, atol=1e-9, rtol=1e-7)

    @EVERY
    def test_hessian_vector_product(self, name: str) -> None:
        layer, x = make(name)
        v = torch.randn_like(x)
        _, ours = torch.autograd.functional.hvp(lambda x: layer(x).square().sum(), x, v)
        _, true = torch.func.jvp(torch.func.grad(lambda x: layer(x).square().sum()), (x,), (v,))
        assert true.norm() > 0
        torch.testing.assert_close(ours, true, atol=1e-8, rtol=1e-6)

    @EVERY
    def test_gradient_penalty_reaches_the_parameters(self, name: str) -> None:
        layer, x = make(name)
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        penalty = torch.autograd.grad(gradient.square().sum(), list(layer.parameters()), materialize_grads=True)
        assert sum(g.norm() for g in penalty) > 0

    @EVERY
    def test_per_sample_gradients(self, name: str) -> None:
        layer, x = make(name)
        parameters = dict(layer.named_parameters())

        def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(layer, parameters, (x[None],)).square().sum()

        found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
        for row in range(len(x)):
            true = torch.autograd.grad(loss(parameters, x[row]), list(parameters.values()), materialize_grads=True)
            for key, gradient in zip(parameters, true, strict=True):
                torch.testing.assert_close(found[key][row], gradient, atol=1e-8, rtol=1e-6)

    @EVERY
    def test_jacobians(self, name: str) -> None:
        layer, x = make(name)
        by_rows = torch.func.jacrev(lambda x: layer(x).flatten()[:5])(x)
        torch.testing.assert_close(
            torch.func.jacfwd(lambda x: layer(x).flatten()[:5])(x), by_rows, atol=1e-9, rtol=1e-7
        )
        one_by_one = torch.autograd.functional.jacobian(lambda x: layer(x).flatten()[:5], x)
        torch.testing.assert_close(one_by_one, by_rows, atol=1e-9, rtol=1e-7)


class TestMemory:
    """In evaluation a layer computes what a fresh copy does, whatever changed its weights."""

    @EVERY
    @pytest.mark.parametrize('options', [{'fused': True}, {'foreach': True}, {}], ids=str)
    def test_optimizer_steps_between_evaluations(self, name: str, options: dict) -> None:
        layer, x = make(name, torch.float32)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.05, **options)
        for mode in (True, False, False):  # also for a layer that stays in evaluation
            layer.train(mode)
            layer(x).square().sum().backward()
            with torch.no_grad():
                layer(x)
            optimizer.step()
            optimizer.zero_grad()
            layer.train(layer.training and mode)
            true = fresh_output(layer, x)
            with torch.no_grad():
                torch.testing.assert_close(layer(x), true, atol=1e-6, rtol=1e-6)

    @EVERY
    @pytest.mark.parametrize('edit', [
        lambda p: p.data.mul_(1.3),
        lambda p: p.data.copy_(p.data.flatten().flip(0).view_as(p)),  # the same sum
        lambda p: setattr(p, 'data', p.data * 0.7),
        lambda p: p.detach().numpy().__imul__(1.3),
    ])  # fmt: skip
    @torch.no_grad()
    def test_edits_behind_autograds_back(self, name: str, edit: Callable[[Tensor], None]) -> None:
        layer, x = make(name)
        layer.eval()
        layer(x)
        for parameter in layer.parameters():
            edit(parameter)
        torch.testing.assert_close(layer(x), fresh_output(layer, x), atol=1e-12, rtol=1e-12)

    @EVERY
    @torch.no_grad()
    def test_flat_buffers_and_shared_memory(self, name: str) -> None:
        layer, x = make(name)
        flat = torch.cat([p.flatten() for p in layer.parameters()]).share_memory_()
        for parameter, part in zip(
            layer.parameters(), flat.split([p.numel() for p in layer.parameters()]), strict=True
        ):
            parameter.data = part.view_as(parameter)
        layer.eval()
        layer(x)
        flat.mul_(1.2)
        torch.testing.assert_close(layer(x), fresh_output(layer, x), atol=1e-12, rtol=1e-12)

    @EVERY
    @torch.no_grad()
    def test_functional_call_with_other_weights(self, name: str) -> None:
        layer, x = make(name)
        layer.eval()
        before = layer(x)
        for factor in (1.1, 1.2):
            weights = {key: value * factor for key, value in layer.named_parameters()}
            other = copy.deepcopy(layer)
            other.load_state_dict(weights, strict=False)
            found = torch.func.functional_call(layer, weights, (x,))
            # (Matrix products of tensors that lie elsewhere in memory differ in the last bit.)
            torch.testing.assert_close(found, other(x), atol=1e-14, rtol=1e-14)
        torch.testing.assert_close(layer(x), before, atol=0, rtol=0)

    def test_forget(self) -> None:
        layer, x = make('s4nd-2')
        layer.eval()
        with torch.no_grad():
            layer(x)
        assert layer._kept
        layer.forget()
        assert not layer._kept

    @pytest.mark.parametrize('name', ['s4nd-1', 's4nd-2', 'liquid-kb', 'ckconv-2'])
    def test_threads_at_several_sizes(self, name: str) -> None:
        layer, x = make(name)
        layer.eval()
        inputs = [x, torch.cat([x, x], -1), torch.cat([x, x, x], -1)]
        true = [fresh_output(layer, x) for x in inputs]
        check_threads(layer, inputs, true, calls=100, atol=1e-12)


class TestReparametrizations:
    @pytest.mark.parametrize(
        'name', [name for name in LAYERS if isinstance(make(name)[0], S4ND) and 'ckconv' not in name]
    )
    def test_pruned(self, name: str) -> None:
        """Training works more than once, and evaluation follows changes of the original."""
        layer, x = make(name)
        kernel = layer.kernels[0]
        weight = 'C' if hasattr(kernel, 'C') else 'weight'
        original = f'{weight}_orig'
        prune.l1_unstructured(kernel, weight, 0.5)
        for _ in range(2):
            layer.train()
            layer(x).square().sum().backward()
        assert getattr(kernel, original).grad is not None
        layer.eval()
        with torch.no_grad():
            before = layer(x)
            getattr(kernel, original).mul_(2)
            after = layer(x)
        prune.remove(kernel, weight)
        torch.testing.assert_close(after, fresh_output(layer, x), atol=1e-12, rtol=1e-12)
        assert not torch.allclose(after, before)

    @pytest.mark.parametrize('name', ['s4', 's4-lssl', 'liquid-kb'])
    @torch.no_grad()
    def test_pruned_layers_stream(self, name: str) -> None:
        layer, x = make(name)
        prune.l1_unstructured(layer.kernels[0], 'C', 0.5)
        layer.kernels[0].C_orig.mul_(2)
        y, _ = layer(x, layer.init_state(2))
        torch.testing.assert_close(y, layer(x), atol=1e-10, rtol=1e-10)

    @pytest.mark.parametrize('name', ['ckconv-1', 'ckconv-2', 's4nd-ckconv'])
    def test_pruned_networks_of_kernels(self, name: str) -> None:
        """The maps inside a kernel are modules that are called, so that hooks and wrapped weights count."""
        layer, x = make(name)
        for network in [module for module in layer.modules() if isinstance(module, (MAGNet, SIREN))]:
            prune.random_unstructured(network.out, 'weight', 0.5)
            parametrizations.weight_norm(network.linears[0], 'weight')
        for _ in range(2):
            layer(x).square().sum().backward()
        layer.eval()
        with torch.no_grad():
            before = layer(x)
            network.out.weight_orig.mul_(3)
            network.linears[0].parametrizations.weight.original0.mul_(2)
            after = layer(x)
        for network in [module for module in layer.modules() if isinstance(module, (MAGNet, SIREN))]:
            prune.remove(network.out, 'weight')
            parametrize.remove_parametrizations(network.linears[0], 'weight')
        torch.testing.assert_close(after, fresh_output(layer, x), atol=1e-12, rtol=1e-12)
        assert not torch.allclose(after, before)

    def test_parametrized(self) -> None:
        layer, x = make('s4nd-2')
        parametrizations.weight_norm(layer.kernels[0], 'C')

        class Half(nn.Module):
            def forward(self, value: Tensor) -> Tensor:
                return value / 2

        parametrize.register_parametrization(layer.kernels[1], 'log_dt', Half(), unsafe=True)
        for _ in range(2):
            layer(x).square().sum().backward()
        names = {id(p): key for key, p in layer.named_parameters()}
        groups = param_groups(layer, 0.01, 0.05, ssm_lr=1e-3)
        ssm = {names[id(p)] for group in groups if group['lr'] == 1e-3 for p in group['params']}
        assert 'kernels.1.parametrizations.log_dt.original' in ssm
        assert not any('.C' in key for key in ssm)
        layer.eval()
        with torch.no_grad():
            layer(x)
            layer.kernels[0].parametrizations.C.original0.mul_(2)
            torch.testing.assert_close(layer(x), fresh_output(layer, x), atol=1e-12, rtol=1e-12)

    @EVERY
    def test_swapped_parameters(self, name: str) -> None:
        layer, x = make(name, torch.float32)
        layer.eval()
        with torch.no_grad():
            before = layer(x)
            torch.__future__.set_swap_module_params_on_conversion(True)
            try:
                after = layer.double()(x.double())
            finally:
                torch.__future__.set_swap_module_params_on_conversion(False)
        torch.testing.assert_close(after.float(), before, atol=1e-4, rtol=1e-4)


class TestInputs:
    @EVERY
    def test_whole_numbers_are_refused(self, name: str) -> None:
        layer, x = make(name, torch.float32)
        with pytest.raises(ValueError, match=r'floating-point numbers, got torch\.int64'):
            layer(torch.ones_like(x, dtype=torch.int64))
        if name in CAUSAL:
            with pytest.raises(ValueError, match=r'floating-point numbers, got torch\.int64'):
                layer.step(torch.ones(2, 4, dtype=torch.int64), layer.init_state(2))

    @EVERY
    def test_no_rows(self, name: str) -> None:
        layer, x = make(name)
        y = layer(x)
        assert layer(x[:0]).shape == (0, *y.shape[1:])
        layer.eval()
        with torch.no_grad():
            assert layer(x[:0]).shape == (0, *y.shape[1:])

    @pytest.mark.parametrize('name', [name for name, (_, shape) in LAYERS.items() if len(shape) > 3])
    @pytest.mark.parametrize('training', [True, False])
    def test_memory_formats(self, name: str, training: bool) -> None:
        """Weights and inputs in channels_last: the same outputs, in the format of the input."""
        layer, x = make(name)
        layer.train(training)
        layout = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        with torch.set_grad_enabled(training):
            true = layer(x)
            for layer_there, x_there in ((True, True), (True, False), (False, True)):
                other = copy.deepcopy(layer)
                if layer_there:
                    other = other.to(memory_format=layout)
                y = other(x.contiguous(memory_format=layout) if x_there else x)
                torch.testing.assert_close(y, true, atol=1e-10, rtol=1e-10)
                if x_there and 'ckconv' not in name and 'channels' not in name and y.shape == x.shape:
                    assert y.is_contiguous(memory_format=layout)

    @pytest.mark.parametrize('name', CAUSAL)
    def test_causal(self, name: str) -> None:
        layer, x = make(name)
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(layer(x)[..., 4].square().sum(), x)
        assert gradient[..., 5:].abs().max() <= 1e-13 * gradient.abs().max()
        assert gradient[..., 4].abs().max() > 0

    @pytest.mark.parametrize('name', [*CAUSAL_AXES, *(f'S4 {kernel}' for kernel in KERNELS)])
    def test_causal_axes(self, name: str) -> None:
        """Layers that do not stream, on the axis where they are causal, at two lengths and by FFT too."""
        torch.manual_seed(0)
        build = CAUSAL_AXES.get(name) or (lambda: S4(4, kernel=name.removeprefix('S4 '), d_state=4, l_max=9))
        layer = build().double()
        for length in (9, 24):
            x = torch.randn(
                2, 4, length, *[4] * (getattr(layer, 'spatial_dims', 1) - 1), dtype=DOUBLE, requires_grad=True
            )
            for method in ('auto', 'fft'):
                layer.method = method
                (gradient,) = torch.autograd.grad(layer(x)[:, :, 4].square().sum(), x)
                assert gradient[:, :, 5:].abs().max() <= 1e-12 * gradient.abs().max()
                assert gradient[:, :, 4].abs().max() > 0

    @pytest.mark.parametrize('name', CAUSAL)
    @torch.no_grad()
    def test_streams_do_not_look_ahead_for_nans(self, name: str) -> None:
        layer, x = make(name)
        x[..., 6] = torch.nan
        y, _ = layer(x, layer.init_state(2))
        assert y[..., :4].isfinite().all()
        state, system = layer.init_state(2), layer.system()
        for t in range(6):
            y_t, state = layer.step(x[..., t], state, system)
            assert y_t.isfinite().all()


class TestAverages:
    @pytest.mark.parametrize('name', [name for name in LAYERS if isinstance(make(name)[0], GridLayer)])
    def test_the_grid_survives_averages_and_casts(self, name: str) -> None:
        layer, x = make(name, torch.float32)
        grid = layer.grid
        averaged = torch.optim.swa_utils.AveragedModel(layer, use_buffers=False)
        averaged.update_parameters(layer)
        torch.testing.assert_close(averaged(x), layer(x))
        state = layer.state_dict()
        for merged in (
            {key: 0.9 * value + 0.1 * value for key, value in state.items()},
            {key: value.half() for key, value in state.items()},
            {key: value.double() * 0.999 + value.double() * 0.001 for key, value in state.items()},
        ):
            other, _ = make(name, torch.float32)
            other.load_state_dict(merged)
            assert other.grid == grid
            assert other.training_grid.dtype == torch.int64
        # An average in place that rounds down does not reach the state dict.
        layer.training_grid.sub_(1)
        assert layer.state_dict()['training_grid'].tolist() == list(grid or ())

    def test_meta_to_empty(self) -> None:
        layer = S4ND(4, (5, 6), d_state=4, device='meta')
        layer.to_empty(device='cpu').reset_parameters()
        assert layer.training_grid.tolist() == [5, 6]
        assert layer(torch.randn(1, 4, 5, 6)).isfinite().all()
