"""Run other people's tests with BN, and with psBN in its place.

    python tests/others/run.py --torch --configs --mmcv PATH --mmdet PATH

PATH is a checkout of MMCV (tag v2.1.0) or MMDetection (v3.3.0). Their tests of
layers and of models are run unchanged: MMCV's against the installed package,
MMDetection's against the checkout's, which has the configs; what they import
(``parameterized``) has to be installed. ``--torch`` takes torch's tests of
modules, from the installed torch, and ``--configs`` the configs of the
installed MMDetection.

Each suite runs twice, see with_norm.py. Printed are how many tests passed, and
each that passes with BN only. The exit status is 1 if one of these is not
among the differences that are known and explained below.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
SUITES = dict(
    torch='torch_modules.py',
    configs='mmdet_configs.py',
    mmcv='tests/test_cnn',
    mmdet='tests/test_models',
)


class Known(NamedTuple):
    """A test that psBN cannot pass, found by its name and its message."""

    test: str
    message: str
    why: str


KNOWN = [
    Known(
        'torch_modules.*',
        'psBN needs its learned bias',
        'psBN refuses affine=False and bias=False',
    ),
    Known(
        'mmdet_configs.test_init?yolof?',  # A bracket would begin a set.
        'AssertionError',
        "YOLOF's neck builds torch.nn.BatchNorm2d itself, so its layers stay BN",
    ),
    Known(
        '*.test_conv_module.test_order',
        "'str' object has no attribute 'dim'",
        'puts another forward, of strings, into torch.nn.BatchNorm2d; psBN has its own',
    ),
    Known(
        '*.test_resnet.test_resnet_backbone',
        'assert_params_all_zeros',
        'wants the applied bias to start at 0; psBN starts it at alpha',
    ),
]


class Outcome(NamedTuple):
    result: str
    message: str
    layers: int


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--torch', action='store_const', const=HERE, help="torch's tests of modules"
    )
    parser.add_argument(
        '--configs', action='store_const', const=HERE, help="MMDetection's configs"
    )
    parser.add_argument('--mmcv', type=Path, help='a checkout of MMCV')
    parser.add_argument('--mmdet', type=Path, help='one of MMDetection')
    args = parser.parse_args()
    if not any(vars(args).values()):
        parser.error('give --torch, --configs, --mmcv PATH or --mmdet PATH')
    return args


def start(suite: str, root: Path, norm: str, junit: str) -> subprocess.Popen:
    environment = dict(os.environ)
    if suite == 'mmdet':
        # Its tests look for configs next to the package; MMCV is compiled.
        environment['PYTHONPATH'] = os.pathsep.join(
            filter(None, (str(root), environment.get('PYTHONPATH')))
        )
    # Their settings of pytest ask for plugins of it: no addopts.
    return subprocess.Popen(
        [
            sys.executable,
            str(HERE / 'with_norm.py'),
            norm,
            '-q',
            '--tb=short',
            '-o',
            'addopts=',
            '-p',
            'no:cacheprovider',
            f'--rootdir={root}',
            f'--confcutdir={root}',
            '--continue-on-collection-errors',
            f'--junitxml={junit}',
            SUITES[suite],
        ],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outcomes(junit: str) -> dict[str, Outcome]:
    """The outcome of each test in a JUnit file, by its dotted name."""
    found = {}
    for case in ET.parse(junit).iter('testcase'):
        properties = {p.get('name'): p.get('value') for p in case.iter('property')}
        ends = [child for child in case if child.tag in ('failure', 'error', 'skipped')]
        name = '.'.join(filter(None, (case.get('classname'), case.get('name'))))
        found[name] = Outcome(
            ends[0].tag if ends else 'passed',
            ends[0].get('message', '') if ends else '',
            int(properties.get('norm layers', 0)),
        )
    return found


def run(suite: str, root: Path) -> dict[str, dict[str, Outcome]]:
    """The outcomes of a suite with each norm, which run side by side."""
    if not (root / SUITES[suite]).exists():
        sys.exit(
            f'error: {root} has no {SUITES[suite]}; give the folder of a '
            f'checkout, as git clones it, by --{suite}.'
        )
    if suite == 'mmdet' and find_spec('parameterized') is None:
        sys.exit(
            "error: MMDetection's tests import parameterized, which is not "
            'installed: pip install parameterized'
        )
    with tempfile.TemporaryDirectory() as folder:
        processes = {
            norm: start(suite, root, norm, f'{folder}/{norm}.xml')
            for norm in ('BN', 'psBN')
        }
        output = {norm: p.communicate()[0] for norm, p in processes.items()}
        for norm, process in processes.items():
            # 1: some tests failed.
            if process.returncode not in (0, 1):
                sys.exit(
                    f'{output[norm]}\nerror: the tests of {suite} did '
                    f'not run with {norm}; the end of them is above.'
                )
        return {norm: outcomes(f'{folder}/{norm}.xml') for norm in processes}


def explain(name: str, outcome: Outcome) -> str | None:
    return next(
        (
            known.why
            for known in KNOWN
            if fnmatch(name, known.test) and known.message in outcome.message
        ),
        None,
    )


def report(suite: str, found: dict[str, dict[str, Outcome]]) -> int:
    """Print a suite's row, and return how many differences are unexplained."""
    bn, ps = found['BN'], found['psBN']
    missing = Outcome('missing', '', 0)
    lost = {
        name: ps.get(name, missing)
        for name in bn
        if bn[name].result == 'passed' and ps.get(name, missing).result != 'passed'
    }
    reasons = {name: explain(name, lost[name]) for name in lost}
    counts = [len(bn), sum(o.layers > 0 for o in ps.values())]
    counts += [sum(o.result == 'passed' for o in each.values()) for each in (bn, ps)]
    counts += [
        sum(map(bool, reasons.values())),
        sum(not why for why in reasons.values()),
    ]
    print(f'| {suite} | ' + ' | '.join(map(str, counts)) + ' |', flush=True)
    for why in dict.fromkeys(filter(None, reasons.values())):
        print(f'  explained: {why} ({sum(each == why for each in reasons.values())})')
    for name, why in reasons.items():
        if not why:
            print(
                f'  {lost[name].result} with psBN only: {name}: '
                f'{lost[name].message.splitlines()[:1]}'
            )
    for name, outcome in bn.items():
        if outcome.result in ('failure', 'error'):
            print(
                f'  {outcome.result} with BN: {name}: '
                f'{outcome.message.splitlines()[:1]}'
            )
    if not counts[1]:
        sys.exit(
            f'error: no test of {suite} has built psBN, so nothing was compared. '
            'The failures above say why.'
        )
    return counts[-1]


def main():
    args = parse_args()
    print(
        '| suite | tests | that build psBN | passed with BN | with psBN '
        '| lost, explained | lost, unexplained |\n' + '|---' * 7 + '|'
    )
    unexplained = [
        report(suite, run(suite, root.resolve()))
        for suite, root in vars(args).items()
        if root
    ]
    sys.exit(int(any(unexplained)))


if __name__ == '__main__':
    main()
