"""Pure functions: taps x signal -> signal, and the sums that make taps."""

from s4nd.ops.longconv import METHODS, lag_taps, separable_conv, toeplitz, toeplitz_replicate, use_toeplitz
from s4nd.ops.products import joint_matrix
from s4nd.ops.scan import diagonal_scan, plain_diagonal_scan

__all__ = [
    'METHODS',
    'diagonal_scan',
    'joint_matrix',
    'lag_taps',
    'plain_diagonal_scan',
    'separable_conv',
    'toeplitz',
    'toeplitz_replicate',
    'use_toeplitz',
]
