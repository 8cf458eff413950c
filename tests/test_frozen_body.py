"""The frozen body computed once: the same numbers as through the whole network, nothing else
changed, and a sentence for what can't be done."""
import re
import tempfile
import time
import warnings
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

warnings.filterwarnings('ignore', message='`torch.jit.script` is deprecated',
                        category=FutureWarning)
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader, SkipItemException
from fastai.vision.all import (Callback, CategoryBlock, CrossEntropyLossFlat, DataBlock, ImageBlock,
                               IndexSplitter, Learner, MSELossFlat, MultiCategoryBlock, PointBlock,
                               ProgressCallback, Resize, TensorPoint, accuracy_multi,
                               aug_transforms, error_rate, get_image_files, mae, set_seed,
                               vision_learner)
from torch import nn

from lesson6.engine import frozen_body
from lesson6.engine.frozen_body import body_features, fit_head
from lesson6.head_pose import point_head
from lesson6.mini.network import drawnet10

# Sets of forty small pictures, a bright square on a dark one: which half it is in, both its halves,
# or where it is

SIDE = 48


def place(f): return [int(v) for v in f.stem.split('_')[1:]]
def half(f): return 'left' if place(f)[0] < SIDE/2 else 'right'
def halves(f): return [half(f), 'up' if place(f)[1] < SIDE/2 else 'down']
def point(f): return TensorPoint.create(torch.tensor(place(f)).float())


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp('squares')
    for i in range(40):
        x, y = rng.integers(6, SIDE-6, 2)
        a = rng.integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8)
        a[y-5:y+5, x-5:x+5] = rng.integers(150, 256, 3)
        Image.fromarray(a).save(folder/f'{i:02}_{x}_{y}.png')
    return get_image_files(folder).sorted()


tasks = {'one label': (CategoryBlock, half, dict(metrics=error_rate)),
         'several labels': (MultiCategoryBlock, halves,
                            dict(metrics=partial(accuracy_multi, thresh=.5))),
         'points': (PointBlock, point, dict(y_range=(-1, 1), metrics=mae)),
         'points from the map': (PointBlock, point, dict(custom_head=lambda: point_head(448),
                                                         loss_func=MSELossFlat(), metrics=mae))}


@pytest.fixture
def make(files):
    "A learner for one of the tasks; everything about it follows from the seed"
    def learner(task='one label', augment=True, bs=8, n_valid=12, **kwargs):
        block, get_y, args = tasks[task]
        args = {**args, **kwargs}
        if 'custom_head' in args: args['custom_head'] = args['custom_head']()
        set_seed(0)
        dls = (DataBlock((ImageBlock, block), get_y=get_y, splitter=IndexSplitter(range(n_valid)),
                         item_tfms=Resize(SIDE),
                         batch_tfms=aug_transforms() if augment
                         else None).dataloaders(files, bs=bs, num_workers=0))
        learn = vision_learner(dls, drawnet10, **args)
        learn.remove_cb(learn.progress)
        return learn
    return learner


def everything(learn):
    "What an interrupted training must leave as it was"
    return ({k: v.clone() for k, v in learn.model.state_dict().items()},
            [m.training for m in learn.model.modules()],
            [p.requires_grad for p in learn.model.parameters()],
            (learn.opt, learn.dls, learn.loss_func, learn.metrics, list(learn.cbs)),
            deepcopy(getattr(learn.recorder, 'values', None)))


def assert_same(a, b):
    assert a[0].keys() == b[0].keys() and all(torch.equal(v, b[0][k]) for k, v in a[0].items())
    assert a[1:3] == b[1:3] and a[4] == b[4]
    assert (all(x is y for x, y in zip(a[3][:4], b[3][:4], strict=True))
            and all(x is y for x, y in zip(a[3][4], b[3][4], strict=True)))


# The same numbers

@pytest.mark.parametrize('task', tasks)
def test_validate_gives_the_same_as_the_head_on_stored_features(make, task):
    learn = make(task)
    with learn.no_logging(): fit_head(learn, 3, 5e-3)
    last = list(learn.recorder.values[-1])
    assert len(learn.recorder.values) == 3 and len(learn.recorder.losses) == 3*(28//8)
    assert list(learn.validate()) == pytest.approx(last[1:], abs=1e-4)


def test_the_expected_time_is_that_of_one_picture_times_all_of_them(make, capsys):
    "Here a picture takes at least 20 ms to load"
    learn = make()
    learn.add_cb(ProgressCallback())
    item = type(learn.dls.train).create_item
    def slowly(self, s): time.sleep(.02); return item(self, s)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(learn.dls.train), 'create_item', slowly)
        start = time.perf_counter()
        body_features(learn)
        took = 1000*(time.perf_counter()-start)/40
    n, each, all_of_them = map(int, re.search(r'(\d+) pictures, (\d+) ms each, will take about '
                                              r'(\d+) s;', capsys.readouterr().out).groups())
    assert n == 40 and 20 <= each < 3*took and all_of_them == pytest.approx(n*each/1000, abs=.6)


@pytest.mark.parametrize('task', ['one label', 'points from the map'])
def test_the_features_are_the_bodys_in_the_order_of_the_pictures(make, task):
    learn = make(task, augment=False)
    (x, y), (valid_x, valid_y) = body_features(learn)
    learn.model.to(learn.dls.device).eval()
    for dl, xs, ys in ((learn.dls.train.new(shuffle=False, drop_last=False), x, y),
                       (learn.dls.valid, valid_x, valid_y)):
        assert len(xs) == len(ys) == dl.n
        skip = 0 if task == 'points from the map' else 2
        with torch.no_grad():
            want = torch.cat([nn.Sequential(learn.model[0], *learn.model[1][:skip])(b[0])
                              for b in dl])
        torch.testing.assert_close(xs.cpu(), want.as_subclass(torch.Tensor).cpu(), atol=1e-4,
                                   rtol=1e-4)
        assert torch.equal(ys.cpu(), torch.cat([b[1].as_subclass(torch.Tensor) for b in dl]).cpu())
    assert x.shape[1:] == ((448, 2, 2) if skip == 0 else (896,))


def test_a_picture_that_its_loader_passes_over_leaves_no_gap(make):
    "fastai's SkipItemException leaves an item out of its batch"
    learn = make(augment=False)
    (whole, y), _ = body_features(learn)
    item, gone = type(learn.dls.train).create_item, 3
    def create_item(self, s):
        if self.dataset is learn.dls.train_ds and s == gone: raise SkipItemException
        return item(self, s)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(learn.dls.train), 'create_item', create_item)
        (x, few), _ = body_features(learn)
    rest = [i for i in range(28) if i != gone]
    torch.testing.assert_close(x, whole[rest], atol=1e-4, rtol=1e-4)
    assert torch.equal(few, y[rest])


def test_views_are_versions_of_the_same_picture(make):
    (x, y), (valid_x, _) = body_features(make(), views=3)
    assert len(x) == 3*28 and len(valid_x) == 12
    assert torch.equal(y[:28], y[28:56]) and torch.equal(y[:28], y[56:])
    assert not any(torch.equal(x[i*28], x[j*28]) for i, j in ((0, 1), (0, 2), (1, 2)))
    (x, _), _ = body_features(make(augment=False), views=2)
    torch.testing.assert_close(x[:28], x[28:])


def test_it_learns_and_the_body_stands_still(make):
    learn = make(augment=False)
    before = everything(learn)
    with learn.no_logging():
        error = learn.validate()[1]
        fit_head(learn, 15, 1e-2)
    after = everything(learn)
    assert learn.recorder.values[-1][-1] <= .25 < error+.2
    assert all(torch.equal(v, after[0][k]) == k.startswith('0.') for k, v in before[0].items())
    assert before[2] == after[2] and learn.opt is before[3][0] and learn.dls is before[3][1]


def test_a_seed_gives_the_same_again_and_a_second_fit_goes_on(make):
    learns = [make(), make()]
    for learn in learns:
        set_seed(5)
        with learn.no_logging(): fit_head(learn, 2, 5e-3, views=2)
    a, b = (learn.recorder.values for learn in learns)
    assert np.allclose(a, b, atol=1e-5)
    with learns[0].no_logging(): fit_head(learns[0], 1, 1e-9)
    last = learns[0].recorder.values[-1][1]
    assert abs(last - b[-1][1]) < abs(last - b[0][1])


def test_the_frozen_epochs_can_follow(make):
    learn = make()
    with learn.no_logging():
        fit_head(learn, 1, 5e-3)
        learn.unfreeze()
        learn.fit_one_cycle(1, slice(1e-5, 1e-3))
    assert np.isfinite(learn.recorder.values).all()


def test_a_head_that_is_no_sequence(make):
    class Head(nn.Module):
        def __init__(self): super().__init__(); self.linear = nn.Linear(448, 2)
        def forward(self, x): return self.linear(x.mean((2, 3)))
    learn = make(custom_head=Head)
    with learn.no_logging(): fit_head(learn, 2, 5e-3)
    last = list(learn.recorder.values[-1])
    assert list(learn.validate()) == pytest.approx(last[1:], abs=1e-4)


def test_a_layer_without_weights_that_is_no_function_is_not_stored(make):
    "A Dropout before the first weights acts in every step anew"
    learn = make(custom_head=lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                                   nn.Dropout(.5), nn.Linear(448, 2)))
    assert isinstance(frozen_body._parts(learn)[1][0], nn.Dropout)
    (x, _), _ = body_features(learn)
    assert x.shape[1:] == (448,) and (x == 0).float().mean() < .4


def test_no_validation_pictures(make):
    learn = make(n_valid=0)
    with learn.no_logging(): fit_head(learn, 1, 5e-3)
    assert len(learn.recorder.losses) == 40//8


# What it says and shows

def test_it_says_how_long_it_will_take_and_shows_the_epochs(make, capsys):
    learn = make()
    fit_head(learn, 1, 5e-3)
    assert 'pictures' not in capsys.readouterr().out
    learn.add_cb(ProgressCallback())
    fit_head(learn, 2, 5e-3, views=2)
    out = capsys.readouterr().out
    assert ('68 pictures, ' in out and 'will take about' in out and 'of memory' in out
            and 'valid_loss' in out)


def test_the_recorder_can_be_plotted(make):
    matplotlib.use('agg')
    learn = make()
    with learn.no_logging(): fit_head(learn, 4, 5e-3)
    assert len(learn.recorder.plot_loss().lines) == 2
    learn.recorder.plot_sched()
    plt.close('all')
    assert max(learn.recorder.hps['lr']) == pytest.approx(5e-3)


# Interrupted

class StopAt(Callback):
    def __init__(self, epoch, error): self.at, self.error = epoch, error
    def before_epoch(self):
        if self.epoch == self.at: raise self.error


@pytest.mark.parametrize('error', [KeyboardInterrupt(), RuntimeError('no')])
@pytest.mark.parametrize('when', ['features', 'first epoch', 'second epoch'])
def test_interrupted_it_leaves_the_learner_as_it_was(make, monkeypatch, error, when):
    learn = make()
    with learn.no_logging(): learn.fit_one_cycle(1, 1e-3)
    before = everything(learn)
    cbs = None
    if when == 'features':
        compute, calls = frozen_body._compute, []
        def stops(*args):
            calls.append(1)
            if len(calls) == 8: raise error
            return compute(*args)
        monkeypatch.setattr(frozen_body, '_compute', stops)
    else: cbs = StopAt(0 if when == 'first epoch' else 1, error)
    with learn.no_logging(), pytest.raises(type(error)): fit_head(learn, 3, 5e-3, cbs=cbs)
    assert_same(before, everything(learn))


def test_diverged(make):
    learn = make()
    before = everything(learn)
    with learn.no_logging(), pytest.raises(FloatingPointError, match='the training has diverged'):
        fit_head(learn, 5, 1e20)
    assert_same(before, everything(learn))


# Memory

@pytest.fixture
def short_of(monkeypatch):
    "A machine with so many bytes to spare in memory and on disk"
    def set_to(memory, disk=1e9):
        monkeypatch.setattr(frozen_body.psutil, 'virtual_memory',
                            lambda: SimpleNamespace(available=2*memory))
        monkeypatch.setattr(frozen_body.psutil, 'disk_usage',
                            lambda path: SimpleNamespace(free=disk))
    return set_to


def test_a_large_set_is_halved_or_goes_to_a_file(make, short_of, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    need = 40*896*4
    for room, kind, words in ((need, torch.float32, '0.1 MB of memory'),
                              (need-1, torch.float16,
                               '0.1 MB of memory, in 16 bits instead of 32'), \
                             (need//2-1, torch.float16,
                              '0.1 MB of a temporary file, in 16 bits instead of 32')):
        short_of(room)
        (train, valid), said = frozen_body._stores([28, 12], (896,), torch.device('cpu'))
        assert (train.dtype == valid.dtype == kind and (len(train), len(valid)) == (28, 12)
                and said == words)
        assert frozen_body._stores([28, 0], (896,), torch.device('cpu'))[0][1].shape == (0, 896), (
            'nothing to validate on')
    learn = make(augment=False)
    short_of(1)
    if learn.dls.device.type != 'cpu':
        pytest.skip('with a GPU the features of a small set stay there')
    with learn.no_logging(): fit_head(learn, 3, 5e-3)
    last = list(learn.recorder.values[-1])
    assert list(learn.validate()) == pytest.approx(last[1:], abs=5e-3)
    assert not list(tmp_path.iterdir()), 'the file is gone'


def test_no_room_anywhere(make, short_of):
    learn = make()
    if learn.dls.device.type != 'cpu':
        pytest.skip('with a GPU the features of a small set stay there')
    before = everything(learn)
    short_of(100, 100)
    with pytest.raises(OSError, match='The features would take .* take fewer views or smaller '
                                      'pictures, or make room'):
        fit_head(learn, 1, 1e-3)
    assert_same(before, everything(learn))


# What can't be done

def test_what_it_refuses(make, files):
    learn = make()
    before = everything(learn)
    with pytest.raises(ValueError, match='views is 0; each picture needs at least one'):
        fit_head(learn, 1, views=0)
    with pytest.raises(ValueError, match='There are 28 pictures to train on, fewer than a batch '
                                         'of 64'):
        fit_head(make(bs=64), 1, 1e-3)
    with pytest.raises(ValueError, match='head has no weights that can be trained'):
        fit_head(make(custom_head=lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())), 1)
    assert_same(before, everything(learn))


def rows_of_numbers():
    return [(torch.randint(9, (5,)), torch.tensor(1)) for _ in range(8)], r'\(4, 5\)'
def rows_of_text(): return [('five words are a row', torch.tensor(1)) for _ in range(8)], r'\(\)'


@pytest.mark.parametrize('make_rows', [rows_of_numbers, rows_of_text])
def test_text_is_refused(make_rows):
    rows, says = make_rows()
    learn = Learner(DataLoaders(DataLoader(rows, bs=4), DataLoader(rows, bs=4)),
                    nn.Sequential(nn.Embedding(9, 3),
                                  nn.Sequential(nn.Flatten(), nn.Linear(15, 2))),
                    loss_func=CrossEntropyLossFlat())
    with pytest.raises(ValueError, match='takes one picture an item, .* here a batch begins with '
                                         f'{says}'):
        fit_head(learn, 1)
