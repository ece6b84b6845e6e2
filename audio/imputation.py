"""Filling in multivariate time series by conditional diffusion: SSSD-S4 (arXiv 2208.09399), on the diffusion of sound.

What is missing is drawn from noise, given what is observed: an imputation of gaps, or with the mask of the future, a
forecast. Noise is added to missing values only, and only they are scored.

Shape legend: B = batch, C = channels, L = samples, H = d_model, E = width of the condition.
Series are (B, C, L); masks are of that shape, True where a value is observed. The residual stream is (B, L, H).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from audio.backbone import S4Block, S4Options
from audio.denoiser import step_features, step_network
from audio.diffusion import Diffusion, normal_like

# (shape of the series, CPU generator) -> a mask of that shape.
MaskDraw = Callable[[Sequence[int], torch.Generator], Tensor]


class Imputer(nn.Module):
    """Predicts the noise in the missing values of a series, or the values: the skeleton of DiffWave (arXiv 2009.09761).

    A map C -> H and ReLU, residual blocks whose skips are summed, and a map H -> H -> C that begins at zero.
    `diffusion` is the process that the network undoes, and says what is predicted.

    Args:
        channels: C.
        d_model: H.
        blocks: at least one, each (x (B, L, H), known (B, L, 2C), condition (B, E)) -> the next x, skip (B, L, H);
            `known` holds the observed values, zero elsewhere, and the mask.
        condition: E, of the step embedding that all blocks are given.
        steps, beta_min, beta_max, predicts: see `Diffusion`.

    Raises ValueError for sizes below 1.
    """

    def __init__(
        self,
        channels: int,
        d_model: int,
        blocks: Iterable[nn.Module],
        *,
        condition: int = 512,
        steps: int = 200,
        beta_min: float = 1e-4,
        beta_max: float = 0.02,
        predicts: str = 'noise',
    ) -> None:
        super().__init__()
        for name, value in [('channels', channels), ('d_model', d_model), ('condition', condition)]:
            if value < 1:
                raise ValueError(f'{name} must be at least 1, got {value}')
        self.diffusion = Diffusion(steps, beta_min, beta_max, predicts)
        self.channels = channels
        self.blocks = nn.ModuleList(blocks)
        if not self.blocks:
            raise ValueError('n_layers must be at least 1, got no block')
        self.enter = nn.Linear(channels, d_model)
        self.step_embedding = step_network(condition)
        self.leave = nn.Sequential(nn.Linear(d_model, d_model), nn.ReLU(), nn.Linear(d_model, channels))
        # As in DiffWave: the untrained model predicts zero.
        nn.init.zeros_(self.leave[-1].weight)
        nn.init.zeros_(self.leave[-1].bias)

    def forward(self, x: Tensor, t: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Noised series x (B, C, L), diffusion step (B,), observed values and their mask -> prediction (B, C, L).

        x is read at missing places only, `values` at observed ones only: there is noise on the missing part and nowhere
        else. Raises ValueError for shapes that do not fit.
        """
        if x.dim() != 3 or x.shape[1] != self.channels or x.shape != values.shape or t.shape != x.shape[:1]:
            raise ValueError(
                f'expected two series (batch, {self.channels}, length) and one step a row, '
                f'got {tuple(x.shape)}, {tuple(values.shape)} and {tuple(t.shape)}'
            )
        condition = self.step_embedding(step_features(t).to(self.enter.weight.dtype))
        observed = torch.where(mask, values, 0)
        known = torch.cat([observed, mask.to(values.dtype)], 1).transpose(1, 2)  # (B, L, 2C)
        y, total = F.relu(self.enter(torch.where(mask, values, x).transpose(1, 2))), 0
        for block in self.blocks:
            y, skip = block(y, known, condition)
            total = total + skip
        return self.leave(total * len(self.blocks) ** -0.5).transpose(1, 2)


class SSSDBlock(nn.Module):
    """One residual block of SSSD-S4 (arXiv 2208.09399): + step embedding, convolution of width 3 to 2H, S4,
    + map of the observed values and mask, S4, tanh · σ gate, residual (times √½) and skip."""

    def __init__(self, channels: int, d_model: int, condition: int, options: S4Options) -> None:
        super().__init__()
        self.condition = nn.Linear(condition, d_model)
        self.conv = nn.Conv1d(d_model, 2 * d_model, 3, padding=1)
        self.s4_1, self.s4_2 = S4Block(2 * d_model, options), S4Block(2 * d_model, options)
        self.known = nn.Linear(2 * channels, 2 * d_model)
        self.out = nn.Linear(d_model, 2 * d_model)

    def forward(self, x: Tensor, known: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        y = x + self.condition(condition)[:, None]  # (B, L, H)
        y = self.s4_1(self.conv(y.transpose(1, 2)).transpose(1, 2))  # (B, L, 2H)
        return gated_output(x, self.s4_2(y + self.known(known)), self.out)


def gated_output(x: Tensor, y: Tensor, out: nn.Linear) -> tuple[Tensor, Tensor]:
    """x (B, L, H) and what its block made of it (B, L, 2H) -> the next x and the skip, by a map H -> 2H."""
    signal, gate = y.chunk(2, -1)
    residual, skip = out(torch.tanh(signal) * torch.sigmoid(gate)).chunk(2, -1)
    return (x + residual) * 0.5**0.5, skip


class SSSDS4(Imputer):
    """SSSD-S4: every block looks at the whole series, in both directions, through two S4 layers.

    The published size is d_model 256 and 36 layers. The S4 layer is SaShiMi's two-sided block (norm first; the
    publication norms last).

    Args:
        channels: C of the series.
        d_model: H.
        n_layers: residual blocks.
        kernel, d_state, dt_min, dt_max: see `s4nd.S4`.
        dropout: in every S4 layer, in training.
        condition, steps, beta_min, beta_max, predicts: see `Imputer`.
    """

    def __init__(
        self,
        channels: int,
        d_model: int = 64,
        n_layers: int = 6,
        *,
        kernel: str = 's4',
        d_state: int = 64,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dropout: float = 0.0,
        condition: int = 512,
        steps: int = 200,
        beta_min: float = 1e-4,
        beta_max: float = 0.02,
        predicts: str = 'noise',
    ) -> None:
        options = S4Options(kernel, d_state, None, dt_min, dt_max, glu=False, bidirectional=True, dropout=dropout)
        blocks = (SSSDBlock(channels, d_model, condition, options) for _ in range(n_layers))
        schedule = {'steps': steps, 'beta_min': beta_min, 'beta_max': beta_max, 'predicts': predicts}
        super().__init__(channels, d_model, blocks, condition=condition, **schedule)


def random_missing(shape: Sequence[int], random: torch.Generator | None = None, *, share: float = 0.5) -> Tensor:
    """A mask (B, C, L) in which every channel misses `share` of its samples, each at random.

    Exactly the nearest number of them, at least one and at most all but one. Raises ValueError unless 0 < share < 1.
    """
    if not 0 < share < 1:
        raise ValueError(f'share must lie between 0 and 1, got {share}')
    length = _length(shape)
    missing = min(max(1, round(share * length)), length - 1)
    return torch.rand(tuple(shape), generator=random).argsort(-1).argsort(-1) >= missing


def blackout(shape: Sequence[int], random: torch.Generator | None = None, *, length: int) -> Tensor:
    """A mask (B, C, L) in which all channels of a row miss the same stretch of `length` samples, somewhere.

    Raises ValueError unless 1 <= length < L.
    """
    total = _length(shape, length)
    start = torch.randint(0, total - length + 1, (shape[0], 1, 1), generator=random)
    place = torch.arange(total)
    return ((place < start) | (place >= start + length)).expand(tuple(shape)).clone()


def future(shape: Sequence[int], random: torch.Generator | None = None, *, length: int) -> Tensor:
    """The mask (B, C, L) of a forecast: the last `length` samples are missing, in all channels.

    Raises ValueError unless 1 <= length < L.
    """
    observed = torch.arange(_length(shape, length)) < shape[-1] - length
    return observed.expand(tuple(shape)).clone()


def imputation_loss(
    model: Callable[..., Tensor],
    diffusion: Diffusion,
    values: Tensor,
    mask: Tensor,
    random: torch.Generator | None = None,
) -> Tensor:
    """Mean squared error of the prediction (see `Diffusion.loss`) where values are missing by the mask.

    Missing values that nobody knows (NaN) are left out, so that series with gaps of their own can be learned from.
    Raises ValueError as `impute`, and where no missing value is known.
    """
    check_series(values, mask)
    where = ~mask & values.isfinite()
    if not where.any():
        raise ValueError('all missing values are unknown (NaN): there is nothing to learn from')
    clean = values.nan_to_num(0.0, 0.0, 0.0)
    return diffusion.loss(lambda x, t: model(x, t, clean, mask), clean, random, where)


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
    dtype = model.enter.weight.dtype
    clean = torch.where(mask, values, 0).to(dtype)
    random = [torch.Generator(values.device).manual_seed(seed * 1_000_003 + row) for row in range(len(values))]
    drawn = model.diffusion.sample(
        lambda x, t: model(x, t, clean, mask), normal_like(clean, random), steps=steps, random=random, progress=progress
    )
    return torch.where(mask, values, drawn.to(values.dtype))


class ImputationTask:
    """Training to impute, for `s4nd.training.loop.fit`; measured by the loss.

    Args:
        parts: series (N, C, L) for 'train', 'val' and 'test'. NaN marks what is not known.
        masks: ways to draw a mask; each batch takes one of them.
        diffusion: the process that the model undoes.
        batch_size: series a batch.
        seed: order of the training series, and the masks.

    A batch is (values, mask), both (B, C, L).
    """

    monitor = 'val_loss'
    maximize = False

    def __init__(
        self,
        parts: Mapping[str, Tensor],
        masks: Sequence[MaskDraw],
        diffusion: Diffusion,
        batch_size: int,
        *,
        seed: int = 0,
    ) -> None:
        self.parts, self.masks, self.diffusion = dict(parts), list(masks), diffusion
        self.batch_size, self.seed = batch_size, seed
        self.metadata: dict[str, str] = {}

    def train_batches(self, epoch: int) -> DataLoader:
        """Batches in an order, and with masks, fixed by the seed and the epoch."""
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        full = len(self.parts['train']) >= self.batch_size
        return self._batches('train', random, shuffle=True, generator=random, drop_last=full)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], random: torch.Generator | None = None) -> Tensor:
        """`imputation_loss` of values and mask (B, C, L)."""
        return imputation_loss(model, self.diffusion, *batch, random)

    def evaluate(self, model: nn.Module, device: torch.device | str) -> dict[str, float]:
        """{'val_loss', 'test_loss'}, with the same masks, levels and noise at every call."""
        return {f'{part}_loss': self._mean_loss(model, device, part) for part in ('val', 'test')}

    def _mean_loss(self, model: nn.Module, device: torch.device | str, part: str) -> float:
        random, total = torch.Generator().manual_seed(self.seed), 0.0
        for values, mask in self._batches(part, random):
            total += self.loss(model, (values.to(device), mask.to(device)), random).item() * len(values)
        return total / len(self.parts[part])

    def _batches(self, part: str, random: torch.Generator, **options: object) -> DataLoader:
        def masked(rows: list[tuple[Tensor]]) -> tuple[Tensor, Tensor]:
            values = torch.stack([row for (row,) in rows])
            draw = self.masks[int(torch.randint(len(self.masks), (), generator=random))]
            return values, draw(values.shape, random) & values.isfinite()

        return DataLoader(TensorDataset(self.parts[part]), self.batch_size, collate_fn=masked, **options)


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


def _length(shape: Sequence[int], missing: int = 1) -> int:
    """L, in which `missing` samples can be missing with one left."""
    if len(shape) != 3 or not 1 <= missing < shape[-1]:
        raise ValueError(
            f'expected a shape (batch, channels, length) and at least 1 and fewer than length samples missing, '
            f'got {tuple(shape)} and {missing}'
        )
    return shape[-1]
