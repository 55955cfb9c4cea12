"""The documentation: its code runs, its commands and links exist.

Not run: the session with an ONNX file, which test_export.py runs on the file
that it exports; the script of a recipe, which test_recipes.py runs; commands
of other programs than ours (OTHERS), which fetch or install things; and shell
commands of tools, which are read and not run, but for those of docs/coco.md.
"""

import argparse
import ast
import importlib
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from functools import partial

import pytest
import torch
import yaml
from forked import run_script
from helpers import (
    ANY_SCORE,
    FRAGMENT,
    PAGES,
    ROOT,
    SHORT,
    blocks_of,
    docs_script,
    free_port,
    metrics,
)
from mmcv.cnn import is_norm
from mmdet.models.backbones import ResNet
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import HOOKS, DefaultScope

import mmpsbn
from mmpsbn.layers import MimicConv
from mmpsbn.registry import MODELS

OTHERS = {'curl', 'make', 'mkdir', 'pip', 'source', 'unzip'}
BASE = "_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\n"
# What a block has that is too large to be run here, and what is run.
SMALLER = {'800, 1344': '64, 96'}


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.language == 'python']
SCRIPTS = [b for b in PYTHON if FRAGMENT.search(b.code)]
# They are run by test_export.py, the test of COCO's commands, and test_recipes.py.
ELSEWHERE = [
    docs_script(words)
    for words in ('InferenceSession', 'coco/bbox_mAP', 'reset_running_stats')
]
NUMBERS = ELSEWHERE[1]


def commands_of(block):
    """Return the commands of a shell block, with continued lines joined."""
    code = block.code.replace('\\\n', ' ')
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r'[A-Z_]+=.*', words[0]):
            del words[0]
        if words:
            yield words


COMMANDS = [
    (block, words)
    for block in BLOCKS
    if block.language == 'shell'
    for words in commands_of(block)
]


@pytest.fixture
def clone(tmp_path):
    """A folder that has what a clone has, and takes what is written."""
    for name in ('configs', 'mmpsbn', 'tools'):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_every_block_is_of_a_kind_that_is_tested():
    assert len(PYTHON) > 15 and len(COMMANDS) > 25
    kinds = {block.language for block in BLOCKS}
    assert kinds <= {'python', 'shell', 'text', 'latex'}


@pytest.mark.parametrize('block', [b for b in SCRIPTS if b not in ELSEWHERE], ids=str)
def test_code_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo = tmp_path / 'work_dirs' / 'demo'
    demo.mkdir(parents=True)
    layer = dict(channels=4, after_sum=False, dead=[1])
    (demo / 'filter_collapse.jsonl').write_text(
        json.dumps(dict(iter=4, recovered=0, layers=dict(a=layer)))
    )
    code = block.code
    for large, small in SMALLER.items():
        code = code.replace(large, small)
    exec(compile(code, str(block), 'exec'), {})


@pytest.mark.parametrize('block', [b for b in PYTHON if b not in SCRIPTS], ids=str)
def test_config_builds(block, clone):
    register_all_modules()
    base = '' if '_base_' in block.code else BASE
    (clone / 'config.py').write_text(base + block.code)
    cfg = Config.fromfile(clone / 'config.py')
    for hook in cfg.get('custom_hooks', []):
        HOOKS.build(hook)
    names = ast.parse(block.code).body
    if 'model' not in {name.targets[0].id for name in names}:
        return
    cfg.model.backbone.init_cfg = None
    with (
        DefaultScope.overwrite_default_scope('mmdet'),
        torch.device('meta'),
    ):  # The weights are not asked for.
        model = MODELS.build(cfg.model)
    types = [type(m).__name__ for m in model.backbone.modules()]
    if 'mimicnorm' in block.code.lower():
        assert any(isinstance(m, MimicConv) for m in model.modules())
        assert not any(map(is_norm, model.backbone.modules()))
    elif 'psBN' in block.code or 'psbn' in block.code:
        assert 'PSBatchNorm2d' in types
    else:
        pytest.fail(f'{block} names no normalization')


class Parsed(BaseException):
    """The arguments of a tool, which it is not to act on."""


@pytest.fixture
def parse(monkeypatch, capsys):
    """What a script of ours makes of its arguments."""
    original = argparse.ArgumentParser.parse_args

    def stop(self, *args, **kwargs):
        raise Parsed(original(self, *args, **kwargs))

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', stop)

    def parse(script, arguments):
        monkeypatch.setattr(sys, 'argv', [script, *arguments])
        try:
            if script.endswith('.py'):
                runpy.run_path(str(ROOT / script), run_name='__main__')
            else:
                runpy.run_module(script, run_name='__main__')
        except Parsed as parsed:
            return parsed.args[0]
        except SystemExit:
            pytest.fail(capsys.readouterr().err)

    return parse


def script_of(words):
    """The Python script or module that a command runs, and its arguments."""
    if words[1] == '-m':
        return words[2], words[3:]
    script, arguments = words[1], words[2:]
    if script.endswith('dist_train.sh'):
        return 'tools/train.py', [arguments[0], *arguments[2:]]
    if script.endswith('dist_test.sh'):
        return 'tools/test.py', [*arguments[:2], *arguments[3:]]
    if script.endswith('slurm_train.sh'):
        return 'tools/train.py', [arguments[2], *arguments[4:]]
    return script, arguments


def has_option(cfg, key):
    for part in key.split('.'):
        if isinstance(cfg, list):
            cfg = cfg[int(part)]
        elif part in cfg:
            cfg = cfg[part]
        else:
            return False
    return True


@pytest.mark.parametrize('block', [b for b in BLOCKS if b.language == 'shell'], ids=str)
def test_commands_exist(block, parse, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands_of(block):
        for word in words:
            if word.startswith(
                ('configs/', 'tools/', 'benchmarks/', 'tests/', 'requirements/')
            ):
                assert (ROOT / word).exists(), word
        program = os.path.basename(words[0])
        if program == 'make':
            assert re.search(f'^{words[1]}:', (ROOT / 'Makefile').read_text(), re.M)
        if program in OTHERS or words[1:3] == ['-m', 'pytest']:
            continue
        assert program in ('python', 'bash'), words
        script, arguments = script_of(words)
        args = parse(script, arguments)
        config = getattr(args, 'config', '')
        if config.endswith('.py'):
            cfg = Config.fromfile(config)
            for key in getattr(args, 'cfg_options', None) or {}:
                assert has_option(cfg, key), key


def texts_of(source):
    """The strings of a source file, f-strings with * for their fields."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield ''.join(
                part.value if isinstance(part, ast.Constant) else '*'
                for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_messages_are_those_of_the_sources():
    said = '\n'.join(
        text
        for folder in ('mmpsbn', 'tools')
        for source in (ROOT / folder).rglob('*.py')
        if not source.is_relative_to(ROOT / 'mmpsbn' / '.mim')
        for text in texts_of(source)
    )
    page = (ROOT / 'docs' / 'troubleshooting.md').read_text()
    messages = re.findall(r'^### `(.+)`$', page, re.M)
    assert len(messages) > 5
    for message in messages:
        for part in re.split(r'\.\.\.', message):
            assert part in said, message


def slug(title):
    title = re.sub(r'[^\w\- ]', '', title.replace('`', '').lower())
    return title.strip().replace(' ', '-')


@pytest.mark.parametrize(
    'page',
    [*PAGES, ROOT / 'CHANGELOG.md'],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_lead_somewhere(page):
    text = re.sub(r'^```.*?^```$', '', page.read_text(), flags=re.M | re.S)
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
        if '://' in link:
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            titles = re.findall(r'^#+ (.+)$', target.read_text(), re.M)
            assert anchor in map(slug, titles), link


def test_the_reference_has_every_public_name():
    documented = re.findall(
        r'^::: (\S+)$', (ROOT / 'docs' / 'api.md').read_text(), re.M
    )
    packages = [
        importlib.import_module(f'mmpsbn.{path.parent.name}')
        for path in sorted(ROOT.glob('mmpsbn/*/__init__.py'))
    ]
    assert len(packages) > 7
    for package in packages:
        for name in package.__all__:
            assert f'{package.__name__}.{name}' in documented
    for path in documented:
        module, _, name = path.rpartition('.')
        assert hasattr(importlib.import_module(module), name), path


def test_the_citation_is_of_this_version_and_of_the_papers():
    cff = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert cff['cff-version'] == '1.2.0'
    assert cff['version'] == mmpsbn.__version__
    assert cff['title'] and cff['message'] and cff['authors']
    for paper, page in zip(cff['references'], ('psbn', 'mimicnorm')):
        bibtex = (ROOT / 'configs' / page / 'README.md').read_text()
        assert f'title={{{paper["title"]}}}' in bibtex
        authors = ' and '.join(
            f'{author["family-names"]}, {author["given-names"]}'
            for author in paper['authors']
        )
        assert f'author={{{authors}}}' in bibtex
        assert paper['url'].rpartition('/')[2] in bibtex


def shrunk(words):
    """A command of docs/coco.md for few small images, on this machine."""
    few = [*SHORT, *ANY_SCORE, 'default_hooks.checkpoint.save_optimizer=False']
    for loader in ('train', 'val', 'test'):
        dataset = f'{loader}_dataloader.dataset'
        resize = 2 if loader == 'train' else 1
        few += [f'{dataset}.indices=2', f'{dataset}.pipeline.{resize}.scale=(160,128)']
    words = [
        {'8': '1'}.get(word, word).replace('epoch_12', 'epoch_1') for word in words
    ]
    if words[1] == 'tools/convert.py':
        words += ['--number', '2']
    if '--cfg-options' not in words:
        words.append('--cfg-options')
    return words + few


@pytest.mark.slow
def test_the_tutorial_runs(clone, monkeypatch):
    notebook = json.loads((ROOT / 'docs' / 'tutorial.ipynb').read_text())
    cells = [
        ''.join(cell['source'])
        for cell in notebook['cells']
        if cell['cell_type'] == 'code'
    ]
    # Few scenes and one run of each normalization, without the tuning runs.
    smaller = {
        'scenes, epochs, seeds = 400, 6, 3': 'scenes, epochs, seeds = 16, 1, 1',
        'lrs = [0.01, 0.02, 0.04]': 'lrs = [0.01]',
        "    '--tune',\n    0.2,\n": '',
        "'--rounds',\n    3,": "'--rounds',\n    1,",
    }
    code = '\0'.join(cells)
    for large, small in smaller.items():
        assert large in code
        code = code.replace(large, small)
    monkeypatch.chdir(clone)
    monkeypatch.setenv('MMDET_DATASETS', '')  # A cell sets it.
    forks = partial(run_script, merged=True)
    monkeypatch.setattr(subprocess, 'run', lambda words, **_: forks(words[1:]))
    namespace = {}
    for number, cell in enumerate(code.split('\0')):
        exec(compile(cell, f'tutorial.ipynb, cell {number}', 'exec'), namespace)
    work_dir = clone / 'work_dirs' / 'tutorial'
    assert 'BN' in (work_dir / 'comparison' / 'report.md').read_text()
    assert (work_dir / 'collapse' / 'layers.png').exists()


@pytest.mark.slow
def test_the_commands_for_coco(coco128, clone, monkeypatch):
    (clone / 'data').mkdir()
    (clone / 'data' / 'coco').symlink_to(coco128)
    (clone / 'checkpoints').mkdir()
    torch.save(ResNet(50).state_dict(), clone / 'checkpoints' / 'resnet50.pth')
    path = f'{os.path.dirname(sys.executable)}{os.pathsep}{os.environ["PATH"]}'
    commands = [
        words
        for block, words in COMMANDS
        if block.page.name == 'coco.md' and words[0] not in OTHERS
    ]
    assert [words[1] for words in commands] == [
        'tools/convert.py',
        'tools/dist_train.sh',
        'tools/dist_train.sh',
        'tools/dist_test.sh',
    ]
    for words in commands:
        result = subprocess.run(
            shrunk(words),
            cwd=clone,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(os.environ, PATH=path, PORT=free_port()),
        )
        assert result.returncode == 0, result.stdout[-3000:]
    tested = clone / 'work_dirs' / 'faster-rcnn_r50_fpn_psbn_1x_coco'
    assert 'coco/bbox_mAP' in metrics(tested)
    monkeypatch.chdir(clone)
    exec(compile(NUMBERS.code, str(NUMBERS), 'exec'), {})
