"""Initial weights that the normalizations of a comparison share."""

import hashlib
import io
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmpsbn.checkpoints.reading import read_checkpoint
from mmpsbn.detectors.build import build_model
from mmpsbn.files import write_atomically
from mmpsbn.layers import NORM_TYPES, MimicConv


def write_initial(reference: Config, cfg: Config, seed: int, folder: Path) -> Path:
    """Write a checkpoint with the weights that a run shares with others.

    A detector with BN is initialized from the seed. Its weights hold wherever
    the run's model has one of the same name and shape, except in norm layers,
    which start at constants, and in MimicNorm's convolutions, which have an
    initialization of their own. What the run loads by ``load_from`` stays.

    Args:
        reference (Config): Of the detector with BN.
        cfg (Config): Of the run.
        seed (int): Of the run.
        folder (Path): Takes the file. Runs that share the same weights have
            the same file.

    Returns:
        Path: Of the file.
    """
    own = _weights(build_model(cfg))
    start = cfg.get('load_from')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        source = build_model(reference)
        weights = _weights(source)
        keys = sorted(
            key
            for key, value in weights.items()
            if key in own and own[key].shape == value.shape
        )
        digest = hashlib.sha256(f'{start}\n{keys}'.encode()).hexdigest()
        out = folder / f'initial_seed{seed}_{digest[:8]}.pth'
        if out.exists():
            return out
        source.init_weights()
    state = read_checkpoint(start).state_dict if start else {}
    state = {
        **state,
        **{
            key: weights[key]
            for key in keys
            if key not in state or state[key].shape != weights[key].shape
        },
    }
    buffer = io.BytesIO()
    torch.save(dict(state_dict=state), buffer)
    write_atomically(out, buffer.getvalue())
    return out


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Collect the parameters of layers that runs share."""
    return {
        f'{name}.{key}' if name else key: value.detach()
        for name, layer in model.named_modules()
        if not isinstance(layer, (*NORM_TYPES, MimicConv))
        for key, value in layer.named_parameters(recurse=False)
    }
