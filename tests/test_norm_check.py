"""The one warning of psBN and SyncBN layers that cannot do their work."""

import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn

from mmpsbn.engine import find_idle_norms
from mmpsbn.layers import PSBatchNorm2d, PSSyncBatchNorm


def reasons(*norms, weight_decay=1e-4):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *norms)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, weight_decay=weight_decay)
    return find_idle_norms(model, OptimWrapper(optimizer))


def test_nothing_is_said_of_layers_that_work():
    frozen = PSBatchNorm2d(4).eval().requires_grad_(False)
    assert reasons(PSBatchNorm2d(4), frozen, nn.BatchNorm2d(4)) == []
    assert reasons(nn.SyncBatchNorm(4), nn.SyncBatchNorm(4).eval()) == []
    # Stock BN without effect is nobody's surprise.
    assert reasons(nn.BatchNorm2d(4).eval(), weight_decay=0) == []


def test_norm_eval_is_reported_for_psbn_and_syncbn():
    for norm in (PSBatchNorm2d(4), nn.SyncBatchNorm(4)):
        reason, = reasons(norm.eval())
        assert 'evaluation mode' in reason and 'norm_eval=False' in reason
    assert len(reasons(PSSyncBatchNorm(4).eval())) == 2


def test_frozen_psbn_is_reported():
    reason, = reasons(PSBatchNorm2d(4).requires_grad_(False))
    assert 'frozen' in reason and 'requires_grad=True' in reason


def test_psbn_without_decay_is_reported():
    reason, = reasons(PSBatchNorm2d(4), weight_decay=0)
    assert 'weight decay' in reason and 'norm_decay_mult' in reason


def test_several_optimizers():
    model = nn.Sequential(PSBatchNorm2d(4), nn.Conv2d(4, 4, 1))
    for decay, number in ((0, 1), (1e-4, 0)):
        wrapper = OptimWrapperDict(**{
            name: OptimWrapper(
                torch.optim.SGD(part.parameters(), 0.1, weight_decay=decay))
            for name, part in zip('ab', model)
        })
        assert len(find_idle_norms(model, wrapper)) == number
