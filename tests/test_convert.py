"""From BN to MimicNorm: what is kept, what moves, and what is refused."""

import subprocess
import sys

import pytest
import torch
from mmdet.models.backbones import ResNet
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import DefaultScope
from test_configs import CONFIGS
from test_integration import norms, randomized

from mmpsbn.convert import (ChannelStatistics, bn_model_cfg, distance, fold,
                            listening, norm_pairs, recalibrate, to_mimicnorm)
from mmpsbn.engine.checkpoint import check_fits
from mmpsbn.errors import InputError
from mmpsbn.layers.last_bn import LastBN
from mmpsbn.registry import MODELS

DETECTORS = ('faster-rcnn', 'retinanet')
MIMIC = dict(
    conv_cfg=dict(type='MimicConv'), norm_cfg=dict(type='MimicNorm'))


def demo_config(detector, **options):
    register_all_modules()
    path = CONFIGS / 'demo' / f'{detector}_r18-half_fpn_mimicnorm_digits.py'
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(options)
    return cfg


def build(model_cfg):
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(model_cfg)
    model.init_weights()
    return model


def trained_bn(cfg):
    """A BN model whose norm layers are far from their initial values."""
    model = build(bn_model_cfg(cfg.model))
    for norm in norms(model):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias, std=0.3)
        torch.nn.init.normal_(norm.running_mean, std=0.3)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    model.eval()
    return model


def images(digits):
    return sorted(map(str, (digits / 'train2017').glob('*.jpg')))[:4]


@pytest.mark.parametrize('detector', DETECTORS)
def test_all_but_centring_is_exact(detector, digits):
    cfg = demo_config(detector)
    cfg.model.backbone.conv_cfg.centre = False
    if detector == 'retinanet':
        cfg.model.bbox_head.conv_cfg.centre = False
    bn = trained_bn(cfg)
    converted = to_mimicnorm(cfg, dict(state_dict=bn.state_dict()),
                             images(digits), 'bn.pth')
    assert converted.before < 1e-4 and converted.after < 1e-4


@pytest.mark.parametrize('detector', DETECTORS)
def test_calibration_brings_the_outputs_back(detector, digits):
    cfg = demo_config(detector)
    bn = trained_bn(cfg)
    before = {k: v.clone() for k, v in bn.state_dict().items()}
    converted = to_mimicnorm(cfg, dict(state_dict=bn.state_dict()),
                             images(digits), 'bn.pth')
    assert converted.after < 0.7 * converted.before
    assert all(map(torch.equal, before.values(), bn.state_dict().values()))
    model = build(cfg.model)
    check_fits(model, dict(state_dict=converted.state_dict), 'mimic.pth')
    model.load_state_dict(converted.state_dict)
    last_bn, = (m for m in model.modules() if isinstance(m, LastBN))
    torch.testing.assert_close(last_bn.gain.data.square(),
                               last_bn.running_var + last_bn.eps)


def test_channel_means_are_restored_at_every_layer():
    """Where a conv is called once, and where once for each of two sizes."""

    class Levels(torch.nn.Module):

        def __init__(self, **kwargs):
            super().__init__()
            self.net = ResNet(18, base_channels=8, **kwargs)
            self.tower = ResNet(18, base_channels=8, in_channels=64, **kwargs)
            self.train(False)

        def forward(self, x):
            last = self.net(x)[-1]
            return [*self.tower(last), *self.tower(last[..., ::2, ::2])]

    source, target = Levels(), Levels(**MIMIC)
    randomized(source), target.double()
    x = torch.randn(2, 3, 160, 160, dtype=torch.double)

    def run(model):
        return model(x)

    fold(source, target)
    names = [pair.norm for pair in norm_pairs(target)]
    assert len(names) == 2 * 20
    before = distance(run(target), run(source))
    recalibrate(source, target, run)
    assert distance(run(target), run(source)) < before
    means = []
    for model in (source, target):
        found = {name: ChannelStatistics() for name in names}
        with listening(model, names, lambda name, y: found[name].add(y)):
            run(model)
        means.append(found)
    for name in names:
        torch.testing.assert_close(
            means[1][name].mean, means[0][name].mean, rtol=1e-6, atol=1e-6)


def test_channel_statistics():
    parts = [torch.randn(2, 3, 4, 5), torch.randn(1, 3, 7, 1)]
    found = ChannelStatistics()
    for part in parts:
        found.add(part)
    whole = torch.cat([p.permute(1, 0, 2, 3).flatten(1) for p in parts], 1)
    torch.testing.assert_close(found.mean.float(), whole.mean(1))
    torch.testing.assert_close(found.var.float(), whole.var(1, correction=0))


def test_psbn_converts_too(digits):
    cfg = demo_config('retinanet')
    bn = trained_bn(cfg)
    psbn = build(
        Config.fromfile(CONFIGS / 'demo' /
                        'retinanet_r18-half_fpn_psbn_digits.py').model)
    psbn.load_state_dict(bn.state_dict())
    one, other = (to_mimicnorm(cfg, dict(state_dict=model.state_dict()),
                               images(digits), 'x') for model in (bn, psbn))
    for name, value in one.state_dict.items():
        torch.testing.assert_close(value, other.state_dict[name])


def test_a_model_without_mimicnorm_is_refused():
    cfg = Config.fromfile(CONFIGS / 'demo' /
                          'retinanet_r18-half_fpn_psbn_digits.py')
    with pytest.raises(InputError, match='no MimicNorm.*conv_cfg'):
        bn_model_cfg(cfg.model)


def test_a_last_bn_without_gain_is_refused(digits):
    cfg = demo_config('faster-rcnn')
    cfg.model.roi_head.bbox_head.cls_predictor_cfg.affine = False
    bn = trained_bn(cfg)
    with pytest.raises(InputError, match='fc_cls.*affine=False'):
        to_mimicnorm(cfg, dict(state_dict=bn.state_dict()), images(digits),
                     'bn.pth')


def test_the_wrong_kind_of_checkpoint_names_its_remedy():
    bn, mimic = ResNet(18, base_channels=8), ResNet(
        18, base_channels=8, **MIMIC)
    with pytest.raises(InputError, match='convert.py --to mimicnorm'):
        check_fits(mimic, dict(state_dict=bn.state_dict()), 'bn.pth')
    with pytest.raises(InputError, match='is of MimicNorm'):
        check_fits(bn, dict(state_dict=mimic.state_dict()), 'mimic.pth')


# The command


def convert(*args):
    return subprocess.run([sys.executable, 'tools/convert.py', *map(str, args)],
                          cwd=CONFIGS.parent, capture_output=True, text=True)


@pytest.fixture(scope='module')
def backbone(tmp_path_factory):
    """A ResNet-18 of half width, as a classifier's checkpoint would be."""
    file = tmp_path_factory.mktemp('weights') / 'resnet.pth'
    state = ResNet(18, base_channels=32).state_dict()
    torch.save({**state, 'fc.weight': torch.zeros(5, 256)}, file)
    return file


CONFIG = 'configs/demo/faster-rcnn_r18-half_fpn_mimicnorm_digits.py'


def test_the_command_makes_pretrained_weights(backbone, digits, tmp_path):
    out = tmp_path / 'new' / 'mimic.pth'
    command = [CONFIG, backbone, '--to', 'mimicnorm', '--out', out, '--images',
               digits / 'val2017', '--number', 4]
    done = convert(*command)
    assert done.returncode == 0, done.stderr
    assert 'on 4 images' in done.stdout
    model = ResNet(18, base_channels=32, **MIMIC,
                   init_cfg=dict(type='Pretrained', checkpoint=str(out)))
    model.init_weights()
    state = torch.load(out, weights_only=True)['state_dict']
    assert all(torch.equal(model.state_dict()[k], state[k]) for k in state)
    again = convert(*command)
    assert again.returncode == 1 and '--force' in again.stderr
    assert convert(*command, '--force').returncode == 0


@pytest.mark.parametrize('change, words', [
    (dict(images='nowhere'), 'nowhere cannot be read'),
    (dict(images='configs'), 'configs has no image'),
    (dict(checkpoint='missing.pth'), 'missing.pth does not exist'),
    (dict(config='configs/demo/retinanet_r18-half_fpn_psbn_digits.py'),
     'no MimicNorm'),
    (dict(number='0'), 'at least 1 image'),
])
def test_the_command_refuses(change, words, backbone, digits, tmp_path):
    given = dict(
        config=CONFIG, checkpoint=backbone, number='2',
        images=digits / 'val2017')
    given.update(change)
    out = tmp_path / 'mimic.pth'
    done = convert(given['config'], given['checkpoint'], '--to', 'mimicnorm',
                   '--out', out, '--images', given['images'], '--number',
                   given['number'])
    assert done.returncode == 1 and words in done.stderr
    assert 'Traceback' not in done.stderr
    assert not list(tmp_path.iterdir())
