"""Constants and functions that several test modules share."""

import copy
import ctypes
import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import mmdet
import onnx
import pytest
import torch
from forked import run_script
from hypothesis import settings
from mmcv.cnn import is_norm
from mmdet.models.backbones import ResNet
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.utils import digit_version
from torch import nn

from mmpsbn.checkpoints.reading import Checkpoint
from mmpsbn.compare import Comparison, replace_norm
from mmpsbn.export import export_onnx
from mmpsbn.layers import MimicConv, PSBatchNorm2d
from mmpsbn.registry import MODELS

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs'
FASTER = 'configs/demo/faster-rcnn_r18-half_fpn_psbn_digits.py'
RETINA = 'configs/demo/retinanet_r18-half_fpn_psbn_digits.py'
MIMIC_FASTER, MIMIC_RETINA = (
    path.replace('psbn', 'mimicnorm') for path in (FASTER, RETINA)
)
COMPARE = ('tools/compare_norms.py', FASTER)
DETECTORS = ('faster-rcnn', 'retinanet')
# A run of a few seconds.
SHORT = [
    'train_cfg.max_epochs=1',
    'train_cfg.val_interval=1',
    'default_hooks.logger.interval=1',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
]
# A detector is not confident of anything after a few steps.
ANY_SCORE = ['model.test_cfg.score_thr=0', 'model.test_cfg.rcnn.score_thr=0']
MIMIC = dict(conv_cfg=dict(type='MimicConv'), norm_cfg=dict(type='MimicNorm'))
NORM_CFGS = dict(
    psBN=dict(norm_cfg=dict(type='psBN'), norm_eval=False),
    psSyncBN=dict(norm_cfg=dict(type='psSyncBN'), norm_eval=False),
    MimicNorm=MIMIC,
)
PAGES = [
    ROOT / 'README.md',
    *sorted(ROOT.glob('docs/*.md')),
    *sorted(ROOT.glob('configs/*/README.md')),
    *sorted(ROOT.glob('benchmarks/**/README.md')),
]
FRAGMENT = re.compile('^(import|from) ', re.M)


def needs_torch(version, what):
    """Skip a test with older torch, which has been seen to lack something."""
    return pytest.mark.skipif(
        digit_version(torch.__version__) < digit_version(version),
        reason=f'torch {torch.__version__} has no {what}',
    )


needs_onnx = needs_torch('2.5', 'exporter for ONNX files')
needs_half = needs_torch('2.4', 'BN in float16 on CPUs')
needs_fused = needs_torch('2.4', 'fused optimizers for CPUs')
needs_scaler = needs_torch('2.4', 'GradScaler for CPUs')
needs_operators = needs_torch('2.4', 'operators in Python')
needs_swapping = needs_torch('2.4', 'parameters that are swapped')
needs_strict = needs_torch('2.4', 'torch.export with the argument strict')
needs_setup_context = needs_torch('2.4', 'torch.compile for setup_context')
needs_compiled_step = needs_torch('2.4', 'torch.compile for a step with momentum')


def cases(number):
    """Settings of a test that takes so many in the short profile."""
    return settings(max_examples=number * settings.default.max_examples // 100)


@contextmanager
def full_disk(size=100):
    """Files of this process end at so many bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def as_ordinary_user():
    """Permissions of files hold for this process, as not for root.

    It drops the capabilities CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()  # Effective, permitted, inheritable; twice.
    assert libc.capget(header, data) == 0
    before, data[0] = data[0], data[0] & ~0b110
    assert libc.capset(header, data) == 0
    try:
        yield
    finally:
        data[0] = before
        assert libc.capset(header, data) == 0


PATIENCE = 300  # Seconds; a slow machine needs many times the usual ones.


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# Tools


def run(*command, data=None, options=(), fresh=False, launcher=None, **env):
    """Run a tool in a process; its exit status and what it printed.

    Args:
        command (list): The tool and its arguments.
        data (Path, optional): The value of MMDET_DATASETS.
        options (list[str]): Values of ``--cfg-options`` after those of SHORT.
        fresh (bool): Run it in a new Python instead of a fork.
        launcher (list[str], optional): What starts the tool instead of Python.
        env: Environment variables.
    """
    if data is not None:
        env['MMDET_DATASETS'] = str(data)
    path = f'{os.path.dirname(sys.executable)}{os.pathsep}{os.environ["PATH"]}'
    env = dict(os.environ, PATH=path, **env)
    command = [*map(str, command), '--cfg-options', *SHORT, *options]
    # A fork cannot use CUDA if the server has looked for GPUs.
    if not (fresh or launcher or torch.cuda.is_available()):
        result = run_script(command, ROOT, env, merged=True)
    else:
        result = subprocess.run(
            [*(launcher or [sys.executable]), *command],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
        )
    return result.returncode, result.stdout


def convert(*args, fresh=False):
    command = ['tools/convert.py', *map(str, args)]
    if not fresh:
        return run_script(command, ROOT)
    command = [sys.executable, *command]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


WITHOUT = """
import sys

class Missing:

    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {missing}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)

sys.meta_path.insert(0, Missing())
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name.split('.')[0] in {missing} else find_spec(name, package))
"""


def run_without(missing, code):
    """Run code in an environment that lacks some packages."""
    return subprocess.run(
        [sys.executable, '-c', WITHOUT.format(missing=missing) + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def metrics(work_dir):
    """The metrics that the newest test run in a work dir wrote."""
    files = sorted(work_dir.glob('*/*.json'))
    return json.loads(files[-1].read_text())


# Configs and detectors


def demo_file(detector, norm='mimicnorm'):
    return str(CONFIGS / 'demo' / f'{detector}_r18-half_fpn_{norm}_digits.py')


def demo_config(detector, norm='mimicnorm'):
    register_all_modules()
    return Config.fromfile(demo_file(detector, norm))


def stock(name):
    """A config of MMDetection's own, not inherited through ``mmdet::``."""
    return Config.fromfile(
        Path(mmdet.__file__).parent / '.mim' / 'configs' / f'{name}.py'
    )


def build(model_cfg):
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(copy.deepcopy(model_cfg))
    model.init_weights()
    return model


def images(digits):
    return sorted(map(str, (digits / 'train2017').glob('*.jpg')))[:4]


def trained_detector(cfg):
    """A model after steps that move every parameter and statistic."""
    model = build(cfg.model)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    classes = len(cfg.get('classes', range(80)))
    for _ in range(3):
        inputs = demo_mm_inputs(2, [[3, 96, 96]] * 2, num_classes=classes)
        data = model.data_preprocessor(inputs, True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
    return model


def any_score(cfg):
    """A detector is not confident of anything after a few steps."""
    test_cfg = cfg.model.test_cfg
    test_cfg.get('rcnn', test_cfg).score_thr = 0
    return cfg


def export(cfg, model, digits, out, shape=None, dynamic=False, raw=False):
    content = dict(
        state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=('a', 'b')))
    )
    return export_onnx(
        cfg,
        Checkpoint('trained.pth', content),
        images(digits)[:2],
        str(out),
        shape=shape,
        dynamic=dynamic,
        raw=raw,
    )


def assert_folded(file):
    """No norm layer, and no constant added after a conv, alpha for one."""
    graph = onnx.load(file).graph
    constants = {tensor.name for tensor in graph.initializer}
    convs = {node.output[0] for node in graph.node if node.op_type in ('Conv', 'Gemm')}
    assert convs
    for node in graph.node:
        assert node.op_type != 'BatchNormalization'
        if node.op_type in ('Add', 'Mul', 'Sub'):
            assert not (convs & set(node.input) and constants & set(node.input)), node


def use_few_rois(cfg):
    """Save time in detectors of two stages."""
    if 'roi_head' in cfg.model:
        stages = cfg.model.train_cfg.rcnn
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 32
        for proposals in (cfg.model.train_cfg.rpn_proposal, cfg.model.test_cfg.rpn):
            proposals.max_per_img = 32


def of_digits(cfg, digits):
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = f'{digits}/'
    cfg.val_evaluator.ann_file = str(digits / 'annotations' / 'instances_val2017.json')
    return cfg


def comparison(
    digits,
    work_dir,
    norms=('BN', 'psBN'),
    seeds=(0,),
    lrs=(),
    detector='faster-rcnn',
    lengths=(1,),
    tune=None,
    tune_seeds=1,
    **changes,
):
    cfg = of_digits(demo_config(detector, 'psbn'), digits)
    cfg.merge_from_dict(changes)
    cfgs = {norm: replace_norm(cfg, norm) for norm in norms}
    return Comparison(
        cfg,
        cfgs,
        lrs,
        seeds,
        str(work_dir),
        lengths=lengths,
        tune=tune,
        tune_seeds=tune_seeds,
    )


# Layers and networks


def randomize(layer):
    """Give a norm layer other values than its initial ones."""
    with torch.no_grad():
        for value in (*layer.parameters(), layer.running_mean):
            value.normal_()
        layer.running_var.uniform_(0.5, 2)
    return layer


def norms(model):
    return [module for module in model.modules() if is_norm(module)]


def randomized(model):
    for norm in norms(model):
        randomize(norm)
    # ResNet.train() returns nothing.
    model.double().train(False)
    return model


def backbone(norm, **kwargs):
    """With residual branches that count, in training mode."""
    torch.manual_seed(0)
    net = ResNet(
        18,
        base_channels=8,
        num_stages=2,
        strides=(1, 2),
        dilations=(1, 1),
        out_indices=(0, 1),
        **NORM_CFGS[norm],
        **kwargs,
    )
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if 'bn' in name or 'downsample.1' in name:
                parameter.add_(torch.rand_like(parameter))
            elif parameter.dim() == 4:
                parameter.add_(0.05 * torch.rand(len(parameter), 1, 1, 1))
    net.load_state_dict(net.state_dict())  # Centers the filters.
    net.train()
    return net


def mimic_convs(model):
    return [m for m in model.modules() if isinstance(m, MimicConv)]


def block_ends(model, *kinds):
    """Number, start and value of the scalar of each block's last conv."""
    ends = []
    for block in model.modules():
        if type(block).__name__ in kinds:
            last = getattr(block, 'linear_conv', None) or block.conv2
            conv = mimic_convs(last)[-1]
            assert conv.scale.item() == pytest.approx(conv.start)
            ends.append((conv.branch, conv.start))
    return ends


def published(numbers, convs=2):
    """What block_ends returns for branches with these numbers."""
    return [(number, pytest.approx(1.2**convs / (number or 1))) for number in numbers]


def network(norm, **kwargs):
    """Two convs with norm layers, one nested and one shared."""
    shared = norm(4, **kwargs)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        shared,
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 4, 3), norm(4, **kwargs)),
        shared,
    )


def loss_of(model, inputs):
    return (model(inputs + 1) - inputs.mean() - 1).square().mean()


def trained_network(model, steps=5):
    """A model whose parameters and statistics have moved."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3
    )
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, torch.randn(4, 3, 8, 8)).backward()
        optimizer.step()
    return model


def psbn(**kwargs):
    return network(PSBatchNorm2d, **kwargs)


# Models for the Runner


class Toy(BaseModel):
    """A model for MMEngine's Runner with a loss and nothing else."""

    def __init__(self, norm=PSBatchNorm2d):
        super().__init__()
        self.body = network(norm)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        assert mode == 'loss'
        return dict(loss=loss_of(self.body, torch.stack(inputs)))


def toy_runner(work_dir, model, epochs=2, keep=-1, **kwargs):
    torch.manual_seed(0)
    data = [dict(inputs=torch.randn(3, 8, 8)) for _ in range(8)]
    return Runner(
        model,
        str(work_dir),
        train_dataloader=dict(
            dataset=data,
            batch_size=4,
            collate_fn=dict(type='pseudo_collate'),
            sampler=dict(type='DefaultSampler', shuffle=True),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=OptimWrapper(
            torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
        ),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=keep)
        ),
        randomness=dict(seed=0),
        experiment_name=f'{work_dir.parent.name}-{work_dir.name}',
        log_level='ERROR',
        **kwargs,
    )


class Root(nn.Module):
    """Takes the root of -1 in some of its training forward passes."""

    def __init__(self, steps, backward):
        super().__init__()
        self.steps, self.backward, self.step = steps, backward, 0

    def forward(self, x):
        if torch.is_grad_enabled():
            self.step += 1
        if self.step not in self.steps:
            return x
        return x + (0 * x).sqrt() if self.backward else x - (x * 0 - 1).sqrt()


class RootToy(BaseModel):
    def __init__(self, steps=(), backward=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = PSBatchNorm2d(4)
        self.root = Root(steps, backward)
        self.last = nn.Conv2d(4, 4, 1)
        self.log = []

    def forward(self, inputs, data_samples=None, mode='loss'):
        if torch.is_grad_enabled():
            self.log.append(self.conv.weight.detach().clone())
        x = self.last(self.root(self.norm(self.conv(torch.stack(inputs)))))
        return dict(loss_mean=x.square().mean())


# Files


def places(node, path=()):
    """Iterate over the paths of all values in a JSON document."""
    if path:
        yield path
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


def element(tag, **children):
    """An XML element with children that have a text each."""
    node = ElementTree.Element(tag)
    for child, value in children.items():
        ElementTree.SubElement(node, child).text = str(value)
    return node


def write_voc(digits, out):
    """The digits in the layout of PASCAL VOC, the first of them as 2012."""
    for split, parts in (('train', ('VOC2007', 'VOC2012')), ('val', ('VOC2007',))):
        content = json.loads(
            (digits / f'annotations/instances_{split}2017.json').read_text()
        )
        names = {c['id']: c['name'] for c in content['categories']}
        for index, image in enumerate(content['images']):
            folder = out / parts[index % len(parts)]
            for sub in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
                (folder / sub).mkdir(parents=True, exist_ok=True)
            name = f'{split}_{image["id"]:06}'
            (folder / 'JPEGImages' / f'{name}.jpg').write_bytes(
                (digits / f'{split}2017' / image['file_name']).read_bytes()
            )
            root = element('annotation')
            root.append(element('size', width=image['width'], height=image['height']))
            for box in content['annotations']:
                if box['image_id'] == image['id']:
                    x, y, width, height = box['bbox']
                    node = element('object', name=names[box['category_id']])
                    node.append(
                        element(
                            'bndbox',
                            xmin=x + 1,
                            ymin=y + 1,
                            xmax=x + width + 1,
                            ymax=y + height + 1,
                        )
                    )
                    root.append(node)
            ElementTree.ElementTree(root).write(folder / 'Annotations' / f'{name}.xml')
            with open(folder / f'ImageSets/Main/{split}.txt', 'a') as file:
                file.write(f'{name}\n')
    return out


def make_rows(text):
    """Cells of a report's rows that begin with a number."""
    return [
        [cell.strip() for cell in line.split('|')[1:-1]]
        for line in text.splitlines()
        if re.match(r'\| [\d.]+ \|', line)
    ]


class Block(NamedTuple):
    """Fenced code of a page."""

    page: Path
    line: int
    language: str
    code: str

    def __str__(self):
        return f'{self.page.relative_to(ROOT)}:{self.line}'


def blocks_of(page):
    text = page.read_text()
    for match in re.finditer(r'^```(\w*)\n(.*?)^```$', text, re.M | re.S):
        line = text[: match.start()].count('\n') + 1
        yield Block(page, line, match[1], match[2])


def docs_script(words):
    """Find the Python script in the documentation that has these words."""
    return next(
        block
        for page in PAGES
        for block in blocks_of(page)
        if block.language == 'python'
        and FRAGMENT.search(block.code)
        and words in block.code
    )


def recipe(title):
    """Return the code of a section of docs/recipes.md."""
    text = (ROOT / 'docs' / 'recipes.md').read_text()
    section = text.split(f'\n## {title}\n')[1].split('\n## ')[0]
    return re.search(r'^```\w+\n(.*?)^```$', section, re.M | re.S)[1]


def free_port():
    """Return a port that no other test uses at this moment, as a string."""
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return str(found.getsockname()[1])
