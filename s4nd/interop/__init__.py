"""Weights from elsewhere, and models for elsewhere: timm's and published checkpoints, ONNX."""

from s4nd.interop.formats import Format, Published, format_names, load_published
from s4nd.interop.published import load_published_kernel, load_published_layer
from s4nd.interop.timm_weights import WeightsReport, load_timm_weights

__all__ = [
    'Format',
    'Published',
    'WeightsReport',
    'format_names',
    'load_published',
    'load_published_kernel',
    'load_published_layer',
    'load_timm_weights',
]
