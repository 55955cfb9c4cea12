"""What FilterCollapseHook costs.

    python -m benchmarks.collapse_watch [--rounds 20]

Time of a training step (forward, backward and SGD) of the demo's detectors on
8 images of 160 x 160, watched over not watched: the two models take turns
within each round, and the ratio is the median over the rounds. The hook
watches 4 steps of every 500, so that its cost is that share of it. Each
detector is a row of collapse_watch.csv in the folder of --results.
"""

import inspect
from typing import NamedTuple

import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.logging import MMLogger

from benchmarks.shared.arguments import check_counts
from benchmarks.shared.costs import Costs, cost_parser, name_of
from mmpsbn.analysis import ChannelWatch, ratios
from mmpsbn.cli.errors import exit_with_message
from mmpsbn.hooks import FilterCollapseHook

from .detector_rounds.detectors import CONFIGS
from .memory import Detector, side_by_side


class Measured(NamedTuple):
    """What is measured."""

    device: str
    detector: str


class Cost(NamedTuple):
    """Times, relative to those without the hook."""

    torch: str
    rounds: int
    step: float
    """The time of a step that the hook watches."""
    training: float


class Watched(Detector):
    def loss(self, inputs):
        # The hook looks for the layers once in a sample, here in every step.
        with ChannelWatch(self.net):
            return super().loss(inputs)


def main():
    parser = cost_parser(__doc__, 20)
    args = parser.parse_args()
    check_counts(parser, args, 'rounds')
    register_all_modules()
    MMLogger.get_instance('mmengine', log_level='ERROR')
    costs = Costs(args.results / 'collapse_watch.csv', Measured, Cost)
    options = inspect.signature(FilterCollapseHook).parameters
    share = options['sample'].default / options['interval'].default
    print('| Detector | watched / not | over a run |\n|---|---|---|')
    for detector, config in CONFIGS.items():
        models = {
            kind: kind(Config.fromfile(config), classes=10)
            for kind in (Detector, Watched)
        }
        ratio = ratios(side_by_side(models, (160, 160), args.rounds, True, batch=8))[
            Watched
        ]
        training = 1 + share * (ratio - 1)
        costs.add(
            Measured(name_of('cpu'), detector),
            Cost(torch.__version__, args.rounds, round(ratio, 3), round(training, 5)),
        )
        print(f'| {detector} | {ratio:.3f} | {training:.5f} |', flush=True)


if __name__ == '__main__':
    with exit_with_message('the measurements so far are in collapse_watch.csv'):
        main()
