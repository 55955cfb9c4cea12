"""Several processes: psSyncBN, and MimicNorm under DDP."""

import sys
import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmdet.models.backbones import ResNet
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmpsbn.analysis import ChannelWatch
from mmpsbn.hooks.filter_collapse_hook import combine_processes
from mmpsbn.layers import LastBNLinear, PSBatchNorm2d, PSSyncBatchNorm

WORLD = 2


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def pair(**kwargs):
    """psSyncBN, and psBN with the same parameters."""
    torch.manual_seed(0)
    sync, local = PSSyncBatchNorm(3, **kwargs), PSBatchNorm2d(3, **kwargs)
    with torch.no_grad():
        for parameter in sync.parameters():
            parameter.normal_()
    local.load_state_dict(sync.state_dict())
    return sync.double(), local.double()


def compare(rank, sizes, dtype=torch.double, steps=2, **kwargs):
    """psSyncBN on a part equals psBN on the whole, forward and backward."""
    sync, local = pair(**kwargs)
    for step in range(steps):
        torch.manual_seed(step)
        whole = torch.randn(sum(sizes), 3, 4, 5, dtype=dtype) * 3 + 50
        weights = torch.randn_like(whole)
        part = whole.split(sizes)[rank].clone().requires_grad_()
        whole.requires_grad_()
        output, expected = sync(part), local(whole)
        close(output, expected.split(sizes)[rank])
        (output * weights.split(sizes)[rank]).sum().backward()
        (expected * weights).sum().backward()
        close(part.grad, whole.grad.split(sizes)[rank])
    for one, other in zip(sync.parameters(), local.parameters()):
        dist.all_reduce(one.grad)
        close(one.grad, other.grad)
    for one, other in zip(sync.buffers(), local.buffers()):
        close(one, other)


def equal_batches(rank):
    compare(rank, [4, 4])


def unequal_batches(rank):
    compare(rank, [5, 1])


def low_precision(rank):
    """Of the input only: statistics stay in float32, as BN's do."""
    sync, local = (layer.float() for layer in pair())
    torch.manual_seed(0)
    whole = torch.randn(6, 3, 8, 8)
    part = whole.chunk(WORLD)[rank].bfloat16().requires_grad_()
    output = sync(part)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(
        output.float(), local(whole).chunk(WORLD)[rank], rtol=0.03, atol=0.03
    )
    output.sum().backward()
    assert part.grad.dtype == torch.bfloat16
    assert sync.running_mean.dtype == sync.bias.grad.dtype == torch.float32


def an_empty_batch(rank):
    compare(rank, [0, 3])
    compare(rank, [3, 0])


def cumulative_statistics(rank):
    compare(rank, [2, 3], momentum=None)


def no_running_statistics(rank):
    compare(rank, [2, 3], track_running_stats=False)


def a_process_group_of_one(rank):
    groups = [dist.new_group([each]) for each in range(WORLD)]
    sync, local = pair()
    sync.process_group = groups[rank]
    x = torch.randn(2, 3, 4, 4).double() + rank
    close(sync(x), local(x))


def evaluation_does_not_communicate(rank):
    if rank == 0:
        sync, local = pair()
        x = torch.randn(2, 3, 4, 4).double()
        close(sync.eval()(x), local.eval()(x))


def one_value_per_channel(rank):
    size = 1 if rank == 0 else 0
    with pytest.raises(ValueError, match='1 value per channel'):
        PSSyncBatchNorm(3)(torch.randn(size, 3, 1, 1))


def ddp_trains_as_one_process(rank):
    sync, local = pair()
    wrapped = DistributedDataParallel(sync)
    optimizers = [
        torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        for model in (wrapped, local)
    ]
    for step in range(5):
        torch.manual_seed(step)
        whole = torch.randn(8, 3, 4, 5, dtype=torch.double)
        parts = whole.chunk(WORLD)
        for model, x, optimizer in zip(
            (wrapped, local), (parts[rank], whole), optimizers
        ):
            optimizer.zero_grad()
            (model(x) - x.square()).square().mean().backward()
            optimizer.step()
    for one, other in zip(sync.parameters(), local.parameters()):
        close(one, other)


def the_last_bn_of_the_whole_batch(rank):
    """Gradients of DDP are means over the processes; so is the loss here."""
    torch.manual_seed(0)
    sync = LastBNLinear(4, 3, sync=True).double()
    local = LastBNLinear(4, 3).double()
    local.load_state_dict(sync.state_dict())
    wrapped = DistributedDataParallel(sync)
    whole = torch.randn(6, 4, dtype=torch.double)
    sizes, target = [5, 1], torch.randn(6, 3, dtype=torch.double)
    output, expected = wrapped(whole.split(sizes)[rank]), local(whole)
    close(output, expected.split(sizes)[rank])
    (output - target.split(sizes)[rank]).square().sum().mul(WORLD).backward()
    (expected - target).square().sum().backward()
    for one, other in zip(sync.parameters(), local.parameters()):
        close(one.grad, other.grad)
    for one, other in zip(sync.buffers(), local.buffers()):
        close(one, other)
    LastBNLinear(4, 3, sync=True, affine=False)(whole[: rank + 1].float())


def one_roi_is_normalized_by_the_running_statistics(rank):
    """One process has a RoI, or none has; three together are a batch."""
    torch.manual_seed(0)
    layer = LastBNLinear(4, 3, sync=True).double()
    layer.running_mean.normal_()
    mean, x = layer.running_mean.clone(), torch.randn(3, 4).double()
    for sizes in ([0, 1], [1, 0], [0, 0]):
        part = x[: sizes[rank]]
        close(layer.train()(part), layer.eval()(part))
        close(layer.running_mean, mean)
    layer.train()(x[: rank + 1])
    assert not torch.allclose(layer.running_mean, mean)


class Net(nn.Module):
    """A backbone, next to a layer that the loss may not reach."""

    def __init__(self, norm, unused):
        super().__init__()
        conv = dict(type='MimicConv') if norm == 'MimicNorm' else None
        self.backbone = ResNet(
            18,
            base_channels=4,
            conv_cfg=conv,
            norm_cfg=dict(type=norm),
            norm_eval=False,
        )
        self.unused = PSSyncBatchNorm(3) if unused else None

    def forward(self, x):
        return sum(y.square().mean() for y in self.backbone(x))


def train_as_one_process(rank, norms, **options):
    """A model under DDP on parts of batches, another on the whole of each."""
    models = []
    for norm in norms:
        torch.manual_seed(0)
        net = Net(norm, options.get('find_unused_parameters')).double()
        net.train()
        models.append(net)
    for model in models:  # Loading centers the filters in float64.
        model.load_state_dict(models[0].state_dict())
    wrapped = DistributedDataParallel(models[0], **options)
    optimizers = [
        torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9) for model in models
    ]
    for step in range(3):
        torch.manual_seed(step)
        whole = torch.randn(4, 3, 32, 32, dtype=torch.double)
        for model, x, optimizer in zip(
            (wrapped, models[1]), (whole.chunk(WORLD)[rank], whole), optimizers
        ):
            optimizer.zero_grad()
            model(x).backward()
            optimizer.step()
    for one, other in zip(*(model.state_dict().values() for model in models)):
        close(one, other)


def mimicnorm_trains_as_one_process(rank):
    """With every parameter used, scalars among them."""
    train_as_one_process(rank, ['MimicNorm', 'MimicNorm'])


def the_options_of_ddp(rank):
    for norms in (['MimicNorm', 'MimicNorm'], ['psSyncBN', 'psBN']):
        for option in ('find_unused_parameters', 'static_graph'):
            train_as_one_process(rank, norms, **{option: True})


class RandomBias(BaseModel):
    """A model whose initial bias differs from process to process."""

    def __init__(self):
        super().__init__()
        self.norm = PSBatchNorm2d(3)

    def init_weights(self):
        torch.manual_seed(dist.get_rank())
        torch.nn.init.normal_(self.norm.bias)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return dict(loss=self.norm(torch.stack(inputs)).mean())


def initial_weights_are_broadcast_by_mmengine(rank):
    runner = Runner.__new__(Runner)
    runner.model = RandomBias()
    runner._init_model_weights()
    own = runner.model.norm.bias.detach()
    torch.manual_seed(0)
    torch.testing.assert_close(own, torch.randn(3))


def a_channel_that_lives_in_one_process_is_alive(rank):
    model = nn.ModuleDict(dict(both=nn.BatchNorm2d(3), one=nn.BatchNorm2d(2)))
    model.eval()
    x = torch.full((1, 3, 2, 2), -1.0)
    x[:, rank] = 1
    watch = ChannelWatch(model)
    with watch:
        model['both'](x).relu()
        if rank == 1:  # As where a process has no RoI.
            model['one'](x[:, :2]).relu()
    found = combine_processes(watch, 'cpu')
    assert found['both'].dead.tolist() == [False, False, True]
    assert found['one'].dead.tolist() == [True, False]


# Starting two processes takes longer than most of what they do.
SCENARIOS = dict(
    layer=[
        equal_batches,
        unequal_batches,
        low_precision,
        an_empty_batch,
        cumulative_statistics,
        no_running_statistics,
        a_process_group_of_one,
        evaluation_does_not_communicate,
        one_value_per_channel,
    ],
    model=[
        ddp_trains_as_one_process,
        the_last_bn_of_the_whole_batch,
        one_roi_is_normalized_by_the_running_statistics,
        mimicnorm_trains_as_one_process,
        the_options_of_ddp,
        initial_weights_are_broadcast_by_mmengine,
        a_channel_that_lives_in_one_process_is_alive,
    ],
)


def run_scenarios(rank, store, names):
    dist.init_process_group(
        'gloo', init_method=f'file://{store}', rank=rank, world_size=WORLD
    )
    for name in names:
        print(f'{name} on rank {rank}', file=sys.stderr)
        globals()[name](rank)
        dist.barrier()
    # torch 2.1 can wait forever if gloo's thread still has to free a tensor.
    time.sleep(0.2)
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize('group', SCENARIOS)
def test_two_processes(group, tmp_path):
    names = [scenario.__name__ for scenario in SCENARIOS[group]]
    mp.spawn(run_scenarios, (tmp_path / 'store', names), WORLD)


def test_one_process_is_psbn():
    sync, local = pair()
    x = torch.randn(4, 3, 4, 5).double()
    for training in (True, False):
        assert torch.equal(sync.train(training)(x), local.train(training)(x))
