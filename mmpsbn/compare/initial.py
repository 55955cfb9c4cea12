"""The weights that the runs of a comparison start from."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmpsbn.checkpoints.matching import (
    check_compatible,
    keep_class_layers,
    layer_name,
    mimicnorm_parts_in,
)
from mmpsbn.checkpoints.reading import read_checkpoint
from mmpsbn.compare.placing import replace_norm
from mmpsbn.config.data import find_images
from mmpsbn.config.model import dicts_in, mimic_inside, mimicnorm_parts, type_of
from mmpsbn.convert import convert_to_mimicnorm
from mmpsbn.convert.stock_config import stock_model
from mmpsbn.detectors.build import build_model
from mmpsbn.errors import InputError
from mmpsbn.files import write_atomically
from mmpsbn.layers import NORM_TYPES, MimicConv

CALIBRATION = 16  # Images that converted weights are calibrated on.


def find_starts(cfg: Config, *, converted: bool = False) -> Iterator[tuple[dict, str]]:
    """Iterate over settings that name weights: a dict of a config, and its key.

    With ``converted``, these are the weights to convert for MimicNorm.
    """
    body, last_bn = mimicnorm_parts(cfg.model)
    if body or not converted:  # A pretrained backbone has no last BN.
        for node in dicts_in(cfg.model):
            if node.get('type') == 'Pretrained' and node.get('checkpoint'):
                yield node, 'checkpoint'
    if cfg.get('load_from') and (body or last_bn or not converted):
        yield cfg, 'load_from'


def name_starts(cfg: Config, *, converted: bool = False) -> list[str]:
    """Name the weights of :func:`find_starts`."""
    return [str(node[key]) for node, key in find_starts(cfg, converted=converted)]


def check_load_from(cfg: Config, cfgs: dict[str, Config]) -> list[str]:
    """Raise unless every normalization can start from the config's detector.

    MMEngine loads the weights that fit. From another detector, training would
    start at random weights.

    Returns:
        list[str]: The layers that are reinitialized for other classes.
    """
    path = cfg.get('load_from')
    if not path:
        return []
    checkpoint = read_checkpoint(path)
    parts = mimicnorm_parts_in(checkpoint.state_dict)
    converted = any(parts)
    others = [
        norm for norm, other in cfgs.items() if mimicnorm_parts(other.model) != parts
    ]
    if converted and others:
        kind, names = 'MimicNorm' if parts[0] else 'a last BN', ', '.join(others)
        raise InputError(
            f'the checkpoint {path} has {kind}, so {names} cannot start from it. '
            'Use the BN checkpoint that it was made from, or leave '
            f'{names} out of --norms.'
        )
    same = next(iter(cfgs.values())) if converted else replace_norm(cfg, 'BN')
    model = build_model(cfg, same.model)
    checkpoint, reinitialized = keep_class_layers(model, checkpoint)
    check_compatible(model, checkpoint)
    for norm, other in cfgs.items():
        if converted or not mimic_inside(other.model):
            continue
        state = build_model(cfg, stock_model(other.model)).state_dict()
        missing = [key for key in state if key not in model.state_dict()]
        if missing:
            raise InputError(
                f'{norm} cannot start from {path}: its {layer_name(missing[0])} '
                'has no counterpart there, because separate norm layers for '
                'each pyramid level (RetinaSepBNHead) do not fold into the '
                f'convs that the levels share. Leave {norm} out, or load_from.'
            )
    return reinitialized


def convert_starts(cfg: Config, folder: Path) -> None:
    """Convert the weights of BN that a run with MimicNorm starts from.

    The config is changed. Runs share the converted weights in the folder.
    """
    model = repr(cfg.model)
    for node, key in find_starts(cfg, converted=True):
        source = node[key]
        # Files of the same name and other models have other digests.
        digest = hashlib.sha256(f'{source}\n{model}'.encode()).hexdigest()
        out = folder / f'converted_{Path(source).stem}_{digest[:8]}.pth'
        if not out.exists():
            checkpoint = read_checkpoint(source)
            if any(mimicnorm_parts_in(checkpoint.state_dict)):
                continue
            images = find_images(cfg, None, CALIBRATION)
            convert_to_mimicnorm(cfg, checkpoint, images, str(out))
        node[key] = str(out)


def remove_starting_norms(cfg: Config, folder: Path) -> None:
    """Remove the norm layers from the weights of BN that a run with GN starts from.

    MMEngine would load those of shortcuts, which have the same names. The
    config is changed. Runs share the weights in the folder.
    """
    if type_of(cfg.model.backbone.get('norm_cfg')) != 'GN':
        return
    for node, key in find_starts(cfg):
        source = node[key]
        checkpoint = read_checkpoint(source)
        state = checkpoint.state_dict
        # GN has no running statistics.
        norms = {layer_name(name) for name in state if name.endswith('.running_var')}
        if norms:
            digest = hashlib.sha256(str(source).encode()).hexdigest()
            out = folder / f'without_norms_{Path(source).stem}_{digest[:8]}.pth'
            kept = {k: v for k, v in state.items() if layer_name(k) not in norms}
            buffer = io.BytesIO()
            torch.save(dict(state_dict=kept), buffer)
            write_atomically(out, buffer.getvalue())
            node[key] = str(out)


def write_initial(reference: Config, cfg: Config, *, seed: int, folder: Path) -> str:
    """Write a checkpoint with the weights that a run shares with others.

    A detector with BN is initialized from the seed. A run takes each weight
    whose name and shape are the same in its model. It does not take those of
    norm layers, which start at constants, and of MimicNorm's convolutions,
    which have their own initialization. The weights that the run loads by
    ``load_from`` are kept. Runs that share the same weights have the same
    file.
    """
    own = _collect_weights(build_model(cfg))
    start = cfg.get('load_from')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        source = build_model(reference)
        weights = _collect_weights(source)
        keys = sorted(
            key
            for key, value in weights.items()
            if key in own and own[key].shape == value.shape
        )
        digest = hashlib.sha256(f'{start}\n{keys}'.encode()).hexdigest()
        out = folder / f'initial_seed{seed}_{digest[:8]}.pth'
        if out.exists():
            return str(out)
        source.init_weights()
    state = dict(read_checkpoint(start).state_dict) if start else {}
    for key in keys:
        if key not in state or state[key].shape != weights[key].shape:
            state[key] = weights[key]
    buffer = io.BytesIO()
    torch.save(dict(state_dict=state), buffer)
    write_atomically(out, buffer.getvalue())
    return str(out)


def _collect_weights(model: nn.Module) -> dict[str, Tensor]:
    """Collect the parameters of layers that runs share."""
    return {
        f'{name}.{key}' if name else key: value.detach()
        for name, layer in model.named_modules()
        if not isinstance(layer, (*NORM_TYPES, MimicConv))
        for key, value in layer.named_parameters(recurse=False)
    }
