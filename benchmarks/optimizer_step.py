"""Time that psBN and MimicNorm add to the step of an optimizer.

    python -m benchmarks.optimizer_step [--rounds 200] [--threads 2]

The forward and backward pass of psBN are BN's. It adds time only to
``optimizer.step()``, which subtracts alpha from each bias and adds it again.
MimicNorm centers its weights there. This is measured with SGD with momentum
for MMDetection's ResNet-50. The first column is the median time of a step over
the rounds, in which all take turns. The others are the median of what a step
takes more than that of BN in the same round, for the whole step and for what
mmpsbn does around the arithmetic, timed alone. Each measurement is a row of
optimizer_step.csv in the folder of --results.
"""

import statistics
from typing import NamedTuple

import torch
from mmdet.models.backbones import ResNet
from mmengine.logging import MMLogger

from benchmarks.shared.arguments import check_counts, check_device
from benchmarks.shared.costs import Costs, add_device, cost_parser, name_of
from mmpsbn.analysis import time_alternately
from mmpsbn.cli.errors import exit_with_message
from mmpsbn.layers import optimizer_step

from .memory import SETTINGS, TRAINED


class Measured(NamedTuple):
    """What is measured."""

    device: str
    norm: str


class Cost(NamedTuple):
    """Times in ms."""

    torch: str
    rounds: int
    step: float
    more: float
    """Than a step takes with BN."""
    around: float
    """Around the arithmetic."""


def network(norm, device):
    """Return a ResNet-50 whose gradients are zero."""
    net = ResNet(50, **TRAINED, **SETTINGS[norm]).to(device)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return net


def around(optimizer):
    """Do what a step does around the arithmetic."""
    parts = optimizer_step._parts(optimizer)
    optimizer_step._enter(parts)
    optimizer_step._leave(parts)


def main():
    parser = cost_parser(__doc__, 200)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    add_device(parser)
    args = parser.parse_args()
    check_counts(parser, args, 'rounds', 'threads')
    check_device(parser, args.device)
    torch.set_num_threads(args.threads)
    MMLogger.get_instance('mmengine', log_level='ERROR')
    costs = Costs(args.results / 'optimizer_step.csv', Measured, Cost)
    device = name_of(args.device)
    print(f'torch {torch.__version__}, {device}, {args.rounds} rounds\n')
    nets = {norm: network(norm, args.device) for norm in ('BN', 'psBN', 'MimicNorm')}
    optimizers = {
        norm: torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        for norm, net in nets.items()
    }
    steps = time_alternately(
        {norm: optimizer.step for norm, optimizer in optimizers.items()}, args.rounds
    )
    alone = time_alternately(
        {
            norm: lambda optimizer=optimizer: around(optimizer)
            for norm, optimizer in optimizers.items()
        },
        args.rounds,
    )
    print(
        '| ResNet-50 | step, ms | more than BN, ms | around it, ms |\n|---|---|---|---|'
    )
    for norm, own in steps.items():
        more = [a - b for a, b in zip(own, steps['BN'])]
        times = [1e3 * statistics.median(one) for one in (own, more, alone[norm])]
        costs.add(
            Measured(device, norm),
            Cost(torch.__version__, args.rounds, *(round(time, 3) for time in times)),
        )
        print('| {} | {:.2f} | {:.2f} | {:.3f} |'.format(norm, *times))


if __name__ == '__main__':
    with exit_with_message('the measurements so far are in optimizer_step.csv'):
        main()
