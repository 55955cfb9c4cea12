from pathlib import Path

import pytest
import torch

from mmpsbn.datasets import make_digits

ROOT = Path(__file__).resolve().parent.parent
COCO128 = ROOT.parent / 'shared' / 'coco128'


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """A tiny version of the demo's task, 16 + 8 scenes."""
    out = tmp_path_factory.mktemp('data') / 'digits'
    make_digits(str(out), train=16, val=8)
    return out


@pytest.fixture(scope='session')
def coco128():
    if not COCO128.is_dir():
        pytest.skip('the COCO128 images are not beside this repository')
    return COCO128
