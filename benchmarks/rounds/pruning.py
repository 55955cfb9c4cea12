"""How small is a network without the channels that died in its rounds?

    python -m benchmarks.rounds.pruning

The command trains BN and psBN on digits, removes the channels that are
constant on the training images of the last round, and adds a row for each run
to pruning.csv. It resumes after an interruption. It needs torch-pruning and,
unlike the other commands of benchmarks.rounds, MMDetection.
"""

import copy
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval

import mmpsbn.cli  # noqa: F401  First: it checks the stack.
from benchmarks.shared.arguments import (
    add_work_dir,
    check_counts,
    exit_with_message,
    study_parser,
)
from benchmarks.shared.rows import add_missing
from mmpsbn.prune.constant_inputs import InputWatch
from mmpsbn.prune.removal import readers, remove_constants
from mmpsbn.stack import check_packages

from .networks import ConvUnit, Network, new_network
from .studies import HIGHEST, PAIR, ROUNDS, SEEDS, STUDIES, Run
from .tasks import images, task_of
from .training import checkpoint_of, read_last, train

FOLDER = Path(__file__).resolve().parent
FILE = 'pruning.csv'
STUDY = next(study for study in STUDIES if study.data == 'digits')


class Size(NamedTuple):
    """A network before and after pruning, with its BN folded."""

    channels: int
    """Those before a ReLU."""
    removed: int
    parameters: int
    remaining: int
    """Parameters after pruning."""
    difference: float
    """The largest one of a logit on the training images, in float64."""
    changed: int
    """Test images with another predicted class."""


def folded(net: Network) -> Network:
    """Copy a network in float64, with its norm layers in the convolutions."""
    net = copy.deepcopy(net).double().eval()
    for unit in net.modules():
        if isinstance(unit, ConvUnit):
            unit.conv = fuse_conv_bn_eval(unit.conv, unit.norm)
            unit.norm = torch.nn.Identity()
    return net


def measure(run: Run, work_dir: Path) -> Size:
    """Train a run of digits and prune its last network.

    Raises:
        InputError: If the last checkpoint is not that of the last round.
    """
    job = STUDY, run
    train(job, ROUNDS, work_dir)
    state = read_last(checkpoint_of(job, work_dir), ROUNDS)
    data = images(STUDY.data, None, 'cpu')
    net = new_network(STUDY.network, run.method, data.train_images.shape[1], 0, 1)
    net.load_state_dict(state['net'])
    task = task_of(STUDY.data, data, run.seed, ROUNDS)
    return pruned_size(net, task.train_images.double(), task.test_images.double())


def pruned_size(net: Network, seen: Tensor, others: Tensor) -> Size:
    """Remove the channels of a copy that are constant on images.

    Args:
        net (Network): A network with BN or psBN.
        seen (Tensor): The images that decide.
        others (Tensor): Images to compare on as well.
    """
    net = folded(net)
    pruned = copy.deepcopy(net)
    with InputWatch(pruned, readers(pruned)) as watch, torch.no_grad():
        pruned(seen)
    removed = remove_constants(
        pruned, watch.values, seen[:1], lambda model, batch: [model(batch)]
    ).removed
    with torch.no_grad():
        changed = net(others).argmax(1) != pruned(others).argmax(1)
        difference = (net(seen) - pruned(seen)).abs().max()
    channels = sum(
        unit.conv.out_channels for unit in net.modules() if isinstance(unit, ConvUnit)
    )
    sizes = (sum(p.numel() for p in one.parameters()) for one in (net, pruned))
    return Size(
        channels, removed, *sizes, float(f'{difference:.1e}'), int(changed.sum())
    )


def main() -> None:
    parser = study_parser('rounds.pruning', __doc__, FOLDER, SEEDS)
    add_work_dir(parser, 'rounds-pruning', 'checkpoints')
    args = parser.parse_args()
    check_counts(parser, args, 'seeds', 'processes')
    with exit_with_message(args.results):
        check_packages('pruning', 'prune', 'torch_pruning')
        runs = [
            Run(name, *HIGHEST, seed) for name in PAIR for seed in range(args.seeds)
        ]
        function = partial(measure, work_dir=args.work_dir)
        for run, size in add_missing(
            args.results / FILE, function, runs, Size, args.processes
        ):
            checkpoint_of((STUDY, run), args.work_dir).unlink()
            print(
                f'{run.method}, seed {run.seed}: {size.removed} of {size.channels} '
                f'channels removed, {size.remaining} of {size.parameters} parameters '
                'remain',
                flush=True,
            )
        print(f'Results: {args.results / FILE}')


if __name__ == '__main__':
    main()
