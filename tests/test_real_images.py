"""The study on real photographs: its data, its runs and its report."""

import csv
import json
import math
import re
import shutil
import sys
from xml.etree import ElementTree

import pytest
from helpers import SHORT

from benchmarks.real_images import __main__ as command
from benchmarks.real_images import studies
from benchmarks.real_images.neu_det import convert
from benchmarks.real_images.report import README, _section
from benchmarks.real_images.results import Key, Outcome, Results
from benchmarks.real_images.studies import STUDIES, Study
from mmpsbn.compare.runs import TUNING_SEED, Run
from mmpsbn.errors import InputError


def original(neu_det, source, every):
    """Some of the files as the authors of NEU-DET publish them."""
    expected = {}
    for part in ('train2017', 'val2017'):
        file = neu_det / 'annotations' / f'instances_{part}.json'
        content = json.loads(file.read_text())
        names = {item['id']: item['name'] for item in content['categories']}
        images = content['images'][::every]
        expected[part] = [
            dict(
                image,
                boxes=[
                    (box['bbox'], names[box['category_id']])
                    for box in content['annotations']
                    if box['image_id'] == image['id']
                ],
            )
            for image in images
        ]
        for image in expected[part]:
            name = image['file_name']
            shutil.copy(neu_det / part / name, source / 'IMAGES')
            root = ElementTree.Element('annotation')
            for (x, y, width, height), label in image['boxes']:
                item = ElementTree.SubElement(root, 'object')
                ElementTree.SubElement(item, 'name').text = label
                corners = ElementTree.SubElement(item, 'bndbox')
                for key, value in dict(
                    xmin=x, ymin=y, xmax=x + width, ymax=y + height
                ).items():
                    ElementTree.SubElement(corners, key).text = str(value)
            ElementTree.ElementTree(root).write(
                source / 'ANNOTATIONS' / name.replace('.jpg', '.xml')
            )
    return expected


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / 'NEU-DET'
    for name in ('IMAGES', 'ANNOTATIONS'):
        (folder / name).mkdir(parents=True)
    return folder


def test_neu_det_from_its_original_files(neu_det, source, tmp_path):
    expected = original(neu_det, source, 40)
    assert convert(source, tmp_path / 'out') == {
        part: len(images) for part, images in expected.items()
    }
    for part, images in expected.items():
        found = json.loads(
            (tmp_path / 'out' / 'annotations' / f'instances_{part}.json').read_text()
        )
        names = {item['id']: item['name'] for item in found['categories']}
        assert [
            dict(
                image,
                boxes=[
                    (box['bbox'], names[box['category_id']])
                    for box in found['annotations']
                    if box['image_id'] == image['id']
                ],
            )
            for image in found['images']
        ] == images
        for image in images:
            assert (tmp_path / 'out' / part / image['file_name']).is_file()


def test_files_that_are_not_neu_det(neu_det, source, tmp_path):
    out = tmp_path / 'out'
    with pytest.raises(InputError, match='is not a folder'):
        convert(tmp_path / 'elsewhere', out)
    with pytest.raises(InputError, match='0 images'):
        convert(source, out)
    original(neu_det, source, 200)
    file = next((source / 'ANNOTATIONS').iterdir())
    text = file.read_text()
    for broken in (
        text[:-9],
        text.replace('<name>', '<name>x'),
        text.replace('xmin', 'x'),
    ):
        file.write_text(broken)
        with pytest.raises(InputError, match=f'{file}.*Download it again'):
            convert(source, out)
    file.unlink()
    with pytest.raises(InputError, match=f'unlike {file.stem}. Download'):
        convert(source, out)
    next((source / 'IMAGES').glob(f'{file.stem}.jpg')).rename(
        source / 'IMAGES' / 'crack_1.jpg'
    )
    file.with_name('crack_1.xml').write_text(text)
    with pytest.raises(InputError, match='crack_1.jpg is not an image of'):
        convert(source, out)
    file.with_name('crack_1.xml').rename(file)
    image = source / 'IMAGES' / f'{file.stem}.jpg'
    image.with_name('crack_1.jpg').rename(image)
    image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(InputError, match=f'{image} cannot be read'):
        convert(source, out)
    assert not (out / 'annotations').exists()


@pytest.mark.slow
@pytest.mark.usefixtures('forked_runs')
def test_a_study_resumes_from_its_rows(neu_det, tmp_path, monkeypatch):
    small = Study(
        'Small',
        'faster-rcnn_r18-half_fpn_bn_neu-det.py',
        (0.01, 0.02),
        {1: ('BN', 'psBN')},
    )
    monkeypatch.setitem(STUDIES, 'scratch', small)
    # The command sets it for its process.
    monkeypatch.setenv('MMDET_DATASETS', 'elsewhere')
    folder = tmp_path / 'results'
    folder.mkdir()
    shutil.copy(README, folder)

    def main(*data):
        monkeypatch.setattr(
            sys,
            'argv',
            [
                'real_images',
                *data,
                '--studies',
                'scratch',
                '--seeds',
                '2',
                '--work-dir',
                str(tmp_path / 'runs'),
                '--results',
                str(folder),
                '--cfg-options',
                *SHORT,
                'param_scheduler.1.T_max=1',
                'train_dataloader.batch_size=24',
                'train_dataloader.dataset.indices=48',
                'val_dataloader.dataset.indices=8',
            ],
        )
        command.main()

    # Another machine has made all runs except one tuning run.
    results = Results(folder / 'scratch.csv')
    for norm, lr in (('BN', 0.01), ('BN', 0.02), ('psBN', 0.01)):
        run = Run(norm, lr, TUNING_SEED, 1, True)
        results.add(run, Outcome(lr, 2 * lr, 0.0, 0.0, 0, 60.0, 'CPU'))
    for run, mAP in (
        (Run('BN', 0.02, 0), 0.3),
        (Run('BN', 0.02, 1), 0.4),
        (Run('psBN', 0.01, 0), 0.2),
        (Run('psBN', 0.01, 1), 0.4),
        (Run('psBN', 0.02, 1), 0.5),
    ):
        results.add(run, Outcome(mAP, 0.6, 0.0, 0.01, 0, 60.0, 'CPU'))
    main('--data', str(neu_det))
    rows = list(csv.DictReader((folder / 'scratch.csv').open()))
    inside = (tmp_path / 'runs').glob('*/*/*')
    folders = {path.name for path in inside if path.is_dir()}
    tuned = Results(folder / 'scratch.csv').get(Run('psBN', 0.02, TUNING_SEED, 1, True))
    # The detector learns nothing in two steps.
    assert tuned.mAP < 0.01 and tuned.seconds > 1
    assert folders == {'tuning_psBN_lr0.02_seed1000'}
    assert len(rows) == 9
    page = (folder / 'README.md').read_text()
    assert '### Small' in page
    assert re.search(r'^\| BN \| 0.02 \| 2 \| 0.350 ', page, re.M)
    # A final run at a rate that was not chosen does not count.
    assert re.search(r'^\| psBN \| 0.01 \| 2 \| 0.300 ', page, re.M)
    assert not re.search(r'^\| psBN \| 0.02 \| 1 \|', page, re.M)

    # Without data, only the report.
    (folder / 'README.md').write_text(README.read_text())
    main()
    assert (folder / 'README.md').read_text() == page
    for name in ('differences.png', 'lrs-scratch.png'):
        assert (folder / name).stat().st_size > 5000


def test_a_folder_without_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv('MMDET_DATASETS', 'elsewhere')
    with pytest.raises(InputError, match='the data set is incomplete: '):
        studies.study_config(STUDIES['retinanet'], str(tmp_path))


def test_a_file_of_other_results(tmp_path):
    file = tmp_path / 'retinanet.csv'
    file.write_text('a,b\n1,2\n')
    with pytest.raises(InputError, match=r'the columns are .*a.*b'):
        Results(file)
    file.write_text(','.join(Key._fields + Outcome._fields) + '\nfinal,BN,1,x,0\n')
    with pytest.raises(InputError, match='line 2 of .*retinanet.csv'):
        Results(file)
    Results(file := tmp_path / 'twice.csv').add(
        Run('BN', 0.1, 0), Outcome(0.4, 0.5, 0.0, 0.0, 0, 1.0, 'CPU')
    )
    lines = file.read_text().splitlines()
    file.write_text('\n'.join([*lines, lines[-1]]))
    with pytest.raises(InputError, match='has 2 rows of final BN 1.0 0.1 0, and'):
        Results(file)


def test_the_grid_is_fine_enough():
    for study in STUDIES.values():
        assert len(study.lrs) >= 4
        for low, high in zip(study.lrs, study.lrs[1:]):
            assert high / low <= 2.5
    assert studies.SEEDS >= 5


def test_lengths_that_take_the_rates_of_the_first(tmp_path):
    results = Results(tmp_path / 'a.csv')
    norms = {1: ('BN', 'GN'), 2: ('GN', 'psBN')}
    outcome = Outcome(0.4, 0.5, math.nan, math.nan, 0, 1.0, 'CPU')
    for norm, lr, mAP in (('BN', 0.1, 0.2), ('GN', 0.1, 0.2), ('GN', 0.2, 0.3)):
        results.add(Run(norm, lr, 1000, 1, True), outcome._replace(mAP=mAP))
    for lr in (0.1, 0.2):
        results.add(Run('GN', lr, 0, 2), outcome)
    best = results.best_lrs(norms, (2,))
    assert best == {('BN', 1): 0.1, ('GN', 1): 0.2, ('GN', 2): 0.2}
    (row,) = results.finals(norms, (2,))
    assert (row.norm, row.length, row.lr) == ('GN', 2, 0.2)
    assert results.finals(norms) == []
    study = Study('', '', (0.1, 0.2), norms, (2,))
    assert studies.number_of_runs(study) == 2 * 7 + 2 * 5
    # A final run at another rate is not one of the study.
    text = _section(study, results, [row], '')
    assert f' {24 - 3 - 1} runs are missing.' in text


def test_a_study_continues_if_tuning_runs_failed(neu_det, tmp_path, monkeypatch):
    monkeypatch.setenv('MMDET_DATASETS', 'elsewhere')
    results = Results(tmp_path / 'scratch.csv')
    found = studies.comparisons(STUDIES['scratch'], results, str(neu_det), tmp_path)
    assert [one.lengths for one in found] == [[1]]


def test_untuned_comparisons_have_one_rate_each(neu_det, tmp_path, monkeypatch):
    monkeypatch.setenv('MMDET_DATASETS', 'elsewhere')
    results = Results(README.with_name('retinanet.csv'))
    study = STUDIES['retinanet']
    found = {
        name: lr
        for one in studies.comparisons(study, results, str(neu_det), tmp_path)
        if one.lengths == [1.5]
        for name in one.cfgs
        for lr in one.lrs
    }
    assert found == dict(BN=0.01, psBN=0.01, FrozenBN=0.004, MimicNorm=0.004)
