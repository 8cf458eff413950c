"""What the multi-label notebook cannot show: tables of all kinds, bad input, properties, a learner
loaded elsewhere, the twin as a whole."""
import csv
import pickle
import shutil
import subprocess
import sys
import textwrap
import unicodedata
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import python
from fastai.learner import Learner
from fastai.metrics import accuracy_multi
from fastai.torch_core import set_seed
from fastai.vision.learner import vision_learner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_own_pictures import run_section
from test_pets import small_net
from torch import nn

from lesson6 import multilabel as ml
from lesson6.book.train import section_learner
from lesson6.engine import labels, networks
from lesson6.engine.label_results import plot_pictures, plot_prediction
from lesson6.engine.picture_loaders import KeepBatches
from lesson6.mini import pascal

head = 'fname,labels,is_valid\n'
good = ['000012.jpg,car,False', '000013.jpg,car person,False', '000014.jpg,dog,True']


@pytest.fixture
def folder(tmp_path):
    "Three pictures and a table that names them."
    (tmp_path/'train').mkdir()
    for n in ('000012', '000013', '000014'):
        Image.new('RGB', (32, 24), (90, 120, 150)).save(tmp_path/'train'/f'{n}.jpg')
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


def test_a_missing_picture_is_named_before_any_is_opened(folder, monkeypatch):
    df = ml.read_labels(folder)
    (folder/'train'/'000013.jpg').unlink()
    monkeypatch.setattr(Image, 'open', lambda *a, **k: pytest.fail('a picture was opened'))
    with pytest.raises(FileNotFoundError, match='000013.jpg'):
        ml.multilabel_dls(df, folder, size=16, bs=1)


def test_a_missing_folder_of_pictures_is_named(folder):
    shutil.rmtree(folder/'train')
    with pytest.raises(FileNotFoundError, match='3 of 3 rows name none'): ml.read_labels(folder)


def test_a_vocabulary_says_that_numbers_and_commas_are_meant(folder):
    write(folder, ['000012.jpg,7,False', '000013.jpg,"a,b",True'])
    assert ml.read_labels(folder, vocab=['7', 'a,b'])['labels'].tolist() == ['7', 'a,b']


def test_background_is_let_in_when_asked(folder):
    write(folder, ['000012.jpg,,False', '000013.jpg,unicorn,False', '000014.jpg,unicorn,True'])
    df = ml.read_labels(folder, empty_ok=True)
    assert [ml.get_y(r) for _,r in df.iterrows()] == [[], ['unicorn'], ['unicorn']]


def test_a_picture_may_be_called_na(folder):
    "pandas takes words such as NA and null for missing values; in a file name they are none."
    (folder/'train'/'000012.jpg').rename(folder/'train'/'NA')
    write(folder, ['NA,car,False', *good[1:]])
    assert ml.read_labels(folder)['fname'].iloc[0] == 'NA'


# --- the forms in which tables come

@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le-bom'])
@pytest.mark.parametrize('separator', [',', ';', '\t'])
@pytest.mark.parametrize('columns',
                         ['fname labels is_valid', 'File_Name Tags split', 'image label is_val'])
def test_encodings_separators_and_names_of_columns(folder, encoding, separator, columns):
    rows = [columns.split(' ')] + [r.replace('car', 'Möwe').split(',') for r in good]
    text = '\r\n'.join(separator.join(r) for r in rows)
    raw = ('\ufeff'.encode('utf-16-le') + text.encode('utf-16-le') if encoding == 'utf-16-le-bom'
           else text.encode(encoding))
    (folder/'train.csv').write_bytes(raw)
    assert ml.read_labels(folder).values.tolist() == [['000012.jpg', 'Möwe', False],
                                                      ['000013.jpg', 'Möwe person', False],
                                                      ['000014.jpg', 'dog', True]]


@pytest.mark.parametrize('where', ['metadata.csv', 'train/metadata.csv'])
def test_metadata_is_read(folder, where):
    (folder/'train.csv').unlink()
    (folder/where).write_text('file_name,labels,split\n000012.jpg,car,train\n000013.jpg,car '
                              'person,train\n000014.jpg,dog,validation\n')
    assert ml.read_labels(folder)['is_valid'].tolist() == [False, False, True]


def test_pictures_beside_the_table_are_found(folder):
    for f in (folder/'train').iterdir(): f.rename(folder/f.name)
    (folder/'train').rmdir()
    df = ml.read_labels(folder)
    assert all((folder/'train'/r['fname']).is_file() and ml.get_x(r, folder).is_file()
               for _,r in df.iterrows())
    assert ml.multilabel_dls(df, folder, size=16, bs=2).train.one_batch()[0].shape == (2, 3, 16, 16)


@pytest.mark.parametrize('written', ['x/000012.jpg', 'train/x/000012.jpg', 'x\\000012.jpg'])
def test_names_with_folders(folder, written):
    (folder/'train'/'x').mkdir()
    (folder/'train'/'000012.jpg').rename(folder/'train'/'x'/'000012.jpg')
    write(folder, [good[0].replace('000012.jpg', written), *good[1:]])
    assert ml.read_labels(folder)['fname'].iloc[0] == 'x/000012.jpg'


@pytest.mark.parametrize('disk, table', [('NFC', 'NFD'), ('NFD', 'NFC'), ('NFD', 'NFD')])
def test_accents_in_either_form(folder, disk, table):
    name = 'plage été.jpg'
    (folder/'train'/'000012.jpg').rename(folder/'train'/unicodedata.normalize(disk, name))
    write(folder,
          [f'{unicodedata.normalize(table, name)},{unicodedata.normalize("NFD", "été")},False',
           f'000013.jpg,{unicodedata.normalize("NFC", "été")},False', good[2]])
    df = ml.read_labels(folder)
    assert ml.get_x(df.iloc[0], folder).is_file()
    assert list(ml.multilabel_dls(df, folder, size=16, bs=2).vocab) == ['dog', 'été']


def test_the_same_picture_in_two_spellings_is_there_twice(folder):
    write(folder, [*good, 'train/000013.jpg,dog,False'])
    with pytest.raises(ValueError, match='line 5: train/000013.jpg is there a second time'):
        ml.read_labels(folder)


@pytest.mark.parametrize('delim, cell', [('|', 'sports car|person'), (',', '"sports car, person"'),
                                         (';', 'sports car;person;')])
def test_a_separator_of_ones_own_keeps_labels_of_two_words(folder, delim, cell):
    write(folder,
          [f'000012.jpg,{cell},False', '000013.jpg,sports car,False', '000014.jpg,person,True'])
    df = ml.read_labels(folder, label_delim=delim)
    assert [ml.get_y(r, delim) for _,r in df.iterrows()] == [['sports car', 'person'],
                                                             ['sports car'], ['person']]
    dls = ml.multilabel_dls(df, folder, size=16, bs=2, label_delim=delim)
    assert list(dls.vocab) == ['person', 'sports car']
    assert sorted(y.sum().item() for _,y in dls.train_ds) == [1, 2]


def test_validation_batches_are_kept_only_on_demand(folder):
    "On a large set they would fill the memory"
    for keep in False, True:
        dls = ml.multilabel_dls(ml.read_labels(folder), folder, size=16, bs=2, keep_valid=keep)
        assert isinstance(dls.valid, KeepBatches) == keep and not isinstance(dls.train, KeepBatches)


def test_a_number_among_the_labels_of_a_table_is_told_and_names_are_not(folder):
    df = pd.DataFrame({'fname': ['000012.jpg', '000013.jpg', '000014.jpg'],
                       'labels': ['car', 'car person', 'car'], 'is_valid': [False, False, True]})
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        ml.multilabel_dls(df, folder, size=16, bs=2)
        ml.multilabel_dls(df.replace('car person', 'car 7'), folder, size=16, bs=2,
                          vocab=['7', 'car'])
    with pytest.warns(UserWarning, match=r'row 1 has the label 7, a number; it counts as a name'):
        ml.multilabel_dls(df.replace('car person', 'car 7'), folder, size=16, bs=2)


def test_quotes_everywhere_or_where_they_are_needed_mean_nothing(folder):
    write(folder, ['"000012.jpg","car dog","False"', '"000013.jpg","car","True"'],
          header='"fname","labels","is_valid"\n')
    assert ml.read_labels(folder)['labels'].tolist() == ['car dog', 'car']
    write(folder, ['000012.jpg,"sports car",False', '000013.jpg,car,True'])
    assert ml.read_labels(folder, label_delim=' ')['labels'].tolist() == ['sports car', 'car']
    write(folder, ['000012.jpg,"car",False', '000013.jpg,car dog,True'])
    assert ml.read_labels(folder)['labels'].tolist() == ['car', 'car dog'], (
        'one word is one label, in quotes or not')
    write(folder, ['000012.jpg,"",False', '000013.jpg,car,True'])
    assert ml.read_labels(folder, empty_ok=True)['labels'].tolist() == ['', 'car'], (
        'no word is no label, in quotes or not')


def test_without_a_split_a_fifth_is_sampled_and_said(tmp_path):
    (tmp_path/'train').mkdir()
    for i in range(30): Image.new('RGB', (8, 8)).save(tmp_path/'train'/f'{i}.png')
    write(tmp_path, [f'{i}.png,{("car", "dog")[i%2]}' for i in range(30)], header='fname,labels\n')
    with pytest.warns(UserWarning, match='train.csv has no column is_valid: 6 of its 30 pictures, '
                                         'sampled with seed 42, are for validation') as told:
        one, same, other = (ml.read_labels(tmp_path, **seed)['is_valid']
                            for seed in ({}, {'seed': 42}, {'seed': 1}))
    assert told[0].filename == __file__ and one.sum() == 6 and one.equals(same)
    assert not one.equals(other)


def test_test_is_a_word_for_validation_unless_there_is_another(folder):
    write(folder, ['000012.jpg,car,train', '000013.jpg,car,test'], header='fname,labels,split\n')
    assert ml.read_labels(folder)['is_valid'].tolist() == [False, True]
    write(folder, ['000012.jpg,car,train', '000013.jpg,car,test', '000014.jpg,car,valid'],
          header='fname,labels,split\n')
    with pytest.warns(UserWarning, match='1 of 3 rows of .*train.csv are for a test'):
        table = ml.read_labels(folder)
    assert (table.fname.tolist() == ['000012.jpg', '000014.jpg']
            and table.is_valid.tolist() == [False, True])


# --- a DataFrame of one's own

def frame(**columns):
    return pd.DataFrame({'fname': ['000012.jpg', '000013.jpg', '000014.jpg'],
                         'labels': ['car', 'car person', 'dog'], 'is_valid': [False, False, True],
                         **columns})


def test_nan_is_background_and_numbers_are_names_and_both_are_said(folder):
    with pytest.warns(UserWarning, match=r'1 of the 3 pictures have no label, the first is in '
                                         r'row 1'):
        dls = ml.multilabel_dls(frame(labels=['car', np.nan, 'dog']), folder, size=16, bs=2)
    assert sorted(y.sum().item() for _,y in dls.train_ds) == [0, 1]
    with pytest.warns(UserWarning, match=r'row 0 has the label 1, a number; it counts as a name'):
        dls = ml.multilabel_dls(frame(labels=[1, 2, 1]), folder, size=16, bs=2)
    assert list(dls.vocab) == ['1', '2']
    with warnings.catch_warnings(action='error'):
        ml.multilabel_dls(frame(labels=['7', '7 car', '7']), folder, size=16, bs=2,
                          vocab=['7', 'car'])


def test_lists_of_labels_and_usual_names_are_taken(folder):
    df = (frame(labels=[['car'], ['car', 'person'], ['dog']])
          .rename(columns={'fname': 'image', 'labels': 'tags'}).set_index(pd.Index([30, 10, 20])))
    dls = ml.multilabel_dls(df, folder, size=16, bs=2)
    assert list(dls.vocab) == ['car', 'dog', 'person'] and len(dls.valid_ds) == 1


def test_a_list_of_labels_of_two_words_is_not_torn(folder):
    df = frame(labels=[['sports car'], ['sports car', 'person'], ['dog']])
    with pytest.raises(ValueError, match=r"row 0 has the label 'sports car', which would be torn "
                                         r"at ' '; pass label_delim"):
        ml.multilabel_dls(df, folder, size=16, bs=2)
    assert (list(ml.multilabel_dls(df, folder, size=16, bs=2, label_delim=',').vocab)
            == ['dog', 'person', 'sports car'])


# --- the recipe: what suits the pictures and the machine, unless an argument says otherwise

@pytest.fixture
def synthetic(environment, tmp_path):
    "A set below the cache, where synthetic ones are kept."
    there = tmp_path/'cache'/'mini'/'v0'/'pascal_2007'
    (there/'train').mkdir(parents=True)
    for i in range(12): Image.new('RGB', (32, 24), (20*i, 120, 150)).save(there/'train'/f'{i}.jpg')
    return write(there, [f'{i}.jpg,{("car", "dog car")[i%2]},{i > 8}' for i in range(12)])


def test_the_loaders_suit_the_pictures_and_the_machine(synthetic, folder, monkeypatch):
    def made(path, **kw):
        dls = ml.multilabel_dls(ml.read_labels(path), path, **kw)
        assert dls.folder == path and dls.one_batch()[0].shape[-1] == dls.pixels
        return dls.pixels, dls.bs, isinstance(dls.valid, KeepBatches)
    assert made(synthetic) == (64, 2, True)
    assert made(folder) == (224, 2, True)
    assert made(folder, size=16, bs=1, keep_valid=False) == (16, 1, False)
    monkeypatch.setattr(labels, 'default_device', lambda: torch.device('cuda'))
    assert made(synthetic)[0] == 64 and made(folder)[0] == 128
    monkeypatch.setattr('lesson6.engine.picture_loaders.get_start_method', lambda: 'spawn')
    dls = ml.multilabel_dls(ml.read_labels(folder), folder, bs=1)
    assert dls.train.fake_l.num_workers == 0, 'or each would import fastai in each epoch'


def test_the_network_suits_the_pictures_and_the_machine(synthetic, folder, monkeypatch):
    def made(path, **kw):
        learn = ml.multilabel_learner(ml.multilabel_dls(ml.read_labels(path), path, size=32),
                                      pretrained=False, **kw)
        return learn.arch.__name__
    assert [made(synthetic), made(folder)] == ['drawnet18', 'efficientnet_lite0']
    assert (made(folder, arch=small_net, metrics=[ml.partial(accuracy_multi, thresh=.2)])
            == 'small_net')
    monkeypatch.setattr(labels, 'stays_frozen', lambda dls: False)
    monkeypatch.setattr(networks, 'default_device', lambda: torch.device('cuda'))
    assert made(folder) == 'resnet50'


@pytest.mark.parametrize('real_ones', [True, False])
def test_real_pictures_are_trained_with_a_frozen_body_on_a_cpu(synthetic, folder, real_ones,
                                                               capsys):
    path = folder if real_ones else synthetic
    def trained(**kw):
        set_seed(42, reproducible=True)
        learn = ml.multilabel_learner(ml.multilabel_dls(ml.read_labels(path), path, size=32),
                                      small_net, pretrained=False)
        before = [p.detach().clone() for p in learn.model[0].parameters()]
        with learn.no_bar(), learn.no_logging(): ml.fit_multilabel(learn, **kw)
        moved = any(not torch.equal(p, q)
                    for p, q in zip(before, learn.model[0].parameters(), strict=True))
        return moved, len(learn.recorder.values), capsys.readouterr().out.splitlines()[0]
    moved, epochs, said = trained()
    assert (moved, epochs) == ((False, 10) if real_ones else (True, 3))
    assert said == 'small_net at 32 pixels: ' + ('the body computed once for 2 crops of each '
                                                 'picture, then 10 epochs for the head, learning '
                                                 'rate 0.003'
                                                 if real_ones else '4 epochs for the head, then 3 '
                                                 'for all layers, learning rate 0.003')
    if not real_ones:
        assert trained(epochs=0, head_epochs=1) == (True, 1,
                                                    'small_net at 32 pixels: 1 epoch for the head, '
                                                    'learning rate 0.003'), 'BatchNorm moves'
    moved, epochs, said = trained(epochs=1, lr=1e-4, views=3)
    assert not moved and epochs == 1 and 'for 3 crops' in said and 'rate 0.0001' in said, (
        'who asks for views wants the body frozen')


def test_another_seed_is_another_split_where_the_table_has_none(environment, tmp_path):
    there = tmp_path/'own'/'pascal_2007'
    (there/'train').mkdir(parents=True)
    for i in range(20): Image.new('RGB', (32, 24), (10*i, 120, 150)).save(there/'train'/f'{i}.jpg')
    write(there, [f'{i}.jpg,{("car", "dog car")[i%2]}' for i in range(20)], header='fname,labels\n')
    environment.setenv('LESSON6_DATA', str(tmp_path/'own'))
    environment.setenv('LESSON6_ARCH', 'drawnet10')
    def held(seed):
        with pytest.warns(UserWarning, match=f'sampled with seed {seed}'):
            learn = section_learner('multilabel', seed=seed)
        return tuple(learn.dls.valid_ds.items['fname'])
    assert held(1) == held(1) and len({held(1), held(2), held(3)}) == 3


def test_loaders_can_be_sent_to_other_processes(folder):
    dls = ml.multilabel_dls(ml.read_labels(folder), folder, size=16, bs=2, keep_valid=True)
    for dl in dls.loaders: assert len(pickle.loads(pickle.dumps(dl)).one_batch()) == 2


@pytest.mark.slow
@pytest.mark.parametrize('method', ['spawn', 'forkserver'])
def test_a_script_trains_where_processes_do_not_fork(folder, method, tmp_path):
    "By itself, because each worker would import fastai in each epoch"
    (tmp_path/'script.py').write_text(textwrap.dedent(f"""
        import multiprocessing
        def main():
            from fastai.vision.all import defaults, vision_learner
            from lesson6.mini.network import drawnet10
            from lesson6.multilabel import multilabel_dls, read_labels
            defaults.cpus = 1
            multiprocessing.set_start_method({method!r}, force=True)
            dls = multilabel_dls(read_labels({str(folder)!r}), {str(folder)!r}, size=32, bs=2)
            learn = vision_learner(dls, drawnet10)
            with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-3)
            print('trained with', dls.train.fake_l.num_workers, 'workers')
        if __name__ == '__main__': main()
        """))
    done = subprocess.run([sys.executable, '-W', 'ignore', tmp_path/'script.py'],
                          capture_output=True, text=True)
    assert done.stdout == 'trained with 0 workers\n', done.stderr[-2000:]


# --- batches


def test_a_label_that_only_validation_has_is_in_the_vocabulary(folder):
    dls = ml.multilabel_dls(ml.read_labels(folder), folder, size=16, bs=2)
    assert list(dls.vocab) == ['car', 'dog', 'person']
    x, y = dls.valid.one_batch()
    assert x.shape == (1, 3, 16, 16) and y.tolist() == [[0., 1., 0.]]


@given(st.lists(st.booleans(), min_size=2, max_size=30).filter(lambda v: any(v) and not all(v)),
       st.randoms(use_true_random=False))
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


def test_the_best_threshold_is_found_and_a_plateau_is_met_in_its_middle():
    preds, targs = torch.tensor([[.1, .8], [.3, .9]]), torch.tensor([[0., 1.], [0., 1.]])
    xs, accs = ml.threshold_curve(preds, targs)
    assert len(xs) == 29 and accs.max() == 1
    assert torch.allclose(xs[[0, -1]], torch.tensor([.05, .95]))
    assert .3 < ml.best_threshold(preds, targs) < .8
    assert abs(ml.best_threshold(preds, targs) - .55) < .04
    assert ml.best_threshold(preds.numpy(), targs.numpy()) == ml.best_threshold(preds, targs)


def test_the_threshold_curve_as_it_is_drawn():
    preds, targs = (torch.tensor([[.1, .8], [.3, .9], [.2, .1]]),
                    torch.tensor([[0., 1.], [0., 1.], [0., 0.]]))
    ax = ml.plot_threshold_curve(preds, targs)
    curve, best, silent = ax.lines
    xs, accs = ml.threshold_curve(preds, targs)
    np.testing.assert_allclose(curve.get_xydata(), np.stack([xs, accs], 1), rtol=1e-6)
    assert best.get_xydata()[0] == pytest.approx([ml.best_threshold(preds, targs),
                                                  accs.max().item()])
    assert silent.get_ydata()[0] == pytest.approx(4/6), (
        'who answers nothing is right where there is nothing')
    plt.close('all')


def test_a_prediction_as_it_is_drawn(folder):
    learn = vision_learner(ml.multilabel_dls(ml.read_labels(folder), folder, size=16, bs=2),
                           small_net, pretrained=False)
    picture = folder/'train'/'000012.jpg'
    left, right = plot_prediction(learn, picture, .4, 'a dog')
    said = ml.prediction_table(learn, picture, .4)
    assert (said.probability.is_monotonic_decreasing
            and (said.named == (said.probability > .4)).all())
    turned = Image.Exif()
    turned[0x0112] = 6 # held sideways
    Image.fromarray(np.arange(3600, dtype=np.uint16).astype(np.uint8).reshape(30, 40, 3)).save(
        folder/'photo.jpg', exif=turned)
    pd.testing.assert_frame_equal(ml.prediction_table(learn, Image.open(folder/'photo.jpg')),
                                  ml.prediction_table(learn, folder/'photo.jpg'))
    assert left.get_title() == 'a dog' and len(left.images) == 1
    assert ([b.get_height() for b in right.patches] == pytest.approx(said.probability.tolist())
            and right.lines[0].get_ydata()[0] == .4)
    assert right.get_ylim() == (0, 1)
    assert plot_prediction(learn, picture)[1].lines[0].get_ydata()[0] == .5


def test_pictures_of_a_label_as_they_are_drawn_and_of_a_label_that_no_picture_has(folder):
    files = sorted((folder/'train').glob('*.jpg'))
    preds, targs = (torch.tensor([[.9, .1], [.2, .1], [.4, .1]]),
                    torch.tensor([[1., 0.], [1., 0.], [1., 0.]]))
    fig = ml.plot_label('car', preds, targs, ['car', 'dog'], files)
    titles = [ax.get_title() for ax in fig.axes if ax.images]
    assert titles == ['car: 0.20', 'car: 0.40', 'car: 0.90']
    assert not any(ax.images
                   for ax in ml.plot_label('dog', preds, targs, ['car', 'dog'], files).axes)
    assert sum(bool(ax.images) for ax in plot_pictures([files[0]]*5, 'abcde').axes) == 5
    plt.close('all')


def test_a_choice_on_one_half_is_too_good_there():
    g = torch.Generator().manual_seed(0)
    targs = (torch.rand(80, 20, generator=g) < .1).float()
    preds = (.5*torch.rand(80, 20, generator=g) + .4*targs).clamp(0, 1)
    one, many = ml.choose_on_half(preds, targs), ml.choose_on_half(preds, targs, per_label=True)
    assert one.shape == many.shape == (2, 80) and 0 <= one.min() and many.max() <= 1
    cost = [(o[0] - o[1]).mean().item() for o in (one, many)]
    assert cost[0] < cost[1] and many[0].mean() > one[0].mean()
    assert torch.equal(one, ml.choose_on_half(preds, targs)), 'the same halves for the same seed'


def test_empty_skies_are_pictures_without_a_label(folder, tmp_path):
    skies = ml.empty_skies(tmp_path/'skies', n=3)
    df = pd.concat([ml.read_labels(folder), skies], ignore_index=True)
    dls = ml.multilabel_dls(df, folder, size=16, bs=2)
    assert ([y.sum().item() for _,y in dls.train_ds][-3:] == [0, 0, 0]
            and len(set(skies['fname'])) == 3)


@pytest.mark.parametrize('preds,says', [(torch.tensor([[2., -1.]]), 'apply sigmoid'),
                                        (torch.tensor([[float('nan'), .5]]), 'not probabilities'),
    (torch.zeros(0, 2), 'do not match|not probabilities'), (torch.zeros(2, 3), 'do not match')])
def test_what_is_no_probability_is_refused(preds, says):
    for f in ml.threshold_curve, ml.best_threshold, ml.plot_threshold_curve:
        with pytest.raises(ValueError, match=says): f(preds, torch.zeros(1, 2))


def test_the_report_counts_by_hand():
    preds = torch.tensor([[.9, .2, .6], [.8, .7, .1], [.1, .6, .2], [.7, .1, .3]])
    targs = torch.tensor([[1., 0., 0.], [1., 1., 0.], [0., 0., 0.], [0., 1., 0.]])
    report = ml.label_report(preds, targs, ['a', 'b', 'c'], .5).set_index('label')
    assert (report.loc['a', ['pictures', 'precision', 'recall']].tolist()
            == pytest.approx([2, 2/3, 1]))
    assert (report.loc['b', ['pictures', 'precision', 'recall']].tolist()
            == pytest.approx([2, .5, .5]))
    assert (report.loc['c', 'precision'] == 0
            and np.isnan(report.loc['c', ['recall', 'average precision']].astype(float)).all())
    assert report.loc['a', 'average precision'] == pytest.approx(1)
    assert report.loc['b', 'average precision'] == pytest.approx((1/1 + 2/4)/2)
    alone = ml.label_report(preds[:,:1], targs[:,:1], ['a'])      # sklearn takes it for two classes
    assert alone.iloc[0, 1:].tolist() == report.loc['a'].tolist()


def test_the_report_refuses_another_vocabulary():
    with pytest.raises(ValueError, match='do not match'):
        ml.label_report(torch.zeros(2, 3), torch.zeros(2, 3), ['a'])


# --- a learner, exported

@pytest.mark.ci
def test_an_exported_learner_predicts_in_a_fresh_process(folder, tmp_path, monkeypatch):
    dls = ml.multilabel_dls(ml.read_labels(folder), folder, size=16, bs=2)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    learn = Learner(dls, model, metrics=ml.partial(accuracy_multi, thresh=.2), path=tmp_path)
    # fastai's loss is one object for all learners of several labels
    monkeypatch.setattr(learn.loss_func, 'thresh', .3)
    here = ml.prediction_table(learn, folder/'train'/'000014.jpg')
    learn.export('multi.pkl')
    # a picture that no table ever named
    (folder/'train'/'000014.jpg').rename(tmp_path/'new.jpg')
    for p in (folder/'train').iterdir():
        p.unlink()                # the training pictures need not be there
    done = python('''
        from fastai.learner import load_learner
        from pathlib import Path
        from lesson6.multilabel import prediction_table
        learn = load_learner('multi.pkl')
        table = prediction_table(learn, 'new.jpg')
        with learn.no_bar(): named, mask, probs = learn.predict(Path('new.jpg'))
        said = learn.loss_func.thresh, len(named) == int(mask.sum())
        print(table.to_csv(index=False), *said, sep='|')
        ''', cwd=tmp_path)
    table, thresh, agree = done.stdout.rsplit('|', 2)
    rows = list(csv.DictReader(table.strip().splitlines()))
    assert (thresh, agree.strip()) == ('0.3', 'True')
    assert [r['label'] for r in rows] == here['label'].tolist()
    assert [float(r['probability']) for r in rows] == pytest.approx(here['probability'].tolist(),
                                                                    abs=1e-5)


def test_a_picture_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match='nowhere.jpg is not there'):
        ml.prediction_table(None, 'nowhere.jpg')


# --- the drawn set

@pytest.fixture(scope='module')
def drawn(twins): return twins['pascal']


def test_the_drawn_set_is_whole_and_in_the_real_ones_layout(drawn):
    df = ml.read_labels(drawn)
    assert (len(df) == pascal.expected['pictures']
            and df['is_valid'].sum() == pascal.expected['valid'])
    assert {p.name for p in drawn.iterdir()} == {'train', 'train.csv'}
    assert sorted(p.name for p in (drawn/'train').iterdir()) == sorted(df['fname'])
    assert df['fname'].str.fullmatch(r'\d{6}\.jpg').all()
    labels = df['labels'].str.split()
    assert labels.str.len().between(1, 4).all() and labels.map(lambda l: l == sorted(set(l))).all()
    assert sorted(set(labels.explode())) == ml.voc_labels == pascal.vocab
    for rows in df[df['is_valid']], df[~df['is_valid']]:
        assert rows['labels'].str.split().explode().nunique() == 20


def test_its_table_reads_like_the_real_one(drawn, real):
    a, b = (pd.read_csv(p/'train.csv') for p in (drawn, real/'pascal_2007'))
    assert list(a.columns) == list(b.columns) and list(a.dtypes) == list(b.dtypes)


def test_drawing_is_repeatable_and_another_seed_draws_another_set(drawn, tmp_path, monkeypatch):
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    few = dict(pascal.expected, pictures=12, valid=3)
    monkeypatch.setattr(pascal, 'expected', few)
    sets = []
    for name,seed in ('a', 7), ('b', 7), ('c', 8):
        (tmp_path/name).mkdir()
        pascal.draw(tmp_path/name, seed=seed)
        sets.append({p.relative_to(tmp_path/name): p.read_bytes()
                     for p in (tmp_path/name).rglob('*') if p.is_file()})
    table = Path('train.csv')
    assert sets[0] == sets[1] and sets[0][table] != sets[2][table]
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
    recipe, picture, mask = (pascal.recipes[name], Image.new('RGB', (300, 300), (255, 0, 255)),
                             Image.new('L', (100, 100)))
    pen = pascal.Pen(picture, mask, (50, 60 if name == 'aeroplane' else 90), 40, flip=True)
    recipe.draw(pen, np.random.default_rng(1))
    changed = (np.asarray(picture.reduce(3)).astype(int) - [255, 0, 255]).__abs__().sum(-1) > 40
    marked = np.asarray(mask) > 0
    if name == 'train':
        changed[90:95] = marked[90:95]    # rails are drawn, and are no part of the train
    assert marked.sum() > 150
    assert (changed & marked).sum() > .8*marked.sum()
    assert (changed & ~marked).sum() < .35*changed.sum()


# --- the section on sets of one's own

def own_set(root, n, labels, name='train.csv', sep=',', columns='fname,labels,is_valid'):
    "A folder for LESSON6_DATA: `n` pictures whose colours go with their labels."
    folder, r, rows = root/'pascal_2007', np.random.default_rng(0), [columns]
    (folder/'train').mkdir(parents=True)
    for i in range(n):
        a = r.integers(0, 40, (60, 80, 3))
        for l in labels(i).split(): a[..., len(l) % 3] += 90
        Image.fromarray(a.astype(np.uint8)).save(folder/'train'/f'p{i}.png')
        rows.append(','.join([f'p{i}.png', labels(i), str(i % 4 == 0)][:columns.count(',')+1]))
    (folder/name).write_text('\n'.join(rows).replace(',', sep))
    return root


three = ['sand', 'woods', 'iceice']
own = {
    '24 pictures of 3 labels': dict(n=24, labels=lambda i: three[i % 3] + ' people'*(i % 2)),
    'one label each': dict(n=24, labels=lambda i: three[i % 3]),
    'a label that only validation has': dict(n=24,
                                             labels=lambda i: 'rare' if i == 4 else three[i % 3]),
    'a label that validation has not': dict(n=24,
                                            labels=lambda i: 'rare' if i == 5 else three[i % 3]),
    'so easy that all is right': dict(n=240, labels=lambda i: three[i % 3]),
    'one label in all': dict(n=20, labels=lambda i: 'sand'),
    'another table': dict(n=30, labels=lambda i: three[i % 3], name='metadata.csv', sep=';',
                          columns='image,tags'),
}


@pytest.mark.slow
@pytest.mark.parametrize('kind', own)
def test_the_section_runs_to_its_end(kind, tmp_path):
    "What the data cannot show is said, and claims that it cannot answer are not asked."
    said = run_section('multilabel', own_set(tmp_path/'data', **own[kind]))
    assert said['multilabel-onehot'] == said['multilabel-bce'] == 'holds'
    assert said['multilabel-nothing'] == 'not asked'
