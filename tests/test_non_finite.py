"""NaN and infinity never reach the weights."""

import json

import pytest
import torch
from mmengine.model import BaseModel
from test_checkpoint import toy_runner
from test_tools import FASTER, refused  # noqa: F401  The fixture.
from torch import nn

from mmpsbn.checkpoints.reading import find_latest
from mmpsbn.errors import DivergenceError, InputError
from mmpsbn.hooks.non_finite_hook import DIVERGED
from mmpsbn.layers import PSBatchNorm2d


class Root(nn.Module):
    """Of minus one in some of its training forwards."""

    def __init__(self, steps, backward):
        super().__init__()
        self.steps, self.backward, self.step = steps, backward, 0

    def forward(self, x):
        if torch.is_grad_enabled():
            self.step += 1
        if self.step not in self.steps:
            return x
        return x + (0 * x).sqrt() if self.backward else x - (x * 0 - 1).sqrt()


class Toy(BaseModel):
    def __init__(self, steps=(), backward=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = PSBatchNorm2d(4)
        self.root = Root(steps, backward)
        self.last = nn.Conv2d(4, 4, 1)
        self.log = []

    def forward(self, inputs, data_samples=None, mode='loss'):
        if torch.is_grad_enabled():
            self.log.append(self.conv.weight.detach().clone())
        x = self.last(self.root(self.norm(self.conv(torch.stack(inputs)))))
        return dict(loss_mean=x.square().mean())


def runner(work_dir, model, **hook):
    # Two steps an epoch.
    return toy_runner(
        work_dir, model, epochs=3, custom_hooks=[dict(type='NonFiniteHook', **hook)]
    )


@pytest.mark.parametrize(
    'backward, words', [(False, 'began in root'), (True, 'began in the backward')]
)
def test_stops_before_the_step(backward, words, tmp_path):
    model = Toy(steps=[4], backward=backward)
    with pytest.raises(DivergenceError, match='iteration 4: ') as error:
        runner(tmp_path, model).train()
    assert words in str(error.value)
    found = json.loads((tmp_path / DIVERGED).read_text())
    assert found['iteration'] == 4 and words in found['cause']
    assert model.root.step == 4 and len(model.log) == 4
    assert torch.equal(model.conv.weight, model.log[-1])
    assert not torch.equal(model.log[-2], model.log[-1])
    assert find_latest(str(tmp_path)).path == str(tmp_path / 'epoch_1.pth')
    # The forward that looks for the layer is not one of training.
    assert model.norm.num_batches_tracked == 4


def test_skips_as_if_the_batch_had_not_been(tmp_path):
    model = Toy(steps=[3, 4])
    runner(tmp_path, model, action='skip').train()
    before = model.log
    assert len(before) == 6
    assert torch.equal(before[2], before[3])
    assert torch.equal(before[3], before[4])
    assert not torch.equal(before[4], before[5])
    assert all(p.isfinite().all() for p in model.parameters())


def test_does_not_skip_for_ever(tmp_path):
    with pytest.raises(InputError, match='iteration 5: '):
        runner(tmp_path, Toy(steps=[3, 4, 5, 6]), action='skip', most_skipped=2).train()
    # With a good step between.
    runner(
        tmp_path / 'other', Toy(steps=[1, 2, 4, 5]), action='skip', most_skipped=2
    ).train()


def test_weights_that_were_bad_are_named(tmp_path):
    model = Toy()
    run = runner(tmp_path, model)
    with torch.no_grad():
        model.last.weight[0] = torch.inf
    with pytest.raises(InputError, match='weights .* last.weight for one'):
        run.train()


def test_the_file_of_a_diverged_training_is_removed_by_the_next(tmp_path):
    (tmp_path / DIVERGED).write_text('{}')
    runner(tmp_path, Toy()).train()
    assert not (tmp_path / DIVERGED).exists()


def test_an_action_that_there_is_not(tmp_path):
    with pytest.raises(InputError, match="one of 'stop', 'skip'"):
        runner(tmp_path, Toy(), action='ignore').train()


def test_the_command_stops(refused, digits, tmp_path):  # noqa: F811
    message = refused(
        'tools/train.py',
        FASTER,
        '--work-dir',
        tmp_path,
        data=digits,
        options=['optim_wrapper.optimizer.lr=1e30'],
    )
    assert 'iteration 2: the gradients are not finite; it began in' in message
    assert 'Try a smaller lr' in message
