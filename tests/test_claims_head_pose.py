"Each statement of the head-pose section holds on a right thing and fails on a broken one."
import os

import pytest
import torch
from fastai.data.transforms import FuncSplitter, RandomSplitter, get_image_files
from fastai.layers import SigmoidRange
from fastai.losses import L1LossFlat
from fastai.torch_core import set_seed
from fastai.vision.core import PILImage, TensorPoint
from test_claims import holds, verdict
from torch import nn

from lesson6.head_pose import biwi_dls, get_ctr, sigmoid_range


@pytest.fixture(scope='module')
def twin(twins): return twins['biwi']


@pytest.fixture(scope='module')
def dls(twin): return biwi_dls(twin, size=(60, 80), bs=16, num_workers=0)


def test_projection(tmp_path):
    published = (428.5814, 263.9104)
    (tmp_path/'frame_00667_pose.txt').write_text('1 0 0\n0 1 0\n0 0 1\n\n187.332 40.3892 893.135\n')
    def at(cal):
        (tmp_path/'rgb.cal').write_text(cal)
        os.utime(tmp_path/'rgb.cal', ns=(len(cal), len(cal)))
        return get_ctr(tmp_path/'frame_00667_rgb.jpg')
    right = at('517.679 0 320\n0 517.679 240.5\n0 0 1\n')
    assert holds('pose-projection', right, published)
    # another middle
    assert not holds('pose-projection', at('517.679 0 320\n0 517.679 240\n0 0 1 \n'), published)
    # row and column swapped
    assert not holds('pose-projection', right.flip(0), published)


def test_by_person(twin):
    files = get_image_files(twin).sorted()
    in_both = lambda splits: set.intersection(*({files[i].parent.name for i in s} for s in splits))
    by_person, by_frame = (in_both(FuncSplitter(lambda f: f.parent.name == '13')(files)),
                           in_both(RandomSplitter(seed=0)(files)))
    assert holds('pose-by-person', by_person, by_frame)
    assert not holds('pose-by-person', by_frame, by_frame)
    assert not holds('pose-by-person', by_person, by_person)


def test_scale(dls):
    targs = dls.valid.one_batch()[1]
    points, size = torch.stack([get_ctr(f) for f in dls.valid_ds.items]), torch.tensor([640., 480.])
    points = points[:len(targs)]
    assert holds('pose-scale', targs, points, size)
    assert not holds('pose-scale', targs, points.flip(1), size)
    assert not holds('pose-scale', (targs+1)/2, points, size)              # scaled to 0..1
    assert not holds('pose-scale', dls.train.one_batch()[1][:len(targs)], points, size)
    assert not holds('pose-scale', targs, points*4, size)


@pytest.fixture(scope='module')
def spots(dls):
    """Spots of light sent through the DataLoader's steps, as in the notebook; with points that
    move, and with points that don't"""
    set_seed(0)
    def at(point, Point):
        ys, xs = torch.meshgrid(torch.arange(480)+.5, torch.arange(640)+.5, indexing='ij')
        light = torch.exp(-((xs-point[0])**2 + (ys-point[1])**2)/2/(640/27)**2)
        return (PILImage.create((255*light).byte()[..., None].expand(-1, -1, 3).numpy()),
                Point(point))
    def light(Point):
        xb, yb = dls.train.after_batch(dls.train.create_batch(
            [dls.train.after_item(at(get_ctr(f), Point)) for f in dls.train_ds.items[::12]]))
        x, y = (xb.as_subclass(torch.Tensor).mean(1, keepdim=True),
                yb.as_subclass(torch.Tensor).float().view(-1, 1, 1, 2))
        lo, hi = x.amin((2, 3)), x.amax((2, 3))
        return ((torch.nn.functional.grid_sample(x, y, align_corners=False)[:, 0, 0]
                 - lo)/(hi-lo))[:, 0]
    return light(TensorPoint.create), light(lambda p: p/torch.tensor([320., 240.]) - 1)


def test_augmentation(spots):
    moved, left_behind = spots
    assert holds('pose-augmentation', moved)
    assert not holds('pose-augmentation', left_behind)


def test_y_range():
    torch.manual_seed(0)
    acts = torch.randn(16, 2)*3
    assert holds('pose-y-range', acts, SigmoidRange(-1, 1)(acts), sigmoid_range(acts, -1, 1))
    assert not holds('pose-y-range', acts, SigmoidRange(-1, 1)(acts), sigmoid_range(acts, 0, 1))
    assert not holds('pose-y-range', acts, acts, acts)                     # no range at all


def test_loss(dls):
    torch.manual_seed(0)
    preds, targs = torch.rand(16, 2), torch.rand(16, 1, 2)
    by_hand = ((preds-targs.view(-1, 2))**2).mean()
    assert holds('pose-loss', dls.loss_func, by_hand, dls.loss_func(preds, targs))
    assert not holds('pose-loss', L1LossFlat(), by_hand, L1LossFlat()(preds, targs))
    with pytest.warns(UserWarning, match='broadcasting'):
        stretched = nn.MSELoss()(preds, targs)   # 16×16 pairs
    assert not holds('pose-loss', dls.loss_func, by_hand, stretched)


def test_not_asked():
    off, guess = torch.ones(15), torch.full((15,), 9.)
    assert (verdict('pose-unseen-person', off, guess, []) == verdict('pose-by-person', [], set())
            == verdict('pose-by-person', {'alone'}, {'alone'})
            == verdict('pose-augmentation', torch.ones(0)) == 'not asked')
    # it has diverged
    assert verdict('pose-unseen-person', off*float('nan'), guess, ['Ada']) == 'not asked'
