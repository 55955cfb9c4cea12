"""NaN and infinity never reach the weights."""

import json

import pytest
import torch
from helpers import FASTER, RootToy, toy_runner

from mmpsbn.checkpoints.reading import find_latest
from mmpsbn.errors import DivergenceError, InputError
from mmpsbn.hooks.non_finite_hook import DIVERGED


def runner(work_dir, model, **hook):
    # Two steps an epoch.
    return toy_runner(
        work_dir, model, epochs=3, custom_hooks=[dict(type='NonFiniteHook', **hook)]
    )


@pytest.mark.parametrize(
    'backward, words', [(False, 'appeared in root'), (True, 'appeared in the backward')]
)
def test_stops_before_the_step(backward, words, tmp_path):
    model = RootToy(steps=[4], backward=backward)
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
    model = RootToy(steps=[3, 4])
    runner(tmp_path, model, action='skip').train()
    before = model.log
    assert len(before) == 6
    assert torch.equal(before[2], before[3])
    assert torch.equal(before[3], before[4])
    assert not torch.equal(before[4], before[5])
    assert all(p.isfinite().all() for p in model.parameters())


def test_does_not_skip_for_ever(tmp_path):
    with pytest.raises(InputError, match='iteration 5: '):
        runner(
            tmp_path, RootToy(steps=[3, 4, 5, 6]), action='skip', most_skipped=2
        ).train()
    # With a good step between.
    runner(
        tmp_path / 'other', RootToy(steps=[1, 2, 4, 5]), action='skip', most_skipped=2
    ).train()


def test_weights_that_were_bad_are_named(tmp_path):
    model = RootToy()
    run = runner(tmp_path, model)
    with torch.no_grad():
        model.last.weight[0] = torch.inf
    with pytest.raises(InputError, match=r'weights .* \(for example last.weight\)'):
        run.train()


def test_the_file_of_a_diverged_training_is_removed_by_the_next(tmp_path):
    (tmp_path / DIVERGED).write_text('{}')
    runner(tmp_path, RootToy()).train()
    assert not (tmp_path / DIVERGED).exists()


def test_an_action_that_there_is_not(tmp_path):
    with pytest.raises(InputError, match="Choose 'stop' or 'skip'"):
        runner(tmp_path, RootToy(), action='ignore').train()


def test_the_command_stops(refused, digits, tmp_path):
    message = refused(
        'tools/train.py',
        FASTER,
        '--work-dir',
        tmp_path,
        data=digits,
        options=['optim_wrapper.optimizer.lr=1e30'],
    )
    assert 'iteration 2: the gradients are not finite; non-finite values' in message
    assert 'Try a smaller lr' in message
