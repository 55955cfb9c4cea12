"""Time of psBN beside BN's and that of a naive psBN, as ratios.

    python -m benchmarks.norm_layers [--seconds 20] [--threads 2]

For layers of a ResNet-50 detector on two images of 800 x 1344, MMDetection's
batch per GPU: forward and backward in training mode, and forward in
evaluation mode. The layers take turns within each round, in an order drawn
anew for each; the ratio is the median over the rounds of the time of a layer
over BN's in the same round. Every shape has its seconds, and so the more
rounds the smaller it is, but no fewer than 50. BN is timed twice: the ratio of
its second turn tells the noise. The last row is all of the shapes, one after
the other: the ratio weighted by BN's time.
"""

import argparse
import random
import statistics
import time

import torch
from torch import nn

import mmpsbn  # noqa: F401
from mmpsbn.layers import PSBatchNorm2d

# Channels, height and width of layers in the stem and in the four stages.
SHAPES = [(64, 400, 672), (64, 200, 336), (256, 200, 336), (128, 100, 168),
          (512, 100, 168), (256, 50, 84), (1024, 50, 84), (512, 25, 42),
          (2048, 25, 42)]
WARM_UP = 5  # Rounds that are not counted.


class NaivePSBN(nn.BatchNorm2d):
    """alpha added to the activation, as the formula is written."""

    def forward(self, input):
        return super().forward(input) + 0.1


def synchronize(device):
    if device == 'cuda':
        torch.cuda.synchronize()


def one_turn(layer, x, grad, device):
    """Seconds of a forward and backward, or of a forward in evaluation."""
    synchronize(device)
    start = time.perf_counter()
    if layer.training:
        layer(x).backward(grad)
    else:
        with torch.no_grad():
            layer(x)
    synchronize(device)
    return time.perf_counter() - start


def ratios(shape, training, seconds, device):
    channels, height, width = shape
    x = torch.randn(
        2, channels, height, width, device=device, requires_grad=training)
    grad = torch.randn_like(x)
    layers = {
        'BN': nn.BatchNorm2d(channels),
        'psBN': PSBatchNorm2d(channels),
        'naive': NaivePSBN(channels),
        'BN again': nn.BatchNorm2d(channels),
    }
    for layer in layers.values():
        layer.to(device).train(training)
    times = {name: [] for name in layers}
    names, order = list(layers), random.Random(0)
    start = time.perf_counter()
    while (len(times['BN']) < WARM_UP + 50
           or time.perf_counter() - start < seconds):
        for name in order.sample(names, len(names)):
            times[name].append(one_turn(layers[name], x, grad, device))
            x.grad = None
    times = {name: own[WARM_UP:] for name, own in times.items()}
    return statistics.median(times['BN']) * 1e3, {
        name: statistics.median(
            own / bn for own, bn in zip(times[name], times['BN']))
        for name in names[1:]
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--seconds', type=float, default=20, help='for each shape and mode')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    where = torch.cuda.get_device_name() if args.device == 'cuda' else \
        f'CPU, {args.threads} threads'
    print(f'torch {torch.__version__}, {where}, {args.seconds:g} s each\n')
    for title, training in (('forward + backward', True),
                            ('evaluation, forward', False)):
        print(f'| {title} | BN, ms | psBN / BN | naive / BN | BN / BN |')
        print('|---|---|---|---|---|')
        everything = []
        for shape in SHAPES:
            bn, ratio = ratios(shape, training, args.seconds, args.device)
            everything.append((bn, ratio))
            print(f'| {" x ".join(map(str, shape))} | {bn:.2f} | '
                  f'{ratio["psBN"]:.3f} | {ratio["naive"]:.3f} | '
                  f'{ratio["BN again"]:.3f} |', flush=True)
        total = sum(bn for bn, _ in everything)
        whole = {
            name: sum(bn * ratio[name] for bn, ratio in everything) / total
            for name in everything[0][1]
        }
        print(f'| all | {total:.2f} | {whole["psBN"]:.3f} | '
              f'{whole["naive"]:.3f} | {whole["BN again"]:.3f} |\n')


if __name__ == '__main__':
    main()
