"Each statement about pets holds on something right and fails on something broken."
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from lesson6.claims import statements
from lesson6.pets import cross_entropy


def holds(id, *measured): return bool(statements[id].check(*measured)[0])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))


def trained(model, parameters):
    model = deepcopy(model); names = dict(model.named_parameters())
    opt = torch.optim.Adam([names[n] for n in names if parameters(n)], lr=.1)
    for _ in range(3): model(torch.randn(8, 3, 8, 8)).square().mean().backward(); opt.step(); opt.zero_grad()
    return model


def test_cross_entropy():
    acts, targets = torch.randn(32, 7), torch.randint(7, (32,))
    assert holds('pets-cross-entropy', cross_entropy, acts, targets)
    assert not holds('pets-cross-entropy', lambda a, t: (1-a.softmax(1)[range(len(t)), t]).mean(), acts, targets)
    assert not holds('pets-cross-entropy', lambda a, t: -a.softmax(1).log()[range(len(t)), t].sum(), acts, targets)


def test_frozen(model):
    body, head = (lambda n: n.startswith('0.')), (lambda n: n.startswith('1.'))
    assert holds('pets-frozen', model, trained(model, head))
    assert holds('pets-frozen', model, trained(model, lambda n: head(n) or n.startswith('0.1.')))
    assert not holds('pets-frozen', model, trained(model, lambda n: True))     # the body moves
    assert not holds('pets-frozen', model, trained(model, body))               # the head doesn't
    assert not holds('pets-frozen', model, deepcopy(model))                    # nothing does


def test_transfer(model):
    def new(part, seed):
        other = deepcopy(model); torch.manual_seed(seed)
        for m in other[part].modules():
            if hasattr(m, 'reset_parameters'): m.reset_parameters()
        return other
    other, untrained = new(1, 5), new(0, 6)
    assert holds('pets-transfer', model, other, untrained)
    assert not holds('pets-transfer', model, deepcopy(model), untrained)       # the head is not random
    assert not holds('pets-transfer', model, untrained, untrained)             # the body is
    assert not holds('pets-transfer', model, other, deepcopy(model))           # pretraining changed nothing


def test_diagonal():
    truth, guess = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])
    matrix = np.zeros((3, 3), int); np.add.at(matrix, (truth, guess), 1)
    error = float((truth != guess).mean())
    assert holds('pets-diagonal', matrix, error)
    assert not holds('pets-diagonal', np.roll(matrix, 1, axis=0), error)   # the rows are another breed's


def test_look_alikes():
    vocab = ['Birman', 'Ragdoll', 'beagle']; pairs = [('Ragdoll', 'Birman')]
    assert holds('pets-look-alikes', np.array([[9, 3, 0], [2, 9, 1], [0, 0, 9]]), vocab, pairs)
    assert not holds('pets-look-alikes', np.array([[9, 1, 0], [0, 9, 4], [0, 0, 9]]), vocab, pairs)
    assert not holds('pets-look-alikes', np.diag([9, 9, 9]), vocab, pairs)


def test_slice():
    assert holds('pets-slice', [1e-6, 1e-5, 1e-4], 1e-6, 1e-4)
    assert not holds('pets-slice', list(np.linspace(1e-6, 1e-4, 3)), 1e-6, 1e-4)
    assert not holds('pets-slice', [1e-4]*3, 1e-6, 1e-4) and not holds('pets-slice', [1e-4], 1e-4, 1e-4)


def test_numbers_that_go_the_wrong_way():
    assert holds('pets-lr', .8, .1, .9) and not holds('pets-lr', .15, .1, .9) and not holds('pets-lr', 1., .48, .9)
    assert holds('pets-discriminative', .2, .1) and not holds('pets-discriminative', .1, .1)
    assert holds('pets-deeper', 1., 2., .1, .1) and not holds('pets-deeper', 2., 1., .1, .05)


# The same, broken for real: learners on 16×16 patterns made here, which take a second to learn

class Patterns(torch.utils.data.Dataset):
    "Noisy 16×16 pictures of `n` kinds; a kind is a pattern, the same for every seed"
    def __init__(self, size, strength=1., n=8, seed=0):
        kinds = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(99))
        g = torch.Generator().manual_seed(seed)
        self.y = torch.randint(n, (size,), generator=g)
        self.x = strength*kinds[self.y] + torch.randn(size, 3, 16, 16, generator=g)

    def __len__(self): return len(self.y)
    def __getitem__(self, i): return self.x[i], self.y[i]


def pattern_learner(n_layers=2, strength=1., seed=0):
    "A learner with a small body of `n_layers` convolutions and a head, in three groups"
    from fastai.callback import progress, schedule  # noqa: F401 (they give learners no_bar and fit_one_cycle)
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.torch_core import params, set_seed
    set_seed(seed)
    conv = lambda i: nn.Sequential(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    model = nn.Sequential(nn.Sequential(*[conv(i) for i in range(n_layers)]), nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 8)))
    dls = DataLoaders.from_dsets(Patterns(400, strength), Patterns(200, strength, seed=1), bs=25, device='cpu')
    first = lambda m: [params(m[0][0]), params(m[0][1:]), params(m[1])]
    return Learner(dls, model, loss_func=nn.CrossEntropyLoss(), splitter=first)


def fit(learn, epochs, lr):
    "Trains quietly; returns the error on the validation set"
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr)
    return error(learn)


def error(learn):
    with learn.no_bar(), learn.no_logging(): preds, targs = learn.get_preds()
    return (preds.argmax(1) != targs).float().mean().item()


def test_a_slice_that_gives_every_group_the_same_rate():
    learn = pattern_learner()
    def rates(lr):
        learn.create_opt()
        learn.opt.set_hyper('lr', lr)
        return [float(h['lr']) for h in learn.opt.hypers]
    assert holds('pets-slice', rates(slice(1e-6, 1e-4)), 1e-6, 1e-4)
    assert not holds('pets-slice', rates(1e-4), 1e-6, 1e-4)
    assert not holds('pets-slice', rates(slice(1e-4)), 1e-6, 1e-4)             # a tenth for all but the head
    assert not holds('pets-slice', rates(slice(1e-5, 1e-4)), 1e-6, 1e-4)


@pytest.mark.ci
def test_the_rate_that_wrecks_and_the_one_that_does_not():
    wrecked, found = fit(pattern_learner(), 2, 3.), fit(pattern_learner(), 2, 1e-2)
    assert holds('pets-lr', wrecked, found, 7/8)
    assert not holds('pets-lr', found, found, 7/8)                              # a rate that wrecks nothing
    assert not holds('pets-lr', found, wrecked, 7/8)
    assert not holds('pets-lr', wrecked, wrecked, 7/8)                          # a found rate that wrecks as well


@pytest.mark.ci
def test_a_body_that_is_never_unfrozen():
    learn = pattern_learner(strength=.5)
    learn.freeze()
    frozen = fit(learn, 2, 1e-2)
    still = fit(learn, 1, slice(1e-9))                                          # goes on, without `unfreeze` and at rates too low to matter
    learn.unfreeze()
    unfrozen = fit(learn, 4, slice(1e-3, 1e-2))
    assert holds('pets-discriminative', frozen, unfrozen)
    assert not holds('pets-discriminative', frozen, still)
    assert not holds('pets-discriminative', unfrozen, frozen)


def test_a_deeper_network_that_is_not_slower():
    from time import perf_counter
    x = torch.randn(64, 3, 16, 16)
    def seconds(learn):
        learn.model(x)
        times = []
        for _ in range(5): began = perf_counter(); learn.model(x).sum().backward(); times.append(perf_counter()-began)
        return min(times)
    shallow, deep = seconds(pattern_learner(1)), seconds(pattern_learner(24))
    assert holds('pets-deeper', shallow, deep, .1, .1)
    assert not holds('pets-deeper', deep, shallow, .1, .1)                      # the two networks taken for each other


def test_look_alikes_of_a_classifier_that_confuses_others():
    "A classifier that takes a third of each look-alike for its partner; the same with the breeds' names shuffled; and one that guesses"
    vocab = ['Bengal', 'Birman', 'Egyptian_Mau', 'Ragdoll', 'american_pit_bull_terrier', 'beagle', 'pug', 'staffordshire_bull_terrier']
    pairs = [('american_pit_bull_terrier', 'staffordshire_bull_terrier'), ('Birman', 'Ragdoll'), ('Bengal', 'Egyptian_Mau')]
    partner = {a: b for p in pairs for a, b in (p, p[::-1])}
    rng = np.random.default_rng(0)
    truth = rng.integers(len(vocab), size=800)
    slips = np.array([vocab.index(partner.get(vocab[t], vocab[t])) for t in truth])
    guess = np.where(rng.random(800) < .33, slips, np.where(rng.random(800) < .05, rng.integers(len(vocab), size=800), truth))
    def confusion(guess):
        matrix = np.zeros((len(vocab),)*2, int); np.add.at(matrix, (truth, guess), 1)
        return matrix
    assert holds('pets-look-alikes', confusion(guess), vocab, pairs)
    assert not holds('pets-look-alikes', confusion(guess), list(np.roll(vocab, 1)), pairs)
    assert not holds('pets-look-alikes', confusion(rng.integers(len(vocab), size=800)), vocab, pairs)
    assert not holds('pets-look-alikes', confusion(truth), vocab, pairs)        # no mistakes, nothing to confuse
