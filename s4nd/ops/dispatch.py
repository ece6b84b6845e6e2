"""Which arithmetic an operation takes; the one place in the package where that is decided.

Eager calls on a CPU or GPU take complex numbers and gradients written by hand. Compilers, exporters, tracers,
TorchScript, `torch.func` and forward-mode differentiation take plain real arithmetic that autograd understands.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

# The format of images and of clips, by the number of axes (TorchScript knows no such table).
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@torch.jit.unused
def _is_observed() -> bool:
    return (
        torch.compiler.is_compiling() or torch.jit.is_tracing() or _is_transformed() or forward_ad._current_level >= 0
    )


@torch.jit.unused
def _is_transformed() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


def observed() -> bool:
    """Whether the call is being compiled, traced, scripted or transformed, so that it must not depend on values."""
    if torch.jit.is_scripting():
        return True
    return _is_observed()


def at_one_size(x: Tensor) -> Tensor:
    """Return x (B, C, …); a graph that is traced or exported from there on refuses other sizes."""
    if torch.jit.is_scripting():
        return x
    return _at_one_size(x)


@torch.jit.unused
def _at_one_size(x: Tensor) -> Tensor:
    """The graphs of tracers and exporters hold the kernels of one size."""
    if torch.compiler.is_exporting() and any(isinstance(n, torch.SymInt) for n in x.shape[2:]):
        raise ValueError(
            f'a graph holds the kernels of one size, got the dynamic sizes {list(x.shape[2:])}: export with a dynamic '
            'batch alone, once for each size (s4nd export sizes=[16,24,32])'
        )
    return x.reshape([x.shape[0], *map(int, x.shape[1:])]) if torch.jit.is_tracing() else x


def sizes_of(x: Tensor) -> list[int]:
    """The sizes [L1, …, Ld] of x (B, C, L1, …, Ld) as numbers; a trace holds the taps of one size."""
    size = list(x.shape[2:])
    if torch.jit.is_tracing():
        size = [int(n) for n in size]
    return size


def check_exporter() -> None:
    """Raise ValueError inside the older ONNX exporter, which has no operators for what makes a kernel."""
    if not torch.jit.is_scripting():
        _check_exporter()


@torch.jit.unused
def _check_exporter() -> None:
    if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
        raise ValueError(
            "torch.onnx.export(dynamo=False) cannot compute kernels: take dynamo=True (in timm's onnx_export.py: "
            '--dynamo) or s4nd.export.export_onnx, or give it s4nd.export.freeze(model, example), which stores them'
        )


def values_are_known(x: Tensor) -> bool:
    """Whether sizes may depend on the values of x; reading those on a GPU would wait for it."""
    return not (observed() or x.is_meta or x.is_cuda)


def by_hand(x: Tensor) -> bool:
    """Whether complex numbers and hand-written gradients can be used for x."""
    return not observed() and (x.device.type == 'cpu' or x.device.type == 'cuda')


def takes_operators() -> bool:
    """Whether an operator of our own may be called: eagerly or compiled, not where each step must be seen."""
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting()
    return not _is_observed()


@torch.jit.unused
def autocasted(x: Tensor) -> Tensor:
    """x as convolutions take it: in the dtype of autocast, where that is on."""
    if x.is_meta or x.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


# Elsewhere a CPU imitates products in half precision, slower than in float32.
_CPU_BFLOAT16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@torch.jit.unused
def half_products(x: Tensor) -> bool:
    """Whether the device multiplies the halves of x with sums in float32."""
    return x.is_cuda or (_CPU_BFLOAT16 and x.device.type == 'cpu' and x.dtype == torch.bfloat16)


def wants_graph(grad: Tensor) -> bool:
    """Whether a backward pass must itself be differentiable, or acts on a batch of gradients."""
    return torch.is_grad_enabled() or _is_observed() or torch._C._functorch.is_batchedtensor(grad)


def plain_gradients(
    plain: Callable[..., Tensor], inputs: Sequence[Tensor | None], needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Gradients of plain(*inputs), differentiable in turn; None for the inputs that need none."""
    with torch.enable_grad():
        output = plain(*inputs)
        wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
        found = iter(torch.autograd.grad(output, wanted, grad, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needed]


def wide(x: Tensor) -> Tensor:
    """x in float64, where discretization and powers are computed (float32 on devices that have no float64)."""
    return x.float() if x.device.type == 'mps' else x.double()


def wide_dtype(device: torch.device) -> torch.dtype:
    """The dtype of `wide` tensors on a device."""
    return torch.float32 if device.type == 'mps' else torch.float64


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which taps and states are kept: float32 for half precision, else the dtype itself."""
    return torch.promote_types(dtype, torch.float32)


def feature_groups(x: Tensor) -> list[slice]:
    """Features of x (B, C, …) in groups, so that what is computed of one stays in the cache, or in 256 MB on a GPU."""
    elements = 2**18 * torch.get_num_threads() if x.device.type == 'cpu' else 2**26
    each = max(1, x.numel() // x.shape[1])
    count = max(1, elements // each)
    if x.stride(1) == 1:  # Features lie side by side (channels_last): whole cache lines.
        count = max(32, count // 32 * 32)
    return [slice(start, start + count) for start in range(0, x.shape[1], count)]


def in_format_of(y: Tensor, x: Tensor) -> Tensor:
    """y in the memory format of x: what follows is elementwise, and slow over mixed strides."""
    if not torch.jit.is_scripting() and _knows_one_format():
        return y.contiguous()
    if is_channels_last(x):
        return y.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    return y.contiguous()


@torch.jit.unused
def _knows_one_format() -> bool:
    """Whether no format but the contiguous one exists: in vmap and in the older ONNX exporter."""
    return _is_transformed() or (torch.jit.is_tracing() and torch.onnx.is_in_onnx_export())


def is_channels_last(x: Tensor) -> bool:
    """Whether the features of x (B, C, …) lie side by side, which they do not in the format of other tensors."""
    if x.dim() == 4:
        return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return x.dim() == 5 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last_3d)


def exact_bmm(a: Tensor, b: Tensor) -> Tensor:
    """Batched matrix product in the dtype of its arguments; autocast would run it in half precision."""
    if torch.jit.is_scripting() or a.is_meta:
        return torch.bmm(a, b)
    with torch.autocast(a.device.type, enabled=False):
        return torch.bmm(a, b)
