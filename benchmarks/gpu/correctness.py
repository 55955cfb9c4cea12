"""psBN trained on a device, compared with its definition in float64 on the CPU.

The network has two convolutions, each with a norm layer and a ReLU, and a linear
layer. It is trained for STEPS steps of SGD with momentum and weight decay. The error is
the largest relative error over all parameters and running statistics. BN's error
under the same setting shows what the setting itself loses.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from mmpsbn.layers import PSBatchNorm2d, PSSyncBatchNorm

STEPS, WARM_UP, BATCH, SIZE, ALPHA = 8, 3, 16, 12, 0.1
# psBN passes if its error is at most this many times that of BN, plus the least.
TIMES, LEAST = 3, 1e-4


class Shifted(nn.BatchNorm2d):
    """The definition of psBN: BN and, added to its output, alpha."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + ALPHA


def network(norm: Callable[[int], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        norm(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, bias=False),
        norm(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    for index in (1, 4):
        nn.init.uniform_(net[index].weight, 0.5, 1.5)
    return net


def batches(device: str, dtype: torch.dtype = torch.float) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator, dtype=torch.double)
        yield x.to(device, dtype)


def make_optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)


def train(
    net: nn.Module,
    device: str,
    dtype: torch.dtype = torch.float,
    cast: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    part: slice = slice(None),
    wrap: Callable = lambda net: net,
) -> nn.Module:
    """Train a network, in mixed precision if ``cast`` is given."""
    net = net.to(device, dtype, memory_format=memory_format)
    optimizer = make_optimizer(net)
    scaler = None
    if cast is torch.half:
        # torch before 2.3 has it for GPUs only.
        scaler = (
            torch.amp.GradScaler(device, init_scale=2.0**10)
            if hasattr(torch.amp, 'GradScaler')
            else torch.cuda.amp.GradScaler(init_scale=2.0**10)
        )
    called = wrap(net)
    for x in batches(device, dtype):
        optimizer.zero_grad()
        x = x[part].contiguous(memory_format=memory_format)
        with torch.autocast(device, cast) if cast else nullcontext():
            loss = (called(x).float() if cast else called(x)).square().sub(1)
            loss = loss.square().mean()
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    return net


def train_in_cuda_graph(net: nn.Module, device: str) -> nn.Module:
    """Train with a step that was captured, with the optimizer and psBN's alpha."""
    net = net.to(device)
    optimizer = make_optimizer(net)
    inputs = list(batches(device))
    x = inputs[0].clone()

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        net(x).square().sub(1).square().mean().backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for new in inputs[:WARM_UP]:
            x.copy_(new)
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for new in inputs[WARM_UP:]:
        x.copy_(new)
        graph.replay()
    return net


def train_in_two_processes(net: nn.Module, device: str) -> nn.Module:
    """Train on halves of each batch, in processes that share the device."""
    with tempfile.TemporaryDirectory() as folder:
        # CUDA cannot be used in forks, and they start faster.
        method = 'fork' if device == 'cpu' else 'spawn'
        mp.start_processes(_train_half, (device, folder), nprocs=2, start_method=method)
        net.load_state_dict(torch.load(f'{folder}/0.pt', weights_only=True))
    return net


def _train_half(rank: int, device: str, folder: str) -> None:
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(1)  # A fork has none of the threads of its parent.
    # NCCL refuses two processes on one GPU.
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
    )
    part = slice(rank, None, 2)
    # A network from the parent process would share its memory.
    net = network(PSSyncBatchNorm)
    net = train(net, device, part=part, wrap=nn.parallel.DistributedDataParallel)
    if rank == 0:
        torch.save(net.cpu().state_dict(), f'{folder}/0.pt')
    # torch 2.1 can wait forever if gloo's thread still has to free a tensor.
    time.sleep(0.2)
    dist.destroy_process_group()


WAYS: dict[str, Callable[[nn.Module, str], nn.Module]] = {
    'float32': train,
    'bfloat16 autocast': lambda net, device: train(net, device, cast=torch.bfloat16),
    'float16 autocast': lambda net, device: train(net, device, cast=torch.half),
    'channels_last': lambda net, device: train(
        net, device, memory_format=torch.channels_last
    ),
    'torch.compile': lambda net, device: train(net, device, wrap=torch.compile),
    'CUDA graph': train_in_cuda_graph,
    'psSyncBN, two processes': train_in_two_processes,
}
CUDA_ONLY = {'CUDA graph'}


def error_of(net: nn.Module, reference: nn.Module) -> float:
    """Return the largest relative error of the values of a network."""
    expected = reference.state_dict()
    errors = []
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value, other = value.double().cpu(), expected[name]
            errors.append((value - other).norm() / (1e-2 + other.norm()))
    return max(map(float, errors))


def check(way: str, device: str) -> dict[str, float]:
    """Return the errors of BN and psBN when they are trained in one way."""
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        errors = {}
        psbn = PSSyncBatchNorm if way.startswith('psSyncBN') else PSBatchNorm2d
        for name, norm, defined in (
            ('BN', nn.BatchNorm2d, nn.BatchNorm2d),
            ('psBN', psbn, Shifted),
        ):
            reference = train(network(defined), 'cpu', torch.double)
            if name == 'psBN':
                for index in (1, 4):
                    reference[index].bias.data += ALPHA
            net = network(norm)
            # BN has no statistics over processes on a CPU.
            alone = name == 'BN' and way.startswith('psSyncBN')
            errors[name] = error_of(
                train(net, device) if alone else WAYS[way](net, device), reference
            )
        return errors
    finally:
        torch.backends.cudnn.allow_tf32 = tf32


def passes(errors: dict[str, float]) -> bool:
    """Return whether psBN loses no more than the setting itself."""
    return errors['psBN'] <= TIMES * errors['BN'] + LEAST
