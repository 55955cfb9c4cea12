"""Cost of a normalization: stored activations, peak memory and time.

    python -m benchmarks.memory [--rounds 15] [--size 800 1344]
        [--norms BN MimicNorm] [--backbones ResNet-50] [--detectors RetinaNet]

First MMDetection's backbones ResNet-18, 50, 101 and MobileNetV2, then Faster
R-CNN and RetinaNet R50-FPN as a whole, each with several normalizations of the
backbone, all of it trained; MimicNorm has its last BN in the heads. On a CPU
the detectors see images of 480 x 800, for the sake of its memory. Without a
name after it, --backbones or --detectors leaves all of them out.

- Stored: activations in MiB that autograd stores for the backward pass of two
  images, counted once per storage. Parameters do not count, but copies of them
  do. The values are exact on any hardware.
- Step: time of a training step (forward, backward and SGD) of two images of
  320 x 320, on a GPU at full size. Inference: time of a forward pass in
  evaluation mode. The models take turns within each round. The ratio is the
  median over the rounds of the time of a model divided by BN's in that round.
  The ratio "of none" is relative to the same network without norm layers, the
  limit of what a normalization can reach.
- Peak, on a GPU: the maximum memory of the allocator in a step at full size.
- Filled, on a GPU and with --fill: the largest batch that fits in memory in a
  training step at full size, to a sixteenth, and its images per second.

Each measurement is a row of memory.csv in the folder of --results.
"""

import math
import statistics
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from mmdet.models.backbones import MobileNetV2, ResNet
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

from benchmarks.shared.arguments import check_counts, check_device
from benchmarks.shared.costs import Costs, add_device, cost_parser, name_of
from benchmarks.shared.memory import PublishedMimicConv, fits, largest_batch
from mmpsbn.analysis import ratios, saved_bytes, time_alternately
from mmpsbn.cli.errors import exit_with_message
from mmpsbn.registry import MODELS


class Measured(NamedTuple):
    """What is measured."""

    device: str
    network: str
    norm: str
    height: int
    width: int


class Cost(NamedTuple):
    """What it costs; NaN if it was not measured."""

    torch: str
    rounds: int
    saved: float
    """In MiB."""
    peak: float
    """In MiB."""
    batch: float
    """The largest one that the GPU has memory for."""
    speed: float
    """The images per second with this batch."""
    step: float
    """The time of a training step, relative to BN."""
    step_of_none: float
    """The same relative to the network with nothing in place of its norms."""
    inference: float
    """The time of inference, relative to BN."""


class NoNorm(torch.nn.Identity):
    """Nothing, in the position of a norm layer."""

    _abbr_ = 'bn'


MIMIC = dict(conv_cfg=dict(type='MimicConv'), norm_cfg=dict(type='MimicNorm'))
TRAINED = dict(norm_eval=False, frozen_stages=-1, init_cfg=None)
PUBLISHED = 'MimicNorm, scalars as published'
SETTINGS = {
    'BN': dict(norm_cfg=dict(type='BN')),
    'BN, frozen': dict(norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True),
    'psBN': dict(norm_cfg=dict(type='psBN')),
    'GN': dict(norm_cfg=dict(type='GN', num_groups=32)),
    'MimicNorm': MIMIC,
    PUBLISHED: dict(MIMIC, conv_cfg=dict(type=PublishedMimicConv)),
    'none': dict(norm_cfg=dict(type=NoNorm)),
}
BACKBONES = {
    'ResNet-18': partial(ResNet, 18),
    'ResNet-50': partial(ResNet, 50),
    'ResNet-101': partial(ResNet, 101),
    'MobileNetV2': MobileNetV2,
}
# Its narrowest layers have 16 channels, 4 to a group.
GROUPS = {'MobileNetV2': 4}
CONFIGS = Path(__file__).resolve().parent.parent / 'configs' / 'psbn'
DETECTORS = {
    'Faster R-CNN': (
        'faster-rcnn_r50_fpn_bn_1x_coco.py',
        dict(
            rpn_head=dict(type='LastBNRPNHead'),
            roi_head=dict(bbox_head=dict(cls_predictor_cfg=dict(type='LastBNLinear'))),
        ),
    ),
    'RetinaNet': (
        'retinanet_r50_fpn_bn_1x_coco.py',
        dict(bbox_head=dict(type='LastBNRetinaHead')),
    ),
}


class Backbone(torch.nn.Module):
    """A backbone, with the mean of its features for a loss."""

    def __init__(self, name, norm):
        super().__init__()
        settings = {**TRAINED, **SETTINGS[norm]}
        if norm == 'GN' and name in GROUPS:
            settings['norm_cfg'] = dict(type='GN', num_groups=GROUPS[name])
        self.net = BACKBONES[name](**settings)
        self.net.init_weights()

    def inputs(self, size, batch=2):
        device = next(self.parameters()).device
        return torch.randn(batch, 3, *size, device=device)

    def loss(self, inputs):
        return sum(feature.mean() for feature in self.net(inputs))

    def predict(self, inputs):
        return self.net(inputs)


class Detector(torch.nn.Module):
    """The detector of a config, on random images with random boxes."""

    def __init__(self, cfg, classes=80):
        super().__init__()
        self.classes = classes
        with DefaultScope.overwrite_default_scope('mmdet'):
            self.net = MODELS.build(cfg.model)
        self.net.init_weights()

    def to(self, device):
        self.net.to(device)  # Tells its data_preprocessor, too.
        return self

    def inputs(self, size, batch=2):
        inputs = demo_mm_inputs(batch, [[3, *size]] * batch, num_classes=self.classes)
        return self.net.data_preprocessor(inputs, True)

    def loss(self, inputs):
        return self.net.parse_losses(self.net(**inputs, mode='loss'))[0]

    def predict(self, inputs):
        return self.net(**inputs, mode='predict')


def detector(name, norm):
    file, last_bn = DETECTORS[name]
    cfg = Config.fromfile(CONFIGS / file)
    if norm == 'MimicNorm':
        cfg.merge_from_dict(dict(model=last_bn))
    cfg.model.backbone.pop('norm_cfg')
    cfg.model.backbone.update(TRAINED, **SETTINGS[norm])
    return Detector(cfg)


def measure(builders, size, rounds, device, fills):
    """For each model: saved MiB, peak MiB, filled, seconds of both times."""
    # Before the large sizes, which leave the allocator in another state.
    small = (320, 320) if device == 'cpu' else size
    models = {name: build().to(device) for name, build in builders.items()}
    steps = side_by_side(models, small, rounds, training=True)
    inference = side_by_side(models, small, rounds, training=False)
    del models
    saved, peak, filled = {}, {}, {}
    for name, build in builders.items():
        model = build().to(device)
        model.train()
        inputs = model.inputs(size)
        saved[name] = (
            saved_bytes(partial(model.loss, inputs), model.parameters()) / 2**20
        )
        if device == 'cuda':
            torch.cuda.reset_peak_memory_stats()
            model.loss(inputs).backward()
            peak[name] = torch.cuda.max_memory_allocated() / 2**20
            del inputs
            if fills:
                filled[name] = fill(model, size)
        del model
    return saved, peak, filled, steps, inference


def fill(model, size):
    """The largest batch that a GPU has memory for, and its images per second."""
    batch = largest_batch(
        lambda batch: fits(model, lambda: training_step(model, size, batch)())
    )
    if not batch:
        return 0, 0
    times = time_alternately({batch: training_step(model, size, batch)}, 5)[batch]
    return batch, batch / statistics.median(times)


def training_step(model, size, batch=2):
    inputs = model.inputs(size, batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def step():
        model.loss(inputs).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def side_by_side(models, size, rounds, training, batch=2):
    """Return the seconds of each model, in turns, in each of the rounds."""

    def action(model):
        model.train(training)
        if training:
            return training_step(model, size, batch)
        inputs = model.inputs(size, batch)

        def inference():
            with torch.no_grad():
                model.predict(inputs)

        return inference

    return time_alternately(
        {name: action(model) for name, model in models.items()}, rounds
    )


def report(title, builders, size, args, costs):
    print(
        f'| {title} | stored, MiB | of BN | peak, MiB | filled, images '
        '(images / s) | step, of BN | of none | inference, of BN |\n'
        '|---|---|---|---|---|---|---|---|'
    )
    saved, peak, filled, steps, inference = measure(
        builders, size, args.rounds, args.device, args.fill
    )
    of_none = ratios({'none': steps['none'], **steps}) if 'none' in steps else {}
    steps, inference = ratios(steps), ratios(inference)
    for name in builders:
        batch, speed = filled.get(name, (math.nan, math.nan))
        cost = Cost(
            torch.__version__,
            args.rounds,
            round(saved[name], 2),
            round(peak.get(name, math.nan), 2),
            batch,
            round(speed, 1),
            *(round(own.get(name, math.nan), 3) for own in (steps, of_none, inference)),
        )
        costs.add(Measured(name_of(args.device), title, name, *size), cost)
        cells = [
            f'{cost.saved:.0f}',
            f'{saved[name] / saved["BN"]:.3f}',
            f'{cost.peak:.0f}',
            f'{cost.batch} ({cost.speed})',
            f'{cost.step:.3f}',
            f'{cost.step_of_none:.3f}',
            f'{cost.inference:.3f}',
        ]
        print(
            f'| {name} | {" | ".join(cells)} |'.replace('nan (nan)', '-').replace(
                'nan', '-'
            )
        )
    print(flush=True)


def main():
    parser = cost_parser(__doc__, 15)
    parser.add_argument('--size', type=int, nargs=2, default=[800, 1344])
    parser.add_argument(
        '--norms',
        nargs='+',
        choices=SETTINGS,
        default=list(SETTINGS),
        help='normalizations to measure along with BN',
    )
    parser.add_argument(
        '--backbones', nargs='*', choices=BACKBONES, default=list(BACKBONES)
    )
    parser.add_argument(
        '--detectors', nargs='*', choices=DETECTORS, default=list(DETECTORS)
    )
    add_device(parser)
    parser.add_argument(
        '--fill', action='store_true', help='on a GPU, also find the largest batch'
    )
    args = parser.parse_args()
    check_counts(parser, args, 'rounds')
    if min(args.size) < 1:
        parser.error('--size must be at least 1 x 1')
    check_device(parser, args.device)
    register_all_modules()
    MMLogger.get_instance('mmengine', log_level='ERROR')
    costs = Costs(args.results / 'memory.csv', Measured, Cost)
    print(f'torch {torch.__version__}, {name_of(args.device)}\n')
    norms = [norm for norm in SETTINGS if norm in ('BN', *args.norms)]
    for name in args.backbones:
        report(
            name,
            {norm: partial(Backbone, name, norm) for norm in norms},
            args.size,
            args,
            costs,
        )
    size = args.size if args.device == 'cuda' else [480, 800]
    for name in args.detectors:
        report(
            name,
            {
                norm: partial(detector, name, norm)
                for norm in norms
                if norm != PUBLISHED
            },
            size,
            args,
            costs,
        )


if __name__ == '__main__':
    with exit_with_message('the measurements so far are in memory.csv'):
        main()
