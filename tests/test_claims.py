"""The machinery of the claims, and every claim that compares; those that don't are tested in
test_claims_*.py, one file a section."""
import ast
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook, new_output
from scipy import stats

from lesson6 import claims
from lesson6.claims import EVEN, FAILS, HOLDS, UNASKED, compare


def verdict(id, *measured):
    "What becomes of a claim"
    try: found, text, *_ = claims.statements[id].check(*measured)
    except claims.NotAsked as e: found, text = UNASKED, str(e)
    assert text and 'nan' not in text.lower()
    return found if isinstance(found, str) else HOLDS if found else FAILS


def holds(id, *measured): return verdict(id, *measured) == HOLDS


# The machinery

@pytest.fixture
def half(environment, monkeypatch):
    for name in ('statements', 'verdicts', 'substituted'): monkeypatch.setattr(claims, name, {})
    @claims.statement('example-half', 'Half of four is two', lesson='2', of='pets',
                      planted='four was planted')
    def _(half):
        if half is None: raise claims.NotAsked('there is no half')
        return half == 2, f'{half} *'
    @claims.statement('made-up-less', 'The first is smaller')
    def _(a, b): return claims._together(compare(a, b))


def test_a_claim_that_holds_is_said_and_kept(half, capsys):
    assert claims.claim('example-half', 2) is None
    assert capsys.readouterr().out == ('holds: Half of four is two. Measured: 2 * (lesson: 2; here '
                                       'four was planted)\n')
    kept = claims.verdicts['example-half']
    assert (kept.verdict, kept.data, kept.numbers) == (HOLDS, 'mini', []) and kept.device
    shown = kept._repr_mimebundle_()
    assert (shown['text/plain'] == str(kept)
            and r'**holds**: Half of four is two. Measured: 2 \* (lesson' in shown['text/markdown'])


def test_what_does_not_hold_stops_on_synthetic_data_only(half, environment, tmp_path, capsys):
    with pytest.raises(AssertionError, match='example-half: does not hold: Half of four is two'):
        claims.claim('example-half', 3)
    claims.claim('made-up-less', np.arange(20.), np.arange(20.))
    claims.claim('example-half', None)
    assert [v.verdict for v in claims.verdicts.values()] == [UNASKED, EVEN]
    assert ('not asked: Half of four is two. Why: there is no half (lesson: '
            '2)' in capsys.readouterr().out)
    environment.setenv('LESSON6_DATA', str(tmp_path))
    claims.claim('example-half', 3)
    assert (capsys.readouterr().out == 'does not hold: Half of four is two. Measured: 3 * (lesson: '
                                       '2)\n')
    assert 'does not hold' in claims.claims_table().to_html()


def test_a_claim_takes_the_learners_folder_for_what_it_is(half, environment, tmp_path):
    "Synthetic or not is asked of the folder, if it is known, and not of the environment"
    class Learner: dls = type('', (), {'folder': tmp_path})
    claims.statement('example-wrong', 'Never')(lambda learn: (False, 'no'))
    claims.claim('example-wrong', Learner())
    Learner.dls.folder = tmp_path/'cache'/'mini'/'v1'/'pets'
    with pytest.raises(AssertionError): claims.claim('example-wrong', Learner())


def test_a_set_that_was_substituted_is_not_asked_about(half):
    claims.substituted['pets'] = 'your folder holds no pets'
    claims.claim('example-half', 3)
    assert claims.verdicts['example-half'].measured == 'your folder holds no pets'


def test_claims_are_read_back_from_the_outputs(half):
    r = np.random.default_rng(0)
    claims.claim('made-up-less', r.random(50), r.random(50)+1)
    v = claims.verdicts['made-up-less']
    bundle = json.loads(json.dumps(v._repr_mimebundle_()))                  # as a kernel sends it
    old = {**bundle[claims.CLAIM_MIME], 'verdict': EVEN}
    outputs = [new_output('display_data', data={claims.CLAIM_MIME: o})
               for o in (old, bundle[claims.CLAIM_MIME], {**old, 'id': 'example-less'})]
    nb = new_notebook(cells=[new_code_cell('',
                                           outputs=[*outputs, new_output('stream', text='holds')])])
    # the last one of each, without examples
    found, = claims.read_claims(nb)
    assert (found.verdict == HOLDS and found.numbers[0]['n'] == 50
            and found.numbers[0]['difference'] == v.numbers[0]['difference'])
    assert '50 items' in found.measured and str(found) == str(v)


def test_unknown_and_double_names_are_refused(half):
    with pytest.raises(ValueError, match="no statement named 'half'.*example-half"):
        claims.claim('half', 2)
    with pytest.raises(ValueError, match='two statements'):
        claims.statement('example-half', 'Again')(lambda: None)


# What can be told apart

def test_only_those_on_which_the_two_disagree_count():
    "McNemar's test, by scipy"
    a, b = np.zeros(360), np.zeros(360)
    a[:6], b[6:30] = 1, 1
    found = compare(a, b, unit='share', over='pictures', trainings=False)
    assert (found.p == stats.binomtest(6, 30).pvalue and found.verdict == HOLDS
            and found.difference == pytest.approx(-18/360))
    assert (str(found) == '1.7%, 6.7%; difference -5.0 points, standard error 1.5 points, paired '
                          'on 360 pictures')


def test_one_training_on_each_side_takes_three_standard_errors():
    d = np.random.default_rng(0).normal(size=1000)
    d = (d-d.mean())/d.std(ddof=1)
    def off(n, **kwargs): return compare(d - n/1000**.5, 0*d, **kwargs).verdict
    assert [off(2.9), off(3.1), off(-2.9), off(-3.1)] == [EVEN, HOLDS, EVEN, FAILS]
    assert ([off(1.9, trainings=False), off(2.1, trainings=False), off(-2.1, trainings=False)]
            == [EVEN, HOLDS, FAILS])


def test_three_seeds_take_as_many_as_t_says():
    d = np.array([-1., 0, 1])
    assert ([compare(d - n/3**.5, 0*d, over='seeds').verdict for n in (4.2, 4.4, -4.4)]
            == [EVEN, HOLDS, FAILS])


def test_the_luck_of_one_seed_of_several_or_of_few_people_is_not_enough():
    r = np.random.default_rng(0)
    items, people = r.normal(size=(3, 500))/10, np.repeat(range(5), 100)
    assert compare(items-.1, items).verdict == HOLDS
    one = items.copy()
    one[0] -= 1                                         # one seed of three makes the difference
    assert compare(one, items).verdict == EVEN
    person = items[0].copy(); person[people == 0] -= 2                      # or one person of five
    assert (compare(person, items[0]).verdict == HOLDS
            and compare(person, items[0], groups=people).verdict == EVEN)
    assert compare([4.]*6 + [4.1]*6, [1.]*12, factor=.5, groups='aabbccddeeff').verdict == FAILS


@pytest.mark.parametrize('a, b, why',
                         [([], [], 'no items'), (1., 2., 'noise'), ([1.], [2.], 'noise'),
                          ([1., np.nan], [1., 2.], 'diverged'),
                          ([1., 2.], [1., np.inf], 'diverged')])
def test_what_has_no_noise_is_not_asked(a, b, why):
    with pytest.raises(claims.NotAsked, match=why): compare(a, b)


def test_items_must_be_the_same():
    with pytest.raises(ValueError, match='on the same items'): compare(np.ones(3), np.ones(4))


# Every claim that compares: what it is handed where the effect is there (1), is not (0: the same
# model from other seeds), or is the other way round (-1)

def errors(rng, effect, n=400, level=1., luck=.03, sides=((.5, 1.5), (1, 1), (1.5, .5)),
           people=None):
    """What should be smaller, what should be larger: squared errors, or with a `level` below 1
    right and wrong, on the same items.

    The luck of a seed varies a side as much as the standard error over the items."""
    hard = rng.gamma(2, .5, n)
    def side(mean):
        mean = level*mean*(1 + luck*rng.normal())
        return (mean*hard*rng.gamma(4, .25, n) if level >= 1
                else (rng.random(n) < mean*hard).astype(float))
    return [side(mean) for mean in sides[1-effect]]


def wrong(rng, effect, **kwargs): return errors(rng, effect, level=.2, luck=.1, **kwargs)


# probabilities and zeros and ones: the middle is best, no threshold matters, the middle is worst
def labels(rng, effect):
    targs = (rng.random((200, 20)) < .5).astype(float)
    clear = np.where(targs == 1, .8, .3) if effect > 0 else np.where(targs == 1, .3, .7)
    return ((rng.random(targs.shape) if not effect else clear + rng.normal(0, .05, targs.shape))
            .clip(0, 1), targs)


# the accuracy of each picture where it helped to choose and where it did not, for one threshold and
# for one a label
def halves(rng, effect):
    other = rng.random(200)
    one, many = errors(rng, effect, n=200, luck=0, sides=((.001, .02), (.003, .003), (.03, .001)))
    return np.stack([other+one, other]), np.stack([other+many, other])


# probabilities, zeros and ones, the threshold: a model that knows, one that says yes at random, one
# that is wrong
def silent(rng, effect):
    targs = (rng.random((200, 20)) < .08).astype(float)
    if not effect:
        return np.where((targs == 1) & (rng.random(targs.shape) < .3) | (targs == 0)
                        & (rng.random(targs.shape) < .3*.08/.92), .9, .1), targs, .5
    return 1/(1+np.exp(-4*effect*(targs-.5)-rng.normal(0, .5, targs.shape))), targs, .5


# the matrix of a model that confuses the look-alikes, or any two, or two others; the breeds; who
# looks alike
def breeds(rng, effect):
    vocab, pairs = list('abcdefgh'), [('a', 'b'), ('d', 'c')]
    matrix = np.diag([30]*8)
    for _ in range(80):
        i, j = (rng.choice(8, 2, False) if not effect or rng.random() < .4
                else [(0, 1), (3, 2), (5, 7), (6, 4)][rng.integers(2) + 2*(effect < 0)])
        matrix[i,j] += 1
    return matrix, vocab, pairs


def sweep(rng, effect, column, shape, other=None): # three seeds of five weight decays
    wds = np.array([.01, .03, .1, .3, 1])
    rows = [(s, wd, 1.2 + luck + effect*y + rng.normal(0, .003)) for s in range(3)
            for luck in [rng.normal(0, .01)] for wd,y in zip(wds, shape)]
    table = pd.DataFrame(rows, columns=['seed', 'wd', column])
    return table if other is None else table.assign(**{other: 2-table[column]})


def overfits(rng, effect): # on training and validation ratings: without decay, with it
    (seen, seen_decayed), (others_decayed, others) = errors(rng, effect), errors(rng, effect)
    return (seen, others), (seen_decayed, others_decayed)


def order(f): # the claim takes the larger side first
    return lambda rng, effect: f(rng, effect)[::-1]


people = [f'person {i%20}' for i in range(400)]
COMPARING = {
    'pets-look-alikes': breeds,
    'pets-lr': lambda r, e: (*wrong(r, e, sides=((.5, 3), (1, 1), (3, .5)))[::-1], .9),
    'pets-discriminative': order(wrong), 'pets-deeper-better': order(wrong),
    'pets-deeper': lambda r, e: [(n, (1+e*more)*r.normal(1, .1, 5))
                                 for n,more in ((10, 0), (18, .5))],
    'multilabel-threshold': labels, 'multilabel-fair': halves, 'multilabel-nothing': silent,
    'pose-unseen-person':
    lambda r, e: (*errors(r, e, n=15, level=50, sides=((.1, 1), (1, 1), (1, .1))), people[:1]),
    'pose-head': errors,
    **dict.fromkeys(['collab-replacement', 'collab-bias-overfits', 'collab-factors',
                     'collab-faster'], errors),
    **dict.fromkeys(['collab-range', 'reg-penalty-in-loss'], order(errors)),
    'collab-overfits': overfits,
    'collab-floor': lambda r, e: errors(r, e, n=4000, luck=.01, sides=((1, 1), (1.1, 1), (1.5, 1))),
    'collab-biases': lambda r, e: (bias := pd.Series(r.normal(size=60)),
                                   e*bias + r.normal(size=60)),
    'collab-neighbours': lambda r, e: (e*.5 + r.normal(size=150), r.normal(size=150)),
    'collab-newcomer': lambda r, e: (*errors(r, e, luck=0)[::-1], people),
    'reg-wd-middle': lambda r, e: [sweep(r, e, 'valid_loss', (.05, .03, .01, 0, .1))],
    'reg-wd-lesson': lambda r, e: [sweep(r, e, 'valid_loss', (.05, .03, .005, 0, .1) if e > 0
                                         else (0, -.01, -.05, -.06, -.08))],
    'reg-wd-shrinks': lambda r, e: [sweep(r, e, 'train_loss', (0, .1, .2, .3, .4), 'size')],
    'reg-augmentation': lambda r, e: (*errors(r, e), *errors(r, e)[::-1], people),
    'reg-point-forgotten': lambda r, e: (*errors(r, e), people),
}


@pytest.mark.parametrize('id', COMPARING)
def test_a_claim_that_compares(id):
    """It holds where the effect is planted, doesn't where it is reversed; without effect it holds
    in at most 5 % of 200 draws, and nearly always can't be told apart"""
    assert {verdict(id, *COMPARING[id](np.random.default_rng(s), 1)) for s in range(5)} == {HOLDS}
    assert {verdict(id, *COMPARING[id](np.random.default_rng(s), -1)) for s in range(5)} == {FAILS}
    found = Counter(verdict(id, *COMPARING[id](np.random.default_rng(s), 0)) for s in range(200))
    assert found[HOLDS] <= 10 and found[EVEN] >= 180, found


# That nothing is left out

def denied(tree):
    "The statements of which a test asserts `not holds(id, ...)` or `holds(id, ...) == right`"
    for node in ast.walk(tree):
        call = (node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
                else node.left if isinstance(node, ast.Compare) else None)
        if (isinstance(call, ast.Call) and getattr(call.func, 'id', '') == 'holds'
            and isinstance(call.args[0], ast.Constant)):
            yield call.args[0].value


def test_every_statement_has_a_test_that_makes_it_fail():
    "Something broken is handed to each, and the test asserts that it does not hold."
    assert (set(denied(ast.parse("assert holds('b') and not holds('c', 1)\nassert holds('d', 1) == "
                                 "right"))) == {'c', 'd'})
    files = sorted(Path(__file__).parent.glob('test_claims_*.py'))
    broken = {id for p in files for id in denied(ast.parse(p.read_text(encoding='utf-8')))}
    assert len(claims.statements) >= 45
    assert broken | set(COMPARING) == set(claims.statements) and not broken & set(COMPARING)


def test_every_statement_is_claimed_in_a_notebook():
    "And each notebook claims only what there is."
    text = ''.join(p.read_text(encoding='utf-8')
                   for p in (Path(__file__).parent.parent/'nbs').glob('0*.ipynb'))
    assert set(re.findall(r"\bclaim\('([a-z0-9]+-[a-z0-9-]+)'", text)) == set(claims.statements)


def test_item_errors():
    class Learner:
        def __init__(self, preds, targs): self.both = preds, targs
        def get_preds(self, ds_idx): return self.both
        def no_bar(self): return pytest.MonkeyPatch.context()
        no_logging = no_bar
    of = lambda *o: claims.item_errors(Learner(*map(torch.tensor, o))).tolist()
    # labels; a prediction that is no number is wrong
    assert of([[.1, .9], [.8, .2], [float('nan')]*2], [1, 1, 0]) == [0, 1, 1]
    assert of([[3.], [4.]], [[1], [4]]) == of([[3.], [4.]], [1, 4]) == [4, 0]      # ratings
    assert of([[1., 3.]], [[[0., 0.]]]) == [5]                                     # points


def test_what_it_takes_to_tell_two_sides_apart_is_what_decides():
    "Few numbers on each side take more standard errors than many; the sentence says how many"
    few = compare([1., 1.1, .9], [1.3, 1.2, 1.25], over='steps', paired=False, trainings=False)
    assert few.verdict == HOLDS and few.needed > 2.7
    even = compare([1., 1.1, .9], [1.3, 1.1, 1.25], over='steps', paired=False, trainings=False)
    assert even.verdict == EVEN and abs(even.difference)/even.standard_error < even.needed
    assert abs(even.difference) > 2*even.standard_error
    assert f'only {even.needed:.1f} standard errors' in str(even)
    times = compare([1., 1.1, .9], [1.3, 1.1, 1.25], over='timings', trainings=False)
    assert times.verdict == EVEN and abs(times.difference) < times.needed*times.standard_error
