"""What only a GPU can show. Every test is skipped without one."""

import copy
import re
from functools import partial

import pytest
import torch
import torch.distributed as dist
from helpers import ANY_SCORE, FASTER, MIMIC_FASTER, MIMIC_RETINA, RETINA, build, run
from torch import nn

from benchmarks.rounds.networks import new_network
from benchmarks.rounds.studies import METHODS
from benchmarks.rounds.training import replayed
from mmpsbn.config.reading import read_config
from mmpsbn.layers import LastBNLinear, MimicConv, PSBatchNorm2d, PSSyncBatchNorm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='torch sees no GPU here'),
]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


def network(norm=PSBatchNorm2d, conv=nn.Conv2d):
    torch.manual_seed(0)
    net = nn.Sequential(
        conv(3, 16, 3, bias=False),
        norm(16),
        nn.ReLU(),
        conv(16, 32, 3, bias=False),
        norm(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        LastBNLinear(32, 5),
    )
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight)
    return net


mimic = partial(network, lambda channels: nn.Identity(), MimicConv)
networks = pytest.mark.parametrize('make', [network, mimic], ids=['psBN', 'MimicNorm'])


def train(net, make_optimizer, device, dtype=torch.float, steps=5):
    net = net.to(device, dtype)
    optimizer = make_optimizer(net.parameters())
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(8, 3, 12, 12, generator=generator, dtype=torch.double).to(
            device, dtype
        )
        optimizer.zero_grad()
        net(x).square().sub(1).square().mean().backward()
        optimizer.step()
    return net


def assert_close(net, reference, tolerance):
    for (name, value), other in zip(
        net.state_dict().items(), reference.state_dict().values()
    ):
        if value.is_floating_point():
            error = (value.double().cpu() - other).norm()
            assert error <= tolerance * (1e-2 + other.norm()), name


@networks
@pytest.mark.parametrize(
    'optimizer',
    [
        partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1),
        partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1, fused=True),
        partial(torch.optim.SGD, lr=0.05, weight_decay=0.1, foreach=False),
        partial(torch.optim.AdamW, lr=1e-3, weight_decay=10.0, eps=1e-2, fused=True),
        partial(
            torch.optim.AdamW, lr=1e-3, weight_decay=10.0, eps=1e-2, capturable=True
        ),
    ],
    ids=['foreach', 'fused', 'single', 'fused AdamW', 'capturable AdamW'],
)
def test_trains_as_in_float64_on_the_cpu(make, optimizer):
    found = train(make(), optimizer, 'cuda')
    plain = {
        key: value
        for key, value in optimizer.keywords.items()
        if key not in ('fused', 'capturable', 'foreach')
    }
    reference = train(make(), partial(optimizer.func, **plain), 'cpu', torch.double)
    assert_close(found, reference, 1e-3)


@networks
def test_channels_last_and_autocast(make):
    net = make().cuda()
    x = torch.randn(8, 3, 12, 12, device='cuda')
    expected = copy.deepcopy(net).double()(x.double())
    last = net.to(memory_format=torch.channels_last)
    found = copy.deepcopy(last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-2)
    for dtype in (torch.half, torch.bfloat16):
        with torch.autocast('cuda', dtype):
            found = copy.deepcopy(net)(x)
        error = (found.double() - expected).norm() / expected.norm()
        assert error < 0.1


@pytest.mark.parametrize('method', METHODS)
def test_replayed_passes_of_rounds(method):
    """The graphs change neither the images nor what a pass computes."""
    images = torch.randn(256, 3, 16, 16, device='cuda')
    before, labels = images.clone(), torch.arange(64, device='cuda') % 2
    net = new_network('residual', method, 3, 0, 1).cuda().train()
    twin = copy.deepcopy(net)
    replayed(net, images[:64])
    for one in (net, twin):
        for start in (64, 128):
            one.zero_grad()
            loss = nn.functional.cross_entropy(one(images[start : start + 64]), labels)
            loss.backward()
    assert images.equal(before)
    for own, other in zip(net.parameters(), twin.parameters()):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-2, atol=1e-4)
    for own, other in zip(net.buffers(), twin.buffers()):
        torch.testing.assert_close(own, other)


@networks
def test_a_step_in_a_cuda_graph(make):
    """The optimizer's step is part of the graph, with what surrounds it."""
    net = make().cuda()
    twin = copy.deepcopy(net)
    x = torch.randn(8, 3, 12, 12, device='cuda')

    def stepper(model):
        optimizer = torch.optim.SGD(
            model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1
        )

        def step():
            optimizer.zero_grad(set_to_none=False)
            model(x).square().sub(1).square().mean().backward()
            optimizer.step()

        return step

    step, plain = stepper(net), stepper(twin)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(4):
        graph.replay()
    for _ in range(7):
        plain()
    reference = {key: value.double().cpu() for key, value in twin.state_dict().items()}
    for key, value in net.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(
                value.double().cpu(), reference[key], rtol=1e-2, atol=1e-3
            )


@networks
def test_a_step_that_the_scaler_skips(make):
    net = make().cuda()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    scaler = torch.amp.GradScaler('cuda')
    before = copy.deepcopy(net.state_dict())
    scaler.scale(net(torch.randn(8, 3, 12, 12, device='cuda')).sum()).backward()
    next(net.parameters()).grad.fill_(torch.inf)
    scaler.step(optimizer)
    scaler.update()
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name]), name


@pytest.fixture
def nccl(tmp_path):
    dist.init_process_group(
        'nccl', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def test_synchronized_layers_in_a_group_of_one(nccl):
    """The kernels of SyncBatchNorm, without another process."""
    net = network(PSSyncBatchNorm)
    plain = network()
    plain.load_state_dict(net.state_dict())
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1)
    assert_close(train(net, sgd, 'cuda'), train(plain, sgd, 'cpu', torch.double), 1e-3)


@pytest.mark.parametrize('config', [FASTER, RETINA, MIMIC_FASTER, MIMIC_RETINA])
def test_tools_with_mixed_precision(digits, tmp_path, config):
    status, output = run(
        'tools/train.py', config, '--work-dir', tmp_path, '--amp', data=digits
    )
    assert status == 0, output[-3000:]
    assert 'GPU 0: ' in output
    status, output = run(
        'tools/test.py',
        config,
        tmp_path / 'epoch_1.pth',
        '--work-dir',
        tmp_path,
        data=digits,
        options=ANY_SCORE,
    )
    assert status == 0, output[-3000:]
    assert re.search(r'bbox_mAP: \d', output)


@pytest.mark.parametrize('config', [FASTER, MIMIC_RETINA])
def test_a_detector_has_the_features_of_the_cpu(digits, config, monkeypatch):
    monkeypatch.setenv('MMDET_DATASETS', str(digits))
    model = build(read_config(config, {}).model)
    x = torch.randn(2, 3, 160, 160)
    expected = copy.deepcopy(model).double().train().extract_feat(x.double())
    found = model.cuda().train().extract_feat(x.cuda())
    for one, other in zip(found, expected):
        assert (one.cpu() - other).norm() < 1e-3 * other.norm()
