"""Sets of pictures as people bring them: what was written is read, a model is trained, and the
whole section runs to its end, as it does on their ratings."""
import gzip
import pickle
import random
import shutil
import unicodedata
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastai.vision.all import accuracy_multi, vision_learner
from PIL import Image
from promises import rounds
from test_own_ratings import own_set as rated_set
from test_picture_labels import plausible as labelled_set
from test_pets import small_net

from lesson6.book.running import find_notebooks, run_notebook
from lesson6.claims import read_claims, statements
from lesson6.head_pose import pixel_point, point_errors, points_dls, pose_learner, read_points
from lesson6.mini.network import drawnet10
from lesson6.multilabel import (multilabel_dls, multilabel_learner, prediction_table,
                                read_labels)
from lesson6.pets import pets_dls, pets_learner

words = ['sand', 'woods', 'Bär', 'chat-perché', '柴犬', 'кот', 'no.5', 'snow_field', 'tea', 'كتاب']
endings = ['.jpg', '.jpeg', '.JPG', '.png', '.webp', '.bmp', '.tif']
codings = ['utf-8', 'utf-8-sig', 'utf-16']


def composed(text): return unicodedata.normalize('NFC', text)


def paint(file, hue, r, size):
    "A noisy picture of one colour"
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = r.integers(0, 60, (*size, 3))
    pixels[..., hue % 3] += 60 + 30*(hue % 5)
    Image.fromarray(pixels.astype(np.uint8)).save(file)


def tagged_set(folder, seed, delims=(None, None, ',', ';', '|')):
    """Pictures with several labels each; the table that should be read, and what separates its
    labels"""
    r, pick = np.random.default_rng(seed), random.Random(seed)
    labels = pick.sample(words, pick.randint(2, 6))
    ending, where, sep, coding = (pick.choice(endings), pick.choice(['train/', '', 'train/deep/']),
                                  pick.choice([',', ';', '\t']), pick.choice(codings))
    delim = pick.choice([o for o in delims if o != sep])
    file = folder/pick.choice(['train.csv', 'metadata.csv', 'train/metadata.csv'])
    columns = pick.choice([('fname', 'labels', 'is_valid'), ('file_name', 'tags', 'split'),
                           ('Image', 'Classes', 'is_valid'), ('image_name', 'labels', 'subset')])
    names, tags = [], []
    for i in range(pick.randint(20, 50)):
        mine = pick.sample(labels, pick.randint(1, min(3, len(labels))))
        names.append(f'{where}{pick.choice(words)} {i}{ending}')
        tags.append(mine)
        paint(folder/names[-1], sum(map(words.index, mine)), r, (24, 24+i % 5))
    has_split = pick.random() < .7
    valid = [has_split and i % 4 == 0 for i in range(len(names))]
    held = {True: pick.choice(['True', '1'] if columns[2] == 'is_valid'
                              else ['valid', 'test', 'dev', 'held-out']), False: 'False'
            if columns[2] == 'is_valid' else 'train'}
    end = pick.choice([ending, ''])   # many tables leave the ending out
    rows = [columns[:2+has_split],
            *((n.removeprefix('train/').removesuffix(ending) + end, (delim or ' ').join(t),
               held[v])[:2+has_split] for n, t, v in zip(names, tags, valid, strict=True))]
    file.parent.mkdir(parents=True, exist_ok=True)
    text = '\n'.join(sep.join(row) for row in rows).encode(coding)
    file.write_bytes(text) if seed % 3 else Path(f'{file}.gz').write_bytes(gzip.compress(text))
    (folder/'train').mkdir(exist_ok=True)
    (folder/'train'/f'._hidden{ending}').write_bytes(b'not a picture')
    return (pd.DataFrame({'fname': names, 'labels': [[composed(t) for t in mine] for mine in tags],
                          'is_valid': valid}), delim, has_split)


def pointed_set(folder, seed):
    "Pictures with a point each; the pixel of every one by its name, and who is kept out"
    r, pick = np.random.default_rng(seed), random.Random(seed)
    people = pick.sample(['01', '02', '13', 'anna', 'Bär', '柴犬', '7', '10', 'team/b'],
                         pick.randint(1, 4))
    layout, ending = pick.choice(['biwi', 'table', 'table with groups']), pick.choice(endings)
    height, width = pick.choice([(48, 64), (64, 48), (60, 60), (90, 160)])
    points, group = {}, {}
    for i in range(pick.randint(24, 50)):
        who = people[i % len(people)]
        name = f'{who}/frame_{i:05d}_rgb{ending}'
        paint(folder/name, i, r, (height, width))
        x, y = (float(r.uniform(.2, .8)*o) for o in (width, height))
        points[name], group[name] = (x, y), who
        if layout == 'biwi':   # a camera whose two focal lengths differ
            (folder/who/'rgb.cal').write_text(f'50 0 {width/2}\n0 70 {height/2}\n0 0 1\n')
            at = f'{(x-width/2)/50*900} {(y-height/2)/70*900} 900'
            (folder/who/f'frame_{i:05d}_pose.txt').write_text(f'1 0 0\n0 1 0\n0 0 1\n\n{at}\n')
    if layout != 'biwi':
        sep, coding, both = pick.choice([',', ';', '\t']), pick.choice(codings), layout != 'table'
        rows = [('fname', 'x', 'y', 'group')[:3+both],
                *((n.removesuffix(ending if seed % 2 else ''),
                   *(f'{o:.3f}'.replace('.', ',' if sep == ';' else '.') for o in (x, y)),
                   group[n])[:3+both] for n, (x, y) in points.items())]
        (folder/'points.csv').write_text('\n'.join(sep.join(row) for row in rows), encoding=coding)
    return points, group if layout != 'table' else {}


def trained(learn):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-3)
    assert np.isfinite(learn.recorder.values[-1][0])
    return learn


# Any set, through reading, loaders, a pickle and a short training. LESSON6_ROUNDS=50 tries two
# hundred of each kind.

sets, parts = 4*rounds if rounds >= 50 else 8, 4
each = pytest.mark.parametrize('part', range(parts))
pytestmark = pytest.mark.filterwarnings('ignore:.*(is_valid|random fifth|counts? as)')


@pytest.mark.ci
@each
def test_any_set_with_several_labels_is_read_and_learnt(part, tmp_path):
    for seed in range(part, sets, parts):
        folder = tmp_path/str(seed)
        wrote, delim, has_split = tagged_set(folder, seed)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore' if not has_split else 'error', UserWarning)
            warnings.filterwarnings('ignore', '.*validate on only')
            table = read_labels(folder, label_delim=delim)
            dls = pickle.loads(pickle.dumps(multilabel_dls(table, folder, size=24,
                                                           label_delim=delim)))
        assert table.labels.str.split(delim or ' ').tolist() == wrote.labels.tolist(), seed
        if has_split: assert table.is_valid.tolist() == wrote.is_valid.tolist(), seed
        assert list(dls.vocab) == sorted({t for ts in wrote.labels for t in ts})
        learn = trained(vision_learner(dls, small_net, pretrained=False, metrics=accuracy_multi))
        said = prediction_table(learn, folder/wrote.fname[0])
        assert (sorted(said.label) == list(dls.vocab) and said.probability.between(0, 1).all()
                and said.probability.is_monotonic_decreasing)
        shutil.rmtree(folder)


@pytest.mark.ci
@each
def test_any_set_with_points_is_read_and_learnt(part, tmp_path):
    for seed in range(part, sets, parts):
        folder = tmp_path/str(seed)
        points, group = pointed_set(folder, seed)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore' if len(set(group.values())) < 2 else 'error',
                                  UserWarning)
            frames = read_points(folder)
            dls = pickle.loads(pickle.dumps(points_dls(folder, (32, 32))))
        read = {n: (x, y) for n, x, y in frames[['fname', 'x', 'y']].itertuples(index=False)}
        assert read.keys() == points.keys() and all(np.allclose(read[n], points[n], atol=2e-3)
                                                    for n in points), seed
        held = {group.get(f.relative_to(folder).as_posix()) for f in dls.valid_ds.items}
        if len(set(group.values())) > 1:
            assert len(held) == 1 and not held & {group[f.relative_to(folder).as_posix()]
                                                  for f in dls.train_ds.items}, seed
        learn = trained(pose_learner(dls, small_net, pretrained=False))
        width, height = Image.open(folder/frames.fname[0]).size
        x, y = pixel_point(learn, folder/frames.fname[0])
        assert (0 <= x <= width and 0 <= y <= height
                and len(point_errors(learn)) == len(dls.valid_ds))
        shutil.rmtree(folder)


def contents(path):
    return {p.relative_to(path): (p.stat().st_mtime_ns, p.is_file() and p.read_bytes())
            for p in path.rglob('*')}


@pytest.mark.parametrize('write, make, learner', [
    (labelled_set, lambda path: pets_dls(path, 24, 16), pets_learner),
    (partial(tagged_set, delims=[None]),
     lambda path: multilabel_dls(read_labels(path), path, size=24), multilabel_learner),
    (pointed_set, lambda path: points_dls(path, (32, 32)), pose_learner)],
    ids=['pets', 'multilabel', 'points'])
def test_a_trained_learner_takes_new_loaders(write, make, learner, tmp_path, monkeypatch):
    """As for progressive resizing, or the next fold: they are normalised as its first ones were.
    And nothing is written into the data, though the finder writes into its learner's folder"""
    data, elsewhere = tmp_path/'data', tmp_path/'elsewhere'
    for folder in data, elsewhere: folder.mkdir()
    monkeypatch.chdir(elsewhere)
    write(data, 1)
    before = contents(data)
    learn = trained(learner(make(data), drawnet10))
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=6, show_plot=False, suggest_funcs=())
        loss = list(learn.validate())
        learn.dls = make(data)
        assert list(learn.validate()) == pytest.approx(loss, rel=1e-4)
    assert contents(data) == before


# The whole section on some of them

def run_section(section, data):
    """What became of each claim; the section has run to its end, and nothing was written into the
    data"""
    before = contents(data)
    env = {'LESSON6_DATA': str(data), 'LESSON6_ARCH': 'drawnet10', 'OMP_NUM_THREADS': '1'}
    nb = run_notebook(find_notebooks([section], Path(__file__).parent.parent/'nbs')[0], env,
                      progress=False, warm=True)
    said = {v.id: v.verdict for v in read_claims(nb)}
    print(section, said)
    name = {'head_pose': 'pose', 'regularisation': 'reg'}.get(section, section)
    assert said.keys() == {c for c in statements if c.startswith(f'{name}-')}
    assert contents(data) == before, 'nothing is written into the data'
    return said


# what writes a set, where, with which seeds; the claims that hold, and those that are not asked
ends = {
    'pets': (labelled_set, 'oxford-iiit-pet', range(10),
             'pets-cross-entropy pets-diagonal pets-transfer pets-frozen pets-slice',
             'pets-look-alikes pets-deeper'),
    # the section separates labels by spaces
    'multilabel': (partial(tagged_set, delims=[None]), 'pascal_2007', range(100, 110),
                   'multilabel-onehot multilabel-bce', ''),
    'head_pose': (pointed_set, 'biwi_head_pose', range(100, 110), 'pose-loss pose-y-range', ''),
    'collab': (partial(rated_set, small=True), 'ml-100k', range(10), '', 'collab-floor')}


@pytest.mark.slow
@pytest.mark.parametrize('section, seed', [(o, seed) for o, row in ends.items() for seed in row[2]])
def test_the_section_runs_to_its_end(section, seed, tmp_path):
    write, folder, _, hold, not_asked = ends[section]
    (tmp_path/folder).mkdir()
    write(tmp_path/folder, seed)
    said = run_section(section, tmp_path)
    assert all(said[o] == 'holds' for o in hold.split())
    assert all(said[o] == 'not asked' for o in not_asked.split())
