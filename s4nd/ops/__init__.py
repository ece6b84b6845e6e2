"""Pure functions: taps x signal -> signal."""

from s4nd.ops.longconv import METHODS, lag_taps, separable_conv

__all__ = ['METHODS', 'lag_taps', 'separable_conv']
