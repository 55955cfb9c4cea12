"""What FilterCollapseHook costs.

    python -m benchmarks.collapse_watch [--rounds 20]

Time of a training step (forward, backward and SGD) of the demo's detectors on
8 images of 160 x 160, watched over not watched: the two models take turns
within each round, and the ratio is the median over the rounds. The hook
watches 4 steps of every 500, so that its cost is that share of it.
"""

import argparse
import inspect

from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.logging import MMLogger

from mmpsbn.analysis import ChannelWatch, ratios
from mmpsbn.hooks import FilterCollapseHook

from .detector_rounds.detectors import CONFIGS
from .memory import Detector, side_by_side


class Watched(Detector):
    def loss(self, inputs):
        # The hook looks for the layers once in a sample, here in every step.
        with ChannelWatch(self.net):
            return super().loss(inputs)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--rounds', type=int, default=20)
    args = parser.parse_args()
    register_all_modules()
    MMLogger.get_instance('mmengine', log_level='ERROR')
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
        print(
            f'| {detector} | {ratio:.3f} | {1 + share * (ratio - 1):.5f} |', flush=True
        )


if __name__ == '__main__':
    main()
