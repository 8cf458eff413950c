"Each claim of the multi-label notebook holds on a right thing, and fails on a really broken one."
import pytest
import torch
from torch import nn

from lesson6 import multilabel as ml
from lesson6.claims import statements

vocab = ml.voc_labels
listed = [['dog'], ['bicycle', 'person'], [], ['cow', 'horse', 'person', 'sheep']]


def check(id, *measured):
    holds, text = statements[id].check(*measured)
    assert text
    return bool(holds)


# --- one-hot encoding

def test_one_hot_holds(): assert check('multilabel-onehot', torch.stack([ml.one_hot_encode(l, vocab) for l in listed]), vocab, listed)


@pytest.mark.parametrize('broken', [
    lambda y: torch.roll(y, 1, dims=1),                      # a vocabulary in another order
    lambda y: y*2,                                           # not ones
    lambda y: y[:,:-1],                                      # a label short
    lambda y: torch.where(y.cumsum(1) > 1, 0., y),           # only the first label of each: single-label
])
def test_one_hot_fails(broken):
    assert not check('multilabel-onehot', broken(torch.stack([ml.one_hot_encode(l, vocab) for l in listed])), vocab, listed)


# --- the loss

def batch():
    g = torch.Generator().manual_seed(0)
    return 3*torch.randn(16, 20, generator=g), (torch.rand(16, 20, generator=g) < .1).float()


def naive(inputs, targets):
    inputs = inputs.sigmoid()
    return -torch.where(targets == 1, inputs, 1-inputs).log().mean()


def test_binary_cross_entropy_holds():
    assert check('multilabel-bce', ml.binary_cross_entropy, *batch())
    assert check('multilabel-bce', nn.BCEWithLogitsLoss(), *batch())


@pytest.mark.parametrize('broken', [
    naive,                                                                          # infinite where it is sure and wrong
    lambda x, y: -(y*nn.functional.logsigmoid(x)).mean(),                           # forgets the labels that are absent
    lambda x, y: ml.binary_cross_entropy(x.sigmoid(), y),                           # sigmoid twice
    lambda x, y: ml.binary_cross_entropy(x, 1-y),                                   # yes for no
    lambda x, y: ml.binary_cross_entropy(x, y)*x.shape[-1],                         # a sum over labels
    lambda x, y: nn.functional.cross_entropy(x, y/y.sum(1, keepdim=True).clamp(1)), # one label to a picture
])
def test_binary_cross_entropy_fails(broken): assert not check('multilabel-bce', broken, *batch())


# --- thresholds and scores, measured on predictions of known quality

def predictions(skill, n=400, seed=0):
    "Probabilities of a model whose activations are the truth times `skill`, plus noise; targets with about 8 % ones."
    g = torch.Generator().manual_seed(seed)
    targs = (torch.rand(n, 20, generator=g) < .08).float()
    return (skill*(targs-.5) - .25*abs(skill) + torch.randn(n, 20, generator=g)).sigmoid(), targs


def accuracies(preds, targs):
    best = ml.best_threshold(preds, targs)
    return {t: float(((preds > t) == targs.bool()).float().mean()) for t in (.1, .2, .9, .99, best)}, best


def test_threshold_holds(): assert check('multilabel-threshold', *accuracies(*predictions(4)))


@pytest.mark.parametrize('broken', [
    lambda p, t: (p*0, t),                  # a model that never says yes
    lambda p, t: ((p > .5).float(), t),     # all thresholds alike
    lambda p, t: (1-p, t),                  # yes for no
    lambda p, t: (p*.3, t),                 # the best threshold is at the low end
])
def test_threshold_fails(broken): assert not check('multilabel-threshold', *accuracies(*broken(*predictions(4))))


def scores(preds, targs):
    nothing = 1-targs.mean().item()
    silent, ours = (ml.label_report(p, targs, vocab)['average precision'].mean() for p in (torch.zeros_like(preds), preds))
    return nothing, float(((preds > ml.best_threshold(preds, targs)) == targs.bool()).float().mean()), silent, ours


def test_accuracy_flatters_holds(): assert check('multilabel-nothing', *scores(*predictions(4)))


@pytest.mark.parametrize('skill', [0, .3, -4])
def test_accuracy_flatters_fails_for_a_model_that_knows_nothing(skill):
    preds, targs = predictions(skill)
    assert not check('multilabel-nothing', *scores(preds, targs))


def test_accuracy_does_not_flatter_where_most_labels_are_there():
    preds, targs = predictions(4)
    assert not check('multilabel-nothing', *scores(1-preds, 1-targs))


def halves(preds, targs, choices):
    "(accuracy where chosen, accuracy elsewhere) when the best of `choices` predictions-to-answers is taken on the first half"
    a, b = slice(0, len(preds)//2), slice(len(preds)//2, None)
    right = torch.stack([(c(preds) == targs.bool()).float() for c in choices])
    one = right[:,a].mean((1,2)).argmax()
    each = right[:,a].mean(1).argmax(0)
    pick = torch.arange(targs.shape[1])
    return ((right[one,a].mean().item(), right[one,b].mean().item()),
            (right[:,a].mean(1)[each,pick].mean().item(), right[:,b].mean(1)[each,pick].mean().item()))


def test_choosing_a_threshold_is_fair():
    choices = [lambda p, t=t: p > t for t in torch.linspace(.05, .95, 29)]
    assert check('multilabel-fair', *halves(*predictions(4, n=120), choices))


def test_choosing_among_many_random_answers_is_not():
    "Chance offers a thousand answers to sixteen pictures: the best of them is lucky, and its luck does not last."
    g = torch.Generator().manual_seed(1)
    preds, targs = predictions(4, n=16)
    answers = [torch.rand(targs.shape, generator=g) < .08 for _ in range(1000)]
    choices = [lambda p, m=m: m for m in answers]
    assert not check('multilabel-fair', *halves(preds, targs, choices))
