"""Configs with wrong types, missing or misspelt parts: an error or a run."""

import copy
import functools
import io
import json
import operator
from contextlib import redirect_stdout

import pytest
import torch
from helpers import cases, demo_config, places
from hypothesis import given
from hypothesis import strategies as st
from mmdet.visualization import DetLocalVisualizer
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from mmpsbn.cli.runner import build_runner
from mmpsbn.config.data import check_data
from mmpsbn.config.data_errors import explain_data_errors
from mmpsbn.config.errors import explain_config_errors
from mmpsbn.config.reading import LOADERS, TRAINING_LOADERS, load_config
from mmpsbn.config.start import check_start
from mmpsbn.errors import InputError

GLOBALS = (MMLogger, MessageHub, DefaultScope, Visualizer, DetLocalVisualizer)
VALUES = st.sampled_from(
    [
        None,
        True,
        False,
        -1,
        0,
        1,
        3,
        0.5,
        1e30,
        '',
        'text',
        [],
        [1],
        ['text'],
        [[]],
        {},
        dict(a=1),
        dict(type='text'),
        dict(type=3),
        [dict(type=None)],
    ]
)


class Started(Exception):
    """Of the first iteration."""


class Start(Hook):
    priority = 'LOWEST'

    def before_train_epoch(self, runner):
        raise Started


@pytest.fixture(scope='module')
def content(digits):
    """The demo's config, with a tiny detector."""
    cfg = demo_config('faster-rcnn', 'psbn')
    cfg.merge_from_dict(
        {
            'model.backbone.base_channels': 4,
            'model.neck': dict(in_channels=[4, 8, 16, 32], out_channels=8),
            'model.rpn_head': dict(in_channels=8, feat_channels=8),
            'model.roi_head.bbox_roi_extractor.out_channels': 8,
            'model.roi_head.bbox_head': dict(in_channels=8, fc_out_channels=8),
        }
    )
    for loader in LOADERS:
        cfg[loader].update(num_workers=0, persistent_workers=False)
        cfg[loader].dataset.data_root = f'{digits}/'
    for evaluator in ('val_evaluator', 'test_evaluator'):
        cfg[evaluator].ann_file = str(digits / 'annotations' / 'instances_val2017.json')
    cfg.data_root = f'{digits}/'
    return json.loads(json.dumps(cfg.to_dict()))


@pytest.fixture
def forgotten():
    """Removes what MMEngine remembers of its Runners, for good."""
    before = {kind: dict(kind._instance_dict) for kind in GLOBALS}

    def forget():
        for kind, kept in before.items():
            own = kind._instance_dict
            for name in [name for name in own if name not in kept]:
                for handler in getattr(own.pop(name), 'handlers', ()):
                    handler.close()
        torch.use_deterministic_algorithms(False)

    return forget


def start(path, work_dir):
    """As tools/train.py does, up to the first iteration."""
    cfg = load_config(str(path), None, str(work_dir))
    with explain_config_errors(), explain_data_errors(cfg, TRAINING_LOADERS):
        check_data(cfg, TRAINING_LOADERS)
        check_start(cfg)
        runner = build_runner(cfg)
        runner.register_hook(Start())
        runner.train()


def misspelt(node, key):
    if isinstance(node[key], str):
        node[key] += 'x'
    elif isinstance(node, dict):
        node[f'{key}x'] = node.pop(key)


@pytest.mark.slow
@cases(40)
@given(st.data())
def test_changed_configs(content, forgotten, count, tmp_path, data):
    content, path = copy.deepcopy(content), tmp_path / 'config.json'
    known = list(places(content))
    for place in data.draw(
        st.lists(st.sampled_from(known), min_size=1, max_size=2), 'places'
    ):
        try:
            node = functools.reduce(operator.getitem, place[:-1], content)
            kind = data.draw(st.sampled_from(['other', 'gone', 'misspelt']))
            if kind == 'other':
                node[place[-1]] = data.draw(VALUES, 'value')
            elif kind == 'gone':
                del node[place[-1]]
            else:
                misspelt(node, place[-1])
        except (LookupError, TypeError):
            pass  # An earlier change took this place away.
    path.write_text(json.dumps(content))
    count('tried')
    try:
        with redirect_stdout(io.StringIO()):
            start(path, tmp_path / 'work')
    except InputError as error:
        assert '\n' not in str(error) and len(str(error)) < 800
        count('refused with an error message')
    except Started:
        count('came to the first iteration')
    finally:
        forgotten()


def test_the_config_itself_starts(content, forgotten, tmp_path):
    path = tmp_path / 'config.json'
    path.write_text(json.dumps(content))
    with pytest.raises(Started):
        start(path, tmp_path / 'work')
    forgotten()
