"""Pure functions: taps x signal -> signal, and the sums that make taps."""

from s4nd.ops.longconv import METHODS, lag_taps, separable_conv, toeplitz, use_toeplitz

__all__ = ['METHODS', 'lag_taps', 'separable_conv', 'toeplitz', 'use_toeplitz']
