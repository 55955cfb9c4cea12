"""The command lines, as a user types them."""

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from helpers import (
    ANY_SCORE,
    FASTER,
    MIMIC_FASTER,
    MIMIC_RETINA,
    PATIENCE,
    RETINA,
    ROOT,
    SHORT,
    free_port,
    metrics,
    of_digits,
    run,
)
from mmcv.cnn import is_norm
from mmdet.models.backbones import ResNet
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.hooks import LoggerHook

import mmpsbn  # noqa: F401
from mmpsbn.checkpoints.reading import read_checkpoint
from mmpsbn.cli.errors import exit_with_message
from mmpsbn.cli.runner import build_runner, set_tta
from mmpsbn.config.model import config_scope
from mmpsbn.config.reading import load_config, read_config
from mmpsbn.detectors import build_model
from mmpsbn.errors import InputError


def test_a_full_disk_ends_with_an_error_message(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(SystemExit, match='error: nothing more can be'):
            with exit_with_message():
                (tmp_path / 'report').write_bytes(b'0' * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope='module')
def trained(digits, tmp_path_factory):
    """A work dir of one short epoch on digits."""
    work_dir = tmp_path_factory.mktemp('work') / 'faster'
    status, output = run(
        'tools/train.py', FASTER, '--work-dir', work_dir, data=digits, fresh=True
    )
    assert status == 0, output[-3000:]
    work_dir.joinpath('output').write_text(output)
    return work_dir


@pytest.mark.slow
def test_training_is_quiet_about_psbn(trained):
    output = (trained / 'output').read_text()
    assert 'coco/bbox_mAP' in output
    for line in output.splitlines():
        if 'WARNING' in line or 'Warning' in line:
            assert not any(
                word in line.lower() for word in ('norm', 'psbn', 'bn layer')
            ), line


@pytest.mark.slow
def test_test_evaluates_dumps_and_draws(trained, digits, tmp_path):
    out = tmp_path / 'predictions.pkl'
    status, output = run(
        'tools/test.py',
        FASTER,
        trained / 'epoch_1.pth',
        '--work-dir',
        os.path.relpath(tmp_path, ROOT),
        '--out',
        out,
        '--show-dir',
        'shown',
        data=digits,
        options=['test_dataloader.batch_size=4'],
    )
    assert status == 0, output[-3000:]
    assert 'coco/bbox_mAP' in metrics(tmp_path)
    with open(out, 'rb') as file:
        assert len(pickle.load(file)) == 8
    assert len(list(tmp_path.glob('*/shown/*.jpg'))) == 8


@pytest.mark.slow
def test_test_time_augmentation(trained, digits, tmp_path):
    best = {}
    for tta in ([], ['--tta']):
        out = tmp_path / f'predictions{len(tta)}.pkl'
        command = ('tools/test.py', FASTER, trained / 'epoch_1.pth', *tta)
        status, output = run(
            *command,
            '--work-dir',
            tmp_path / str(tta),
            '--out',
            out,
            data=digits,
            options=ANY_SCORE[1:],
        )
        assert status == 0, output[-3000:]
        assert 'coco/bbox_mAP' in metrics(tmp_path / str(tta))
        with open(out, 'rb') as file:
            predictions = pickle.load(file)
        best[bool(tta)] = torch.stack(
            [image['pred_instances']['scores'].max() for image in predictions]
        )
    # The best box of two views is no worse than that of one.
    assert (best[True] >= best[False] - 1e-6).all()
    assert (best[True] > best[False] + 1e-6).any()


def test_the_first_view_is_that_of_the_ground_truth(digits):
    cfg = of_digits(read_config(FASTER), digits)
    cfg.test_dataloader.dataset = dict(
        type='RepeatDataset', times=1, dataset=dict(cfg.val_dataloader.dataset)
    )
    set_tta(cfg)
    with config_scope(cfg):
        views = DATASETS.build(cfg.test_dataloader.dataset)[0]
    plain, flipped = views['data_samples']
    assert not plain.flip and flipped.flip_direction == 'horizontal'
    assert torch.equal(views['inputs'][0].flip(2), views['inputs'][1])


def test_augmentation_without_masks(tmp_path):
    cfg = read_config('configs/psbn/mask-rcnn_r50_fpn_psbn_1x_coco.py')
    with pytest.raises(InputError, match='it predicts masks, and'):
        set_tta(cfg)


@pytest.mark.slow
def test_resume_goes_on_after_the_last_checkpoint(trained, digits, tmp_path):
    work_dir = tmp_path / 'resumed'
    shutil.copytree(trained, work_dir)
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_1.pth'))
    status, output = run(
        'tools/train.py',
        FASTER,
        '--work-dir',
        work_dir,
        '--resume',
        data=digits,
        options=['train_cfg.max_epochs=2'],
    )
    assert status == 0, output[-3000:]
    assert 'resumed epoch: 1, iter: 2' in output
    assert 'Epoch(train) [2]' in output and 'Epoch(train) [1]' not in output
    optimizer = read_checkpoint(str(work_dir / 'epoch_2.pth')).content['optimizer']
    assert all('momentum_buffer' in s for s in optimizer['state'].values())
    # The work dir's config resumes, and a test of it does not.
    config = work_dir / os.path.basename(FASTER)
    assert Config.fromfile(config).resume
    status, output = run('tools/test.py', config, work_dir / 'epoch_1.pth', data=digits)
    assert status == 0 and 'coco/bbox_mAP' in output, output[-3000:]
    assert 'resumed epoch' not in output


@pytest.mark.slow
def test_ctrl_c_says_how_to_resume(digits, tmp_path):
    with subprocess.Popen(
        [
            sys.executable,
            'tools/train.py',
            FASTER,
            '--work-dir',
            tmp_path,
            '--cfg-options',
            *SHORT,
            'train_cfg.max_epochs=1000',
        ],
        cwd=ROOT,
        env=dict(os.environ, MMDET_DATASETS=str(digits)),
        # A shell's background jobs ignore Ctrl-C, and so would a child.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            for line in process.stdout:
                if 'Epoch(train)' in line:
                    break
            process.send_signal(signal.SIGINT)
            output = process.communicate(timeout=PATIENCE)[0]
        finally:
            process.kill()
    assert process.returncode == 130
    assert 'Traceback' not in output
    assert '--resume' in output.splitlines()[-1]


@pytest.mark.slow
def test_retinanet_trains_and_evaluates(digits, tmp_path):
    head = ['model.bbox_head.norm_cfg.type=psBN']
    status, output = run(
        'tools/train.py', RETINA, '--work-dir', tmp_path, data=digits, options=head
    )
    assert status == 0, output[-3000:]
    # Said once, of the head that its levels share.
    assert (
        output.count('4 batch norm layers (for example bbox_head.cls_convs.0.bn)') == 1
    )
    status, output = run(
        'tools/test.py',
        RETINA,
        tmp_path / 'epoch_1.pth',
        '--work-dir',
        tmp_path,
        data=digits,
        options=head + ANY_SCORE,
    )
    assert status == 0 and 'coco/bbox_mAP' in metrics(tmp_path), output


@pytest.fixture(scope='module')
def mimic(digits, tmp_path_factory):
    """A work dir of one short epoch of MimicNorm, in two processes."""
    work_dir = tmp_path_factory.mktemp('work') / 'mimic'
    status, output = run(
        'tools/dist_train.sh',
        MIMIC_FASTER,
        2,
        '--work-dir',
        work_dir,
        data=digits,
        launcher=['bash'],
        PORT=free_port(),
        options=[
            'model.roi_head.bbox_head.cls_predictor_cfg.sync=True',
            'model.rpn_head.last_bn.sync=True',
        ],
    )
    assert status == 0, output[-3000:]
    return work_dir


@pytest.mark.slow
def test_mimicnorm_trains_in_two_processes_and_resumes_in_one(mimic, digits, tmp_path):
    saved = read_checkpoint(str(mimic / 'epoch_1.pth'))
    for name, value in saved.state_dict.items():
        if name.startswith('backbone.') and name.endswith('weight'):
            assert value.mean((1, 2, 3)).abs().max() < 1e-6, name
    status, output = run(
        'tools/train.py',
        MIMIC_FASTER,
        '--work-dir',
        tmp_path,
        '--resume',
        mimic / 'epoch_1.pth',
        data=digits,
        options=['train_cfg.max_epochs=2'],
    )
    assert status == 0, output[-3000:]
    assert 'resumed epoch: 1' in output and 'Epoch(train) [2]' in output
    status, output = run(
        'tools/test.py',
        MIMIC_FASTER,
        tmp_path / 'epoch_2.pth',
        '--work-dir',
        tmp_path,
        data=digits,
        options=ANY_SCORE,
    )
    assert status == 0 and 'coco/bbox_mAP' in metrics(tmp_path), output


@pytest.mark.slow
def test_mimicnorm_retinanet_trains(digits, tmp_path):
    status, output = run(
        'tools/train.py', MIMIC_RETINA, '--work-dir', tmp_path, data=digits
    )
    assert status == 0, output[-3000:]
    assert (tmp_path / 'epoch_1.pth').exists()
    assert 'several pyramid levels' not in output


@pytest.mark.slow
def test_weights_of_bn_and_of_mimicnorm_are_distinguished(
    trained, mimic, refused, digits, tmp_path
):
    for config, weights, words in (
        (MIMIC_FASTER, trained / 'epoch_1.pth', 'tools/convert.py --to mimicnorm'),
        (FASTER, mimic / 'epoch_1.pth', 'has MimicNorm, but the model'),
        (MIMIC_FASTER, 'checkpoints/none.pth', 'Make it from BN weights'),
    ):
        message = refused(
            'tools/train.py',
            config,
            '--work-dir',
            tmp_path,
            data=digits,
            options=[f'load_from={weights}'],
        )
        assert words in message


def test_settings_of_mimicnorm_that_do_not_go_together(refused, digits, tmp_path):
    conv, named = 'model.backbone.conv_cfg', 'model.backbone.norm_cfg.type='
    for config, words, *options in (
        (FASTER, "norm_cfg=dict(type='MimicNorm')", f'{conv}.type=MimicConv'),
        (MIMIC_FASTER, "conv_cfg=dict(type='MimicConv')", f'{conv}=None'),
        (MIMIC_FASTER, 'remove dcn', dcn := 'model.backbone.dcn.type=DCN'),
        (MIMIC_FASTER, 'remove dcn', dcn, f'{named}mmpsbn.MimicNorm'),
    ):
        message = refused(
            'tools/train.py',
            config,
            '--work-dir',
            tmp_path,
            data=digits,
            options=options,
        )
        assert words in message


@pytest.mark.slow
@pytest.mark.parametrize('config', [FASTER, RETINA])
def test_demo_configs_run_on_coco(config, coco128, tmp_path):
    few = [
        'train_dataloader.dataset.indices=16',
        'val_dataloader.dataset.indices=8',
        'test_dataloader.dataset.indices=8',
    ]
    status, output = run(
        'tools/train.py', config, '--work-dir', tmp_path, data=coco128, options=few
    )
    assert status == 0, output[-3000:]
    status, output = run(
        'tools/test.py',
        config,
        tmp_path / 'epoch_1.pth',
        '--work-dir',
        tmp_path,
        data=coco128,
        options=few + ANY_SCORE,
    )
    assert status == 0, output[-3000:]
    assert 'coco/bbox_mAP' in metrics(tmp_path)
    state = read_checkpoint(str(tmp_path / 'epoch_1.pth')).state_dict
    assert any(
        len(value) in (81, 80 * 9)
        for key, value in state.items()
        if key.endswith('cls.bias')
    )


@pytest.mark.slow
def test_a_coco_config_trains_from_pretrained_bn(coco128, tmp_path):
    """The weights are those that it started from; docs/coco.md has more."""
    backbone = ResNet(50)
    for norm in (m for m in backbone.modules() if is_norm(m)):
        torch.nn.init.uniform_(norm.bias, 0.2, 0.4)
    weights = tmp_path / 'resnet50.pth'
    torch.save(backbone.state_dict(), weights)
    few = [f'model.backbone.init_cfg.checkpoint={weights}']
    for loader in ('train', 'val', 'test'):
        dataset = f'{loader}_dataloader.dataset'
        resize = 2 if loader == 'train' else 1
        few += [f'{dataset}.indices=2', f'{dataset}.pipeline.{resize}.scale=(160,128)']
    config = 'configs/psbn/retinanet_r50_fpn_psbn_1x_coco.py'
    status, output = run(
        'tools/train.py',
        config,
        '--work-dir',
        tmp_path,
        data=coco128,
        options=few + ANY_SCORE,
    )
    assert status == 0, output[-3000:]
    state = read_checkpoint(str(tmp_path / 'epoch_1.pth')).state_dict
    # The stem is frozen (frozen_stages=1), so its bias is BN's.
    torch.testing.assert_close(state['backbone.bn1.bias'], backbone.bn1.bias)
    trained = state['backbone.layer2.0.bn1.bias']
    assert not torch.equal(trained, backbone.layer2[0].bn1.bias)
    torch.testing.assert_close(
        trained, backbone.layer2[0].bn1.bias.detach(), rtol=0, atol=0.02
    )


def test_pretrained_weights_that_cannot_be_had(refused, digits, tmp_path, monkeypatch):
    config = 'configs/psbn/faster-rcnn_r50_fpn_psbn_1x_coco.py'
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    message = refused('tools/train.py', config, '--work-dir', tmp_path, data=digits)
    assert 'torchvision://resnet50' in message and 'Install' in message
    message = refused(
        'tools/train.py',
        config,
        '--work-dir',
        tmp_path,
        data=digits,
        options=['model.backbone.init_cfg.checkpoint=none.pth'],
    )
    assert 'none.pth does not exist' in message


@pytest.mark.slow
def test_two_processes_train_pssyncbn_on_the_cpu(digits, tmp_path):
    status, output = run(
        'tools/dist_train.sh',
        FASTER,
        2,
        '--work-dir',
        tmp_path,
        data=digits,
        launcher=['bash'],
        options=['model.backbone.norm_cfg.type=psSyncBN'],
        PORT=free_port(),
    )
    assert status == 0, output[-3000:]
    assert 'coco/bbox_mAP' in output
    # Seven images: one of the processes sees one of them twice.
    test = [FASTER, tmp_path / 'epoch_1.pth']
    odd = [*ANY_SCORE, 'test_dataloader.dataset.indices=7']
    found = []
    for tool, launcher in (('dist_test.sh', ['bash']), ('test.py', None)):
        processes = [2] if launcher else []
        out = tmp_path / f'{tool}.pkl'
        status, output = run(
            f'tools/{tool}',
            *test,
            *processes,
            '--work-dir',
            tmp_path / tool,
            '--out',
            out,
            data=digits,
            launcher=launcher,
            options=odd,
            PORT=free_port(),
        )
        assert status == 0, output[-3000:]
        found.append(
            (
                {
                    image['img_id']: image['pred_instances']
                    for image in pickle.loads(out.read_bytes())
                },
                {
                    key: value
                    for key, value in metrics(tmp_path / tool).items()
                    if key.startswith('coco/')
                },
            )
        )
    (two, metrics_of_two), (one, metrics_of_one) = found
    assert metrics_of_two == metrics_of_one
    # After two steps mAP is 0, which says nothing; the detections do.
    assert len(one) == 7 and set(one) == set(two)
    for image, instances in one.items():
        assert len(instances['scores']) == 100
        for name, values in instances.items():
            torch.testing.assert_close(values, two[image][name])


def test_one_process_writes_the_metrics(digits, tmp_path, monkeypatch):
    monkeypatch.setenv('MMDET_DATASETS', str(digits))
    runner = build_runner(load_config(str(ROOT / FASTER), None, str(tmp_path)))
    (logger,) = (hook for hook in runner.hooks if isinstance(hook, LoggerHook))
    logger.before_run(runner)
    for rank in (1, 0):
        monkeypatch.setattr('mmengine.dist.utils.get_rank', lambda *_: rank)
        logger.after_test_epoch(runner, {})
        assert bool(list(tmp_path.glob('*/*.json'))) == (rank == 0)


def test_inferencer_computes_what_the_model_computes(trained, digits):
    from mmdet.apis import DetInferencer, init_detector

    config = Config.fromfile(ROOT / FASTER)
    weights = str(trained / 'epoch_1.pth')
    image = str(next((digits / 'val2017').glob('*.jpg')))
    inferencer = DetInferencer(config, weights, device='cpu')
    result = inferencer(image, no_save_vis=True)['predictions'][0]
    assert set(result) == {'labels', 'scores', 'bboxes'}
    loaded = init_detector(config, weights, device='cpu')
    state = read_checkpoint(weights).state_dict
    for model in (inferencer.model, loaded):
        assert type(model.backbone.bn1).__name__ == 'PSBatchNorm2d'
        for key, value in model.state_dict().items():
            torch.testing.assert_close(value, state[key], msg=key)


@pytest.mark.slow
@pytest.mark.parametrize(
    'config',
    [
        MIMIC_FASTER,
        RETINA,
        'configs/psbn/retinanet_r50_fpn_pssyncbn-all_1x_coco.py',
        'configs/mimicnorm/faster-rcnn_r50_fpn_mimicnorm-all_1x_coco.py',
    ],
)
def test_inferencer_takes_config_and_weights(config, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from mmdet.apis import DetInferencer
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules()
    cfg = Config.fromfile(ROOT / config)
    cfg.model.backbone.init_cfg = None
    state = MODELS.build(cfg.model).state_dict()
    torch.save(dict(state_dict=state), 'weights.pth')
    inferencer = DetInferencer(
        model=str(ROOT / config), weights='weights.pth', device='cpu'
    )
    image = str(next((digits / 'val2017').glob('*.jpg')))
    (result,) = inferencer(image, no_save_vis=True)['predictions']
    assert set(result) == {'labels', 'scores', 'bboxes'}
    for key, value in inferencer.model.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize('one', [True, False])
def test_infer_draws_and_writes(one, trained, digits, tmp_path):
    images = sorted((digits / 'val2017').glob('*.jpg'))
    status, output = run(
        'tools/infer.py',
        images[0] if one else images[0].parent,
        FASTER,
        trained / 'epoch_1.pth',
        '--out-dir',
        tmp_path / 'out',
        '--batch-size',
        3,
        options=ANY_SCORE,
        fresh=one,
    )
    assert status == 0, output[-3000:]
    names = {image.stem for image in images[: 1 if one else None]}
    assert f'Images: {len(names)}. Pictures: ' in output
    for folder, suffix in (('vis', '.jpg'), ('preds', '.json')):
        files = {path.name for path in (tmp_path / 'out' / folder).iterdir()}
        assert files == {f'{name}{suffix}' for name in names}
    found = json.loads((tmp_path / f'out/preds/{images[0].stem}.json').read_text())
    assert len(found['bboxes']) == len(found['scores']) == 100


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(inputs='nowhere'), 'nowhere cannot be read'),
        (dict(inputs='empty'), 'has no image'),
        (dict(inputs='bad.jpg'), 'bad.jpg cannot be read'),
        (dict(inputs='.'), 'would have the same predictions file, preds/bad.json'),
        (dict(checkpoint='other.pth'), 'does not fit the model'),
        (dict(out='bad.jpg'), 'cannot be created'),
        (dict(device='cuda:99'), '--device cuda:99 cannot be used'),
        (dict(device='gpu'), '--device gpu cannot be used'),
    ],
)
def test_infer_refuses(change, words, refused, trained, digits, tmp_path):
    (tmp_path / 'empty').mkdir()
    for name in ('bad.jpg', 'bad.png'):
        (tmp_path / name).write_text('no image')
    torch.save(dict(state_dict=dict(a=torch.zeros(1))), tmp_path / 'other.pth')
    given = dict(
        inputs=digits / 'val2017',
        checkpoint=trained / 'epoch_1.pth',
        out='out',
        device='cpu',
    )
    given.update(change)
    message = refused(
        'tools/infer.py',
        tmp_path / given['inputs'],
        FASTER,
        tmp_path / given['checkpoint'],
        '--out-dir',
        tmp_path / given['out'],
        '--device',
        given['device'],
    )
    assert words in message


@pytest.mark.parametrize(
    'out, words',
    [
        ('a.txt', 'the file name must end in .pkl or .pickle'),
        ('file/a.pkl', 'file cannot be written'),
    ],
)
def test_predictions_that_cannot_be_written(out, words, refused, tmp_path):
    (tmp_path / 'file').touch()
    assert words in refused(
        'tools/test.py', FASTER, 'not-read.pth', '--out', tmp_path / out
    )


def test_missing_files_are_named(refused, digits, tmp_path):
    message = refused('tools/train.py', 'configs/none.py')
    assert 'configs/none.py does not exist' in message
    message = refused(
        'tools/test.py',
        FASTER,
        tmp_path / 'none.pth',
        '--work-dir',
        tmp_path,
        data=digits,
    )
    assert f'{tmp_path}/none.pth does not exist' in message
    message = refused(
        'tools/train.py', FASTER, '--work-dir', tmp_path, data=tmp_path / 'none'
    )
    assert 'annotations/instances_train2017.json' in message
    assert 'make_demo_data.py' in message and 'COCO2017' in message
    message = refused(
        'tools/train.py',
        FASTER,
        '--work-dir',
        tmp_path,
        '--resume',
        tmp_path / 'none.pth',
        data=digits,
    )
    assert f'{tmp_path}/none.pth does not exist' in message


@pytest.mark.parametrize(
    'content, words',
    [
        ('model = dict(', 'SyntaxError'),
        ("_base_ = 'none.py'", 'none.py'),
        ('model = undefined', 'undefined'),
        ("custom_imports = dict(imports=['none_such'])", 'none_such'),
    ],
)
def test_a_config_that_cannot_be_read(refused, content, words, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(content)
    message = refused('tools/train.py', config)
    assert f'the config {config} cannot be read' in message
    assert words in message


def test_missing_coco_is_explained(refused, tmp_path):
    config = 'configs/psbn/faster-rcnn_r50_fpn_psbn_1x_coco.py'
    message = refused('tools/train.py', config, '--work-dir', tmp_path, data=tmp_path)
    for file in (
        'instances_train2017.json',
        'instances_val2017.json',
        'train2017/',
        'val2017/',
    ):
        assert file in message


def test_load_from_that_fits_nowhere(refused, digits, tmp_path):
    # The model has them as backbone.conv1.weight and so on.
    file = tmp_path / 'backbone.pth'
    torch.save(build_model(Config.fromfile(ROOT / FASTER)).backbone.state_dict(), file)
    message = refused(
        'tools/train.py',
        FASTER,
        '--work-dir',
        tmp_path,
        data=digits,
        options=[f'load_from={file}'],
    )
    assert 'conv1.weight' in message and 'model.backbone.init_cfg' in message


@pytest.mark.parametrize('variable', [False, True])
def test_a_data_root_without_effect(variable, refused, digits, tmp_path):
    base = ROOT / 'configs/psbn/faster-rcnn_r50_fpn_psbn_1x_coco.py'
    config = tmp_path / 'config.py'
    config.write_text(f'_base_ = {str(base)!r}\ndata_root = {f"{digits}/"!r}\n')
    arguments = config, '--work-dir', tmp_path
    data = tmp_path if variable else None
    message = refused('tools/train.py', *arguments, data=data, short=False)
    root = f'{data or digits}/'
    assert f'no data set of the config is under {root}' in message


def test_a_work_dir_that_cannot_be_written(refused, digits, tmp_path):
    (tmp_path / 'file').touch()
    message = refused(
        'tools/train.py', FASTER, '--work-dir', tmp_path / 'file' / 'work', data=digits
    )
    assert 'cannot be written' in message and '--work-dir' in message


@pytest.mark.parametrize(
    'option, words',
    [
        ('backbone.norm_cfg.type=psbn', 'Did you mean psBN or psBN'),
        ('backbone.norm_cfg=psBN', "backbone.norm_cfg of the config is 'psBN'"),
        ('neck.norm_cfg=psBN', "neck.norm_cfg of the config is 'psBN'"),
    ],
)
def test_a_norm_cfg_that_is_not_one(refused, digits, tmp_path, option, words):
    work_dir = '--work-dir', tmp_path
    options = [f'model.{option}']
    assert words in refused(
        'tools/train.py', FASTER, *work_dir, data=digits, options=options
    )


def test_sync_bn_and_psbn_do_not_go_together(refused, digits, tmp_path):
    message = refused(
        'tools/train.py',
        FASTER,
        '--work-dir',
        tmp_path,
        '--launcher',
        'pytorch',
        data=digits,
        options=['sync_bn=torch'],
    )
    assert "norm_cfg=dict(type='psSyncBN')" in message


@pytest.mark.parametrize('tool', ['test', 'resume'])
def test_a_truncated_checkpoint_is_named(refused, tool, trained, digits, tmp_path):
    file = tmp_path / 'epoch_1.pth'
    content = (trained / 'epoch_1.pth').read_bytes()
    for size in (0, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        command = (
            ['tools/test.py', FASTER, file]
            if tool == 'test'
            else ['tools/train.py', FASTER, '--resume', file]
        )
        message = refused(*command, '--work-dir', tmp_path, data=digits)
        assert str(file) in message and 'truncated' in message
        assert file.stat().st_size == size


def test_a_checkpoint_of_another_architecture_names_its_keys(
    refused, trained, digits, tmp_path
):
    message = refused(
        'tools/test.py',
        RETINA,
        trained / 'epoch_1.pth',
        '--work-dir',
        tmp_path,
        data=digits,
    )
    assert 'does not fit' in message
    assert 'missing (' in message and 'unexpected (' in message


@pytest.mark.slow
@pytest.mark.parametrize(
    'arguments, option, words',
    [
        (
            (),
            'model.roi_head.bbox_head.fc_out_channels=16',
            'of another shape (roi_head.bbox_head',
        ),
        (
            ('--show-dir', 'shown'),
            'default_hooks._delete_=True',
            'VisualizationHook must be included in default_hooks',
        ),
    ],
)
def test_test_refuses(refused, trained, digits, tmp_path, arguments, option, words):
    checkpoint = trained / 'epoch_1.pth'
    arguments = FASTER, checkpoint, '--work-dir', tmp_path, *arguments
    assert words in refused('tools/test.py', *arguments, data=digits, options=[option])


@pytest.fixture
def copied(digits, tmp_path):
    data = tmp_path / 'digits'
    shutil.copytree(digits, data)
    return data


@pytest.mark.parametrize(
    'content, words',
    [
        ('', 'is empty'),
        ('{"images": [', 'cannot be read'),
        ('{}', 'has no images'),
        ('[]', 'has no images'),
        (
            '{"images": [], "annotations": [], "categories": CATEGORIES}',
            'lists no image',
        ),
        (
            '{"images": IMAGES, "annotations": [{"id": 1, "image_id": 1, "area": 9, '
            '"category_id": 1}], "categories": CATEGORIES}',
            'has no bbox',
        ),
    ],
)
def test_a_broken_annotation_file_is_named(refused, content, words, copied, tmp_path):
    file = copied / 'annotations' / 'instances_train2017.json'
    old = json.loads(file.read_text())
    for part in ('images', 'categories'):
        content = content.replace(part.upper(), json.dumps(old[part]))
    file.write_text(content)
    message = refused(
        'tools/train.py', FASTER, '--work-dir', tmp_path / 'w', data=copied
    )
    assert words in message and str(file) in message


def test_categories_that_the_classes_do_not_name(refused, copied, tmp_path):
    file = copied / 'annotations' / 'instances_train2017.json'
    content = json.loads(file.read_text())
    for category in content['categories']:
        category['name'] = f'digit {category["name"]}'
    file.write_text(json.dumps(content))
    message = refused(
        'tools/train.py', FASTER, '--work-dir', tmp_path / 'w', data=copied
    )
    assert '0 of the 10 classes' in message and 'metainfo' in message


def test_categories_in_another_order_than_the_classes(refused, copied, tmp_path):
    file = copied / 'annotations' / 'instances_train2017.json'
    content = json.loads(file.read_text())
    content['categories'][6:8] = content['categories'][7:5:-1]
    file.write_text(json.dumps(content))
    message = refused(
        'tools/train.py', FASTER, '--work-dir', tmp_path / 'w', data=copied
    )
    assert f'label 6 is 7 in {file}' in message and 'metainfo names it 6' in message


def test_another_number_of_classes_in_the_head(refused, digits, tmp_path):
    message = refused(
        'tools/train.py',
        FASTER,
        '--work-dir',
        tmp_path,
        data=digits,
        options=['model.roi_head.bbox_head.num_classes=3'],
    )
    assert 'set num_classes of the head to 10' in message


@pytest.mark.slow
@pytest.mark.parametrize(
    'damage, workers', [('missing', 0), ('empty', 0), ('text', 0), ('text', 1)]
)
def test_an_image_that_cannot_be_read_is_named(
    refused, damage, workers, copied, tmp_path
):
    file = copied / 'train2017' / '000000000003.jpg'
    file.unlink()
    if damage != 'missing':
        file.write_text('' if damage == 'empty' else 'no image')
    message = refused(
        'tools/train.py',
        FASTER,
        '--work-dir',
        tmp_path / 'w',
        data=copied,
        options=[f'train_dataloader.num_workers={workers}'],
    )
    assert '000000000003.jpg' in message


def test_amp_needs_a_gpu(refused, digits, tmp_path):
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    message = refused(
        'tools/train.py', FASTER, '--amp', '--work-dir', tmp_path, data=digits
    )
    assert 'needs a GPU' in message


@pytest.mark.slow
@pytest.mark.parametrize(
    'options, words',
    [
        (['model.backbone.norm_eval=True'], 'norm_eval=False'),
        (['optim_wrapper.paramwise_cfg.norm_decay_mult=0'], 'norm_decay_mult'),
        (['model.backbone.norm_cfg.requires_grad=False'], 'requires_grad=True'),
    ],
)
def test_a_psbn_without_effect_gets_one_warning(options, words, digits, tmp_path):
    status, output = run(
        'tools/train.py', FASTER, '--work-dir', tmp_path, data=digits, options=options
    )
    assert status == 0, output[-3000:]
    warnings = [line for line in output.splitlines() if 'Check the norm layers' in line]
    assert len(warnings) == 1 and words in warnings[0]


def test_make_demo_data_says_what_it_cannot_do(refused, tmp_path):
    tool = 'tools/make_demo_data.py'
    message = refused(tool, '--out', tmp_path, short=False)
    assert f'{tmp_path} exists' in message
    message = refused(tool, '--out', tmp_path / 'new', '--size', '10', short=False)
    assert 'size=10' in message
