"""Sharded parameters: MimicNorm under FSDP, and psBN, which refuses it."""

import copy
import os
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.model import BaseModel
from mmengine.model.wrappers import MMFullyShardedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.runner import FlexibleRunner
from test_precision import backbone
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (FullOptimStateDictConfig,
                                    FullStateDictConfig, ShardingStrategy,
                                    StateDictType)

from mmpsbn.engine import NonFiniteHook
from mmpsbn.errors import InputError
from mmpsbn.layers import PSBatchNorm2d, PSSyncBatchNorm

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # Before torch 2.6.
    fully_shard = None

WORLD = 2
CPU = torch.device('cpu')


class Toy(BaseModel):

    def __init__(self, norm='MimicNorm', poisoned=False):
        super().__init__()
        self.net, self.poisoned = backbone(norm), poisoned

    def forward(self, inputs, data_samples=None, mode='loss'):
        x = torch.stack(inputs) if isinstance(inputs, list) else inputs
        if self.poisoned and torch.is_grad_enabled():
            # A gradient that one process alone will have.
            self.net.conv1.weight.register_hook(lambda grad: grad * torch.nan)
        return dict(loss=sum(
            y.square().mean() for y in self.net(x.double())))


def toy(**kwargs):
    model = Toy(**kwargs).double()
    model.train()
    return model


def sharded(model, blocks=True, **kwargs):
    """The model under FSDP, block by block if asked."""
    parts = {id(m) for m in (*model.net.layer1, *model.net.layer2)}

    def policy(module, recurse, nonwrapped_numel):
        return recurse or id(module) in parts

    return MMFullyShardedDataParallel(
        model, auto_wrap_policy=policy if blocks else None, device_id=CPU,
        **kwargs)


def full_state(model, rank0_only=False):
    with model.state_dict_type(
            model, StateDictType.FULL_STATE_DICT,
            FullStateDictConfig(rank0_only=rank0_only)):
        return model.state_dict()


def whole_batch(step):
    torch.manual_seed(step)
    return torch.randn(2 * WORLD, 3, 16, 16, dtype=torch.double)


def optimizer_of(model):
    return OptimWrapper(torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01))


def trains_as_one_process(rank, **kwargs):
    alone = toy()
    wrapped = sharded(toy(), **kwargs)
    wrappers = [optimizer_of(model) for model in (wrapped, alone)]
    for step in range(3):
        x = whole_batch(step)
        wrapped.train_step(dict(inputs=x.chunk(WORLD)[rank]), wrappers[0])
        alone.train_step(dict(inputs=x), wrappers[1])
    expected = alone.state_dict()
    # Where only the first process saves, the others keep what they have.
    full_state(wrapped, rank0_only=True)
    found = full_state(wrapped)
    assert list(found) == list(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9,
                                   atol=1e-12, msg=name)
    other = sharded(toy(), **kwargs)
    with other.state_dict_type(other, StateDictType.FULL_STATE_DICT):
        other.load_state_dict(expected)
    for name, value in full_state(other).items():
        assert torch.equal(value, expected[name]), name


def mimicnorm_with_whole_parameters(rank):
    trains_as_one_process(rank, use_orig_params=True)


def mimicnorm_with_flat_parameters(rank):
    trains_as_one_process(rank, use_orig_params=False)


def mimicnorm_in_one_piece(rank):
    trains_as_one_process(rank, blocks=False)


def mimicnorm_not_sharded(rank):
    trains_as_one_process(
        rank, sharding_strategy=ShardingStrategy.NO_SHARD)


def mimicnorm_under_fully_shard(rank):
    """FSDP's successor, which shards each parameter by itself."""
    mesh = init_device_mesh('cpu', (WORLD, ))
    alone, model = toy(), toy()
    for part in (*model.net.layer1, *model.net.layer2, model):
        fully_shard(part, mesh=mesh)
    wrappers = [optimizer_of(m) for m in (model, alone)]
    for step in range(3):
        x = whole_batch(step)
        for m, part, wrapper in zip((model, alone),
                                    (x.chunk(WORLD)[rank], x), wrappers):
            wrapper.update_params(m(part)['loss'])
    expected = alone.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value.full_tensor(), expected[name],
                                   rtol=1e-9, atol=1e-12, msg=name)


def psbn_under_fully_shard_is_refused(rank):
    mesh = init_device_mesh('cpu', (WORLD, ))
    with pytest.raises(TypeError, match='train it with DistributedDataPara'):
        fully_shard(toy(norm='psBN'), mesh=mesh)


def psbn_is_refused(rank):
    for norm in ('psBN', 'psSyncBN'):
        for whole in (True, False):
            with pytest.raises(TypeError, match='Batch.* FSDP .* train it '
                                                'with DistributedDataPara'):
                sharded(toy(norm=norm), use_orig_params=whole)


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
                model_wrapper=dict(
                    type='MMFullyShardedDataParallel', device_id=CPU),
                state_dict_cfg=dict(
                    state_dict_type=StateDictType.FULL_STATE_DICT,
                    state_dict_config=FullStateDictConfig(rank0_only=True),
                    optim_state_dict_config=FullOptimStateDictConfig(
                        rank0_only=True))),
            launcher='pytorch',
            env_cfg=dict(dist_cfg=dict(backend='gloo')),
            train_dataloader=dict(
                dataset=data, batch_size=2,
                collate_fn=dict(type='default_collate'),
                sampler=dict(type='DefaultSampler', shuffle=False)),
            train_cfg=dict(by_epoch=True, max_epochs=1),
            optim_wrapper=dict(
                optimizer=dict(type='SGD', lr=0.01, weight_decay=0.01)),
            custom_hooks=[NonFiniteHook()],
            log_level='ERROR')
        if poisoned:
            with pytest.raises(InputError, match='not finite; all layers'):
                runner.train()
        else:
            runner.train()


SCENARIOS = [
    mimicnorm_with_whole_parameters, mimicnorm_with_flat_parameters,
    mimicnorm_in_one_piece, mimicnorm_not_sharded, psbn_is_refused,
    the_runner_of_mmengine
]
if fully_shard:
    SCENARIOS += [
        mimicnorm_under_fully_shard, psbn_under_fully_shard_is_refused
    ]


def run_scenarios(rank, folder, names):
    os.environ['WORK'] = str(folder)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store',
                            rank=rank, world_size=WORLD)
    for name in names:
        print(f'{name} on rank {rank}', file=sys.stderr)
        globals()[name](rank)
        dist.barrier()
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    mp.spawn(run_scenarios, (tmp_path, [s.__name__ for s in SCENARIOS]),
             WORLD)


@pytest.mark.parametrize('cls', [PSBatchNorm2d, PSSyncBatchNorm])
def test_psbn_keeps_its_parameter_whole(cls):
    layer = cls(3)
    beta = layer.beta
    with pytest.raises(TypeError, match=f'the bias of {cls.__name__} was'):
        del layer.bias
    assert layer.beta is beta
    assert torch.equal(copy.deepcopy(layer).beta, beta)
