"What the regularisation notebook cannot show: input that can't be meant, properties of the maps, and the curve on real ratings."
import math

import pytest
import torch
from torch import nn

from lesson6 import regularisation as reg


@pytest.mark.parametrize('wd', [-.1, float('nan')])
def test_a_weight_decay_that_rewards_large_weights_is_refused(wd):
    with pytest.raises(ValueError, match='must be 0 or more'): reg.l2_penalty(torch.ones(2), wd)
    with pytest.raises(ValueError, match='must be 0 or more'): reg.weight_decay_step([torch.ones(2)], .1, wd)


@pytest.mark.parametrize('nothing', [[], nn.ReLU(), iter(())], ids=['list', 'module', 'iterator'])
def test_a_penalty_on_nothing_is_refused(nothing):
    with pytest.raises(ValueError, match='no weights to penalise'): reg.l2_penalty(nothing, .1)


@pytest.mark.parametrize('params', [lambda m: m, lambda m: m.parameters(), lambda m: list(m.parameters())], ids=['module', 'iterator', 'list'])
def test_a_penalty_takes_weights_in_every_form(params):
    model = nn.Linear(3, 2)
    assert torch.isclose(reg.l2_penalty(params(model), .5), .5*sum((p**2).sum() for p in model.parameters()))
    assert reg.l2_penalty(model, 0) == 0


def test_weights_without_a_gradient_are_left_alone():
    p = nn.Parameter(torch.ones(2))
    reg.weight_decay_step([p], .1, .1)
    assert torch.equal(p, torch.ones(2))


@pytest.mark.parametrize('wds, why', [([], 'nothing to try'), ([.1, -.1], 'wd is -0.1'), ([200], 'turns the weights over'), ([float('nan')], 'must lie between')])
def test_a_sweep_says_at_once_what_cannot_be_meant(wds, why):
    def make(): raise AssertionError('trained before it was checked')
    with pytest.raises(ValueError, match=why): reg.wd_sweep(make, wds)


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


def test_a_map_that_squeezes_the_picture_is_refused():
    with pytest.raises(ValueError, match='determinant must not be 0'): reg.affine_points(torch.zeros(1, 2), torch.tensor([[1., 0, 0], [2, 0, 0]]))


@pytest.mark.parametrize('angle', [0, 30, -75, 180])
@pytest.mark.parametrize('size', [(60, 80), (48, 48)])
def test_a_dot_is_where_its_point_is(angle, size):
    g = torch.Generator().manual_seed(1)
    x, p = reg.dots(8, size, g)
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    r = size[0]/size[1]   # turned in pixels, not in the stretched scale
    mat = torch.tensor([[c, -s*r, .05], [s/r, c, -.1]])
    off = (reg.find_dots(reg.affine_picture(x, mat)) - reg.affine_points(p, mat))*torch.tensor([size[1]/2, size[0]/2])
    assert off.norm(dim=-1).max() < 1


@pytest.mark.slow
def test_on_real_ratings_the_lessons_decay_is_near_the_best(real):
    from fastai.losses import MSELossFlat
    from fastai.torch_core import set_seed
    from lesson6.collab import DotProductBias, LeanLearner, ratings_dls, read_ratings
    dls = ratings_dls(read_ratings(real/'ml-100k'), bs=64, seed=42)
    def make():
        set_seed(42, reproducible=True)
        return LeanLearner(dls, DotProductBias(*(len(dls.classes[o]) for o in ('user', 'title')), 50), loss_func=MSELossFlat())
    sweep = reg.wd_sweep(make, [.01, .03, .1, .3, 1], progress=False).set_index('wd')
    print(sweep.round(4))
    assert .01 < sweep.valid_loss.idxmin() < 1, 'the curve has its minimum in the middle'
    assert sweep.valid_loss[.1] <= sweep.valid_loss.min() + .01
    assert sweep.valid_loss[.1] < sweep.valid_loss[.01] - .03
