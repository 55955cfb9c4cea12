"""Pruning: what is constant goes, nothing else, and outputs stay."""

import copy
import json
import runpy
import sys

import onnxruntime
import pytest
import torch
from helpers import FASTER, ROOT, build, demo_config, images, needs_onnx
from mmcv.cnn import is_norm
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from mmcv.cnn.bricks.conv_ws import ConvWS2d
from mmdet.models.layers import NormedConv2d
from torch import nn

from mmpsbn.analysis import ChannelWatch
from mmpsbn.checkpoints.reading import Checkpoint
from mmpsbn.detectors.agreement import Agreement
from mmpsbn.detectors.outputs import BatchRunner, largest_difference, same_detections
from mmpsbn.errors import InputError
from mmpsbn.export.exportable import Exportable
from mmpsbn.export.onnx_file import folded_stock, prepare_image, remove_padding
from mmpsbn.layers import MimicConv
from mmpsbn.prune import Pruned, pruned_files
from mmpsbn.prune.constant_inputs import InputWatch
from mmpsbn.prune.removal import (
    ALIVE,
    COUPLED,
    LAST,
    OUTPUT,
    PADDED,
    readers,
    remove_constants,
)

SHAPE = (96, 128)
STREAM = (
    'backbone.layer2.0.bn2',
    'backbone.layer2.0.downsample.1',
    'backbone.layer2.1.bn2',
)


def lively(detector, norm, digits):
    """A config and a detector none of whose channels is constant.

    On images whose statistics norm layers have, the mean of a channel is
    their shift, 0.5; MimicNorm's is about the bias.
    """
    torch.manual_seed(0)
    cfg = demo_config(detector, norm)
    test_cfg = cfg.model.test_cfg
    test_cfg.get('rcnn', test_cfg).score_thr = 0
    model = build(cfg.model)
    for name, layer in model.named_modules():
        if is_norm(layer):
            layer.momentum = 1
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            layer.bias.data.fill_(0.5)
        elif isinstance(layer, MimicConv):
            layer.bias.data.fill_(1.0)
        elif isinstance(layer, nn.Linear) and 'shared_fcs' in name:
            layer.weight.data *= 0.01
            layer.bias.data.fill_(0.5)
        elif name.endswith('fc_cls'):  # Scores that NMS can tell apart.
            nn.init.normal_(layer.weight)
    model.train()
    batch = torch.cat(
        [prepare_image(cfg, file, model, SHAPE)['inputs'] for file in images(digits)]
    )
    with torch.no_grad():
        BatchRunner(dict(inputs=batch, data_samples=None))(model.backbone)
    return cfg, model.eval()


@pytest.fixture(scope='module')
def models(digits):
    made = {
        case: lively(*case, digits)
        for case in (('faster-rcnn', 'psbn'), ('retinanet', 'mimicnorm'))
    }
    return lambda case: copy.deepcopy(made[case])


@pytest.fixture
def faster(models):
    return models(('faster-rcnn', 'psbn'))


@pytest.fixture
def retina(models):
    return models(('retinanet', 'mimicnorm'))


def plant(model, layer, channels, value):
    """Make outputs of a norm, conv or linear layer one number."""
    layer = model.get_submodule(layer)
    layer.weight.data[channels] = 0
    layer.bias.data[channels] = value


def planted_faster(model):
    """What is to be removed, and why others that are planted stay."""
    plant(model, 'backbone.layer1.0.bn1', [3], -1.0)
    plant(model, 'backbone.layer3.1.bn1', [0, 7], -1.0)
    for layer in STREAM:
        plant(model, layer, [5], -1.0)
    # Constants, which go into the next layer's bias; after 0.5, a ReLU.
    plant(model, 'roi_head.bbox_head.shared_fcs.0', [6, 9], 0.7)
    plant(model, 'roi_head.bbox_head.shared_fcs.1', [1, 2], -1.0)
    plant(model, 'rpn_head.rpn_conv', [8], 0.3)
    # One summand, behind one of two ReLUs, before a conv with padding.
    plant(model, 'backbone.layer3.0.bn2', [4], -0.1)
    plant(model, 'backbone.layer4.0.bn2', [9], -1.0)
    plant(model, 'backbone.layer4.0.downsample.1', [9], -1.0)
    plant(model, 'backbone.layer1.1.bn1', [2], 2.0)
    plant(model, 'neck.fpn_convs.0.conv', [1], 0.0)
    plant(model, 'neck.fpn_convs.1.conv', [1], 0.0)
    plant(model, 'neck.fpn_convs.2.conv', [1], 0.0)
    plant(model, 'neck.fpn_convs.3.conv', [1], 0.0)
    return {
        'backbone.layer1.0.conv1': [3],
        'backbone.layer3.1.conv1': [0, 7],
        'backbone.layer2.0.conv2': [5],
        'backbone.layer2.0.downsample.0': [5],
        'backbone.layer2.1.conv2': [5],
        'roi_head.bbox_head.shared_fcs.0': [6, 9],
        'roi_head.bbox_head.shared_fcs.1': [1, 2],
        'rpn_head.rpn_conv': [8],
    }, {ALIVE: 1, PADDED: 1, OUTPUT: 1}


def plant_dead_on_objects(model):
    """A channel that is dead on every RoI with an area, and alive on others.

    Such RoIs fill up their number in an ONNX file.
    """
    for level in range(4):
        plant(model, f'neck.fpn_convs.{level}.conv', [2], 1.0)
    layer = model.roi_head.bbox_head.shared_fcs[0]
    weight = layer.weight.data[3].view(64, -1)
    weight.zero_()
    weight[2] = -1
    layer.bias.data[3] = 0.5


def planted_retina(model):
    """With MimicNorm, what a filter of zeros adds is its bias."""
    plant(model, 'backbone.layer4.1.conv1', [0, 255], -1.0)
    for layer in STREAM:
        plant(
            model,
            layer.replace('bn', 'conv').replace('.1', '.0')
            if 'down' in layer
            else layer.replace('bn', 'conv'),
            [5],
            -1.0,
        )
    plant(model, 'bbox_head.cls_convs.0.conv', [1], -1.0)
    plant(model, 'bbox_head.reg_convs.1.conv', [2], 1.0)
    return {
        'backbone.layer4.1.conv1': [0, 255],
        'backbone.layer2.0.conv2': [5],
        'backbone.layer2.0.downsample.0': [5],
        'backbone.layer2.1.conv2': [5],
        'bbox_head.cls_convs.0.conv': [1],
    }, {PADDED: 1}


def removed_from(cfg, model, files):
    """The folded model after the removal, and what was removed."""
    folded = folded_stock(cfg, model)
    watch = InputWatch(model, readers(folded))
    for file in files:
        data = prepare_image(cfg, file, model, SHAPE)
        with watch:
            BatchRunner(data).detections(model)
    assert set(watch.values) == set(readers(folded))
    return folded, remove_constants(folded, watch.values, data['inputs'])


@pytest.mark.parametrize(
    'name, plants', [('faster', planted_faster), ('retina', planted_retina)]
)
def test_what_is_planted_is_removed(name, plants, request, digits):
    cfg, model = request.getfixturevalue(name)
    files = images(digits)
    found = removed_from(cfg, model, files)[1]
    assert not found.removed and not found.channels and not found.kept
    expected, kept = plants(model)
    full = folded_stock(cfg, model)
    pruned, found = removed_from(cfg, model, files)
    assert found.channels == expected and found.kept == kept
    assert found.removed == sum(map(len, expected.values())) - 2  # Stream.
    for layer, channels in expected.items():
        number = len(full.get_submodule(layer).weight)
        assert found.sizes[layer] == number
        assert len(pruned.get_submodule(layer).weight) == number - len(channels)
    # The stream is read by a block, the next stage and the neck.
    for reader in ('2.1.conv1', '3.0.conv1', '3.0.downsample.0'):
        layer = pruned.get_submodule(f'backbone.layer{reader}')
        assert layer.weight.shape[1] == layer.in_channels == 63
    for file in files:
        run = BatchRunner(prepare_image(cfg, file, model, SHAPE))
        expected = run(model)
        assert largest_difference(run(pruned), expected) < 1e-5
        one, other = (run.detections(m)[0] for m in (model, pruned))
        assert same_detections(one, other) == len(one['labels']) > 0


def test_a_collapsed_network_becomes_small(faster, digits):
    """Four of five channels behind each BN of the backbone are dead."""
    cfg, trained = faster
    cfg.model.backbone.norm_cfg.type = 'BN'
    model = build(cfg.model).eval()
    model.load_state_dict(trained.state_dict())
    planted = {}
    for name, layer in model.backbone.named_modules():
        if is_norm(layer):
            dead = range(int(0.8 * layer.num_features))
            plant(model, f'backbone.{name}', dead, -0.1)
            conv = name.replace('bn', 'conv').replace('sample.1', 'sample.0')
            planted[f'backbone.{conv}'] = set(dead)
    full, files = folded_stock(cfg, model), images(digits)[:2]
    pruned, found = removed_from(cfg, model, files)
    assert len(planted) == 20
    for conv, dead in planted.items():
        assert dead <= set(found.channels[conv])

    def sizes(part):
        found = (
            sum(p.numel() for p in m.get_submodule(part).parameters())
            for m in (full, pruned)
        )
        return 'from {:.2f} to {:.2f} million'.format(*(one / 1e6 for one in found))

    # A conv keeps a fifth of its inputs and a fifth of its outputs. Neck and
    # heads have no norm layer here.
    assert sizes('backbone') == 'from 2.80 to 0.10 million'
    assert sizes('') == 'from 3.90 to 1.17 million'
    for file in files:
        run = BatchRunner(prepare_image(cfg, file, model, SHAPE))
        expected = run(model)
        assert largest_difference(run(pruned), expected) < 1e-5
        one, other = (run.detections(m)[0] for m in (model, pruned))
        assert same_detections(one, other) == len(one['labels']) > 0


def test_dead_channels_are_those_of_analyze_collapse(faster, digits):
    cfg, model = faster
    planted_faster(model)
    watch = ChannelWatch(model)
    data = prepare_image(cfg, images(digits)[0], model, SHAPE)
    with watch:
        BatchRunner(data).detections(model)
    _, found = removed_from(cfg, model, images(digits)[:1])
    for layer, channels in found.channels.items():
        if layer.startswith('backbone'):
            norm = layer.replace('conv', 'bn')
            # Its channels are judged by the sum, for the other summand.
            norm = norm.replace('downsample.0', 'bn2')
            assert watch.outputs[norm].dead[channels].all()


def test_an_input_that_changes_anywhere_is_not_constant():
    model = nn.ModuleDict(
        dict(conv=nn.Conv2d(3, 1, 1), linear=nn.Linear(3, 1), never=nn.Linear(3, 1))
    )
    watch = InputWatch(model, model)
    x = torch.tensor([2.0, 0.0, 0.0]).view(1, 3, 1, 1).repeat(2, 1, 4, 4)
    x[1, 2, 3, 3] = 1
    with watch:
        model['conv'](x)
        model['conv'](x[:0])
        model['linear'](torch.tensor([[1.0, torch.nan, 0.0]] * 3))
        model['linear'](torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, -0.0]]))
    model['conv'](torch.randn(1, 3, 4, 4))
    nan = torch.nan
    assert set(watch.values) == {'conv', 'linear'}
    for name, expected in (('conv', [2.0, 0.0, nan]), ('linear', [1.0, nan, 0.0])):
        torch.testing.assert_close(
            watch.values[name], torch.tensor(expected), equal_nan=True
        )
    with watch:
        model['conv'](x + 1)
    assert watch.values['conv'].isnan().all()


class ToyDetector(nn.Module):
    """A detector with layers instead of backbone and neck."""

    def __init__(self, *body):
        super().__init__()
        self.body = nn.Sequential(*body)
        self.neck = nn.Conv2d(4, 2, 1, bias=False)
        self.head = nn.Conv2d(2, 1, 1)

    def extract_feat(self, x):
        return [self.neck(self.body(x))]

    def bbox_head(self, features):
        return ([self.head(x) for x in features],)


def first(value):
    """A conv with ReLU whose first output is max(value, 0), others alive."""
    conv = nn.Conv2d(3, 4, 3)
    conv.weight.data.abs_()
    conv.weight.data[0], conv.bias.data[0] = 0, value
    return conv, nn.ReLU()


@pytest.mark.parametrize(
    'body, removed, kept',
    [
        (first(-1.0), 1, {}),
        # The reader, without a bias and without padding, gets one.
        (first(2.0), 1, {}),
        ((*first(2.0), nn.Conv2d(4, 4, 3)), 1, {}),
        ((*first(2.0), nn.Conv2d(4, 4, 3, padding=1)), 0, {PADDED: 1}),
        ((*first(2.0), nn.Conv2d(4, 4, 3, padding='same')), 0, {PADDED: 1}),
        ((*first(-1.0), nn.Conv2d(4, 4, 3, padding=1)), 1, {}),
        ((*first(-1.0), nn.Conv2d(4, 4, 3, groups=2)), 0, {COUPLED: 1}),
        ((*first(-1.0), nn.Conv2d(4, 4, 3, groups=4)), 0, {COUPLED: 1}),
        ((*first(-1.0), nn.ConvTranspose2d(4, 4, 3)), 0, {COUPLED: 1}),
        # They pad by themselves, or compute with other weights than their own.
        ((*first(2.0), Conv2dAdaptivePadding(4, 4, 3)), 0, {COUPLED: 1}),
        ((*first(-1.0), ConvWS2d(4, 4, 3)), 0, {COUPLED: 1}),
        ((*first(-1.0), NormedConv2d(4, 4, 3)), 0, {COUPLED: 1}),
        ((*first(-1.0), nn.PixelShuffle(2), nn.Conv2d(1, 4, 1)), 0, {}),
        ((nn.Conv2d(3, 4, 1), nn.Threshold(1e9, 0)), 3, {LAST: 1, OUTPUT: 2}),
    ],
)
def test_what_is_read_by(body, removed, kept):
    model, x = ToyDetector(*body).eval(), torch.rand(2, 3, 16, 16) + 1
    with torch.no_grad():
        expected = model.bbox_head(model.extract_feat(x))[0]
    watch = InputWatch(model, readers(model))
    with watch:
        model.bbox_head(model.extract_feat(x))
    found = remove_constants(model, watch.values, x)
    assert found.removed == removed and found.kept == kept
    with torch.no_grad():
        given = model.bbox_head(model.extract_feat(x))[0]
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-6)


def test_the_precision_of_a_bias_is_that_of_its_layer():
    body = (*first(2.0), nn.Conv2d(4, 4, 1, bias=False))
    model, x = ToyDetector(*body).double().eval(), torch.rand(1, 3, 8, 8).double()
    with InputWatch(model, readers(model)) as watch:
        model.bbox_head(model.extract_feat(x))
    assert remove_constants(model, watch.values, x).removed
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_norm_layers_that_mix_channels_stay():
    model = ToyDetector(*first(-1.0), nn.GroupNorm(2, 4)).eval()
    watch, x = InputWatch(model, readers(model)), torch.rand(1, 3, 8, 8)
    model.body[2].weight.data[0] = 0  # So that the reader sees a constant.
    with watch:
        model.bbox_head(model.extract_feat(x))
    found = remove_constants(model, watch.values, x)
    assert not found.removed and found.kept == {COUPLED: 1}


def test_a_model_that_cannot_be_followed():

    class Stumbles(ToyDetector):
        def extract_feat(self, x):
            raise KeyError('a layer of its own')

    with pytest.raises(InputError, match='cannot follow this Stumbles: .a la'):
        remove_constants(Stumbles(), {}, torch.rand(1, 3, 8, 8))


def test_frozen_and_checkpointed_layers_are_followed(faster, digits):
    cfg, model = faster
    cfg.model.backbone.update(frozen_stages=2, with_cp=True)
    expected, kept = planted_faster(model)
    _, found = removed_from(cfg, model, images(digits)[:2])
    assert found.channels == expected and found.kept == kept


# The files


def checkpoint(model):
    return dict(
        state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=('a', 'b')))
    )


def command(monkeypatch, *arguments):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, 'argv', ['tools/prune.py', *map(str, arguments)])
    runpy.run_path('tools/prune.py', run_name='__main__')


@pytest.mark.slow
@needs_onnx
def test_the_command_writes_files_that_agree(
    faster, digits, tmp_path, capsys, monkeypatch
):
    cfg, model = faster
    planted_faster(model)
    plant_dead_on_objects(model)
    model.rpn_head.test_cfg.nms.iou_threshold = 0.1  # Less than 100 RoIs.
    torch.save(checkpoint(model), tmp_path / 'a.pth')
    out = tmp_path / 'new' / 'out'
    command(
        monkeypatch,
        FASTER,
        tmp_path / 'a.pth',
        '--out',
        out,
        '--images',
        digits / 'train2017',
        '--number',
        2,
        '--shape',
        *SHAPE,
        '--cfg-options',
        'model.test_cfg.rcnn.score_thr=0',
        'model.test_cfg.rpn.nms.iou_threshold=0.1',
    )
    shown = capsys.readouterr().out
    assert 'Removed channels: 10.' in shown
    assert f'constant for a layer: 2, because {OUTPUT}.' in shown
    assert 'the 2 images that selected the channels: raw outputs differ' in shown
    assert '14 held-out images' in shown
    assert {path.name for path in out.iterdir()} == set(pruned_files.FILES)
    content = json.loads((out / 'pruned.json').read_text())
    assert content['removal']['channels']['rpn_head.rpn_conv'] == [8]
    before, after = content['before'], content['after']
    full = sum(p.numel() for p in folded_stock(cfg, model).parameters())
    assert before['parameters'] == full > after['parameters']
    assert before['flops'] > after['flops']
    agreement = content['agreement']
    assert agreement['difference'] < 1e-5
    assert agreement['same'] == agreement['detections'] > 0
    session = onnxruntime.InferenceSession(str(out / 'pruned.onnx'))
    program = torch.export.load(out / 'pruned.pt2').module()
    for file in images(digits)[:2]:
        inputs = prepare_image(cfg, file, model, SHAPE)['inputs']
        with torch.no_grad():
            expected = Exportable(model)(inputs)
            given = program(inputs)
        found = session.run(['dets', 'labels'], {'images': inputs.numpy()})
        assert largest_difference(given[2:7], expected[2:7]) < 1e-5
        truth = remove_padding(expected[0][0], expected[1][0])
        for dets, labels in (given[:2], map(torch.from_numpy, found)):
            same = same_detections(remove_padding(dets[0], labels[0]), truth)
            assert same > 0.95 * len(truth['labels']) > 0


def prune(cfg, model, digits, out):
    files = images(digits)
    return pruned_files.prune(
        cfg,
        Checkpoint('trained.pth', checkpoint(model)),
        files[:1],
        files[1:2],
        str(out),
        shape=SHAPE,
    )


def test_images_that_are_all_used_are_a_warning(capsys):
    tool = runpy.run_path(str(ROOT / 'tools/prune.py'))
    own = Agreement(24, 1e-7, 10, 10)
    tool['show_agreement'](Pruned(None, None, None, own, None))
    shown = capsys.readouterr().out
    assert 'the 24 images that selected' in shown
    assert 'none is left to compare on' in shown and 'held-out' not in shown


@needs_onnx
def test_nothing_to_prune_is_no_failure(faster, digits, tmp_path, capsys, monkeypatch):
    cfg, model = faster
    plant(model, 'backbone.layer1.1.bn1', [2], 2.0)
    torch.save(checkpoint(model), tmp_path / 'a.pth')

    def shown(*force):
        command(
            monkeypatch,
            FASTER,
            tmp_path / 'a.pth',
            '--out',
            tmp_path / 'out',
            *force,
            '--images',
            digits / 'train2017',
            '--number',
            4,
            '--shape',
            *SHAPE,
        )
        return capsys.readouterr().out

    output = shown()
    assert 'on 4 images, none is constant for all' in output
    assert f'constant for a layer: 1, because {PADDED}.' in output
    assert not (tmp_path / 'out').exists()
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'pruned.onnx').write_text('of another model')
    (tmp_path / 'out' / 'notes.txt').write_text('of a person')
    output = shown('--force')
    assert 'on 4 images, none is constant for all' in output
    assert 'no files of an earlier model' in output
    assert [file.name for file in (tmp_path / 'out').iterdir()] == ['notes.txt']


@needs_onnx
def test_a_model_that_differs_is_not_kept(retina, digits, tmp_path, monkeypatch):
    cfg, model = retina
    planted_retina(model)

    def one_too_many(folded, values, inputs):
        values['backbone.layer1.0.conv2'][4] = 0
        return remove_constants(folded, values, inputs)

    monkeypatch.setattr(pruned_files, 'remove_constants', one_too_many)
    with pytest.raises(InputError, match='the outputs of the pruned model differ'):
        prune(cfg, model, digits, tmp_path / 'out')
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@needs_onnx
def test_files_of_a_retinanet(retina, digits, tmp_path):
    cfg, model = retina
    planted_retina(model)
    pruned = prune(cfg, model, digits, tmp_path)
    assert pruned.agreement.difference < 1e-5
    assert pruned.elsewhere.images == 1
    assert pruned.after.flops < pruned.before.flops
    inputs = prepare_image(cfg, images(digits)[0], model, SHAPE)['inputs']
    program = torch.export.load(tmp_path / 'pruned.pt2').module()
    with torch.no_grad():
        assert (
            largest_difference(program(inputs)[2:], Exportable(model)(inputs)[2:])
            < 1e-5
        )


def test_an_exported_program_that_differs_is_not_kept(retina, monkeypatch):
    model = Exportable(retina[1])
    example, load = torch.rand(1, 3, *SHAPE), torch.export.load
    pruned_files._exported(model, example)

    def other(buffer):
        program = load(buffer)
        program.state_dict['model.bbox_head.retina_reg.bias'].add_(0.1)
        return program

    monkeypatch.setattr(torch.export, 'load', other)
    with pytest.raises(InputError, match='ExportedProgram differ .* the pruned model'):
        pruned_files._exported(model, example)


@needs_onnx
def test_a_folder_that_cannot_be_written(retina, digits, tmp_path, monkeypatch):
    cfg, model = retina
    planted_retina(model)
    monkeypatch.setattr(pruned_files, 'checked_program', lambda *a, **k: (0, None))
    monkeypatch.setattr(pruned_files, '_exported', lambda *a: b'')
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match='cannot be written'):
        prune(cfg, model, digits, tmp_path / 'file' / 'out')


@needs_onnx
@pytest.mark.parametrize(
    'change, words',
    [
        (dict(out='file'), 'is a file, but the tool writes a folder'),
        (dict(out='there'), 'pruned.pt2 already exists and was not replaced'),
        (dict(shape=('100', '160')), 'multiples of 32'),
        (dict(number='0'), 'at least one image'),
        (dict(images='empty'), 'has no image'),
        (dict(checkpoint='missing.pth'), 'missing.pth does not exist'),
        (dict(checkpoint='other.pth'), 'does not fit the model'),
    ],
)
def test_the_command_refuses(change, words, refused, digits, tmp_path):
    for folder in ('there', 'empty'):
        (tmp_path / folder).mkdir()
    for file in ('file', 'there/pruned.pt2'):
        (tmp_path / file).touch()
    torch.save(dict(state_dict=dict(a=torch.zeros(1))), tmp_path / 'other.pth')
    given = dict(
        checkpoint='other.pth',
        out='out',
        shape=('96', '96'),
        number='2',
        images=digits / 'val2017',
    )
    given.update(change)
    message = refused(
        'tools/prune.py',
        FASTER,
        tmp_path / given['checkpoint'],
        '--out',
        tmp_path / given['out'],
        '--shape',
        *given['shape'],
        '--number',
        given['number'],
        '--images',
        tmp_path / given['images'],
    )
    assert words in message
    assert not (tmp_path / 'out').exists()


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch_pruning', None)
    with pytest.raises(InputError, match='requirements/prune.txt'):
        pruned_files.prune(None, None, [], [], '')
