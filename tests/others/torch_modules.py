"""torch's tests of modules, over the layers that the registry calls BN.

The inputs are torch's own, ``torch.testing._internal.common_modules``; it has
no reference for batch norm, so that the definition is the reference here. What
is asserted follows PyTorch's test/test_modules.py, which no package installs.

Run by run.py in a process of its own: the import of torch's test utilities
changes settings of torch and hypothesis.
"""

import copy
import io

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn
from torch.testing import assert_close
from torch.testing._internal.common_modules import module_db
from torch.testing._internal.common_utils import (
    gradcheck,
    gradgradcheck,
    noncontiguous_like,
)

INFOS = {info.module_cls: info for info in module_db}
DIMS = (1, 2, 3)
# torch before 2.3 does not swap parameters.
set_swap = getattr(
    torch.__future__, 'set_swap_module_params_on_conversion', lambda swap: None
)
SWAPS = (False, True) if hasattr(torch.utils, 'swap_tensors') else (False,)


class Case:
    """One of torch's inputs, in training or evaluation."""

    def __init__(self, dim: int, training: bool, index: int) -> None:
        self.dim, self.training = dim, training
        info = INFOS[getattr(nn, f'BatchNorm{dim}d')]
        self.given = info.module_inputs_func(info, 'cpu', torch.double, True, training)[
            index
        ]

    @property
    def input(self):
        return self.given.forward_input.args[0]

    def layer(self, **kwargs) -> nn.Module:
        given = self.given.constructor_input
        layer = MODELS.get(f'BN{self.dim}d')(
            *given.args, **{'dtype': torch.double, **given.kwargs, **kwargs}
        )
        return layer.train(self.training)


def names(dim):
    info = INFOS[getattr(nn, f'BatchNorm{dim}d')]
    for training in (True, False):
        inputs = info.module_inputs_func(info, 'cpu', torch.double, True, training)
        for index, given in enumerate(inputs):
            mode = 'train' if training else 'eval'
            yield pytest.param(
                (dim, training, index), id=f'{dim}d-{given.desc or "affine"}-{mode}'
            )


@pytest.fixture(params=[each for dim in DIMS for each in names(dim)])
def case(request):
    torch.manual_seed(0)
    return Case(*request.param)


def gradients(layer, x):
    """Of the input and the parameters, for an output with random weights."""
    y = layer(x)
    torch.manual_seed(1)
    return torch.autograd.grad(
        (y * torch.randn_like(y)).sum(), (x, *layer.parameters())
    )


def test_forward(case):
    layer, x = case.layer(), case.input
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    dims = [d for d in range(x.dim()) if d != 1]
    mean, var = x.mean(dims), x.var(dims, unbiased=False)
    if not case.training and layer.track_running_stats:
        mean, var = state['running_mean'], state['running_var']
    shape = (1, -1) + (1,) * (x.dim() - 2)
    expected = (x - mean.view(shape)) / (var.view(shape) + layer.eps).sqrt()
    if 'weight' in state:
        expected = expected * state['weight'].view(shape)
    if 'bias' in state:
        expected = expected + state['bias'].view(shape)
    assert_close(layer(x), expected)
    assert type(layer).__name__ in repr(layer)


def test_factory_arguments(case):
    for dtype in (torch.float32, torch.float64):
        layer = case.layer(dtype=dtype)
        assert {p.dtype for p in layer.parameters()} <= {dtype}
        assert layer(case.input.to(dtype)).dtype == dtype
    layer = case.layer(device='meta')
    assert all(v.is_meta for v in layer.state_dict().values())


@torch.no_grad()
def test_to(case):
    for swap in SWAPS:
        layer = case.layer(dtype=torch.float32)
        expected = layer(case.input.float())
        set_swap(swap)
        try:
            layer.double()
            assert {p.dtype for p in layer.parameters()} <= {torch.double}
            assert_close(layer(case.input), expected.double(), rtol=1e-4, atol=1e-4)
            layer.to('meta')
            assert all(v.is_meta for v in layer.state_dict().values())
            layer.to_empty(device='cpu')
            assert not any(v.is_meta for v in layer.state_dict().values())
        finally:
            set_swap(False)


def test_pickle_and_copy(case):
    layer = case.layer()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    twins = [torch.load(file, weights_only=False), copy.deepcopy(layer)]
    expected = layer(case.input)
    for twin in twins:
        assert torch.equal(twin(case.input), expected)
        assert str(twin) == str(layer)
        assert not {id(p) for p in twin.parameters()} & {
            id(p) for p in layer.parameters()
        }


def test_save_and_load(case):
    layer = case.layer()
    with torch.no_grad():
        for value in layer.parameters():
            value.normal_()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    expected = layer(case.input)
    for assign in (False, True):
        for swap in SWAPS:
            file.seek(0)
            twin = case.layer(device='meta' if assign else 'cpu')
            set_swap(swap)
            try:
                twin.load_state_dict(torch.load(file), assign=assign)
            finally:
                set_swap(False)
            assert torch.equal(twin(case.input), expected)
            for one, other in zip(twin.parameters(), layer.parameters()):
                assert one.requires_grad == other.requires_grad
                assert isinstance(one, nn.Parameter)


def test_non_contiguous_input(case):
    layer, x = case.layer(), case.input
    apart = noncontiguous_like(x).detach().requires_grad_()
    assert x.numel() == 0 or not apart.is_contiguous()
    twin = copy.deepcopy(layer)
    assert_close(twin(apart), layer(x))
    for one, other in zip(gradients(twin, apart), gradients(layer, x)):
        assert_close(one, other)


def test_memory_format(case):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    memory_format = formats.get(case.input.dim(), torch.contiguous_format)
    layer, twin = case.layer(), case.layer().to(memory_format=memory_format)
    expected = layer(case.input)
    for module in (twin, case.layer()):
        y = module(case.input.contiguous(memory_format=memory_format))
        assert_close(y, expected)
        assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize('check', [gradcheck, gradgradcheck])
def test_gradients(case, check):
    layer, x = case.layer(), case.input
    # The check changes the values of the parameters in place.
    assert check(lambda x, *parameters: layer(x), (x, *layer.parameters()))


@pytest.mark.parametrize('dim', DIMS)
@pytest.mark.parametrize('index', [0, 1])
def test_errors_of_training(dim, index):
    info = INFOS[getattr(nn, f'BatchNorm{dim}d')]
    if info.module_error_inputs_func is None:
        pytest.skip('this torch has no inputs with errors')
    error = info.module_error_inputs_func(info, 'cpu', torch.double, False, True)[index]
    given = error.module_error_input
    layer = MODELS.get(f'BN{dim}d')(
        *given.constructor_input.args, **given.constructor_input.kwargs
    )
    with pytest.raises(error.error_type, match=error.error_regex):
        layer(*given.forward_input.args)


@pytest.mark.parametrize('dim', DIMS)
def test_errors_of_evaluation(dim):
    info = INFOS[getattr(nn, f'BatchNorm{dim}d')]
    if info.module_error_inputs_func is None:
        pytest.skip('this torch takes it')
    layer = MODELS.get(f'BN{dim}d')(3, eps=-1.0).eval()
    with pytest.raises(ValueError, match='eps must be non-negative'):
        layer(torch.randn(2, 3, *[4] * dim))
