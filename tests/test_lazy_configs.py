"""Pure Python configs of MMEngine, whose types are classes."""

import re

import mmengine.registry
import pytest
import torch
from helpers import convert, demo_file, run
from mmengine.config import Config
from mmengine.registry import Registry

from mmpsbn.compare import replace_norm
from mmpsbn.config.reading import read_config


def as_classes(cfg):
    """The text of a config, with an import for each type that it names."""
    known, imports = {}, set()
    for root in vars(mmengine.registry).values():
        if isinstance(root, Registry):
            known.update(root.module_dict)
    for root in vars(mmengine.registry).values():
        if isinstance(root, Registry) and 'mmdet' in root.children:
            known.update(root.children['mmdet'].module_dict)

    def replaced(match):
        found = known.get(match[1])
        if found is None:  # The function `nms` of MMCV, which has no registry.
            return match[0]
        imports.add(f'from {found.__module__} import {found.__name__}')
        return f'type={found.__name__}'

    text = re.sub(r"\btype='(\w+)'", replaced, cfg.pretty_text)
    return '\n'.join([*sorted(imports), text])


CHILD = """
from mmengine.config import read_base
from mmpsbn.layers import PSBatchNorm2d

with read_base():
    from .base import *

default_scope = None
model.update(dict(backbone=dict(norm_cfg=dict(type=PSBatchNorm2d))))
"""


@pytest.fixture(params=['faster-rcnn', 'retinanet'])
def files(request, tmp_path):
    """A config with names, and what it is with classes."""
    names = demo_file(request.param, 'psbn')
    cfg = Config.fromfile(names)
    cfg.model.backbone.norm_cfg.type = 'BN'
    (tmp_path / 'base.py').write_text(as_classes(cfg))
    (tmp_path / 'lazy.py').write_text(CHILD)
    return names, str(tmp_path / 'lazy.py')


def test_a_lazy_config_reads_as_the_same_with_names(files):
    expected, lazy = map(read_config, files)
    assert isinstance(Config.fromfile(files[1]).model.type, type)
    assert lazy.to_dict() == expected.to_dict()
    for norm in ('BN', 'MimicNorm'):
        assert replace_norm(lazy, norm).model == replace_norm(expected, norm).model


def test_a_class_that_a_name_would_not_find_stays(tmp_path):
    """MMDetection's Resize hides MMCV's, and Bottleneck has no name."""
    (tmp_path / 'lazy.py').write_text("""
from mmcv.transforms import Resize
from mmdet.datasets.transforms import Resize as DetResize
from mmdet.models.backbones.resnet import Bottleneck

pipeline = [dict(type=Resize), dict(type=DetResize), dict(type=Bottleneck)]
""")
    cfg = read_config(str(tmp_path / 'lazy.py'))
    kinds = [step['type'] for step in cfg.pipeline]
    assert kinds[:2] == ['mmengine.Resize', 'Resize']
    assert kinds[2].__name__ == 'Bottleneck'
    assert 'mmdet.models.backbones.resnet.Bottleneck' in cfg.pretty_text


@pytest.mark.slow
@pytest.mark.parametrize('files', ['retinanet'], indirect=True)
def test_a_lazy_config_trains_and_converts(files, digits, tmp_path):
    status, output = run(
        'tools/train.py', files[1], '--work-dir', tmp_path, data=digits
    )
    assert status == 0, output[-3000:]
    out = tmp_path / 'stock.pth'
    done = convert(
        files[1],
        tmp_path / 'epoch_1.pth',
        '--to',
        'bn',
        '--out',
        out,
        '--images',
        digits / 'val2017',
        '--number',
        2,
    )
    assert done.returncode == 0, done.stderr
    assert 'mmpsbn' not in (tmp_path / 'stock.py').read_text()
    state = torch.load(out, weights_only=True)['state_dict']
    assert 'backbone.bn1.running_var' in state
