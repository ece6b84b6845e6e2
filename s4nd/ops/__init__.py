"""Pure functions: taps x signal -> signal, and the sums that make taps. Every choice of arithmetic is made here."""

from s4nd.ops.axis_convs import use_axis_convs
from s4nd.ops.diagonal import diagonal_taps, discretize, expand_ssm, expm1, pair_cells
from s4nd.ops.dispatch import at_least_float32, check_exporter, exact_bmm, observed, sizes_of, values_are_known, wide
from s4nd.ops.exponentials import exponential_sum
from s4nd.ops.fullconv import full_conv
from s4nd.ops.krylov import krylov
from s4nd.ops.longconv import (
    METHODS,
    lag_taps,
    separable_conv,
    use_fused,
    use_toeplitz,
    wrap_taps,
)  # fmt: skip
from s4nd.ops.products import joint_matrix, toeplitz, toeplitz_replicate
from s4nd.ops.recurrence import run_recurrence
from s4nd.ops.scan import diagonal_scan, varying_scan

__all__ = [
    'METHODS',
    'at_least_float32',
    'check_exporter',
    'diagonal_scan',
    'diagonal_taps',
    'discretize',
    'exact_bmm',
    'expand_ssm',
    'expm1',
    'exponential_sum',
    'full_conv',
    'joint_matrix',
    'krylov',
    'lag_taps',
    'observed',
    'pair_cells',
    'run_recurrence',
    'separable_conv',
    'sizes_of',
    'toeplitz',
    'toeplitz_replicate',
    'use_axis_convs',
    'use_fused',
    'use_toeplitz',
    'values_are_known',
    'varying_scan',
    'wide',
    'wrap_taps',
]
