"""Generating audio from a trained model: options, samplers, and the compiled loop."""

from .generator import Generator, generate, load_generator, stream
from .sampling import Sampling

__all__ = ['Generator', 'Sampling', 'generate', 'load_generator', 'stream']
