"""Sharded parameters: psBN and MimicNorm under FSDP and fully_shard."""

import os
import sys
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers import backbone
from mmcv.cnn import ConvModule
from mmengine.model import BaseModel
from mmengine.model.wrappers import MMFullyShardedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.runner import FlexibleRunner
from mmengine.utils import digit_version
from torch.distributed import checkpoint
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    ShardingStrategy,
    StateDictType,
)
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from mmpsbn.errors import InputError
from mmpsbn.hooks import NonFiniteHook, NormCheckHook

try:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
except ImportError:  # Before torch 2.6.
    fully_shard = None

WORLD = 2
CPU = torch.device('cpu')


class ShardedToy(BaseModel):
    def __init__(self, norm='MimicNorm', poisoned=False):
        super().__init__()
        self.net, self.poisoned = backbone(norm), poisoned

    def forward(self, inputs, data_samples=None, mode='loss'):
        x = torch.stack(inputs) if isinstance(inputs, list) else inputs
        if self.poisoned and torch.is_grad_enabled():
            # A gradient that one process alone will have.
            self.net.conv1.weight.register_hook(lambda grad: grad * torch.nan)
        return dict(loss=sum(y.square().mean() for y in self.net(x.double())))


def toy(**kwargs):
    model = ShardedToy(**kwargs).double()
    # Centers the filters in float64.
    model.load_state_dict(model.state_dict())
    model.train()
    return model


def sharded(model, blocks=True, **kwargs):
    """The model under FSDP, block by block if asked."""
    parts = {id(m) for m in (*model.net.layer1, *model.net.layer2)}

    def policy(module, recurse, nonwrapped_numel):
        return recurse or id(module) in parts

    return MMFullyShardedDataParallel(
        model, auto_wrap_policy=policy if blocks else None, device_id=CPU, **kwargs
    )


def full_state(model, rank0_only=False):
    with model.state_dict_type(
        model, StateDictType.FULL_STATE_DICT, FullStateDictConfig(rank0_only=rank0_only)
    ):
        return model.state_dict()


def whole_batch(step):
    torch.manual_seed(step)
    return torch.randn(2 * WORLD, 3, 16, 16, dtype=torch.double)


def optimizer_of(model):
    return OptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
    )


def local(norm):
    """Return the normalization for a process that has the whole batch."""
    return norm.replace('Sync', '')


def trains_as_one_process(rank, norm='MimicNorm', **kwargs):
    alone = toy(norm=local(norm))
    wrapped = sharded(toy(norm=norm), **kwargs)
    wrappers = [optimizer_of(model) for model in (wrapped, alone)]
    for step in range(3):
        x = whole_batch(step)
        wrapped.train_step(dict(inputs=x.chunk(WORLD)[rank]), wrappers[0])
        alone.train_step(dict(inputs=x), wrappers[1])
    expected = alone.state_dict()
    # Where only the first process saves, the others keep what they have.
    full_state(wrapped, rank0_only=True)
    # Flat weights are centered when they are loaded.
    loaded = toy(norm=norm)
    loaded.load_state_dict(full_state(wrapped))
    found = loaded.state_dict()
    assert list(found) == list(expected)
    for name, value in found.items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-9, atol=1e-12, msg=name
        )
    other = sharded(toy(norm=norm), **kwargs)
    with other.state_dict_type(other, StateDictType.FULL_STATE_DICT):
        other.load_state_dict(expected)
    for name, value in full_state(other).items():
        assert torch.equal(value, expected[name]), name


def mimicnorm_with_whole_parameters(rank):
    trains_as_one_process(rank, use_orig_params=True)


def mimicnorm_with_flat_parameters(rank):
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*not centered')
        trains_as_one_process(rank, use_orig_params=False)


def psbn_with_whole_parameters(rank):
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*plain BN')
        trains_as_one_process(rank, norm='psSyncBN', use_orig_params=True)


def psbn_with_flat_parameters_is_reported(rank):
    """At the first step, because nothing can bring alpha back there."""
    model = sharded(toy(norm='psSyncBN'), use_orig_params=False)
    wrapper = optimizer_of(model)
    x = whole_batch(0).chunk(WORLD)[rank]
    with pytest.warns(UserWarning, match='psBN layers are trained as plain'):
        model.train_step(dict(inputs=x), wrapper)


def mimicnorm_in_one_piece(rank):
    trains_as_one_process(rank, blocks=False)


def mimicnorm_not_sharded(rank):
    trains_as_one_process(rank, sharding_strategy=ShardingStrategy.NO_SHARD)


def trains_under_fully_shard(rank, norm):
    """FSDP's successor, which shards each parameter by itself."""
    mesh = init_device_mesh('cpu', (WORLD,))
    alone, model = toy(norm=local(norm)), toy(norm=norm)
    for part in (*model.net.layer1, *model.net.layer2, model):
        fully_shard(part, mesh=mesh)
    wrappers = [optimizer_of(m) for m in (model, alone)]
    for step in range(3):
        x = whole_batch(step)
        for m, part, wrapper in zip(
            (model, alone), (x.chunk(WORLD)[rank], x), wrappers
        ):
            wrapper.update_params(m(part)['loss'])
    expected = alone.state_dict()
    for name, value in model.state_dict().items():
        if hasattr(value, 'full_tensor'):
            value = value.full_tensor()
        torch.testing.assert_close(
            value, expected[name], rtol=1e-9, atol=1e-12, msg=name
        )
    return model


def mimicnorm_under_fully_shard(rank):
    trains_under_fully_shard(rank, 'MimicNorm')


def psbn_under_fully_shard(rank):
    model = trains_under_fully_shard(rank, 'psSyncBN')
    expected = {
        name: value.full_tensor().clone() for name, value in model.named_parameters()
    }
    folder = os.path.join(os.environ['WORK'], 'dcp')
    checkpoint.save(model.state_dict(), checkpoint_id=folder)
    other = toy(norm='psSyncBN')
    fully_shard(other, mesh=init_device_mesh('cpu', (WORLD,)))
    state = other.state_dict()
    checkpoint.load(state, checkpoint_id=folder)
    other.load_state_dict(state)
    for name, value in other.named_parameters():
        assert torch.equal(value.full_tensor(), expected[name]), name


def psbn_starts_at_alpha_under_fully_shard(rank):
    """ConvModule sets the bias of its new norm layer to 0."""
    model = ConvModule(3, 5, 1, norm_cfg=dict(type='psSyncBN'))
    fully_shard(model, mesh=init_device_mesh('cpu', (WORLD,)))
    model.train()
    torch.testing.assert_close(model.bn.bias.full_tensor(), torch.full((5,), 0.1))


def psbn_with_a_zero_redundancy_optimizer(rank):
    alone, model = toy(norm='psBN'), toy(norm='psSyncBN')
    wrapped = DistributedDataParallel(model)
    settings = dict(lr=0.01, momentum=0.9, weight_decay=0.01)
    optimizers = [
        ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, **settings),
        torch.optim.SGD(alone.parameters(), **settings),
    ]
    for step in range(3):
        x = whole_batch(step)
        for m, part, optimizer in zip(
            (wrapped, alone), (x.chunk(WORLD)[rank], x), optimizers
        ):
            optimizer.zero_grad()
            m(part)['loss'].backward()
            optimizer.step()
    for one, other in zip(model.parameters(), alone.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def the_runner_of_mmengine(rank):
    """Its strategy, and a hook that all processes have to obey."""
    data = [dict(inputs=x) for x in torch.cat(list(map(whole_batch, (0, 1))))]
    for poisoned in (False, True):
        os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank))
        model = toy(poisoned=poisoned)
        runner = FlexibleRunner(
            model,
            work_dir=os.path.join(os.environ['WORK'], str(poisoned)),
            experiment_name=f'fsdp-{poisoned}',
            strategy=dict(
                type='FSDPStrategy',
                model_wrapper=dict(type='MMFullyShardedDataParallel', device_id=CPU),
                state_dict_cfg=dict(
                    state_dict_type=StateDictType.FULL_STATE_DICT,
                    state_dict_config=FullStateDictConfig(rank0_only=True),
                    optim_state_dict_config=FullOptimStateDictConfig(rank0_only=True),
                ),
            ),
            launcher='pytorch',
            env_cfg=dict(dist_cfg=dict(backend='gloo')),
            train_dataloader=dict(
                dataset=data,
                batch_size=2,
                collate_fn=dict(type='default_collate'),
                sampler=dict(type='DefaultSampler', shuffle=False),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=1),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, weight_decay=0.01)),
            custom_hooks=[NonFiniteHook(), NormCheckHook()],
            log_level='ERROR',
        )
        if poisoned:
            with pytest.raises(InputError, match='not finite; .* in the backward pass'):
                runner.train()
        else:
            runner.train()


SCENARIOS = [psbn_with_a_zero_redundancy_optimizer]
if digit_version(torch.__version__) >= digit_version('2.4'):
    # In torch 2.1, FSDP needs a GPU.
    SCENARIOS += [
        mimicnorm_with_whole_parameters,
        mimicnorm_with_flat_parameters,
        mimicnorm_in_one_piece,
        mimicnorm_not_sharded,
        psbn_with_whole_parameters,
        psbn_with_flat_parameters_is_reported,
        the_runner_of_mmengine,
    ]
if fully_shard:
    SCENARIOS += [
        mimicnorm_under_fully_shard,
        psbn_under_fully_shard,
        psbn_starts_at_alpha_under_fully_shard,
    ]


def run_scenarios(rank, folder, names):
    os.environ['WORK'] = str(folder)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=WORLD
    )
    for name in names:
        print(f'{name} on rank {rank}', file=sys.stderr)
        globals()[name](rank)
        dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes(tmp_path):
    mp.spawn(run_scenarios, (tmp_path, [s.__name__ for s in SCENARIOS]), WORLD)
