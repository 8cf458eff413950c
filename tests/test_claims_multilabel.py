"Each claim of the multi-label notebook holds on a right thing, and fails on a really broken one."
import pytest
import torch
from test_claims import holds, verdict
from torch import nn

from lesson6 import multilabel as ml

vocab = ml.voc_labels
listed = [['dog'], ['bicycle', 'person'], [], ['cow', 'horse', 'person', 'sheep']]


# --- one-hot encoding

def test_one_hot_holds():
    assert holds('multilabel-onehot', torch.stack([ml.one_hot_encode(l, vocab) for l in listed]),
                 vocab, listed)


@pytest.mark.parametrize('broken', [
    lambda y: torch.roll(y, 1, dims=1),                      # a vocabulary in another order
    lambda y: y*2,                                           # not ones
    lambda y: y[:,:-1],                                      # a label short
    # only the first label of each: single-label
    lambda y: torch.where(y.cumsum(1) > 1, 0., y),
])
def test_one_hot_fails(broken):
    assert not holds('multilabel-onehot',
                     broken(torch.stack([ml.one_hot_encode(l, vocab) for l in listed])),
                     vocab, listed)


# --- the loss

def batch():
    g = torch.Generator().manual_seed(0)
    return 3*torch.randn(16, 20, generator=g), (torch.rand(16, 20, generator=g) < .1).float()


def naive(inputs, targets):
    inputs = inputs.sigmoid()
    return -torch.where(targets == 1, inputs, 1-inputs).log().mean()


def test_binary_cross_entropy_holds():
    assert holds('multilabel-bce', ml.binary_cross_entropy, *batch())
    assert holds('multilabel-bce', nn.BCEWithLogitsLoss(), *batch())


@pytest.mark.parametrize('broken', [
    # infinite where it is sure and wrong
    naive,
    # forgets the labels that are absent
    lambda x, y: -(y*nn.functional.logsigmoid(x)).mean(),
    lambda x, y: ml.binary_cross_entropy(x.sigmoid(), y),                           # sigmoid twice
    lambda x, y: ml.binary_cross_entropy(x, 1-y),                                   # yes for no
    # a sum over labels
    lambda x, y: ml.binary_cross_entropy(x, y)*x.shape[-1],
    # one label to a picture
    lambda x, y: nn.functional.cross_entropy(x, y/y.sum(1, keepdim=True).clamp(1)),
])
def test_binary_cross_entropy_fails(broken): assert not holds('multilabel-bce', broken, *batch())


# --- what can't be asked

def test_not_asked():
    preds, targs = torch.rand(60, 20), (torch.rand(60, 20) < .3).float()
    # a third of the labels is there
    assert verdict('multilabel-nothing', preds, targs, .5) == 'not asked'
    assert verdict('multilabel-nothing', preds, 0*targs, .5) == 'not asked'     # or none
    assert verdict('multilabel-fair', preds[:2,:5], preds[:2,:5]) == 'not asked'


def test_a_threshold_of_a_model_that_learnt_nothing():
    targs = (torch.rand(60, 20) < .08).float()
    # it says no at any threshold
    assert verdict('multilabel-threshold', torch.zeros(60, 20), targs) == "can't be told apart here"
    # or the opposite
    assert not verdict('multilabel-threshold', 1-targs, targs) == 'holds'
    # it says nothing, either
    assert not verdict('multilabel-nothing', torch.rand(60, 20), targs, 1.) == 'holds'
