"""The benchmarks of memory and time, and the CSV files of their measurements."""

import math
import sys
from pathlib import Path

import pytest
import torch
from helpers import RETINA, needs_onnx
from mmdet.models.backbones import ResNet

from benchmarks import collapse_watch, inference, memory, optimizer_step
from benchmarks.shared.costs import Costs
from benchmarks.shared.memory import largest_batch
from mmpsbn.analysis import saved_bytes
from mmpsbn.errors import InputError


def test_memory_of_other_backbones():
    saved = {}
    for norm in ('BN', 'GN', 'MimicNorm', memory.PUBLISHED):
        model = memory.Backbone('MobileNetV2', norm).train()
        inputs = model.inputs((128, 128))
        saved[norm] = saved_bytes(lambda: model.loss(inputs), model.parameters())
    assert saved['GN'] == pytest.approx(saved['BN'], rel=0.01)
    assert saved['MimicNorm'] < 0.75 * saved['BN']
    assert saved[memory.PUBLISHED] < saved['BN']
    assert isinstance(memory.Backbone('ResNet-18', 'BN').net, ResNet)


def test_batches_that_fill_a_memory():
    largest = {}
    for norm in ('BN', 'MimicNorm'):
        model = memory.Backbone('MobileNetV2', norm).train()

        def saved(batch):
            inputs = model.inputs((96, 96), batch)
            return saved_bytes(lambda: model.loss(inputs), model.parameters())

        largest[norm] = largest_batch(lambda batch: saved(batch) <= 120 * 2**20)
        assert saved(largest[norm]) <= 120 * 2**20 < saved(largest[norm] + 1)
    assert largest['MimicNorm'] > 1.25 * largest['BN']
    assert largest_batch(lambda batch: False) == 0
    assert 940 < largest_batch(lambda batch: batch <= 1000) <= 1000


def test_a_gpu_is_filled():
    """As far as that can be seen without one: by an error of its kind."""
    model = memory.Backbone('ResNet-18', 'BN').train()

    def full(net, inputs):
        if len(inputs[0]) > 5:
            raise torch.cuda.OutOfMemoryError('full')

    hook = model.net.register_forward_pre_hook(full)
    batch, speed = memory.fill(model, (32, 32))
    assert batch == 5 and speed > 0
    assert all(p.grad is None for p in model.parameters())
    hook.remove()
    model.net.register_forward_pre_hook(lambda net, _: full(net, [range(9)]))
    assert memory.fill(model, (32, 32)) == (0, 0)


def run(monkeypatch, benchmark, folder, *options):
    name = benchmark.__name__.rpartition('.')[2]
    arguments = [name, '--rounds', '1', '--results', str(folder), *options]
    monkeypatch.setattr(sys, 'argv', arguments)
    benchmark.main()
    file = folder / f'{name}.csv'
    return Costs(file, benchmark.Measured, benchmark.Cost).all()


@pytest.mark.slow
def test_measurements_are_rows_of_a_file(monkeypatch, tmp_path):
    options = '--backbones', 'ResNet-18', '--detectors', '--norms', 'none', 'MimicNorm'
    size = '--size', '64', '64', '--device', 'cpu'
    found = run(monkeypatch, memory, tmp_path, *options, *size)
    where = f'CPU, {torch.get_num_threads()} threads', 'ResNet-18'
    norms = ('BN', 'MimicNorm', 'none')
    assert set(found) == {memory.Measured(*where, norm, 64, 64) for norm in norms}
    bn, mimic, none = (found[memory.Measured(*where, norm, 64, 64)] for norm in norms)
    assert bn.step == bn.inference == none.step_of_none == 1
    assert none.saved < mimic.saved < 0.8 * bn.saved and mimic.step > 0
    assert mimic.step_of_none == pytest.approx(mimic.step / none.step, rel=0.02)
    assert math.isnan(bn.peak) and math.isnan(bn.batch)

    # Measurements of other sizes remain.
    run(monkeypatch, memory, tmp_path, *options[:-2], 'none', '--size', '32', '32')
    again = run(monkeypatch, memory, tmp_path, *options[:-1], *size)
    assert len(again) == 5
    kept = again[memory.Measured(*where, 'MimicNorm', 64, 64)]
    assert (kept.saved, kept.step) == (mimic.saved, mimic.step)


@pytest.mark.slow
def test_the_steps_of_optimizers(monkeypatch, tmp_path):
    found = run(monkeypatch, optimizer_step, tmp_path, '--device', 'cpu')
    bn, psbn, mimic = found.values()
    assert bn.more == 0 and bn.step > 0 and psbn.around > 0 and mimic.around > 0


@needs_onnx
@pytest.mark.slow
def test_three_ways_to_detect(monkeypatch, tmp_path):
    found = run(monkeypatch, inference, tmp_path, RETINA, '--shape', '64', '64')
    ((measured, cost),) = found.items()
    assert measured[1:] == (Path(RETINA).stem, 64, 64)
    assert min(cost.trained, cost.folded, cost.onnx) > 0


@pytest.mark.slow
def test_watched_steps(monkeypatch, tmp_path):
    found = run(monkeypatch, collapse_watch, tmp_path)
    for one in found.values():
        assert one.training - 1 == pytest.approx((one.step - 1) * 4 / 500, abs=1e-4)


def test_a_file_of_other_measurements(monkeypatch, tmp_path):
    (tmp_path / 'memory.csv').write_text('a,b\n1,2\n')
    with pytest.raises(InputError, match='line 1 of .*memory.csv'):
        run(monkeypatch, memory, tmp_path)
    with pytest.raises(InputError, match='memory.csv cannot be made: .* --results'):
        run(monkeypatch, memory, tmp_path / 'memory.csv' / 'memory.csv')
    with pytest.raises(InputError, match='no.py does not exist'):
        run(monkeypatch, inference, tmp_path, 'no.py')


@pytest.mark.parametrize(
    'benchmark', [collapse_watch, inference, memory, optimizer_step]
)
def test_no_measurement_is_refused(monkeypatch, capsys, benchmark, tmp_path):
    with pytest.raises(SystemExit):
        run(monkeypatch, benchmark, tmp_path, '--rounds', '0')
    assert '--rounds is 0, but must be at least 1' in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize('benchmark', [memory, optimizer_step])
def test_a_gpu_that_is_absent(monkeypatch, capsys, benchmark, tmp_path):
    with pytest.raises(SystemExit):
        run(monkeypatch, benchmark, tmp_path, '--device', 'cuda')
    assert '--device cuda cannot be used' in capsys.readouterr().err
