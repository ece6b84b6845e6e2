"""Diffusion of waveforms with a two-sided SaShiMi U-Net as denoiser (DiffWave-SaShiMi, arXiv 2202.09729, section 5.3).

Shape legend: B = batch, L = samples, H = d_model, E = width of the condition.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from audio.models.backbone import SaShiMiBackbone
from audio.models.hub import HubModel
from audio.models.keywords import model_keywords
from audio.models.sashimi import check_label
from s4nd.diffusion import Diffusion, step_features, step_network
from s4nd.layers import S4


class DiffusionSaShiMi(HubModel):
    """Predict the noise in a waveform: noisy waveform (B, L), noise level (B,), class (B,) -> noise (B, L).

    A map 1 -> H, the backbone (U-Net, two-sided), a map H -> H -> 1 that begins at zero. Level and class make one
    condition (B, E), which every S4 block adds to its input through a linear map of its own.

    Args:
        condition: E.
        num_classes: each clip has a class; None: no classes.
        steps, beta_min, beta_max: see `s4nd.diffusion.Diffusion`, which the model carries as `diffusion`.
        backbone: keywords of `SaShiMiBackbone`, and among them those of its S4 layers and their kernels; n_layers is 6
            unless it is given.

    Raises ValueError for values that do not fit and for an unknown keyword.
    """

    def __init__(
        self,
        *,
        condition: int = 512,
        num_classes: int | None = None,
        steps: int = 200,
        beta_min: float = 1e-4,
        beta_max: float = 0.02,
        **backbone: Any,
    ) -> None:
        super().__init__()
        if num_classes is not None and num_classes < 1:
            raise ValueError(f'num_classes must be at least 1, or None for no classes, got {num_classes}')
        if condition < 1:
            raise ValueError(f'condition must be at least 1, got {condition}')
        args = model_keywords(
            SaShiMiBackbone,
            {'n_layers': 6, **backbone},
            owner='DiffusionSaShiMi',
            without=('unet', 'bidirectional', 'condition'),
            layer=S4,
        )
        self.diffusion = Diffusion(steps, beta_min, beta_max)
        self.num_classes = num_classes
        self.enter = nn.Linear(1, args['d_model'])
        self.step_embedding = step_network(condition)
        self.class_embedding = None if num_classes is None else nn.Embedding(num_classes, condition)
        self.backbone = SaShiMiBackbone(**args, unet=True, bidirectional=True, condition=condition)
        hidden, last = nn.Linear(args['d_model'], args['d_model']), nn.Linear(args['d_model'], 1)
        self.leave = nn.Sequential(hidden, nn.ReLU(), last)
        # As in DiffWave: the untrained model predicts no noise.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Predict the noise. Raises ValueError for shapes that do not fit, and for a label as `check_label` does."""
        if x.dim() != 2 or t.shape != x.shape[:1]:
            raise ValueError(
                f'expected (batch, length) and one level per row, got {tuple(x.shape)} and {tuple(t.shape)}'
            )
        check_label(label, self.num_classes, len(x))
        condition = self.step_embedding(step_features(t).to(self.enter.weight.dtype))
        if label is not None and self.class_embedding is not None:
            condition = condition + self.class_embedding(label)
        y = self.backbone(F.relu(self.enter(x[..., None])), condition=condition)
        return self.leave(y)[..., 0]
