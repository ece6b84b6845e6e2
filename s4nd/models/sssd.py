"""Filling in multivariate time series by conditional diffusion: SSSD-S4 (arXiv 2208.09399).

What is missing is drawn from noise, given what is observed: an imputation of gaps, or with the mask of the future, a
forecast. There is noise on missing values only.

Shape legend: B = batch, C = channels, L = samples, H = d_model, E = width of the condition.
Series are (B, C, L); masks are of that shape, True where a value is observed. The residual stream is (B, L, H).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from s4nd.diffusion import Diffusion, normal_like, step_features, step_network
from s4nd.layers import S4
from s4nd.layers.base import check_floating
from s4nd.models.s4_block import S4Block, make_linear
from s4nd.seeds import generator

__all__ = ['SSSDS4', 'Imputer', 'SSSDBlock', 'check_series', 'freeze_kernels', 'gated_output', 'impute']


class Imputer(nn.Module):
    """Predict the noise in the missing values of a series, or the values: the skeleton of DiffWave (arXiv 2009.09761).

    A map C -> H and ReLU, residual blocks whose skips are summed, and a map H -> H -> C that begins at zero.

    Args:
        channels: C.
        d_model: H.
        blocks: at least one, each (x (B, L, H), known (B, L, 2C), condition (B, E)) -> the next x, skip (B, L, H);
            `known` holds the observed values, zero elsewhere, and the mask.
        skip: features of the skips; None: H.
        condition: E, of the step embedding that all blocks are given.
        diffusion: keywords of `Diffusion`, the process that the network undoes, kept as `diffusion`.

    Raises:
        ValueError: for sizes below 1.
    """

    def __init__(
        self,
        channels: int,
        d_model: int,
        blocks: Iterable[nn.Module],
        *,
        skip: int | None = None,
        condition: int = 512,
        diffusion: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        skip = d_model if skip is None else skip
        for name, value in [('channels', channels), ('d_model', d_model), ('condition', condition)]:
            if value < 1:
                raise ValueError(f'{name} must be at least 1, got {value}')
        self.diffusion = Diffusion(**(diffusion or {}))
        self.channels = channels
        self.blocks = nn.ModuleList(blocks)
        if not self.blocks:
            raise ValueError('n_layers must be at least 1, got no block')
        self.enter = make_linear(channels, d_model, True)
        self.step_embedding = step_network(condition)
        last = nn.Linear(skip, channels)
        # As in DiffWave: the untrained model predicts zero.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.leave = nn.Sequential(make_linear(skip, skip, True), nn.ReLU(), last)

    def forward(self, x: Tensor, t: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Map noised series x (B, C, L), index of the step (B,), observed values and mask to a prediction (B, C, L).

        `values` is read at observed places only. x holds the values there, where noise is on missing ones only.

        Raises:
            ValueError: for shapes that do not fit.
        """
        self.check(x, t, values)
        features = step_features(t, self.step_embedding[0].in_features)
        condition = self.step_embedding(features.to(self.leave[-1].weight.dtype))
        observed = torch.where(mask, values, 0)
        known = torch.cat([observed, mask.to(values.dtype)], 1).transpose(1, 2)  # (B, L, 2C)
        y = F.relu(self.enter(x.transpose(1, 2)))  # (B, L, H)
        total = 0.0
        for block in self.blocks:
            y, skip = block(y, known, condition)
            total = total + skip
        return self.leave(total * len(self.blocks) ** -0.5).transpose(1, 2)

    def check(self, x: Tensor, t: Tensor, values: Tensor) -> None:
        """Raise ValueError for inputs of `forward` whose shapes do not fit."""
        if x.dim() != 3 or x.shape[1] != self.channels or x.shape != values.shape or t.shape != x.shape[:1]:
            raise ValueError(
                f'expected two series (batch, {self.channels}, length) and one step per row, '
                f'got {tuple(x.shape)}, {tuple(values.shape)} and {tuple(t.shape)}'
            )
        check_floating(x)


class SSSDBlock(nn.Module):
    """Compute one residual block of SSSD-S4 (arXiv 2208.09399).

    + step embedding, convolution of width 3 to 2H, S4, + map of the observed values and mask, S4, tanh · σ gate,
    residual (times √½) and skip.
    """

    def __init__(self, channels: int, d_model: int, skip: int, condition: int, **options: Any) -> None:
        super().__init__()
        self.condition = nn.Linear(condition, d_model)
        self.conv = weight_norm(nn.Conv1d(d_model, 2 * d_model, 3, padding=1))
        self.s4_1 = S4Block(2 * d_model, glu=False, prenorm=False, **options)
        self.s4_2 = S4Block(2 * d_model, glu=False, prenorm=False, **options)
        self.known = make_linear(2 * channels, 2 * d_model, True)
        self.out = make_linear(d_model, d_model + skip, True)

    def forward(self, x: Tensor, known: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        y = x + self.condition(condition)[:, None]  # (B, L, H)
        y = self.s4_1(self.conv(y.transpose(1, 2)).transpose(1, 2))  # (B, L, 2H)
        return gated_output(x, self.s4_2(y + self.known(known)), self.out)


def gated_output(x: Tensor, y: Tensor, out: nn.Linear) -> tuple[Tensor, Tensor]:
    """Map x (B, L, H) and what its block made of it (B, L, 2H) to the next x and the skip, by a map H -> H + skip."""
    signal, gate = y.chunk(2, -1)
    y = out(torch.tanh(signal) * torch.sigmoid(gate))
    residual, skip = y.split([x.shape[-1], y.shape[-1] - x.shape[-1]], -1)
    return (x + residual) * 0.5**0.5, skip


class SSSDS4(Imputer):
    """SSSD-S4: each block sees the whole series, in both directions, through two S4 layers.

    The network is that of the released code: weight-normalized maps, S4 layers that normalize after the sum and have no
    gate, and of S4 only C, D and the output map are trained. The published size is d_model 256 and 36 layers.

    Args:
        channels: C of the series.
        d_model: H.
        n_layers: residual blocks.
        mixer_args: keywords of `s4nd.S4`.
        bidirectional: whether S4 sees both directions; published: True.
        norm: of the S4 layers; None: none. Published: 'layer'.
        freeze: whether dt, A, B and P of the S4 layers stay as they start, as released.
        dropout: in each S4 layer, in training.
        skip, condition, diffusion: see `Imputer`.
    """

    def __init__(
        self,
        channels: int,
        d_model: int = 64,
        n_layers: int = 6,
        *,
        mixer_args: Mapping[str, Any] | None = None,
        bidirectional: bool = True,
        norm: str | None = 'layer',
        freeze: bool = True,
        dropout: float = 0.0,
        skip: int | None = None,
        condition: int = 512,
        diffusion: Mapping[str, Any] | None = None,
    ) -> None:
        options = {'mixer_args': mixer_args, 'dropout': dropout, 'bidirectional': bidirectional, 'norm': norm}
        features = d_model if skip is None else skip
        blocks = (SSSDBlock(channels, d_model, features, condition, **options) for _ in range(n_layers))
        super().__init__(channels, d_model, blocks, skip=skip, condition=condition, diffusion=diffusion)
        if freeze:
            freeze_kernels(self)


def freeze_kernels(model: nn.Module) -> None:
    """Train of every S4 kernel C alone, as the released imputers do."""
    for layer in model.modules():
        if isinstance(layer, S4):
            for name, parameter in layer.kernels.named_parameters():
                parameter.requires_grad_(name.endswith('.C'))


@torch.no_grad()
def impute(
    model: Imputer,
    values: Tensor,
    mask: Tensor,
    *,
    seed: int = 0,
    steps: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Draw what is missing: the series (B, C, L) with its observed values as they are.

    Args:
        model: in eval mode.
        values: (B, C, L) on the model's device; what it holds where the mask is False is not read and may be NaN.
        mask: bool, True where a value is observed; `future` makes this a forecast.
        seed: the same seed gives the same draw. Row r draws from (seed, r), whatever the batch; draws of several seeds
            are samples of the distribution, their mean is the estimate of least squared error.
        steps: None: every step of the model's schedule; a number (6, say): the short sampler (see `Diffusion.sample`).
        progress: called with the number of denoising steps done, after each.

    Raises:
        ValueError: for shapes that do not fit each other or the model, a mask that is not bool, a row without an
            observed value, a mask without a missing one, or an observed value that is not finite.
    """
    check_series(values, mask)
    dtype = model.leave[-1].weight.dtype
    clean = torch.where(mask, values, 0).to(dtype)
    random = [generator(seed, row, values.device) for row in range(len(values))]

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return model(torch.where(mask, clean, x), t, clean, mask)

    noise = normal_like(clean, random)
    drawn = model.diffusion.sample(denoise, noise, steps=steps, random=random, progress=progress)
    return torch.where(mask, values, drawn.to(values.dtype))


def check_series(values: Tensor, mask: Tensor) -> None:
    """Raises ValueError as `impute` does."""
    if values.dim() != 3 or mask.shape != values.shape:
        raise ValueError(
            'expected values (batch, channels, length) and a mask of the same shape, '
            f'got {tuple(values.shape)} and {tuple(mask.shape)}'
        )
    if mask.dtype != torch.bool:
        raise ValueError(f'expected a mask of dtype bool (True: observed), got {mask.dtype}')
    empty = (~mask.flatten(1).any(1)).nonzero()
    if len(empty):
        raise ValueError(f'row {int(empty[0])} has no observed value, on which what is missing could depend')
    if mask.all():
        raise ValueError('nothing is missing: the mask is True everywhere')
    bad = (mask & ~values.isfinite()).nonzero()
    if len(bad):
        row, channel, place = bad[0].tolist()
        raise ValueError(
            f'the observed values must be finite, got {float(values[row, channel, place])} in row {row}, '
            f'channel {channel} at sample {place} (mask False there: missing)'
        )
