"""WaveNet (van den Oord et al. 2016, arXiv 1609.03499): the baseline that SaShiMi is held against.

Dilated causal convolutions of width 2, gated units tanh(·)·σ(·), residual and skip connections, two 1×1 maps and a
softmax over the codes. Tokens in, logits out, and one sample at a time, as `audio.SaShiMi` does it.

Shape legend: B = batch, L = samples, R = residual channels. Everything is (B, L, channels): a convolution of width 2 is
a linear map of a sample and the one `dilation` before it, which a CPU multiplies faster than a dilated convolution.
"""

from itertools import count

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audio.models.sashimi import order_codes

State = dict[str, Tensor]


class WaveNet(nn.Module):
    """Autoregressive model of quantized audio: embedding, gated dilated layers, head.

    Args:
        bits: the tokens are 0 … 2**bits - 1, in and out.
        channels: R, of the residual stream and of each gate.
        skip_channels: of the sum that the head reads.
        stacks, layers: `stacks` times the dilations 1, 2, 4 … 2**(layers - 1).
        ordered: embedding and last layer start as `audio.SaShiMi`'s do with this option.
    """

    def __init__(
        self,
        bits: int = 8,
        channels: int = 64,
        skip_channels: int = 64,
        stacks: int = 2,
        layers: int = 11,
        ordered: bool = False,
    ) -> None:
        super().__init__()
        self.bits = bits
        self.embedding = nn.Embedding(2**bits, channels)
        self.layers = nn.ModuleList(
            GatedLayer(channels, skip_channels, 2**i) for _ in range(stacks) for i in range(layers)
        )
        self.head = nn.Sequential(
            nn.ReLU(), nn.Linear(skip_channels, skip_channels), nn.ReLU(), nn.Linear(skip_channels, 2**bits)
        )
        if ordered:
            order_codes(self.embedding, self.head[-1])

    @property
    def receptive_field(self) -> int:
        """Samples that one prediction sees."""
        return 1 + sum(layer.dilation for layer in self.layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) -> logits (B, L, 2**bits) of the token after each of them."""
        x, total = self.embedding(tokens), 0
        for layer in self.layers:
            x, skip = layer(x, F.pad(x, (0, 0, layer.dilation, 0))[:, : x.shape[1]])
            total = total + skip
        return self.head(total)

    def init_state(self, batch: int) -> State:
        """Rings (B, dilation, R) of what each layer last saw, and the number of samples so far."""
        weight = self.embedding.weight
        rings = {
            str(i): weight.new_zeros(batch, layer.dilation, weight.shape[1]) for i, layer in enumerate(self.layers)
        }
        return {'samples': torch.zeros((), dtype=torch.int64), **rings}

    def step(self, token: Tensor, state: State) -> Tensor:
        """One token (B,) -> logits (B, 2**bits) of the next; `state` is brought forward in place."""
        x, total, at = self.embedding(token), 0, int(state['samples'])
        for i, layer in enumerate(self.layers):
            ring, place = state[str(i)], at % layer.dilation
            before = ring[:, place].clone()
            ring[:, place] = x
            x, skip = layer(x, before)
            total = total + skip
        state['samples'] += 1
        return self.head(total)


class GatedLayer(nn.Module):
    """One layer: (x, x `dilation` samples ago) -> (x for the next layer, skip)."""

    def __init__(self, channels: int, skip_channels: int, dilation: int) -> None:
        super().__init__()
        self.dilation, self.channels = dilation, channels
        self.conv = nn.Linear(2 * channels, 2 * channels)
        self.out = nn.Linear(channels, channels + skip_channels)

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        filtered, gate = self.conv(torch.cat([before, x], -1)).chunk(2, -1)
        residual, skip = self.out(torch.tanh(filtered) * torch.sigmoid(gate)).tensor_split([self.channels], -1)
        return x + residual, skip


def matched_args(parameters: int, bits: int, stacks: int = 2, layers: int = 11) -> dict[str, int]:
    """Keywords of the WaveNet whose size is nearest to `parameters`.

    The residual channels are a multiple of 8, which a CPU multiplies fastest; the skip channels make up the rest.
    """

    def size(channels: int, skip_channels: int) -> int:
        with torch.device('meta'):
            model = WaveNet(bits, channels, skip_channels, stacks, layers)
        return sum(parameter.numel() for parameter in model.parameters())

    channels = next(c for c in count(8, 8) if size(c + 8, c + 8) > parameters)
    skips = range(max(1, channels // 2), 3 * channels)
    skip_channels = min(skips, key=lambda skip: abs(size(channels, skip) - parameters))
    return {'channels': channels, 'skip_channels': skip_channels, 'stacks': stacks, 'layers': layers}
