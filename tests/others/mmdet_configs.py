"""MMDetection's detectors, in the configs that its package installs.

The first config of each folder is built without weights, and some small
detectors compute losses and detections. What is asserted follows MMDetection's
tests/test_models/test_detectors, which no package installs.

Run by run.py in a process of its own.
"""

from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, DefaultScope
from torch.nn.modules.batchnorm import _BatchNorm

ROOT = Path(mmdet.__file__).parent / '.mim' / 'configs'
# Their constructors load weights from the network.
TEACHERS = {'lad', 'ld'}
FOLDERS = sorted(
    path.name
    for path in ROOT.iterdir()
    if any(path.glob('*.py')) and path.name not in TEACHERS
)
# tests/test_configs.py has others.
SMALL = ['rtmdet/rtmdet_tiny_8xb32-300e_coco.py', 'yolox/yolox_tiny_8xb8-300e_coco.py']


def build(cfg, device):
    register_all_modules()
    try:  # run.py reports a test that only one norm skips.
        with DefaultScope.overwrite_default_scope('mmdet'), torch.device(device):
            return MODELS.build(cfg.model)
    except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:
        pytest.skip(str(error))


@pytest.mark.parametrize('folder', FOLDERS)
def test_init(folder):
    for file in sorted((ROOT / folder).glob('*.py')):
        try:
            cfg = Config.fromfile(file)
        except ImportError as error:
            pytest.skip(str(error))
        if 'model' in cfg:
            break
    else:
        pytest.skip('it has no model')
    model = build(cfg, 'meta').train()
    kinds = tuple(MODELS.get(name) for name in ('BN', 'BN1d', 'SyncBN'))
    for module in model.modules():
        assert isinstance(module, kinds) or not isinstance(module, _BatchNorm)


@pytest.mark.parametrize('file', SMALL)
def test_forward(file):
    hub = MessageHub.get_instance(file)
    hub.update_info('iter', 0)
    hub.update_info('epoch', 0)
    cfg = Config.fromfile(ROOT / file)
    cfg.model.backbone.init_cfg = None
    model = build(cfg, 'cpu')
    model.init_weights()
    packed = demo_mm_inputs(2, [[3, 128, 128]] * 2)
    losses = model(**model.data_preprocessor(packed, True), mode='loss')
    assert model.parse_losses(losses)[0].isfinite()
    model.eval()
    with torch.no_grad():
        data = model.data_preprocessor(packed, False)
        results = model(**data, mode='predict')
        assert isinstance(model(**data, mode='tensor'), tuple)
    assert len(results) == 2 and all('pred_instances' in each for each in results)
