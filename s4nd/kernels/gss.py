"""The kernel of gated state spaces: DSS-exp with dt = 1, as its paper simplifies it (arXiv 2206.13947, section 3).

K[l] = Re Σ_n C_n Λ_n⁻¹ (e^{Λ_n} - 1) e^{Λ_n l}, Λ = -e^a ± i e^b, one Λ for all features. Under Re the sign of Im Λ is
immaterial; here it is minus, as in all kernels. Shape legend: see base.py.
"""

import torch
from torch import Tensor, nn

from s4nd.kernels.base import SSMKernel, wide
from s4nd.kernels.dss import DSSExpKernel


class GSSKernel(DSSExpKernel):
    """DSS-exp whose frequencies are trained as logarithms, random from the start and without a trained timescale.

    Args:
        d_model: H, number of features.
        channels: kernels a feature.
        d_state: N, even; N/2 modes are stored (the paper's 512 are d_state=1024).

    Raises:
        ValueError: for sizes that do not fit.
    """

    def __init__(
        self,
        d_model: int,
        *,
        channels: int = 1,
        d_state: int = 1024,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        # Past DSSExpKernel, whose parameters are others.
        SSMKernel.__init__(self, d_model, channels, d_state, 1, 1.0, 1.0, None, device, dtype)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        # Frozen, and in the state dict: rescaling time changes it.
        self.register_buffer('log_dt', torch.empty(1, 1, device=device, dtype=dtype))
        self.log_A_real = parameter(1, d_state // 2)
        self.log_A_imag = parameter(1, d_state // 2)
        self.C = parameter(channels, d_model, d_state // 2, 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as published: a, b and both parts of C from N(0, 1)."""
        with torch.no_grad():
            self.log_A_real.normal_()
            self.log_A_imag.normal_()
            self.C.normal_()
        self.reset_time()

    @property
    def A_imag(self) -> Tensor:
        return wide(self.log_A_imag).exp()
