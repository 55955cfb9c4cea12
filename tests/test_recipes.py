"""The recipes of docs/recipes.md do what the page says.

Test-time augmentation is in test_tools.py, and PASCAL VOC in test_voc.py.
"""

import pytest
import torch
from helpers import RETINA, ROOT, of_digits, recipe
from mmengine.hooks import Hook

from mmpsbn.checkpoints.reading import read_checkpoint
from mmpsbn.cli.runner import build_runner
from mmpsbn.config.reading import load_config, read_config

NORM = 'backbone.bn1'


class Recorder(Hook):
    """Records a norm layer, and closes some of its channels."""

    priority = 'VERY_LOW'

    def __init__(self, dead=()):
        self.dead, self.biases, self.means = list(dead), [], []

    def before_train(self, runner):
        self.norm = runner.model.get_submodule(NORM)
        with torch.no_grad():
            self.norm.weight[self.dead], self.norm.bias[self.dead] = 0, -0.2

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.biases.append(self.norm.bias.detach().clone())
        self.means.append(self.norm.running_mean.clone())


@pytest.fixture(scope='module')
def base(digits, tmp_path_factory):
    """A config of 8 iterations without a schedule of rates and evaluation."""
    cfg = of_digits(read_config(str(ROOT / RETINA)), digits)
    cfg.train_cfg.update(max_epochs=1)
    cfg.train_cfg.pop('val_interval')
    cfg.param_scheduler = cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.train_dataloader.update(batch_size=1, num_workers=0, persistent_workers=False)
    cfg.train_dataloader.dataset.indices = 8
    for step in cfg.train_dataloader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = (64, 64)
    file = tmp_path_factory.mktemp('recipes') / 'base.py'
    cfg.dump(file)
    return file


@pytest.fixture
def train(base, tmp_path):
    """Train by a recipe; the hook that has watched it."""

    def train(code, dead=()):
        file = tmp_path / 'config.py'
        file.write_text(f'_base_ = {str(base)!r}\n{code}')
        runner = build_runner(load_config(str(file), work_dir=str(tmp_path / 'work')))
        recorder = Recorder(dead)
        runner.register_hook(recorder)
        runner.train()
        assert len(recorder.biases) == 8
        return recorder

    return train


def test_ema(train, tmp_path):
    recorder = train(recipe('EMA'))
    average, last = recorder.biases[0].double(), recorder.biases[-1]
    for bias in recorder.biases[1:]:
        average += 0.0002 * (bias - average)
    saved = read_checkpoint(str(tmp_path / 'work' / 'epoch_1.pth')).state_dict
    torch.testing.assert_close(
        saved[f'{NORM}.bias'].double(), average, rtol=0, atol=1e-7
    )
    assert (last - average).abs().max() > 1e-5


def test_gradient_accumulation(train):
    recorder = train(recipe('Gradient accumulation'))
    biases, means = recorder.biases, recorder.means
    moved = [not torch.equal(*pair) for pair in zip(biases, biases[1:])]
    assert moved == [False, False, True, False, False, False, True]
    assert not any(torch.equal(*pair) for pair in zip(means, means[1:]))


@pytest.mark.parametrize('name', ['AdamW', 'Adam'])
def test_adam_and_adamw(name, train):
    code = recipe('Adam and AdamW').replace('AdamW', name)
    bias = train(code, dead=[4, 7]).biases[-1][[4, 7]]
    beta = {'AdamW': -0.3 * (1 - 1e-4 * 0.05) ** 8, 'Adam': -0.3 + 8 * 1e-4}[name]
    # From -0.3, by 1.2e-6 and by 8e-4.
    torch.testing.assert_close(bias - 0.1, torch.full((2,), beta), rtol=0, atol=2e-7)


def test_precise_statistics(base, tmp_path, monkeypatch):
    cfg = load_config(str(base), work_dir=str(tmp_path / 'work'))
    cfg.train_dataloader.sampler.shuffle = False
    cfg.model.backbone.frozen_stages = 1
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=0.1)]
    cfg.custom_hooks = [dict(type='EMAHook')]
    cfg.dump(tmp_path / 'config.py')
    runner = build_runner(cfg)
    model = runner.model
    model.init_weights()
    for name in ('bn1', 'layer2.0.bn1'):
        model.backbone.get_submodule(name).running_mean.fill_(5)
    torch.save(model.state_dict(), tmp_path / 'epoch_12.pth')
    monkeypatch.chdir(tmp_path)
    exec(compile(recipe('Precise statistics'), 'recipe', 'exec'), {})
    found = read_checkpoint('precise.pth').state_dict

    seen = []
    model.train()
    model.backbone.layer2[0].conv1.register_forward_hook(
        lambda module, args, output: seen.append(output.transpose(0, 1).flatten(1))
    )
    with torch.no_grad():
        for batch in runner.train_dataloader:
            model(**model.data_preprocessor(batch, True), mode='loss')
    assert len(seen) == 8
    mean = torch.stack([output.mean(1) for output in seen]).mean(0)
    var = torch.stack([output.var(1) for output in seen]).mean(0)
    norm = 'backbone.layer2.0.bn1'
    torch.testing.assert_close(found[f'{norm}.running_mean'], mean)
    torch.testing.assert_close(found[f'{norm}.running_var'], var)
    # The frozen stem keeps its statistics.
    assert (found['backbone.bn1.running_mean'] == 5).all()
