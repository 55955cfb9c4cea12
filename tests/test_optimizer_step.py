"""What psBN and MimicNorm do around the steps of torch's optimizers."""

import copy
import gc
import pickle
import sys
import threading
import warnings
import weakref

import pytest
import torch
from helpers import needs_compiled_step, needs_fused, needs_scaler, run_without
from mmengine.analysis import get_model_complexity_info
from mmengine.model.efficient_conv_bn_eval import (
    turn_on_efficient_conv_bn_eval_for_single_model,
)
from mmengine.optim import OptimWrapper
from torch import nn

from mmpsbn.layers import (
    MimicConv,
    PSBatchNorm1d,
    PSBatchNorm2d,
    PSSyncBatchNorm,
    optimizer_step,
)

OPTIMIZERS = {
    'SGD': (torch.optim.SGD, dict(momentum=0.9)),
    'Nesterov': (torch.optim.SGD, dict(momentum=0.9, nesterov=True)),
    'foreach': (torch.optim.SGD, dict(momentum=0.9, foreach=True)),
    'Adam': (torch.optim.Adam, {}),
    'AdamW': (torch.optim.AdamW, {}),
    # At 0.02 it amplifies rounding a millionfold in 60 steps.
    'RMSprop': (torch.optim.RMSprop, dict(lr=0.001)),
    'Adagrad': (torch.optim.Adagrad, {}),
}
FUSED = {
    'fused SGD': (torch.optim.SGD, dict(momentum=0.9, fused=True)),
    'fused AdamW': (torch.optim.AdamW, dict(fused=True)),
}


class Reference(nn.BatchNorm2d):
    """The definition: beta is the parameter, and forward adds alpha."""

    def __init__(self, channels, alpha=0.1, dtype=None):
        super().__init__(channels, dtype=dtype)
        self.alpha = alpha

    def forward(self, input):
        return super().forward(input) + self.alpha


def network(norm, shared=False, dtype=torch.double):
    torch.manual_seed(0)
    norms = [norm(4, alpha=alpha, dtype=dtype) for alpha in (0.1, 0.3)]
    if shared:
        norms[1] = norms[0]
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        norms[0],
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, bias=False),
        norms[1],
        nn.ReLU(),
    ).to(dtype)


def loss_of(model, seed):
    torch.manual_seed(seed)
    dtype = next(model.parameters()).dtype
    x = torch.randn(4, 3, 8, 8).to(dtype)
    return (model(x) - x.mean() - 0.2).square().mean()


def train(model, optimizer, steps, closure=False, start=0):
    for seed in range(start, start + steps):

        def forward_backward():
            optimizer.zero_grad()
            loss = loss_of(model, seed)
            loss.backward()
            return loss

        if closure:
            optimizer.step(forward_backward)
        else:
            forward_backward()
            optimizer.step()
    return model


def assert_equal(ours, reference, atol=1e-9):
    """The applied biases and all other parameters agree."""
    for name, module in ours.named_modules():
        other = reference.get_submodule(name)
        for key, value in module.named_parameters(recurse=False):
            expected = getattr(other, key)
            if isinstance(other, Reference) and key == 'bias':
                expected = expected + other.alpha
            torch.testing.assert_close(value.data, expected.data, rtol=0, atol=atol)


# psBN: the optimizer steps on beta


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('closure', [False, True])
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_trajectories_are_those_of_the_definition(name, closure, shared):
    models = [network(norm, shared) for norm in (PSBatchNorm2d, Reference)]
    cls, settings = OPTIMIZERS[name]
    for model in models:
        settings = {**dict(lr=0.02, weight_decay=0.05), **settings}
        train(model, cls(model.parameters(), **settings), 60, closure)
    assert_equal(*models)
    assert (models[0][1].bias - 0.1).abs().max() > 1e-3


def test_lbfgs_evaluates_the_layer_with_alpha():
    models = [network(norm) for norm in (PSBatchNorm2d, Reference)]
    for model in models:
        train(
            model,
            torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4),
            3,
            closure=True,
        )
    assert_equal(*models)


@pytest.mark.parametrize(
    'name', [*OPTIMIZERS, *(pytest.param(name, marks=needs_fused) for name in FUSED)]
)
def test_in_float32_too(name):
    models = [network(norm, dtype=torch.float) for norm in (PSBatchNorm2d, Reference)]
    cls, settings = {**OPTIMIZERS, **FUSED}[name]
    for model in models:
        settings = {**dict(lr=0.01, weight_decay=0.05), **settings}
        train(model, cls(model.parameters(), **settings), 10)
    assert_equal(*models, atol=2e-4)


def test_decay_pulls_the_bias_to_alpha():
    layer = PSBatchNorm2d(3, alpha=0.3)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([-2.0, 0.0, 5.0]))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.01)
    start = layer.bias.detach().clone().double()
    for _ in range(20_000):
        layer.weight.grad, layer.bias.grad = torch.zeros(2, 3)
        optimizer.step()
    exact = 0.3 + (start - 0.3) * (1 - 0.1 * 0.01) ** 20_000
    torch.testing.assert_close(layer.bias.double().data, exact, rtol=0, atol=5e-5)


@needs_scaler
@pytest.mark.parametrize('fused', [False, pytest.param(True, marks=needs_fused)])
def test_a_step_that_a_scaler_skips_changes_nothing(fused):
    models = [network(norm, dtype=torch.float) for norm in (PSBatchNorm2d, Reference)]
    for model in models:
        optimizer = torch.optim.SGD(
            model.parameters(), lr=0.02, weight_decay=0.05, fused=fused
        )
        scaler = torch.amp.GradScaler('cpu', init_scale=2.0**10)
        for seed in range(4):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, seed)).backward()
            if seed == 2:
                model[0].weight.grad[0] = torch.inf
                before = [p.detach().clone() for p in model.parameters()]
            scaler.step(optimizer)
            scaler.update()
            if seed == 2:
                for one, other in zip(model.parameters(), before):
                    torch.testing.assert_close(one.data, other)
    assert_equal(*models, atol=1e-5)


def test_gradient_accumulation_of_mmengine():
    models = [network(norm) for norm in (PSBatchNorm2d, Reference)]
    for model in models:
        wrapper = OptimWrapper(
            torch.optim.SGD(model.parameters(), lr=0.02, weight_decay=0.05),
            accumulative_counts=3,
        )
        wrapper.initialize_count_status(model, 0, 9)
        for seed in range(9):
            with wrapper.optim_context(model):
                loss = loss_of(model, seed)
            wrapper.update_params(loss)
    assert_equal(*models)


@pytest.mark.parametrize('closure', [False, True])
def test_a_step_that_raises_leaves_the_bias_applied(closure):

    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            if closure:
                closure()
            raise RuntimeError('no memory')

    layer = PSBatchNorm2d(3)

    def fail():
        torch.testing.assert_close(layer.bias.data, torch.full((3,), 0.1))
        raise RuntimeError('no memory')

    optimizer = Failing(layer.parameters(), lr=0.1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match='no memory'):
            optimizer.step(*[fail] if closure else [])
        torch.testing.assert_close(layer.bias.data, torch.full((3,), 0.1))


@pytest.mark.parametrize('name', ['_foreach_sub_', '_foreach_add_'])
def test_an_interruption_leaves_the_bias_applied(monkeypatch, name):
    """Python raises KeyboardInterrupt when a call of torch returns."""
    layer, change = PSBatchNorm2d(3), getattr(torch, name)

    def interrupted(*args):
        change(*args)
        raise KeyboardInterrupt

    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=1.0)
    layer.bias.grad = torch.zeros(3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, name, interrupted)
        optimizer.step()
    optimizer.step()
    torch.testing.assert_close(layer.bias.data, torch.full((3,), 0.1))


def test_hooks_of_the_optimizer_see_the_applied_bias():
    layer, seen = PSBatchNorm2d(3), []
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for register in (
        optimizer.register_step_pre_hook,
        optimizer.register_step_post_hook,
    ):
        register(lambda *_: seen.append(layer.bias[0].item()))
    layer.bias.grad = torch.zeros(3)
    optimizer.step()
    assert seen == pytest.approx([0.1, 0.1])


def test_a_hook_that_raises_leaves_the_bias_applied():
    layer = PSBatchNorm2d(3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

    def refuse(*_):
        raise RuntimeError('not finite')

    optimizer.register_step_pre_hook(refuse)
    with pytest.raises(RuntimeError, match='not finite'):
        optimizer.step()
    torch.testing.assert_close(layer.bias.data, torch.full((3,), 0.1))


def test_an_optimizer_may_wrap_another():

    class Twice(torch.optim.Optimizer):
        """Takes two steps of an optimizer of the same parameters."""

        def __init__(self, inner):
            super().__init__(inner.param_groups, {})
            self.inner = inner

        def step(self, closure=None):
            self.inner.step()
            self.inner.step()

    class Child(torch.optim.SGD):
        def step(self, closure=None):
            super().step()

    models = [network(norm) for norm in (PSBatchNorm2d, Reference)]
    for model in models:
        inner = Child(model.parameters(), lr=0.02, weight_decay=0.05)
        train(model, Twice(inner), 5)
    assert_equal(*models)


def run_layers(code):
    """Run code in a new Python, in which mmpsbn is only its layers."""
    done = run_without(('mmengine',), code)
    assert done.returncode == 0, done.stderr


def test_optimizers_that_existed_before_and_schedulers():
    """Their classes have been hooked by torch already."""
    code = """
import torch
from torch import nn
old = torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.1)
from mmpsbn.layers import PSBatchNorm2d
layer = PSBatchNorm2d(3)
old.add_param_group(dict(params=[layer.bias], weight_decay=1.0))
scheduler = torch.optim.lr_scheduler.StepLR(old, 1)
for _ in range(3):
    layer.bias.grad = torch.zeros(3)
    old.step()
    scheduler.step()
torch.testing.assert_close(layer.bias.data, torch.full((3,), 0.1))
"""
    run_layers(code)


@pytest.mark.parametrize(
    'order',
    [
        ('optimizer', 'psBN', 'compile'),
        ('compile', 'psBN', 'optimizer'),
        ('optimizer', 'compile', 'psBN'),
    ],
    ids=' '.join,
)
def test_torch_compile_keeps_the_wrapper(order):
    """torch 2.1 takes torch's own wrapper off, and never adds it again."""
    parts = dict(
        optimizer='optimizer = SGD([bias], lr=1.0, weight_decay=0.5)',
        psBN="""
from mmpsbn.layers import PSBatchNorm2d
layer = PSBatchNorm2d(3)
layer.bias = bias
""",
        compile="torch.compile(torch.nn.ReLU(), backend='eager')(torch.ones(2))",
    )
    code = ['import torch', 'from torch.optim import SGD']
    code += ['bias = torch.nn.Parameter(torch.full((3,), -0.9))']
    code += [parts[name] for name in order]
    code += ['bias.grad = torch.zeros(3)', 'optimizer.step()']
    # Decay halves beta, which is -1.
    code += ['torch.testing.assert_close(bias.data, torch.full((3,), -0.4))']
    run_layers('\n'.join(code))


def test_decorated_steps_stay_decorated():
    """A profiler may have decorated a step before the first layer is built."""
    code = """
import functools
import torch
from torch import nn
calls = []

def counted(step):
    @functools.wraps(step)
    def wrapper(*args, **kwargs):
        calls.append(step)
        return step(*args, **kwargs)
    return wrapper

old = torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.1)
scheduler = torch.optim.lr_scheduler.StepLR(old, 1)  # It wraps old.step.
torch.optim.SGD.step = counted(torch.optim.SGD.step)

class Twice(torch.optim.SGD):
    step = counted(torch.optim.SGD.step)

from mmpsbn.layers import PSBatchNorm2d
for make, count in ((torch.optim.SGD, 1), (Twice, 2), (None, 0)):
    layer = PSBatchNorm2d(3)
    group = dict(params=[layer.bias], lr=0.1, weight_decay=1.0)
    optimizer = make([group]) if make else old
    if optimizer is old:
        old.add_param_group(group)
    layer.bias.grad = torch.zeros(3)
    calls.clear()
    optimizer.step()
    assert len(calls) == count, calls
    torch.testing.assert_close(layer.bias.data, torch.full((3,), 0.1))
"""
    run_layers(code)


def test_a_step_may_take_the_model():

    class Natural(torch.optim.SGD):
        def step(self, model):
            assert isinstance(model, nn.Module)
            super().step()

    layer = PSBatchNorm2d(3)
    Natural(layer.parameters(), lr=0.1).step(layer)


def test_models_may_be_built_in_one_thread_and_trained_in_another():
    errors = []

    def build_and_train():
        try:
            for _ in range(30):
                model = nn.Sequential(*(PSBatchNorm2d(2) for _ in range(20)))
                torch.optim.SGD(model.parameters(), lr=0.1).step()
        except RuntimeError as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=build_and_train) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert not errors


def test_a_hook_of_a_layer_keeps_no_optimizer_alive():

    class Trainer:
        def __init__(self):
            self.layer = PSBatchNorm2d(3)
            self.layer.register_forward_hook(self.watch)
            self.optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.1)

        def watch(self, *_):
            pass

    trainer = Trainer()
    trainer.optimizer.step()
    trainer = weakref.ref(trainer)
    gc.collect()
    assert trainer() is None


def test_a_layer_may_join_later_and_leave():
    model = network(PSBatchNorm2d)
    optimizer = torch.optim.SGD(model[:3].parameters(), lr=0.1, weight_decay=1.0)
    train(model, optimizer, 2)
    optimizer.add_param_group(dict(params=list(model[3:].parameters())))
    later = PSBatchNorm2d(4, alpha=0.5).double()
    model.append(later)
    optimizer.add_param_group(dict(params=list(later.parameters())))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(200):
        optimizer.step()
    for layer, alpha in ((model[1], 0.1), (model[4], 0.3), (later, 0.5)):
        torch.testing.assert_close(layer.bias.data, torch.full_like(layer.bias, alpha))
    number = len(optimizer_step._layers)
    del model, optimizer, later, layer, parameter
    gc.collect()
    assert len(optimizer_step._layers) <= number - 3


@pytest.mark.parametrize(
    'copied',
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=['deepcopy', 'pickle'],
)
def test_copies_are_stepped_on_beta(copied):
    model, reference = network(PSBatchNorm2d), network(Reference)
    sgd = dict(lr=0.02, weight_decay=0.05)
    twin = copied(model)
    train(twin, torch.optim.SGD(twin.parameters(), **sgd), 5)
    train(reference, torch.optim.SGD(reference.parameters(), **sgd), 5)
    assert_equal(twin, reference)
    assert torch.equal(model[1].bias, network(PSBatchNorm2d)[1].bias)


def test_alpha_may_change_while_training():
    """The function stays, and decay pulls to the new alpha."""
    layer = PSBatchNorm2d(3, alpha=0.1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=1.0)
    layer.bias.grad = torch.zeros(3)
    optimizer.step()
    layer.alpha = 0.4
    torch.testing.assert_close(layer.bias.data, torch.full((3,), 0.1))
    for _ in range(200):
        optimizer.step()
    torch.testing.assert_close(layer.bias.data, torch.full((3,), 0.4))


def test_frozen_layers_keep_their_bits():
    layer = PSBatchNorm2d(1000).requires_grad_(False)
    nn.init.normal_(layer.bias)
    conv = MimicConv(64, 64, 3).requires_grad_(False)
    before = copy.deepcopy([layer.bias, conv.weight])
    free = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([free, *layer.parameters(), *conv.parameters()], lr=0.1)
    free.grad = torch.ones(1)
    optimizer.step()
    assert torch.equal(layer.bias, before[0])
    assert torch.equal(conv.weight, before[1])


def test_an_old_gradient_moves_a_layer_that_was_frozen_later():
    """As zero_grad(set_to_none=False) leaves one."""
    layer = PSBatchNorm2d(3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=1.0)
    layer.bias.grad = torch.zeros(3)
    layer.requires_grad_(False)
    for _ in range(10):
        optimizer.step()
    torch.testing.assert_close(layer.bias.data, torch.full((3,), 0.1))


def test_resumes_to_the_same_bits():
    whole = network(PSBatchNorm2d, dtype=torch.float)
    part = copy.deepcopy(whole)
    settings = dict(lr=0.02, momentum=0.9, weight_decay=0.05)
    train(whole, torch.optim.SGD(whole.parameters(), **settings), 6)
    optimizer = torch.optim.SGD(part.parameters(), **settings)
    train(part, optimizer, 3)
    resumed = network(PSBatchNorm2d, dtype=torch.float)
    again = torch.optim.SGD(resumed.parameters(), **settings)
    resumed.load_state_dict(copy.deepcopy(part.state_dict()))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(resumed, again, 3, start=3)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@needs_compiled_step
@pytest.mark.parametrize('layer', [PSBatchNorm2d, MimicConv])
def test_a_compiled_step(layer):
    def make():
        torch.manual_seed(0)
        if layer is MimicConv:
            return MimicConv(3, 4, 3, dtype=torch.double)
        return network(PSBatchNorm2d)

    eager, compiled = make(), make()
    settings = dict(lr=0.02, momentum=0.9, weight_decay=0.05)
    train(eager, torch.optim.SGD(eager.parameters(), **settings), 4)
    optimizer = torch.optim.SGD(compiled.parameters(), **settings)
    optimizer.step = torch.compile(optimizer.step, backend='aot_eager')
    train(compiled, optimizer, 4)
    for one, other in zip(eager.parameters(), compiled.parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_other_optimizers_are_left_alone():
    PSBatchNorm2d(3)
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    weight.grad = torch.ones(3)
    optimizer.step()
    assert weight.tolist() == [0.5] * 3


# What it says where it cannot act


class MasterCopies:
    """As Apex's O2 does: the optimizer holds copies of the parameters."""

    def __init__(self, model):
        self.model = list(model.parameters())
        self.masters = [nn.Parameter(p.detach().clone()) for p in self.model]
        self.optimizer = torch.optim.SGD(self.masters, lr=0.1)

    def step(self):
        for master, parameter in zip(self.masters, self.model):
            master.grad = parameter.grad
        self.optimizer.step()
        for master, parameter in zip(self.masters, self.model):
            parameter.data.copy_(master.data)

    def zero_grad(self):
        for parameter in self.model:
            parameter.grad = None


@pytest.mark.parametrize(
    'make, message',
    [
        (
            lambda: network(PSBatchNorm2d),
            '2 psBN layers are trained as plain BN.*fully_shard',
        ),
        (lambda: MimicConv(3, 4, 3).double(), '1 MimicConv layers are not centered'),
    ],
    ids=['psBN', 'MimicConv'],
)
def test_an_optimizer_with_copies_is_reported_once(make, message):
    model = make()
    optimizer = MasterCopies(model)
    with pytest.warns(UserWarning, match=message) as caught:
        train(model, optimizer, 4)
    assert len(caught) == 1


def test_several_optimizers_are_no_copies():
    model = network(PSBatchNorm2d)
    parts = [
        torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[:2], model[2:])
    ]
    # One that is kept, in evaluation mode, is not trained.
    network(PSBatchNorm2d).eval()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for seed in range(4):
            for part in parts:
                part.zero_grad()
            loss_of(model, seed).backward()
            for part in parts:
                part.step()


@pytest.mark.parametrize('every', [3, 10])
def test_a_layer_whose_optimizer_steps_rarely_or_never_is_not_missed(every):
    first, later = PSBatchNorm2d(3), PSBatchNorm2d(3)
    often, rarely = (
        torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (later, first)
    )
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for count in range(1, 7):
            later(first(torch.randn(2, 3, 4, 4))).square().sum().backward()
            often.step()
            if count % every == 0:
                rarely.step()


# Everything else sees a BN


def test_its_forward_is_that_of_bn():
    assert PSBatchNorm2d.forward is nn.BatchNorm2d.forward
    assert type(PSBatchNorm2d(3).bias) is nn.Parameter


def test_a_state_dict_is_live_and_restores_the_layer():
    model = network(PSBatchNorm2d)
    state = model.state_dict()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    train(model, optimizer, 5)
    before = [p.detach().clone() for p in model.parameters()]
    model.load_state_dict(state)
    assert all(map(torch.equal, model.parameters(), before))


def test_functional_call_with_the_state_dict():
    model = network(PSBatchNorm2d).eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.double)
    assert torch.equal(
        torch.func.functional_call(model, model.state_dict(), x), model(x)
    )


@torch.no_grad()
def test_writes_of_every_kind_reach_it():
    layer = PSBatchNorm2d(3)
    value = torch.randn(3)
    for write in (
        lambda: layer.bias.data.view(-1).copy_(value),
        lambda: torch.mul(value, 1, out=layer.bias.data),
        lambda: torch._foreach_lerp_([layer.state_dict()['bias']], [value], 1.0),
    ):
        layer.reset_parameters()
        write()
        torch.testing.assert_close(layer.bias.data, value)


def test_its_bias_takes_hooks():
    layer, called = PSBatchNorm2d(3), []
    layer.bias.register_hook(called.append)
    layer(torch.randn(2, 3, 4, 4)).sum().backward()
    assert len(called) == 1


@pytest.mark.parametrize('training', [True, False])
def test_torch_fx_traces_it_like_bn(training):
    model = network(PSBatchNorm2d).train(training)
    traced = torch.fx.symbolic_trace(model)
    assert [node.op for node in traced.graph.nodes][1:-1] == ['call_module'] * 6
    x = torch.randn(2, 3, 8, 8, dtype=torch.double)
    assert torch.equal(traced(x), model(x))


def test_mmengine_s_efficient_evaluation_keeps_the_function():
    model = network(PSBatchNorm2d)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 3)
    model.eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.double)
    expected = model(x)
    turn_on_efficient_conv_bn_eval_for_single_model(model)
    torch.testing.assert_close(model(x), expected)


def test_mmengine_counts_its_operations():
    counts = [
        get_model_complexity_info(
            network(norm, dtype=torch.float).eval(),
            (3, 16, 16),
            show_table=False,
            show_arch=False,
        )['flops']
        for norm in (PSBatchNorm2d, lambda n, alpha, dtype: nn.BatchNorm2d(n))
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    'cls, shape', [(PSBatchNorm1d, (4, 3)), (PSBatchNorm2d, (4, 3, 5, 5))]
)
def test_torchscript(cls, shape):
    layer = cls(3).eval()
    x = torch.randn(shape)
    assert torch.equal(torch.jit.script(layer)(x), layer(x))


def test_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        layer = PSBatchNorm2d(3)
        assert layer.train()(torch.randn(2, 3, 4, 4)).shape == (2, 3, 4, 4)


@pytest.mark.parametrize('cls', [PSBatchNorm2d, PSSyncBatchNorm])
def test_without_a_count_of_batches(cls):
    layer, stock = cls(3, momentum=None), nn.BatchNorm2d(3, momentum=None)
    for norm in (layer, stock):
        norm.num_batches_tracked = None
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(layer(x), stock(x) + 0.1)
    torch.testing.assert_close(layer.running_mean, stock.running_mean)
