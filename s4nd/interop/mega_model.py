"""Whole models of Mega as released (facebookresearch/mega, in fairseq) in ours, with equal outputs.

Shape legend: C = d_model, V = d_value.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from s4nd.interop._names import Names, fill
from s4nd.interop._parts import take_linear
from s4nd.interop.formats import Format
from s4nd.interop.mega import load_feed_forward, load_mega, take_sequence_norm
from s4nd.layers.norms import make_norm
from s4nd.models.sequence import SequenceModel

_ENCODER = 'encoder.encoder.'


def load_mega_classifier(
    weights: Mapping[str, Any],
    *,
    attention: str = 'softmax',
    chunk: int | None = None,
    l_max: int | None = 1024,
    **place: Any,
) -> SequenceModel:
    """Build the classifier (LRAModel or SCRawModel) that a checkpoint holds. The format's name is 'mega_classifier'.

    Text models take tokens (B, L), those of images and sound numbers (B, L, 1). Sizes, norms and whether they stand
    before the layers follow from the weights. The pool is the mean (released 'mp').

    Args:
        weights: tensors by their released names, such as encoder.encoder.layers.0.mega_layer.move.delta.
        attention: 'softmax' (released for text), 'laplace' (images and sound) or 'relu2'.
        chunk: as `Mega`.
        l_max: `truncation_length`, taps of the moving averages (released: 1000, 1024 or 4096); None: all.
        place: device and dtype.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape, also for a head that
            compares two texts.
    """
    names = Names(weights)
    prenorm = names.has(f'{_ENCODER}final_norm.')
    options = {'attention': attention, 'chunk': chunk, 'prenorm': prenorm, **place}
    layers = _layers(names, weights, f'{_ENCODER}layers.', l_max, **options)
    encoder, decoder = _encoder(names, weights), _decoder(names)
    tokens = isinstance(encoder[0], nn.Embedding)
    d_input = encoder[0].num_embeddings if tokens else encoder[0].in_features
    norm, state = _norm(names, weights, f'{_ENCODER}final_')
    names.check_empty()
    d_model, classes = layers[0].d_model, decoder[-1].out_features
    if decoder[0].in_features != d_model:
        raise ValueError(
            f'classifier.0.0.weight: expected {d_model} features in, of one text, got {decoder[0].in_features} (models '
            'that compare two texts are not known)'
        )
    model = SequenceModel(d_input, classes, layers, d_model=d_model, tokens=tokens, norm=norm, head='mean', **place)
    if norm is not None:
        fill(model.norm, {name.removeprefix('norm.'): value for name, value in state.items()})
    # What those of SequenceModel have no place for: a norm of the embedding, and a hidden layer.
    model.encoder, model.decoder = encoder.to(**place), decoder.to(**place)
    return model


def load_mega_lm(
    weights: Mapping[str, Any],
    *,
    chunk: int | None = None,
    l_max: int | None = None,
    attention: str = 'softmax',
    prenorm: bool = True,
    scale: bool = True,
    **place: Any,
) -> SequenceModel:
    """Build the language model (MegaLanguageModel without adaptive maps) that a checkpoint holds: format 'mega_lm'.

    Args:
        weights: tensors by their released names, such as decoder.layers.0.mega_layer.move.delta.
        chunk: decoder_chunk_size (released for enwik8: 2048 in training, 4096 in evaluation).
        l_max: truncation_length (8192); such a model does not stream. None: all taps.
        attention, prenorm: as `Mega`. The norm after the last layer of a prenorm model may be without parameters.
        scale: whether embeddings are multiplied by √C, as without --no-scale-embedding.
        place: device and dtype.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape.
    """
    names = Names(weights)
    names.drop('decoder.version')
    options = {'attention': attention, 'chunk': chunk, 'prenorm': prenorm, **place}
    layers = _layers(names, weights, 'decoder.layers.', l_max, **options)
    embedding = names.take('decoder.embed_tokens.weight')
    head = names.take('decoder.output_projection.weight') if 'decoder.output_projection.weight' in names else embedding
    norm, state = _norm(names, weights, 'decoder.final_')
    names.check_empty()
    tokens, d_model = embedding.shape
    end = (norm or 'layer') if prenorm else None
    model = SequenceModel(tokens, tokens, layers, d_model=d_model, tokens=True, norm=end, **place)
    state |= {'encoder.weight': embedding * (math.sqrt(d_model) if scale else 1.0)}
    state |= {'decoder.weight': head, 'decoder.bias': head.new_zeros(tokens)}
    filled = {name: value for name, value in model.state_dict().items() if name.startswith(('layers.', 'norm.'))}
    fill(model, filled | state)
    return model


def _layers(
    names: Names, weights: Mapping[str, Any], theirs: str, l_max: int | None, **options: Any
) -> list[nn.Module]:
    """All layers, and the feed-forward after each where there is one."""
    layers: list[nn.Module] = []
    forward = {name: value for name, value in options.items() if name not in ('attention', 'chunk')}
    for part in names.modules(theirs):
        mega = load_mega(weights, f'{part}mega_layer.', **options)
        mega.average.l_max = l_max
        layers.append(mega)
        if names.has(f'{part}nffn.'):
            layers.append(load_feed_forward(weights, f'{part}nffn.', **forward))
        names.take_all(f'{part}mega_layer.')
        names.take_all(f'{part}nffn.')
    return layers


def _norm(names: Names, weights: Mapping[str, Any], theirs: str) -> tuple[str | None, dict[str, Tensor]]:
    """A norm under `theirs` + 'norm.', and its tensors under 'norm.'; None where it is missing or has none."""
    if not names.take_all(f'{theirs}norm.'):
        return None, {}
    return take_sequence_norm(Names(weights, theirs))


def _encoder(names: Names, weights: Mapping[str, Any]) -> nn.Sequential:
    """An embedding of tokens or a map of one number, in float64, and its norm where there is one."""
    theirs = f'{_ENCODER}embed_tokens.'
    if f'{theirs}embed.weight' in names:
        state = names.take_all(f'{theirs}embed.', '0.')
        encoder = nn.Sequential(nn.Embedding(*state['0.weight'].shape))
    else:
        state = {'0.weight': names.take(f'{theirs}weight')[:, None], '0.bias': names.take(f'{theirs}bias')}
        encoder = nn.Sequential(nn.Linear(1, len(state['0.bias'])))
    norm, tensors = _norm(names, weights, f'{_ENCODER}embed_')
    if norm is not None:
        encoder.append(make_norm(norm, state['0.weight'].shape[0 if '0.bias' in state else 1]))
    fill(encoder.double(), state | {name.replace('norm.', '1.'): value for name, value in tensors.items()})
    return encoder


def _decoder(names: Names) -> nn.Sequential:
    """The maps after the pool, in float64: a hidden layer with GELU where there is one, and a map without bias."""
    weight = names.take('sentence_projection_layer.weight')
    last = nn.Linear(weight.shape[1], len(weight), bias=False)
    if not names.has('classifier.0.'):
        decoder, state = nn.Sequential(last), {'0.weight': weight}
    else:
        state = take_linear(names, 'classifier.0.0.', '0.') | {'2.weight': weight}
        decoder = nn.Sequential(nn.Linear(state['0.weight'].shape[1], weight.shape[1]), nn.GELU(), last)
    fill(decoder.double(), state)
    return decoder


CLASSIFIER = Format(
    'facebookresearch/mega (classifier)',
    lambda weights: {f'{_ENCODER}layers.0.mega_layer.move.omega', 'sentence_projection_layer.weight'} <= weights.keys(),
    load_mega_classifier,
)
LM = Format(
    'facebookresearch/mega (language model)',
    lambda weights: 'decoder.layers.0.mega_layer.move.omega' in weights,
    load_mega_lm,
)
