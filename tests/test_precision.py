"""Other precisions, memory formats and ways to run the same layers."""

import copy
from contextlib import contextmanager

import pytest
import torch
from helpers import (
    NORM_CFGS,
    RootToy,
    backbone,
    needs_fused,
    needs_onnx,
    needs_scaler,
    needs_setup_context,
    needs_strict,
    toy_runner,
)
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from torch.nn import functional as F

from mmpsbn.errors import InputError
from mmpsbn.layers import LastBNLinear

norms = pytest.mark.parametrize('norm', NORM_CFGS)


def images(*shape):
    return torch.randn(*shape or (2, 3, 32, 32), dtype=torch.double)


def step(net, x, run=None):
    """The outputs of a step of SGD, and what it left in the network."""
    outputs = (net if run is None else run)(x)
    sum(y.square().mean() for y in outputs).backward()
    grads = [p.grad.clone() for p in net.parameters()]
    with torch.no_grad():
        for p in net.parameters():
            p.sub_(0.1 * p.grad)
            p.grad = None
    return [*outputs, *grads, *net.state_dict().values()]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    'norm', ['psBN', 'psSyncBN', pytest.param('MimicNorm', marks=needs_setup_context)]
)
def test_compiles_without_a_graph_break(norm):
    net = backbone(norm).double()
    twin = copy.deepcopy(net)
    run = torch.compile(net, fullgraph=True, backend='aot_eager')
    for _ in range(2):
        x = images()
        assert_same(step(net, x, run), step(twin, x))


@norms
def test_channels_last(norm):
    net = backbone(norm).double()
    twin = copy.deepcopy(net).to(memory_format=torch.channels_last)
    for _ in range(2):
        x = images()
        outputs = step(twin, x.to(memory_format=torch.channels_last))
        assert outputs[0].is_contiguous(memory_format=torch.channels_last)
        assert_same(outputs, step(net, x))


@pytest.mark.parametrize(
    'norm, strict',
    [
        pytest.param('psBN', False, marks=needs_onnx),
        pytest.param('MimicNorm', True, marks=needs_strict),
    ],
)
def test_exports(norm, strict):
    net = backbone(norm).double()
    net.eval()
    x = images()
    exported = torch.export.export(net, (x,), strict=strict).module()
    assert_same(exported(x), net(x))


@pytest.mark.parametrize('how', ['with_cp', 'wrapped'])
def test_mimicnorm_under_gradient_checkpointing(how):
    """MMDetection's, and that of MMEngine's strategies."""
    net = backbone('MimicNorm')
    twin = copy.deepcopy(net)
    if how == 'with_cp':
        for block in (*twin.layer1, *twin.layer2):
            block.with_cp = True
    else:
        apply_activation_checkpointing(
            twin, check_fn=lambda m: m in {*twin.layer1, *twin.layer2}
        )
    # Before the type changes, which a scalar would pass for moved.
    for one, other in zip(twin.parameters(), net.parameters()):
        assert torch.equal(one, other)
    net.double(), twin.double()
    for _ in range(2):
        x = images().requires_grad_()
        assert_same(step(twin, x), step(net, x))


# Mixed precision

# Makes the first scales, near float32's end, too large.
LOUD = 1024


class Classifier(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.backbone = backbone(norm)
        last = LastBNLinear if norm == 'MimicNorm' else nn.Linear
        self.last = last(16, 4)

    def forward(self, x):
        return self.last(self.backbone(x)[-1].mean((2, 3)))


class CPUAmpOptimWrapper(AmpOptimWrapper):
    """MMEngine's steps with torch's scaler; its own need a GPU."""

    def __init__(self, optimizer, dtype=torch.bfloat16, **scaler):
        OptimWrapper.__init__(self, optimizer)
        self._scale_update_param = None
        self.loss_scaler = torch.amp.GradScaler('cpu', **scaler)
        self.cast_dtype = dtype

    @contextmanager
    def optim_context(self, model):
        with (
            OptimWrapper.optim_context(self, model),
            torch.autocast('cpu', self.cast_dtype),
        ):
            yield


def trained(norm, dtype, steps=3):
    """What some steps change in a network, with a scale that starts high."""
    net = Classifier(norm)
    start = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02 / LOUD, momentum=0.9)
    wrapper = (
        CPUAmpOptimWrapper(
            optimizer, dtype, init_scale=2.0**127, backoff_factor=2.0**-9
        )
        if dtype
        else OptimWrapper(optimizer)
    )
    torch.manual_seed(1)
    x, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    for _ in range(steps):
        buffers = copy.deepcopy(dict(net.named_buffers()))
        while True:
            net.load_state_dict(buffers, strict=False)
            with wrapper.optim_context(net):
                logits = net(x)
            wrapper.backward(LOUD * F.cross_entropy(logits.float(), labels))
            assert all(p.grad.dtype == torch.float32 for p in net.parameters())
            before = dtype and wrapper.loss_scaler.get_scale()
            wrapper.step()
            wrapper.zero_grad()
            if dtype is None or wrapper.loss_scaler.get_scale() >= before:
                break
    for value in (*net.parameters(), *net.buffers()):
        assert value.dtype in (torch.float32, torch.long)
    return {
        name: value - start[name]
        for name, value in net.state_dict().items()
        if 'num_batches' not in name
    }


@norms
@needs_scaler
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_mixed_precision_trains_as_float32(norm, dtype):
    expected, found = trained(norm, None), trained(norm, dtype)
    for running in (True, False):
        one, other = (
            torch.cat(
                [
                    value.flatten()
                    for name, value in changes.items()
                    if ('running' in name) == running
                ]
            )
            for changes in (found, expected)
        )
        assert (one - other).norm() < 0.3 * other.norm()


class LoudToy(RootToy):
    def forward(self, *args, **kwargs):
        losses = super().forward(*args, **kwargs)
        return {name: LOUD * loss for name, loss in losses.items()}


def scaled_runner(work_dir, model, fused=False, action='stop', **scaler):
    run = toy_runner(
        work_dir,
        model,
        epochs=8,
        custom_hooks=[dict(type='NonFiniteHook', action=action)],
    )
    run.optim_wrapper = CPUAmpOptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1 / LOUD, fused=fused), **scaler
    )
    return run


@needs_scaler
@pytest.mark.parametrize('fused', [False, pytest.param(True, marks=needs_fused)])
def test_a_scaler_looks_for_its_scale(fused, tmp_path):
    """Its infinite gradients are no reason to stop."""
    model = LoudToy()
    run = scaled_runner(tmp_path, model, fused, init_scale=2.0**127)
    run.train()
    assert 0 < run.optim_wrapper.loss_scaler.get_scale() < 2.0**127
    assert len(model.log) == 16 and torch.equal(model.log[0], model.log[2])
    assert not torch.equal(model.log[-1], model.log[0])
    assert all(p.isfinite().all() for p in model.parameters())


@needs_scaler
@pytest.mark.parametrize('fused', [False, pytest.param(True, marks=needs_fused)])
def test_a_loss_that_no_scale_mends_stops_the_run(fused, tmp_path):
    model = RootToy(steps=[4])
    with pytest.raises(
        InputError, match='iteration 4: the loss is not finite; .* appeared in root'
    ):
        scaled_runner(tmp_path, model, fused).train()
    assert torch.equal(model.conv.weight, model.log[-1])
    model = RootToy(steps=[4])
    scaled_runner(tmp_path / 'skip', model, fused, action='skip').train()
    assert len(model.log) == 16 and torch.equal(model.log[3], model.log[4])


@needs_scaler
@pytest.mark.parametrize('fused', [False, pytest.param(True, marks=needs_fused)])
def test_gradients_that_no_scale_mends_stop_the_run(fused, tmp_path):
    model = RootToy(steps=range(20), backward=True)
    with pytest.raises(
        InputError, match='iteration 3: .* however small .*appeared in the backward'
    ):
        scaled_runner(tmp_path, model, fused, init_scale=2.0**-14).train()
    assert torch.equal(model.conv.weight, model.log[0])
