"""Weights from elsewhere, and models for elsewhere: timm's and published checkpoints, ONNX."""

from s4nd.interop.published import load_published, load_published_kernel
from s4nd.interop.timm_weights import WeightsReport, load_timm_weights

__all__ = ['WeightsReport', 'load_published', 'load_published_kernel', 'load_timm_weights']
