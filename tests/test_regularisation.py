"""What the regularisation notebook cannot show: input that can't be meant, properties of the maps,
data of one's own, and the curve on real ratings."""
import math
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.basics import DataLoaders, Learner, MSELossFlat
from fastai.torch_core import set_seed
from fastai.vision.all import TensorImage, Transform
from fastai.vision.data import PointBlock
from PIL import Image
from test_own_pictures import pointed_set, run_section
from test_own_ratings import own_set
from torch import nn

from lesson6 import regularisation as reg
from lesson6.collab import ratings_dls, ratings_learner, read_ratings
from lesson6.data import folders
from lesson6.engine import augmentation
from lesson6.engine.augmentation import point_drift


@pytest.mark.parametrize('nothing', [[], nn.ReLU(), iter(())], ids=['list', 'module', 'iterator'])
def test_a_penalty_on_nothing_is_refused(nothing):
    with pytest.raises(ValueError, match='no weights to penalise'): reg.l2_penalty(nothing, .1)


@pytest.mark.parametrize('params',
                         [lambda m: m, lambda m: m.parameters(), lambda m: list(m.parameters())],
                         ids=['module', 'iterator', 'list'])
def test_a_penalty_takes_weights_in_every_form(params):
    model = nn.Linear(3, 2)
    assert torch.isclose(reg.l2_penalty(params(model), .5),
                         .5*sum((p**2).sum() for p in model.parameters()))
    assert reg.l2_penalty(model, 0) == 0


def test_weights_without_a_gradient_are_left_alone():
    p = nn.Parameter(torch.ones(2))
    reg.weight_decay_step([p], .1, .1)
    assert torch.equal(p, torch.ones(2))


def test_a_sweep_trains_for_the_lessons_five_epochs():
    made = []
    def make():
        rows = [(torch.ones(1), torch.ones(1))]*4
        made.append(Learner(DataLoaders.from_dsets(rows, rows, bs=2, num_workers=0,
                                                   device='cpu'),
                            torch.nn.Linear(1, 1), loss_func=MSELossFlat()))
        return made[-1]
    sweep = reg.wd_sweep(make, [0, .1], progress=False)
    assert sweep.wd.tolist() == [0, .1] and [len(learn.recorder.values) for learn in made] == [5, 5]


@pytest.mark.parametrize('shape', [(6, 2), (6, 1, 2), (6, 3, 2)])
def test_points_keep_their_shape_and_come_back(shape):
    g = torch.Generator().manual_seed(0)
    p = torch.rand(shape, generator=g)*2 - 1
    A = torch.eye(2) + .4*(torch.rand(6, 2, 2, generator=g) - .5)
    there = torch.cat([A, torch.rand(6, 2, 1, generator=g) - .5], 2)
    back = torch.cat([A.inverse(), -(A.inverse() @ there[:,:,2:])], 2)
    moved = reg.affine_points(p, there)
    assert moved.shape == p.shape and not torch.allclose(moved, p)
    assert torch.allclose(reg.affine_points(moved, back), p, atol=1e-5)


@pytest.mark.parametrize('angle', [0, 30, -75, 180])
@pytest.mark.parametrize('size', [(60, 80), (48, 48)])
def test_a_dot_is_where_its_point_is(angle, size):
    g = torch.Generator().manual_seed(1)
    x, p = reg.dots(8, size, g)
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    r = size[0]/size[1]   # turned in pixels, not in the stretched scale
    mat = torch.tensor([[c, -s*r, .05], [s/r, c, -.1]])
    off = ((reg.find_dots(reg.affine_picture(x, mat))
            - reg.affine_points(p, mat))*torch.tensor([size[1]/2, size[0]/2]))
    assert off.norm(dim=-1).max() < 1


def test_the_maps_are_the_engines():
    for name in augmentation.__all__: assert getattr(reg, name) is getattr(augmentation, name)


# The section on sets such as people have: ratings, heads, or only one of the two

def face(r, w, h, x, y):
    down, right = np.mgrid[:h, :w]
    pixels = 40 + r.integers(0, 30, (h, w, 3))
    pixels[((right-x)**2 + (down-y)**2) < (h/8)**2] += 150
    return Image.fromarray(pixels.astype(np.uint8))


NEEDS_NO_DATA = {'reg-penalty-gradient', 'reg-sgd-same', 'reg-adam-differs', 'reg-points-move',
                 'reg-dropout-mean'}
HEADS = {'reg-augmentation', 'reg-point-forgotten'}


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(12))
def test_the_section_runs_to_its_end_on_data_of_ones_own(seed, tmp_path):
    has = ['movielens', 'biwi'] if seed % 3 else [['movielens'], ['biwi']][seed//3 % 2]
    for name, write in ('movielens', own_set), ('biwi', pointed_set):
        if name in has:
            (tmp_path/'own'/folders[name]).mkdir(parents=True)
            write(tmp_path/'own'/folders[name], seed)
    for id, said in run_section('regularisation', tmp_path/'own').items():
        if id in NEEDS_NO_DATA: assert said == 'holds', id
        elif ('biwi' if id in HEADS else 'movielens') not in has: assert said == 'not asked', id


@pytest.mark.slow
def test_on_real_ratings_the_lessons_decay_is_near_the_best(real):
    ratings = read_ratings(real/'ml-100k')
    def make(seed):
        dls = ratings_dls(ratings, bs=64, seed=seed)
        set_seed(seed, reproducible=True)
        return ratings_learner(dls)
    sweep = reg.ratings_sweep(make, [.01, .03, .1, .3, 1], seeds=[42, 43]).groupby('wd').mean()
    print(sweep.round(4))
    assert .01 < sweep.valid_loss.idxmin() < 1, 'the curve has its minimum in the middle'
    assert sweep.valid_loss[.1] <= sweep.valid_loss.min() + .01
    assert sweep.valid_loss[.1] < sweep.valid_loss[.01] - .03


@pytest.mark.parametrize('moved', [(0, 4), (3, 0), (3, 4)])
def test_drift_is_told_in_pixels_across_and_down(moved):
    """Also in pictures with an odd number of pixels, which are no squares; from the first pixel to
    the last there is one step fewer than pixels."""
    class Roll(Transform):
        def encodes(self, x:TensorImage): return x.roll(moved, (-2, -1))
    drift = point_drift([Roll()], n=200, size=(31, 21), generator=torch.Generator().manual_seed(0))
    assert drift.mean() == pytest.approx(math.hypot(moved[0]*31/30, moved[1]*21/20), rel=.015)


# Rating models trained side by side

def ratings_of(n=600):
    g = np.random.default_rng(0)
    u, i = np.divmod(g.permutation(40*30)[:n], 30)
    return pd.DataFrame({'user': u, 'title': [f'film {o}' for o in i],
                         'rating': g.integers(1, 6, n)})


def rating_learner(seed, **kwargs):
    dls = ratings_dls(ratings_of(), bs=32, seed=seed, device='cpu')
    set_seed(seed, reproducible=True)
    return ratings_learner(dls, **kwargs)


def test_side_by_side_is_as_if_alone():
    wds, seeds = [0, .1, 3], [1, 2]
    together = reg.ratings_sweep(rating_learner, wds, seeds, n_epoch=3, lr=2e-2)
    assert together[['seed', 'wd']].values.tolist() == [[s, wd] for s in seeds for wd in wds]
    for seed, rows in together.groupby('seed'):
        alone = reg.wd_sweep(lambda seed=seed: rating_learner(seed), wds, n_epoch=3, lr=2e-2,
                             progress=False)
        np.testing.assert_allclose(rows.valid_loss, alone.valid_loss, rtol=1e-4)
        np.testing.assert_allclose(rows['size'], alone['size'], rtol=1e-4)


def test_side_by_side_tells_the_training_error_of_the_end():
    learn = rating_learner(1)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(3, 2e-2, wd=.1)
        preds, y = learn.get_preds(ds_idx=0)
    row = reg.ratings_sweep(rating_learner, [.1], [1], n_epoch=3, lr=2e-2).iloc[0]
    assert row.train_loss == pytest.approx((preds - y).square().mean().item(), rel=1e-4)


def test_side_by_side_passes_a_warning_on_once():
    def make(seed):
        with warnings.catch_warnings():
            pass   # as libraries do: after it Python forgets what it has warned of
        warnings.warn('some ratings are there twice', stacklevel=1)
        return rating_learner(seed)
    with pytest.warns(UserWarning, match='there twice') as said:
        reg.ratings_sweep(make, [.1], [1, 2, 3], n_epoch=1)
    assert len(said) == 1


def test_side_by_side_is_for_models_with_factors_and_biases():
    rows = [(torch.ones(1), torch.ones(1))]*4
    def make(seed):
        return Learner(DataLoaders.from_dsets(rows, rows, bs=2, num_workers=0,
                                              device='cpu'), nn.Linear(1, 1),
                       loss_func=MSELossFlat())
    with pytest.raises(ValueError, match='this is a Linear'): reg.ratings_sweep(make, [.1])


# A few frames

@pytest.mark.parametrize('groups', [True, False])
def test_a_few_frames_keep_people_apart(groups, tmp_path):
    r, rows = np.random.default_rng(0), ['fname,x,y' + ',group'*groups]
    for i in range(24):
        face(r, 60, 40, 10+i, 20).save(tmp_path/f'{i:02}.png')
        rows.append(f'{i:02}.png,{10+i},20' + f',p{i%4}'*groups)
    (tmp_path/'points.csv').write_text('\n'.join(rows) + '\n')
    few = reg.FewFrames(tmp_path, n=6, n_unseen=4, size=(40, 60))
    assert len(few.seen) == 6 and len(few.unseen) == 4 and not set(few.seen) & set(few.unseen)
    assert few.people == (['p2', 'p2', 'p3', 'p3'] if groups else None)
    if groups:
        assert ({int(f.stem) % 4 for f in few.seen} == {0, 1}
                and {int(f.stem) % 4 for f in few.unseen} == {2, 3})
    f = few.seen[0]
    assert torch.allclose(few.unit(f), torch.tensor([2*(10+int(f.stem))/60 - 1, 0.]))
    assert few.picture(f).shape == (1, 3, 40, 60)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(3*6*6, 2), nn.Tanh())
    seen, unseen = reg.train_on_few_frames(few, model, PointBlock, [], epochs=40)
    preds = [model((few.picture(f) - torch.tensor([.485, .456, .406]).view(3, 1, 1))/torch.tensor(
        [.229, .224, .225]).view(3, 1, 1)) for f in few.unseen]
    off = [((p.detach()[0] - few.unit(f))*torch.tensor([30., 20.])).norm().item()
           for p, f in zip(preds, few.unseen)]
    np.testing.assert_allclose(unseen, off, rtol=1e-3)
    assert len(seen) == 6 and seen.mean() < 3, 'frames that were trained on'


def test_a_few_frames_of_nobody_keep_to_the_split_of_the_set(tmp_path):
    r, rows = np.random.default_rng(0), ['fname,x,y,split']
    for i in range(12):
        face(r, 60, 40, 10+i, 20).save(tmp_path/f'{i:02}.png')
        rows.append(f'{i:02}.png,{10+i},20,{("valid", "train")[i%3 > 0]}')
    (tmp_path/'points.csv').write_text('\n'.join(rows) + '\n')
    few = reg.FewFrames(tmp_path, n=6, n_unseen=12, size=(40, 60))
    assert ({int(f.stem) % 3 for f in few.seen}, {int(f.stem) % 3 for f in few.unseen}) == ({1, 2},
                                                                                           {0})
    assert few.people is None and few.never_seen == 'frames never seen' and 'people' not in str(few)


def test_one_frame_is_shown_several_times_with_its_point(tmp_path):
    r = np.random.default_rng(0)
    for i in range(2): face(r, 60, 40, 20, 20).save(tmp_path/f'{i}.png')
    (tmp_path/'points.csv').write_text('fname,x,y\n0.png,20,20\n1.png,20,20\n')
    fig = reg.show_augmented(reg.FewFrames(tmp_path, 1, 1, (40, 60)), n=6)
    shown = [ax for ax in fig.axes if ax.images]
    assert len(shown) == 6 and all(len(ax.lines) == 1 for ax in shown)
    assert not np.array_equal(shown[0].images[0].get_array(), shown[1].images[0].get_array())
    plt.close(fig)
