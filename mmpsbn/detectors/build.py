"""Detectors built from configs, and the images that their configs prepare."""

import copy
from collections.abc import Sequence

from mmcv.transforms import Compose
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch import nn

from mmpsbn.checkpoints.matching import load_weights
from mmpsbn.checkpoints.reading import Checkpoint
from mmpsbn.config.errors import explain_config_errors
from mmpsbn.config.model import config_scope
from mmpsbn.registry import MODELS


@explain_config_errors()
def build_model(cfg: Config, model: dict | None = None) -> nn.Module:
    """Build a model in evaluation mode.

    Args:
        cfg (Config): The config, which names the scope of the types.
        model (dict, optional): The settings of the model, which are not
            changed. Defaults to those of the config.

    Raises:
        InputError: If a part of the model cannot be built.
    """
    with config_scope(cfg):
        # Detectors write into the config that they are built from.
        return MODELS.build(copy.deepcopy(model or cfg.model)).eval()


def load_model(cfg: Config, checkpoint: Checkpoint) -> nn.Module:
    """Build a config's model in evaluation mode, with trained weights.

    Raises:
        InputError: If it cannot be built, or if the weights do not fit.
    """
    model = build_model(cfg)
    load_weights(model, checkpoint)
    return model


def load_images(cfg: Config, files: Sequence[str], model: nn.Module) -> dict:
    """Load a batch of images as the config's test pipeline prepares them."""
    with config_scope(cfg), explain_config_errors():
        pipeline = Compose(
            [
                step
                for step in get_test_pipeline_cfg(cfg)
                if not str(step['type']).endswith('Annotations')
            ]
        )
        batch = pseudo_collate(
            [
                pipeline(dict(img_path=file, img_id=index))
                for index, file in enumerate(files)
            ]
        )
    return model.data_preprocessor(batch, False)
