"""Pure functions: taps x signal -> signal, and the sums that make taps."""

from s4nd.ops.longconv import METHODS, lag_taps, separable_conv, toeplitz, use_toeplitz
from s4nd.ops.products import joint_matrix

__all__ = ['METHODS', 'joint_matrix', 'lag_taps', 'separable_conv', 'toeplitz', 'use_toeplitz']
