"Every exercise: its solution is accepted, so are other right answers, and the common wrong ones are refused with a sentence."
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from lesson6 import exercises as ex
from lesson6.data import lesson_path

sections = {'pets': '01_pet_breeds', 'multi': '02_multi_label', 'pose': '03_head_pose', 'collab': '04_collab', 'reg': '05_regularisation'}
experiments = [id for id, e in ex.exercises.items() if e.effort.startswith('an experiment')]
notebooks = Path(__file__).parent.parent/'nbs'


@pytest.fixture(autouse=True)
def quiet_twins(monkeypatch):
    for name in ('LESSON6_DATA', 'LESSON6_ARCH', 'LESSON6_SEED'): monkeypatch.delenv(name, raising=False)


def run_solution(id, shorten=lambda text: text):
    "Runs a solution as a reader would, and returns the answer that it hands in"
    handed = []
    names = {}
    text = shorten(ex.exercises[id].solution)
    assert text.splitlines()[-1].startswith(f"check('{id}', "), 'a solution ends by handing its answer in'
    names['check'] = lambda id, answer: handed.append((id, answer))
    exec(compile(text, f'solution of {id}', 'exec'), names)
    (was, answer), = handed
    assert was == id
    return answer, names


@pytest.mark.parametrize('id', [id for id in ex.exercises if id not in experiments])
def test_the_solution_is_right(id, capsys):
    answer, _ = run_solution(id)
    assert ex.check(id, answer), capsys.readouterr().out
    assert capsys.readouterr().out == f'{id} is right.\n'


# The machinery

def test_there_are_enough_and_each_says_what_it_takes():
    assert len(ex.exercises) >= 30
    for section in sections:
        own = [id for id in ex.exercises if id.startswith(f'{section}-')]
        assert 5 <= len(own) <= 8 and own == [f'{section}-{i}' for i in range(1, len(own)+1)]
        assert any(id in experiments for id in own)
    for e in ex.exercises.values():
        assert e.task and e.hint and e.effort and len(e.task) > 40
        assert e.hint not in e.solution and e.task not in e.hint


def test_no_answer_yet_is_said_and_gives_nothing_away(capsys):
    for id, e in ex.exercises.items():
        assert not ex.check(id, ...)
        assert capsys.readouterr().out == f"{id} waits for your answer: put it in place of the three dots. hint('{id}') helps.\n"


@pytest.mark.parametrize('answer', [None, 'no idea', [], {}, object(), lambda: 1, lambda *a: None, float('nan'), pd.DataFrame(), torch.tensor([])],
                         ids=['None', 'text', 'list', 'dict', 'object', 'wrong signature', 'returns nothing', 'nan', 'table', 'tensor'])
def test_whatever_is_handed_in_gets_a_sentence(answer, capsys):
    for id in ex.exercises:
        assert not ex.check(id, answer), id
        out = capsys.readouterr().out
        assert out.startswith(f'{id}: not yet. ') and len(out.splitlines()) == 1 and len(out) < 400


def test_names_that_are_not_there_are_refused_with_those_that_are():
    with pytest.raises(ValueError, match="no exercise named 'pets-99'; there are pets-1, pets-2"): ex.check('pets-99', 1)
    with pytest.raises(ValueError, match="no exercise named 'poetry'"): ex.hint('poetry')
    with pytest.raises(ValueError, match='two exercises named'): ex.exercise('pets-1', 'a line', '', '', '')(lambda a: None)


def test_hint_and_solution_print(capsys):
    ex.hint('pets-3')
    assert 'infinite' in capsys.readouterr().out
    ex.solution('pets-3')
    assert capsys.readouterr().out.strip().endswith("check('pets-3', softmax)")


def test_checking_leaves_random_numbers_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for id in ex.exercises:
        if id not in experiments and id != 'collab-4': ex.check(id, run_solution(id)[0])
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize('section', sections)
def test_the_notebook_shows_the_tasks_as_they_are_here(section):
    cells = json.loads((notebooks/f'{sections[section]}.ipynb').read_text(encoding='utf-8'))['cells']
    sources = [''.join(c['source']).strip() for c in cells]
    shown = [(text, code) for text,code in zip(sources, sources[1:]) if code.startswith(("check('", 'from lesson6.exercises import'))]
    assert shown == ex.exercises_cells(section)


# Right answers in several forms, and wrong ones with the sentence that they get

def softmax_of(shift, dim=1, after=lambda p: p):
    def softmax(acts):
        e = (acts - shift(acts)).exp()
        return after(e / e.sum(dim, keepdim=True))
    return softmax


def cats():
    names = {f.stem.rpartition('_')[0] for f in (lesson_path('pets')/'images').glob('*.jpg')}
    return {n for n in names if n[0].isupper()}, names


def table(): return pd.read_csv(lesson_path('pascal')/'train.csv')


def per_label(df): return df['labels'].str.split().explode().value_counts()


def f1_choice(score):
    def choose(preds, targs):
        xs = torch.linspace(.02, .98, 97)
        return xs[torch.stack([score(preds >= x, targs == 1) for x in xs]).argmax()].item()
    return choose


def f1(found, there): return 2*(found & there).sum()/(found.sum() + there.sum())
def precision(found, there): return (found & there).sum()/found.sum().clamp(min=1)
def accuracy(found, there): return (found == there).float().mean()


def halves(choose, tell=None):
    def honest(preds, targs):
        n = len(preds)//2
        xs = torch.linspace(.05, .95, 91)
        def acc(s, x): return ((preds[s] > x) == (targs[s] == 1)).float().mean().item()
        a, b = slice(0, n), slice(n, None)
        t = max(xs.tolist(), key=lambda x: acc({'first': a, 'second': b, 'all': slice(None)}[choose], x))
        return (t, acc(a, t), max(acc(b, x) for x in xs) if tell == 'best' else acc(a if tell == 'same' else b, t))
    return honest


def cal13(): return np.genfromtxt(lesson_path('biwi')/'13'/'rgb.cal', skip_footer=6)


def centre(f): return np.genfromtxt(str(f)[:-7]+'pose.txt', skip_header=3)


def project_back(sign=1, depth=True, swap=False, one_focal=False):
    def unproject(p, z, cal):
        d = z if depth else 1
        x, y = sign*(p[0]-cal[0][2])*d/cal[0][0], sign*(p[1]-cal[1][2])*d/cal[0 if one_focal else 1][0 if one_focal else 1]
        return (y, x, z) if swap else torch.tensor([float(x), float(y), z], dtype=torch.float64)
    return unproject


class Bias(torch.nn.Module):
    "The right answer to collab-4, and by subclassing the wrong ones"
    def __init__(self, n_users, n_movies, y_range=(0, 5.5)):
        super().__init__()
        self.u, self.m, self.y_range = torch.nn.Parameter(torch.zeros(n_users)), torch.nn.Parameter(torch.zeros(n_movies)), y_range

    def act(self, x): return (self.u[x[:,0]] + self.m[x[:,1]])[:,None]

    def forward(self, x):
        lo, hi = self.y_range
        return torch.sigmoid(self.act(x))*(hi-lo) + lo


class EmbeddedBias(torch.nn.Module):
    def __init__(self, n_users, n_movies, y_range=(0, 5.5)):
        super().__init__()
        self.of, self.y_range = torch.nn.ModuleList([torch.nn.Embedding(n_users, 1), torch.nn.Embedding(n_movies, 1)]), y_range

    def forward(self, x):
        lo, hi = self.y_range
        return lo + (hi-lo)*sum(e(x[:,i]) for i, e in enumerate(self.of)).sigmoid()


class OneTable(torch.nn.Module):
    "Users and films in one parameter, the films behind the users"
    def __init__(self, n_users, n_movies, y_range=(0, 5.5)):
        super().__init__()
        self.bias, self.n_users, self.y_range = torch.nn.Parameter(torch.randn(n_users+n_movies)), n_users, y_range

    def forward(self, x):
        lo, hi = self.y_range
        return torch.sigmoid(self.bias[x + torch.tensor([0, self.n_users])].sum(1, keepdim=True))*(hi-lo) + lo


class FlatBias(Bias):
    def forward(self, x): return super().forward(x)[:,0]


class NoRange(Bias):
    def forward(self, x): return self.act(x)


class FixedRange(Bias):
    def forward(self, x): return torch.sigmoid(self.act(x))*5.5


class UserOnly(Bias):
    def act(self, x): return self.u[x[:,0]][:,None] + 0*self.m[x[:,1]][:,None]


class Product(Bias):
    def act(self, x): return (self.u[x[:,0]] * self.m[x[:,1]])[:,None]


class Plain(torch.nn.Module):
    def __init__(self, n_users, n_movies):
        super().__init__()
        self.u, self.m = torch.zeros(n_users), torch.zeros(n_movies)

    def forward(self, x): return torch.sigmoid(self.u[x[:,0]] + self.m[x[:,1]])[:,None]*5.5


def films():
    from lesson6.collab import read_ratings
    return read_ratings(lesson_path('movielens')).groupby('title')['rating'].agg(['mean', 'count'])


def often(): return films().query('count >= 50').sort_values('mean', ascending=False)


def cos(a, b): return F.cosine_similarity(a[:,None], b[None], dim=2)


def weighted(inputs, targets, weight): return F.binary_cross_entropy_with_logits(inputs, targets, pos_weight=torch.tensor(float(weight)))


def train_valid(of):
    return lambda train, valid: (valid - of(train, valid)).norm(dim=1).mean()


def stop_by_slices(losses, patience):
    for n in range(patience+1, len(losses)+1):
        if min(losses[n-patience:n]) >= min(losses[:n-patience]): return n
    return len(losses)


def stop_by_minimum(losses, patience):
    waited = [n - int(np.argmin(losses[:n+1])) for n in range(len(losses))]
    return waited.index(patience)+1 if patience in waited else len(losses)


def against_the_one_before(losses, patience):
    waited = 0
    for n in range(1, len(losses)):
        waited = waited+1 if losses[n] >= losses[n-1] else 0
        if waited == patience: return n+1
    return len(losses)


right = {
    'pets-1': lambda: [len(cats()[0]), float(len(cats()[0])), torch.tensor(len(cats()[0])), cats()[0], sorted(cats()[0])],
    'pets-2': lambda: [lambda p: (re.match(r'(.+)_(\d+)', p.stem)[1], int(re.match(r'(.+)_(\d+)', p.stem)[2])),
                       lambda p: ['_'.join(p.stem.split('_')[:-1]), int(p.stem.split('_')[-1])]],
    'pets-3': lambda: [softmax_of(lambda a: a.amax(1, keepdim=True)), lambda a: a.softmax(1), lambda a: a.log_softmax(1).exp(), lambda a: a.softmax(1).numpy()],
    'pets-4': lambda: [math.log(37), 3.61, torch.tensor(37.).log(), np.float32(3.6109), F.cross_entropy(torch.zeros(1, 37), torch.tensor([0]))],
    'pets-5': lambda: [lambda cm: (cm.sum(1) - np.diag(cm))/cm.sum(1), lambda cm: [1-row[i]/sum(row) for i, row in enumerate(cm.tolist())],
                       lambda cm: torch.tensor(cm).float().fill_diagonal_(0).sum(1)/torch.tensor(cm).sum(1)],
    'pets-6': lambda: [np.geomspace, lambda lo, hi, n: torch.logspace(math.log10(lo), math.log10(hi), n),
                       lambda lo, hi, n: [lo*(hi/lo)**(i/(n-1)) for i in range(n)]],
    'multi-1': lambda: [int((table()['labels'].str.count(' ') > 0).sum()), sum(len(o.split()) > 1 for o in table()['labels'])],
    'multi-2': lambda: [per_label(table()[~table().is_valid]), per_label(table()[~table().is_valid]).to_dict(),
                        table()[~table().is_valid]['labels'].str.get_dummies(' ').sum(), per_label(table()[~table().is_valid]).to_frame()],
    'multi-3': lambda: [lambda p, v, t: [n for q, n in sorted(zip(p.tolist(), v), reverse=True) if q >= t],
                        lambda p, v, t: np.array([v[i] for i in p.argsort(descending=True) if p[i] >= t])],
    'multi-4': lambda: [weighted, lambda x, y, w: (F.softplus(-x)*y*w + F.softplus(x)*(1-y)).mean(),
                        lambda x, y, w: F.binary_cross_entropy_with_logits(x, y, weight=torch.where(y == 1, float(w), 1.))],
    'multi-5': lambda: [lambda t: 1-t.mean(), lambda t: (t == 0).float().mean().item(), lambda t: (t == torch.zeros_like(t)).numpy().mean()],
    'multi-6': lambda: [f1_choice(f1), lambda p, t: torch.tensor(f1_choice(f1)(p, t))],
    'multi-7': lambda: [halves('first'), lambda p, t: torch.tensor(halves('first')(p, t)), lambda p, t: list(halves('first')(p, t))],
    'pose-1': lambda: [(cal13()[0,2], cal13()[1,2]), torch.tensor(cal13()[:2,2]), np.round(cal13()[:2,2], 1).tolist(), cal13()[:2,2:]],
    'pose-2': lambda: [lambda f: (centre(f)**2).sum()**.5/1000, lambda f: math.dist(centre(f), (0, 0, 0))/1e3,
                       lambda f: torch.tensor(centre(f)).norm()/1000],
    'pose-3': lambda: [project_back(), lambda p, z, cal: np.linalg.inv(cal) @ [p[0], p[1], 1]*z],
    'pose-4': lambda: [lambda p, s: p/torch.tensor([s[1], s[0]])*2 - 1, lambda p, s: torch.stack([p[:,0]/s[1], p[:,1]/s[0]], 1)*2 - 1,
                       lambda p, s: [[2*float(x)/s[1]-1, 2*float(y)/s[0]-1] for x, y in p]],
    'pose-5': lambda: [lambda y, lo, hi: torch.logit((y-lo)/(hi-lo)), lambda y, lo, hi: ((y-lo)/(hi-y)).log(), lambda y, lo, hi: -torch.log((hi-lo)/(y-lo) - 1)],
    'pose-6': lambda: [lambda t, v: F.pairwise_distance(v, t.mean(0, keepdim=True).expand_as(v)).mean(), lambda t, v: ((v-t.mean(0))**2).sum(1).sqrt().mean().item()],
    'collab-1': lambda: [(1, 1, -1), torch.tensor([.99, .95, -1.]), np.array([1, .9, -.9]), [[1, 1, -.95]]],
    'collab-2': lambda: [1-1/math.e, .632, torch.tensor(.6321), len(torch.randint(80000, (80000,), generator=torch.Generator().manual_seed(0)).unique())/80000],
    'collab-3': lambda: [cos, lambda a, b: F.normalize(a, dim=1) @ F.normalize(b, dim=1).t(), lambda a, b: (a@b.t())/(a.norm(dim=1)[:,None]*b.norm(dim=1))],
    'collab-4': lambda: [Bias, EmbeddedBias, OneTable],
    'collab-5': lambda: [lambda x: len(set(x[:,0].tolist())), lambda x: x[:,0].unique().numel(), lambda x: (x[:,0].bincount() > 0).sum()],
    'collab-6': lambda: [often().head(10), often().index[:10].tolist(), often().head(10).reset_index(), often()['mean'].head(10), often().index[:10]],
    'reg-1': lambda: [.2, torch.tensor(.2), np.float32(.2)],
    'reg-2': lambda: [692.8, 693, 692, math.log(2, 1/.999), torch.tensor(693)],
    'reg-3': lambda: [lambda p, g, lr, wd: p*(1-2*lr*wd) - lr*g, lambda p, g, lr, wd: p.sub(g.add(p, alpha=2*wd), alpha=lr), lambda p, g, lr, wd: (p.numpy() - lr*(g + 2*wd*p).numpy()).tolist()],
    'reg-4': lambda: [lambda x, p: (x[...,torch.arange(x.shape[-1]-1, -1, -1)], torch.stack([-p[:,0], p[:,1]], 1)), lambda x, p: [torch.fliplr(x.permute(2, 3, 0, 1)).permute(2, 3, 0, 1), p*torch.tensor([-1, 1])]],
    'reg-5': lambda: [lambda p, l, t, w, h: torch.stack([(p[:,0]-l)/w, (p[:,1]-t)/h], 1)*2 - 1, lambda p, l, t, w, h: [[(float(x)-l-w/2)/(w/2), (float(y)-t-h/2)/(h/2)] for x, y in p]],
    'reg-6': lambda: [stop_by_slices, stop_by_minimum],
    'reg-7': lambda: [lambda x, p, training: F.dropout(x, p, training), lambda x, p, training: torch.where(torch.rand(x.shape) < p, 0., x/(1-p)) if training else x,
                      lambda x, p, training: x*torch.bernoulli(torch.full_like(x, 1-p))/(1-p) if training else x],
}

wrong = {
    'pets-1': lambda: [(sum(f.stem[0].isupper() for f in (lesson_path('pets')/'images').glob('*.jpg')), 'number of pictures'), (len(cats()[1]), 'dogs included'),
                       (len(cats()[1]-cats()[0]), 'dogs'), (cats()[1], 'nothing but them'), ('seven', 'one number')],
    'pets-2': lambda: [(lambda p: (p.stem.split('_')[0], int(p.stem.split('_')[-1])), 'the breed is not right'),
                       (lambda p: tuple(p.stem.rsplit('_', 1)), 'still a text'), (lambda p: p.stem, 'two things'),
                       (lambda p: (str(p).rpartition('_')[0], 1), 'the breed is not right'), (lambda p: int(p.name.rpartition('_')[2]), 'ValueError')],
    'pets-3': lambda: [(lambda a: a.exp()/a.exp().sum(1, keepdim=True), 'becomes infinite'), (lambda a: a.softmax(0), 'each row'),
                       (lambda a: a.sigmoid(), 'do not add up'), (lambda a: a.log_softmax(1), 'logarithms'), (lambda a: a.abs()/a.abs().sum(1, keepdim=True), 'not the softmax'),
                       (lambda a: a.exp()/a.exp().sum(), 'do not add up'), (torch.ones(5, 7), 'a function itself')],
    'pets-4': lambda: [(1/37, 'the probability'), (36/37, 'error rate'), (math.log2(37), 'another base'), (-math.log(37), 'positive'), (37, 'not the loss')],
    'pets-5': lambda: [(lambda cm: 1-np.diag(cm)/cm.sum(0), 'predicted'), (lambda cm: np.diag(cm)/cm.sum(1), 'were right'), (lambda cm: cm.sum(1)-np.diag(cm), 'counts'),
                       (lambda cm: 1-np.diag(cm)/cm.sum(), 'came out wrong'), (lambda cm: 1-np.trace(cm)/cm.sum(), 'shape')],
    'pets-6': lambda: [(np.linspace, 'exponent'), (lambda lo, hi, n: np.geomspace(hi, lo, n), 'turned round'), (lambda lo, hi, n: np.geomspace(lo, hi, n+1)[:n], 'upper rate'),
                       (lambda lo, hi, n: [lo, hi], 'shape')],
    'multi-1': lambda: [(len(table()), 'every picture'), ((table()['labels'].str.len() > 1).sum(), 'every picture'), (table()['labels'].str.split().str.len().sum(), 'number of labels'),
                        ((table()['labels'].str.count(' ') == 0).sum(), 'exactly one'), ((table()['labels'].str.count(' ') > 1).sum(), 'more than two')],
    'multi-2': lambda: [(per_label(table()), 'validation pictures too'), (table()[~table().is_valid]['labels'].value_counts(), 'several labels'),
                        (per_label(table()[~table().is_valid]).head(5), 'labels; there are 5'), (per_label(table()[~table().is_valid])*2, 'numbers are not'), ([3, 4], 'a Series or a dict')],
    'multi-3': lambda: [(lambda p, v, t: [n for q, n in zip(p, v) if q >= t], 'surest should come first'), (lambda p, v, t: [v[i] for i in p.argsort(descending=True) if p[i] > t], 'exactly at the threshold'),
                        (lambda p, v, t: [v[i] for i in p.argsort() if p[i] >= t], 'not last'), (lambda p, v, t: [v[i] for i in p.argsort(descending=True)], 'do not reach'),
                        (lambda p, v, t: [v[i] for i in p.argsort(descending=True) if p[i] >= t] or ['none'], 'should be empty')],
    'multi-4': lambda: [(lambda x, y, w: -torch.where(y == 1, w*x.sigmoid().log(), (1-x.sigmoid()).log()).mean(), 'infinite around 200'),
                        (lambda x, y, w: w*F.binary_cross_entropy_with_logits(x, y), 'both count'), (lambda x, y, w: F.binary_cross_entropy_with_logits(x, y), 'no difference'),
                        (lambda x, y, w: -weighted(x, y, w), 'sign'), (lambda x, y, w: weighted(x.sigmoid(), y, w), 'twice'),
                        (lambda x, y, w: weighted(x, y, w)*y.numel()/torch.where(y == 1, w, 1).sum(), 'sum of the weights')],
    'multi-5': lambda: [(lambda t: t.mean(), 'there is something'), (lambda t: (t == 0).sum(), 'a count'), (lambda t: (t.sum(1) == 0).float().mean(), 'right as a whole'), (lambda t: 70, 'per cent'), (.7, 'a function itself')],
    'multi-6': lambda: [(f1_choice(accuracy), 'the accuracy is highest'), (f1_choice(precision), 'does better'), (lambda p, t: 50, 'between 0 and 1'), (lambda p, t: .5, 'F1')],
    'multi-7': lambda: [(halves('all'), 'chosen on all rows'), (halves('second'), 'chosen on the second half'), (halves('first', 'best'), 'the second half could reach'),
                        (halves('first', 'same'), 'accuracy on the second half'), (lambda p, t: halves('first')(p, t)[0], 'three numbers')],
    'pose-1': lambda: [((0, 0), 'upper left'), ((320, 240), 'middle of the picture'), (cal13()[:2,2][::-1], 'wrong order'), (np.diag(cal13())[:2], 'focal lengths'), (312.4, 'two coordinates')],
    'pose-2': lambda: [(lambda f: np.linalg.norm(centre(f)), 'millimetres'), (lambda f: centre(f)[2]/1000, 'in front of'), (lambda f: np.abs(centre(f)).sum()/1000, 'straight line'),
                       (lambda f: (centre(f)**2).sum(), 'root'), (lambda f: 1., 'came out as')],
    'pose-3': lambda: [(project_back(depth=False), 'depth is missing'), (project_back(swap=True), 'exchanged'), (project_back(one_focal=True), 'own focal length'),
                       (project_back(sign=-1), 'brought back'), (lambda p, z, cal: (p[0], p[1]), 'shape')],
    'pose-4': lambda: [(lambda p, s: 2*p/torch.tensor(s) - 1, 'divided by the height'), (lambda p, s: p/torch.tensor([s[1], s[0]]), '0 to 1'),
                       (lambda p, s: 1 - 2*p/torch.tensor([s[1], s[0]]), 'turned round'), (lambda p, s: p*2, 'middle'), (lambda p, s: (p-torch.tensor([320, 240]))/640, 'edges')],
    'pose-5': lambda: [(lambda y, lo, hi: (y-lo)/(hi-lo), 'still to be undone'), (lambda y, lo, hi: torch.logit((hi-y)/(hi-lo)), 'turned round'), (lambda y, lo, hi: torch.logit((y+1)/2), 'but not for'),
                       (lambda y, lo, hi: torch.logit(y), 'does not lead back')],
    'pose-6': lambda: [(train_valid(lambda t, v: v.mean(0)), 'should not have seen'), (train_valid(lambda t, v: torch.cat([t, v]).mean(0)), 'had a part'),
                       (lambda t, v: ((v-t.mean(0))**2).sum(1).mean(), 'squared'), (lambda t, v: ((v-t.mean(0))**2).sum(1).mean().sqrt(), 'root of the mean'),
                       (lambda t, v: (v-t.mean(0)).abs().mean(), 'one coordinate'), (lambda t, v: (v.mean(0)-t.mean(0)).norm(), 'two means')],
    'collab-1': lambda: [((.98, .9, -.9), 'not more than'), ((2, 2, -2), 'between -1 and 1'), ((1, 1, 1), 'scores'), ((1, 1), 'three numbers')],
    'collab-2': lambda: [(1/math.e, 'missed'), (.5, 'not the share'), (63.2, 'per cent'), (50570, 'number of rows')],
    'collab-3': lambda: [(lambda a, b: a@b.t(), 'dot products'), (lambda a, b: cos(b, a), 'lies on its side'), (lambda a, b: 1-cos(a, b), 'distances'),
                         (lambda a, b: F.cosine_similarity(a, b[:4]), '4×5'), (lambda a, b: a@b.t()/a.norm(), 'table is wrong')],
    'collab-4': lambda: [(FlatBias, 'second dimension'), (NoRange, 'range'), (FixedRange, 'y_range'), (UserOnly, 'both'), (Product, 'plain sum'), (Plain, 'no parameters'), (Bias(6, 9), 'class itself')],
    'collab-5': lambda: [(lambda x: len(x), 'rows of the batch'), (lambda x: x[:,1].unique().numel(), 'films'), (lambda x: (x[:,0].bincount() > 1).sum(), 'more than once'), (lambda x: x.unique().numel(), 'came out as')],
    'collab-6': lambda: [(films().sort_values('mean').tail(10), 'fewer than 50|wrong order|missing'), (often().head(9), 'should be 10'), (often().tail(10), 'missing'), (often().head(10)[::-1], 'wrong order'),
                         (often().index[:9].tolist()+[often().index[20]], 'missing'), (list(range(10)), 'no film'), (often().index[[1,0,*range(2,10)]], 'not ordered')],
    'reg-1': lambda: [(.1, 'something else'), (.05, 'wrong way'), (1, 'not the same')],
    'reg-2': lambda: [(500, 'share'), (346.6, '2 of the formula'), (6.58, 'learning rate is missing'), (1000, 'not half')],
    'reg-3': lambda: [(lambda p, g, lr, wd: p - lr*(g + wd*p), 'not p'), (lambda p, g, lr, wd: p - lr*g, 'without weight decay'), (lambda p, g, lr, wd: p + lr*(g + 2*wd*p), 'goes up'),
                      (lambda p, g, lr, wd: (p - lr*g)*(1-2*lr*wd), 'after the step'), (lambda p, g, lr, wd: p - lr*g - 2*wd*p, 'learning rate applies'), (lambda p, g, lr, wd: p - lr*(g - 2*wd*p), 'larger'),
                      (lambda p, g, lr, wd: p.mul_(2), 'on a copy')],
    'reg-4': lambda: [(lambda x, p: (x.flip(-1), p), 'forgotten'), (lambda x, p: (x.flip(-2), p*torch.tensor([1, -1])), 'heads'), (lambda x, p: (x.flip(-1), -p), 'both directions'), (lambda x, p: (x, p*torch.tensor([-1, 1])), 'not mirrored'),
                      (lambda x, p: (x.flip(-1), torch.stack([1-p[:,0], p[:,1]], 1)), '0 to 1'), (lambda x, p: (x.flip(-1), p.mul_(torch.tensor([-1, 1]))), 'on a copy'), (lambda x, p: (x.flip(-1), p*torch.tensor([1, -1])), 'up and down'),
                      (lambda x, p: x.flip(-1), 'two things')],
    'reg-5': lambda: [(lambda p, l, t, w, h: 2*p/torch.tensor([w, h]) - 1, 'corner'), (lambda p, l, t, w, h: p - torch.tensor([l, t]), 'in pixels'), (lambda p, l, t, w, h: (p-torch.tensor([l, t]))/torch.tensor([w, h]), '0 to 1'),
                      (lambda p, l, t, w, h: (2*(p-torch.tensor([l, t]))/torch.tensor([w, h])-1).clamp(-1, 1), 'cut off'), (lambda p, l, t, w, h: 2*(p-torch.tensor([t, l]))/torch.tensor([h, w])-1, 'Width belongs'), (lambda p, l, t, w, h: p*0, 'comes out wrong')],
    'reg-6': lambda: [(lambda losses, patience: int(np.argmin(losses))+1, 'lowest'), (lambda losses, patience: stop_by_slices(losses, patience)-1, 'begins at 0'), (lambda losses, patience: len(losses), 'came out as'), (against_the_one_before, 'not with the one before')],
    'reg-7': lambda: [(lambda x, p, training: x*(torch.rand_like(x) >= p) if training else x, 'not scaled'), (lambda x, p, training: x*(torch.rand_like(x) < p)/p if training else x, 'kept'),
                      (lambda x, p, training: x*(torch.rand_like(x) >= p)/p if training else x, 'divided by p'), (lambda x, p, training: F.dropout(x, p, True), 'training` is False'), (lambda x, p, training: x, 'nothing became 0'),
                      (lambda x, p, training: x*(torch.rand_like(x) >= p)*(1-p) if training else x, 'smaller'),
                      (lambda x, p, training: x*(torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) >= p)/(1-p) if training else x, 'same numbers')],
}


@pytest.mark.ci
@pytest.mark.parametrize('id', [id for id in ex.exercises if id not in experiments])
def test_other_right_answers_are_right(id, capsys):
    answers = right[id]()
    assert len(answers) >= 2, 'besides the solution'
    for answer in answers: assert ex.check(id, answer), capsys.readouterr().out


@pytest.mark.ci
@pytest.mark.parametrize('id', [id for id in ex.exercises if id not in experiments])
def test_common_wrong_answers_get_their_sentence(id, capsys):
    answers = wrong[id]()
    assert len(answers) >= 2
    for answer, why in answers:
        assert not ex.check(id, answer)
        out = capsys.readouterr().out
        assert out.startswith(f'{id}: not yet. ') and re.search(why, out), out
        assert 'could not be checked' not in out
        assert out.rstrip().endswith(('.', '?')), out


# The experiments. Their checks look at learners; so that wrong ones are cheap to make, these learn next to nothing: small
# pictures of one colour, whose colour is the label, and models that were given their weights.

class Coloured(torch.nn.Module):
    "Says how red a picture is: `sure` times right, or wrong if `sure` is negative"
    def __init__(self, sure, shift=0., n=2):
        super().__init__()
        self.sure, self.shift, self.n = torch.nn.Parameter(torch.tensor(float(sure))), shift, n

    def forward(self, x):
        red = self.sure*(torch.as_tensor(x)[:,:1].mean((2, 3)) - .5).as_subclass(torch.Tensor)
        return torch.cat([red, -red], 1)[:,:self.n] + self.shift


def fitted(dls, model, epochs=1, **kwargs):
    "A learner that has seen its epochs, with a rate of 0"
    from fastai.callback import progress  # noqa: F401 (it gives learners no_bar)
    from fastai.learner import Learner
    from fastai.optimizer import SGD
    learn = Learner(dls, model, opt_func=SGD, **kwargs)
    if epochs:
        with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 0.)
    return learn


@pytest.fixture(scope='module')
def coloured(tmp_path_factory):
    "Twenty-four pictures of 8×8 pixels, red or blue by turns; and DataLoaders of them, for one label or several"
    from PIL import Image
    from fastai.data.all import CategoryBlock, DataBlock, IndexSplitter, MultiCategoryBlock
    from fastai.vision.data import ImageBlock
    folder = tmp_path_factory.mktemp('coloured')
    for i in range(24): Image.new('RGB', (8, 8), ((240, 0, 20), (20, 0, 240))[i%2]).save(folder/f'{i:02d}.png')
    files = sorted(folder.iterdir())
    def red(f): return 'a red one' if int(f.stem)%2 == 0 else 'blue'
    def loaders(valid=range(16, 24), items=files, several=False):
        block = DataBlock((ImageBlock, MultiCategoryBlock if several else CategoryBlock), get_y=lambda f: [red(f)] if several else red(f), splitter=IndexSplitter(list(valid)))
        return block.dataloaders(items, bs=8, num_workers=0, device='cpu')
    return files, loaders


def refused(id, answer, why, capsys):
    assert not ex.check(id, answer)
    out = capsys.readouterr().out
    assert out.startswith(f'{id}: not yet. ') and re.search(why, out) and 'could not be checked' not in out, out


def test_pets_7_compares_two_learners(coloured, capsys):
    files, loaders = coloured
    dls = loaders()
    good, bad = fitted(dls, Coloured(9)), fitted(dls, Coloured(-9))
    for answer in (good, bad), [good, bad], {'pretrained': good, 'from scratch': bad}: assert ex.check('pets-7', answer)
    half = fitted(loaders(range(8, 16)), Coloured(-9))
    twice = loaders(range(16, 32), files + files[:8])
    for answer, why in [((bad, good), 'should come first'), ((good, good), 'should come first, and be better'), (good, 'in brackets; this is a Learner'), ((good,), 'these are 1'),
                        ((good, bad.model), 'of other things'), ((good, fitted(dls, Coloured(-9), 2)), 'ran 1 and 2'), ((fitted(dls, Coloured(9), 0), fitted(dls, Coloured(-9), 0)), 'ran 0 and 0'),
                        ((good, half), 'not validated on the same'), ((fitted(twice, Coloured(9)), fitted(twice, Coloured(-9))), 'both the training and the validation')]:
        capsys.readouterr()
        refused('pets-7', answer, why, capsys)


def test_a_learner_can_be_asked_again_and_keeps_its_curve(coloured):
    "fastai's `get_preds` empties the recorder: what was trained must not look untrained afterwards"
    dls = coloured[1]()
    pair = fitted(dls, Coloured(9), 2), fitted(dls, Coloured(-9), 2)
    assert ex.check('pets-7', pair) and ex.check('pets-7', pair)
    assert [len(o.recorder.values) for o in pair] == [2, 2]
    for o in pair:
        with o.no_bar(): o.get_preds()
    assert ex.check('pets-7', pair)


def test_multi_8_compares_what_two_learners_find(coloured, capsys):
    from fastai.losses import BCEWithLogitsLossFlat
    _, loaders = coloured
    dls = loaders(several=True)
    shy, keen = fitted(dls, Coloured(9, shift=-9)), fitted(dls, Coloured(9, shift=9))
    weighted = fitted(dls, Coloured(9, shift=9), loss_func=BCEWithLogitsLossFlat(pos_weight=torch.tensor(10.)))
    for answer in (shy, keen), [shy, weighted], {'plain': shy, 'weighted': weighted}: assert ex.check('multi-8', answer)
    for answer, why in [((keen, shy), 'should come second'), ((shy, shy), 'should come second, and find more'), (keen, 'in brackets; this is a Learner'), ((shy, keen, weighted), 'these are 3'),
                        ((shy, fitted(dls, Coloured(9, shift=9), 3)), 'ran 1 and 3'), ((fitted(dls, Coloured(9), 0), fitted(dls, Coloured(9), 0)), 'ran 0 and 0'), (([], []), 'of other things')]:
        capsys.readouterr()
        refused('multi-8', answer, why, capsys)


class Told(torch.nn.Module):
    "A model that was told the answers, in order, and adds `off` to each"
    def __init__(self, dls, off=0.):
        super().__init__()
        self.answers, self.i, self.nothing = torch.cat([y.as_subclass(torch.Tensor).view(-1, 2) for _, y in dls.valid]) + off, 0, torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        if self.training: return torch.zeros(len(x), 2) + self.nothing
        at, self.i = self.i, (self.i+len(x)) % len(self.answers)
        return self.answers[at:at+len(x)] + self.nothing


def test_pose_7_wants_another_person_and_half_the_error_gone(capsys):
    from fastai.data.block import DataBlock
    from fastai.data.transforms import FuncSplitter
    from fastai.vision.augment import Resize
    from fastai.vision.data import ImageBlock, PointBlock
    from lesson6.head_pose import get_ctr
    files = [f for p in ('01', '04', '13') for f in sorted((lesson_path('biwi')/p).glob('*_rgb.jpg'))[::4]]
    def loaders(left_out, also_train=()):
        items = files + [f for f in files if f.parent.name in also_train]
        seen = []
        def out(f):
            seen.append(f)
            return f.parent.name in left_out and seen.count(f) == 1
        block = DataBlock((ImageBlock, PointBlock), get_y=get_ctr, splitter=FuncSplitter(out), item_tfms=Resize((12, 16), method='squish'))
        return block.dataloaders(items, bs=4, num_workers=0, device='cpu')
    dls, other = loaders(['04']), loaders(['01'])
    for right in fitted(dls, Told(dls)), fitted(dls, Told(dls, .02), 2), fitted(other, Told(other)): assert ex.check('pose-7', right)
    capsys.readouterr()
    again, two, both = loaders(['13']), loaders(['01', '04']), loaders(['04'], also_train=['04'])
    for answer, why in [(fitted(again, Told(again)), 'person 13 again'), (fitted(two, Told(two)), 'here there are 2'), (fitted(both, Told(both)), 'also in the training set'), (fitted(dls, Told(dls), 0), 'not been trained'),
                        (fitted(dls, Told(dls, 9.)), 'what the constant guess makes'), (Told(dls), 'a trained learner; this is a Told'), ('04', 'a trained learner')]:
        refused('pose-7', answer, why, capsys)


@pytest.fixture(scope='module')
def rated():
    "DataLoaders of a few ratings made up here, by two tastes and a good deal of luck; another seed splits them otherwise"
    from lesson6.collab import ratings_dls
    g = np.random.default_rng(0)
    p, q = g.normal(size=(60, 2)), g.normal(size=(40, 2))
    u, i = np.divmod(g.permutation(60*40)[:1500], 40)
    y = (3 + .6*(p[u]*q[i]).sum(1) + .6*g.normal(size=len(u))).clip(1, 5)
    table = pd.DataFrame({'user': u, 'title': [f'film {o}' for o in i], 'rating': y.astype(np.float32)})
    return lambda seed=42: ratings_dls(table, bs=32, seed=seed, device='cpu')


def rating_learner(dls, n_factors, epochs=4, lr=2e-2, **kwargs):
    from fastai.callback import progress, schedule  # noqa: F401 (they give learners no_bar and fit_one_cycle)
    from fastai.losses import MSELossFlat
    from lesson6.collab import DotProductBias, LeanLearner
    torch.manual_seed(0)
    learn = LeanLearner(dls, DotProductBias(*(len(dls.classes[o]) for o in ('user', 'title')), n_factors), loss_func=MSELossFlat())
    if epochs:
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr, **kwargs)
    return learn


@pytest.mark.ci
def test_collab_7_compares_three_widths(rated, capsys):
    dls = rated()
    two, ten, fifty = (rating_learner(dls, n, wd=.3) for n in (2, 10, 50))
    right = {2: two, 10: ten, 50: fifty}
    assert ex.check('collab-7', right) and ex.check('collab-7', dict(reversed(right.items())))
    assert ex.check('collab-7', right | {50: rating_learner(dls, 50, epochs=6, wd=1)})
    capsys.readouterr()
    for answer, why in [([two, ten, fifty], 'a dict'), ({2: two, 10: ten}, 'they are 2, 10'), (right | {20: ten}, '2, 10, 50, 20'), (right | {10: fifty}, 'under 10 has 50 factors'),
                        (right | {50: rating_learner(dls, 50, epochs=0)}, 'has not been trained'), (right | {2: 'two'}, 'of other things'),
                        (right | {50: rating_learner(dls, 50, lr=1e-9)}, 'no better than always answering'), (right | {2: rating_learner(rated(7), 2, wd=.3)}, 'not validated on the same ratings')]:
        refused('collab-7', answer, why, capsys)


@pytest.mark.ci
def test_reg_8_compares_a_plain_learner_and_a_better_one(rated, capsys):
    from fastai.data.core import DataLoaders
    dls = rated()
    plain, better = rating_learner(dls, 50), rating_learner(dls, 50, wd=1)
    for answer in (plain, better), [plain, better], (plain, rating_learner(dls, 10, wd=.3)): assert ex.check('reg-8', answer)
    leaky = DataLoaders(dls.train, dls.train.new(shuffle=False))
    leaky.classes = dls.classes
    leaked = rating_learner(leaky, 50)
    capsys.readouterr()
    for answer, why in [((better, plain), 'weight decay of 1; it should be the plain one'), ((plain, plain), 'the better one should come second'), (better, 'in brackets; this is a LeanLearner'),
                        ((plain, rating_learner(dls, 50, wd=.03)), 'there is more to be had'), ((plain, rating_learner(rated(7), 50, wd=1)), 'not validated on the same ratings'),
                        ((rating_learner(dls, 50, epochs=0), better), 'first learner has not been trained'), ((plain, rating_learner(dls, 50, epochs=0)), 'second learner has not been trained'),
                        ((leaked, leaked), 'trained on 100%')]:
        refused('reg-8', answer, why, capsys)


def test_every_experiment_is_tried_by_wrong_answers():
    tested = {name.split('_')[1]+'-'+name.split('_')[2] for name in globals() if re.match(r'test_[a-z]+_\d+_', name)}
    assert tested == set(experiments)


@pytest.mark.slow
@pytest.mark.parametrize('id', experiments)
def test_the_solution_of_an_experiment_is_right(id, capsys):
    "Trained for real, as a reader would"
    answer, _ = run_solution(id)
    capsys.readouterr()    # the bars and tables of the training
    assert ex.check(id, answer), capsys.readouterr().out
