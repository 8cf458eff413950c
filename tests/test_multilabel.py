"What the multi-label notebook cannot show: bad input, properties, a learner loaded elsewhere, the drawn set as a whole."
import csv
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from lesson6 import multilabel as ml
from lesson6.mini import pascal

head = 'fname,labels,is_valid\n'
good = ['000012.jpg,car,False', '000013.jpg,car person,False', '000014.jpg,dog,True']


@pytest.fixture
def folder(tmp_path):
    "Three pictures and a table that names them."
    (tmp_path/'train').mkdir()
    for n in ('000012', '000013', '000014'): Image.new('RGB', (32, 24), (90, 120, 150)).save(tmp_path/'train'/f'{n}.jpg')
    return write(tmp_path, good)


def write(path, rows, header=head):
    (path/'train.csv').write_text(header + '\n'.join(rows) + '\n', encoding='utf-8')
    return path


# --- the table

def test_a_good_table_is_read_as_it_is(folder):
    df = ml.read_labels(folder)
    assert list(df.columns) == ['fname', 'labels', 'is_valid']
    assert df['is_valid'].dtype == bool
    assert ml.splitter(df) == ([0, 1], [2])
    assert ml.get_x(df.iloc[0], str(folder)).exists()
    assert ml.get_y(df.iloc[1]) == ['car', 'person']


bad_tables = {
    'no fname': ('labels,is_valid\ncar,True\n', 'no column fname'),
    'no labels': ('fname,is_valid\n000012.jpg,True\n', 'no column labels'),
    'no is_valid': ('fname,labels\n000012.jpg,car\n', 'no column is_valid'),
    'an empty label': (head + '000012.jpg,car,False\n000013.jpg,,True\n', r'line 3 \(000013.jpg\) has no label'),
    'a label of spaces': (head + '000012.jpg,"  ",False\n000013.jpg,car,True\n', r'line 2 \(000012.jpg\) has no label'),
    'an unknown label': (head + '000012.jpg,car perosn,False\n000013.jpg,car,True\n', r"line 2 \(000012.jpg\) has the label 'perosn'"),
    'a picture named twice': (head + '000012.jpg,car,False\n000012.jpg,dog,True\n', 'line 3: 000012.jpg is there a second time'),
    'no validation rows': (head + '000012.jpg,car,False\n000013.jpg,car,False\n', 'no validation rows'),
    'no training rows': (head + '000012.jpg,car,True\n000013.jpg,car,True\n', 'no training rows'),
    'no rows': (head, 'no rows'),
    'a split that is no yes or no': (head + '000012.jpg,car,maybe\n000013.jpg,car,False\n', "'maybe'"),
    'an empty split': (head + '000012.jpg,car,\n000013.jpg,car,False\n', 'is_valid must hold True or False'),
}


@pytest.mark.parametrize('table,says', bad_tables.values(), ids=bad_tables)
def test_a_bad_table_gets_one_sentence(folder, table, says):
    (folder/'train.csv').write_text(table, encoding='utf-8')
    with pytest.raises(ValueError, match=says) as e: ml.read_labels(folder)
    assert '\n' not in str(e.value) and str(e.value).endswith('.')


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='train.csv is not there'): ml.read_labels(tmp_path)


def test_a_missing_picture_is_named_before_any_is_opened(folder, monkeypatch):
    df = ml.read_labels(folder)
    (folder/'train'/'000013.jpg').unlink()
    with pytest.raises(FileNotFoundError, match='1 of the 3 pictures .* the first is 000013.jpg'): ml.read_labels(folder)
    monkeypatch.setattr(Image, 'open', lambda *a, **k: pytest.fail('a picture was opened'))
    with pytest.raises(FileNotFoundError, match='000013.jpg'): ml.multilabel_dls(df, folder, size=16, bs=1)


def test_a_missing_folder_of_pictures_is_named(folder):
    (folder/'train').rename(folder/'elsewhere')
    with pytest.raises(FileNotFoundError, match='3 of the 3 pictures'): ml.read_labels(folder)


def test_background_and_other_vocabularies_are_let_in_when_asked(folder):
    write(folder, ['000012.jpg,,False', '000013.jpg,unicorn,False', '000014.jpg,unicorn,True'])
    with pytest.raises(ValueError, match='000012.jpg'): ml.read_labels(folder, vocab=None)
    df = ml.read_labels(folder, vocab=None, empty_ok=True)
    assert [ml.get_y(r) for _,r in df.iterrows()] == [[], ['unicorn'], ['unicorn']]


def test_a_picture_may_be_called_na(folder):
    "pandas takes words such as NA and null for missing values; in a file name they are none."
    (folder/'train'/'000012.jpg').rename(folder/'train'/'NA')
    write(folder, ['NA,car,False', *good[1:]])
    assert ml.read_labels(folder)['fname'].iloc[0] == 'NA'


# --- batches

def test_a_batch_larger_than_the_training_set_is_refused(folder):
    with pytest.raises(ValueError, match='2 training pictures, fewer than a batch of 64'): ml.multilabel_dls(ml.read_labels(folder), folder)


def test_a_label_that_only_validation_has_is_in_the_vocabulary(folder):
    dls = ml.multilabel_dls(ml.read_labels(folder), folder, size=16, bs=2)
    assert list(dls.vocab) == ['car', 'dog', 'person']
    x, y = dls.valid.one_batch()
    assert x.shape == (1, 3, 16, 16) and y.tolist() == [[0., 1., 0.]]


def test_a_label_outside_a_given_vocabulary_is_refused(folder):
    with pytest.raises(ValueError, match="000014.jpg has the label 'dog'"):
        ml.multilabel_dls(ml.read_labels(folder), folder, bs=1, vocab=['car', 'person'])


@given(st.lists(st.booleans(), min_size=2, max_size=30).filter(lambda v: any(v) and not all(v)), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_splitter_returns_positions_whatever_the_index(valid, random):
    index = random.sample(range(1000), len(valid))
    train_rows, valid_rows = ml.splitter(pd.DataFrame({'is_valid': valid}, index=index))
    assert sorted(train_rows+valid_rows) == list(range(len(valid)))
    assert all(valid[i] for i in valid_rows) and not any(valid[i] for i in train_rows)


# --- encodings, loss and threshold

names = st.lists(st.sampled_from(ml.voc_labels), unique=True)


@given(names)
@settings(max_examples=50, deadline=None)
def test_encoding_and_decoding_are_inverse(labels):
    encoded = ml.one_hot_encode(labels, ml.voc_labels)
    assert encoded.sum() == len(labels)
    assert ml.decode_one_hot(encoded, ml.voc_labels) == sorted(labels)
    assert ml.decode_one_hot(encoded.bool(), ml.voc_labels) == sorted(labels)


def test_encodings_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="'unicorn' is not in the vocabulary"): ml.one_hot_encode(['unicorn'], ml.voc_labels)
    with pytest.raises(ValueError, match='3 numbers cannot stand for the 20 labels'): ml.decode_one_hot(torch.zeros(3), ml.voc_labels)


@given(st.lists(st.tuples(st.floats(-1e4, 1e4, width=32), st.booleans()), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_binary_cross_entropy_is_torchs_for_any_activations(pairs):
    x = torch.tensor([a for a,_ in pairs], requires_grad=True)
    x2, y = x.detach().clone().requires_grad_(), torch.tensor([float(b) for _,b in pairs])
    ours, theirs = ml.binary_cross_entropy(x, y), nn.BCEWithLogitsLoss()(x2, y)
    ours.backward(); theirs.backward()
    assert torch.isfinite(ours) and torch.isfinite(x.grad).all()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(x.grad, x2.grad, rtol=1e-4, atol=1e-6)


def test_binary_cross_entropy_does_not_broadcast():
    with pytest.raises(ValueError, match='do not match'): ml.binary_cross_entropy(torch.zeros(4, 1), torch.zeros(4))


def test_the_best_threshold_is_found_and_a_plateau_is_met_in_its_middle():
    preds, targs = torch.tensor([[.1, .8], [.3, .9]]), torch.tensor([[0., 1.], [0., 1.]])
    xs, accs = ml.threshold_curve(preds, targs)
    assert len(xs) == 29 and accs.max() == 1
    assert .3 < ml.best_threshold(preds, targs) < .8
    assert abs(ml.best_threshold(preds, targs) - .55) < .04
    assert ml.best_threshold(preds.numpy(), targs.numpy()) == ml.best_threshold(preds, targs)


@pytest.mark.parametrize('preds,says', [(torch.tensor([[2., -1.]]), 'apply sigmoid'), (torch.tensor([[float('nan'), .5]]), 'not probabilities'),
    (torch.zeros(0, 2), 'do not match|not probabilities'), (torch.zeros(2, 3), 'do not match')])
def test_what_is_no_probability_is_refused(preds, says):
    for f in ml.threshold_curve, ml.best_threshold, ml.plot_threshold_curve:
        with pytest.raises(ValueError, match=says): f(preds, torch.zeros(1, 2))


def test_the_report_counts_by_hand():
    preds = torch.tensor([[.9, .2, .6], [.8, .7, .1], [.1, .6, .2], [.7, .1, .3]])
    targs = torch.tensor([[1., 0., 0.], [1., 1., 0.], [0., 0., 0.], [0., 1., 0.]])
    report = ml.label_report(preds, targs, ['a', 'b', 'c'], .5).set_index('label')
    assert report.loc['a', ['pictures', 'precision', 'recall']].tolist() == pytest.approx([2, 2/3, 1])
    assert report.loc['b', ['pictures', 'precision', 'recall']].tolist() == pytest.approx([2, .5, .5])
    assert report.loc['c', 'precision'] == 0 and np.isnan(report.loc['c', ['recall', 'average precision']].astype(float)).all()
    assert report.loc['a', 'average precision'] == pytest.approx(1)
    assert report.loc['b', 'average precision'] == pytest.approx((1/1 + 2/4)/2)


def test_the_report_refuses_another_vocabulary():
    with pytest.raises(ValueError, match='do not match'): ml.label_report(torch.zeros(2, 3), torch.zeros(2, 3), ['a'])


# --- a learner, exported

@pytest.mark.ci
def test_an_exported_learner_loads_in_a_fresh_process_and_predicts_on_a_path(folder, tmp_path):
    from fastai.learner import Learner
    from fastai.metrics import accuracy_multi
    dls = ml.multilabel_dls(ml.read_labels(folder), folder, size=16, bs=2)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    learn = Learner(dls, model, metrics=ml.partial(accuracy_multi, thresh=.2), path=tmp_path)
    learn.loss_func.thresh = .3
    here = ml.prediction_table(learn, folder/'train'/'000014.jpg')
    learn.export('multi.pkl')
    (folder/'train'/'000014.jpg').rename(tmp_path/'new.jpg')       # a picture that no table ever named
    for p in (folder/'train').iterdir(): p.unlink()                # the training pictures need not be there
    script = textwrap.dedent('''
        import sys, warnings
        warnings.simplefilter('ignore')
        from fastai.learner import load_learner
        from pathlib import Path
        from lesson6.multilabel import prediction_table
        learn = load_learner('multi.pkl')
        table = prediction_table(learn, 'new.jpg')
        with learn.no_bar(): named, mask, probs = learn.predict(Path('new.jpg'))
        print(table.to_csv(index=False), learn.loss_func.thresh, len(named) == int(mask.sum()), sep='|')
    ''')
    done = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    table, thresh, agree = done.stdout.rsplit('|', 2)
    rows = list(csv.DictReader(table.strip().splitlines()))
    assert (thresh, agree.strip()) == ('0.3', 'True')
    assert [r['label'] for r in rows] == here['label'].tolist()
    assert [float(r['probability']) for r in rows] == pytest.approx(here['probability'].tolist(), abs=1e-5)


def test_a_picture_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match='nowhere.jpg is not there'): ml.prediction_table(None, 'nowhere.jpg')


# --- the drawn set

@pytest.fixture(scope='module')
def drawn(twins): return twins['pascal']


def test_the_drawn_set_is_whole_and_in_the_real_ones_layout(drawn):
    df = ml.read_labels(drawn)
    assert len(df) == pascal.expected['pictures'] and df['is_valid'].sum() == pascal.expected['valid']
    assert {p.name for p in drawn.iterdir()} == {'train', 'train.csv'}
    assert sorted(p.name for p in (drawn/'train').iterdir()) == sorted(df['fname'])
    assert df['fname'].str.fullmatch(r'\d{6}\.jpg').all()
    labels = df['labels'].str.split()
    assert labels.str.len().between(1, 4).all() and labels.map(lambda l: l == sorted(set(l))).all()
    assert sorted(set(labels.explode())) == ml.voc_labels == pascal.vocab
    for rows in df[df['is_valid']], df[~df['is_valid']]: assert rows['labels'].str.split().explode().nunique() == 20


def test_its_table_reads_like_the_real_one(drawn, real):
    a, b = (pd.read_csv(p/'train.csv') for p in (drawn, real/'pascal_2007'))
    assert list(a.columns) == list(b.columns) and list(a.dtypes) == list(b.dtypes)


def test_drawing_is_repeatable_to_the_byte_and_another_seed_draws_another_set(drawn, tmp_path, monkeypatch):
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    few = dict(pascal.expected, pictures=12, valid=3)
    monkeypatch.setattr(pascal, 'expected', few)
    sets = []
    for name,seed in ('a', 7), ('b', 7), ('c', 8):
        (tmp_path/name).mkdir()
        pascal.draw(tmp_path/name, seed=seed)
        sets.append({p.relative_to(tmp_path/name): p.read_bytes() for p in (tmp_path/name).rglob('*') if p.is_file()})
    assert sets[0] == sets[1] and sets[0] != sets[2]
    assert (np.random.get_state()[1] == before).all(), 'global random state is left alone'


def test_everything_that_a_label_names_can_be_seen():
    for i in range(60):
        s = pascal.scene(pascal.vocab[i % 20], np.random.default_rng(i))
        assert sorted({x.name for x in s.items}) == s.labels
        for x in s.items:
            left, upper, right, lower = x.box
            assert 0 <= left < right <= s.picture.width and 0 <= upper < lower <= s.picture.height
            assert x.visible >= pascal.least


@pytest.mark.parametrize('name', pascal.vocab)
def test_a_thing_changes_the_picture_where_its_mask_says(name):
    recipe, picture, mask = pascal.recipes[name], Image.new('RGB', (300, 300), (255, 0, 255)), Image.new('L', (100, 100))
    pen = pascal.Pen(picture, mask, (50, 60 if name == 'aeroplane' else 90), 40, flip=True)
    recipe.draw(pen, np.random.default_rng(1))
    changed = (np.asarray(picture.reduce(3)).astype(int) - [255, 0, 255]).__abs__().sum(-1) > 40
    marked = np.asarray(mask) > 0
    if name == 'train': changed[90:95] = marked[90:95]    # rails are drawn, and are no part of the train
    assert marked.sum() > 150
    assert (changed & marked).sum() > .8*marked.sum()
    assert (changed & ~marked).sum() < .35*changed.sum()
