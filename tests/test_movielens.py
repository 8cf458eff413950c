"The drawn ratings: the layout of the real set, and what is planted in them."
import hashlib
import re

import numpy as np
import pytest

from lesson6.mini import movielens
from lesson6.mini.movielens import (best_guess, draw, film_similarity, film_titles, film_years,
                                    plant, stars, truth, who_rates_what)
import os
import subprocess
import sys


@pytest.fixture(scope='module')
def twin(tmp_path_factory):
    path = tmp_path_factory.mktemp('ml-100k')
    draw(path)
    return path


def rows(path, sep, encoding='latin-1'):
    return [line.split(sep)
            for line in path.read_bytes().decode(encoding).removesuffix('\n').split('\n')]


def test_the_files_are_those_of_the_real_set(twin, real):
    there = real/'ml-100k'
    assert {p.name for p in twin.iterdir()} == {p.name for p in there.iterdir()} - {'README'}
    for name, sep in (('u.data', '\t'), ('u.item', '|'), ('u.user', '|'), ('u.genre', '|'),
                      ('u.occupation', '|')):
        ours, theirs = ({len(r) for r in rows(p/name, sep) if r != ['']} for p in (twin, there))
        assert ours == theirs, name
    assert rows(twin/'u.genre', '|') == [r for r in rows(there/'u.genre', '|') if r != ['']]
    assert rows(twin/'u.occupation', '|') == rows(there/'u.occupation', '|')
    assert ([r[0].split()[1] for r in rows(twin/'u.info', '|')]
            == [r[0].split()[1] for r in rows(there/'u.info', '|')])


def test_no_title_is_that_of_a_real_film(twin, real):
    titles = lambda path: {r[1].strip().lower() for r in rows(path/'u.item', '|')}
    assert not titles(twin) & titles(real/'ml-100k')


def test_numbers_titles_and_years(twin):
    films = rows(twin/'u.item', '|')
    assert [int(f[0]) for f in films] == list(range(1, movielens.n_films+1))
    assert len({f[1] for f in films}) == len(films) == movielens.expected['films']
    for f in films:
        year = re.fullmatch(r'.+ \((\d{4})\)', f[1])[1]
        assert f[2] == f'01-Jan-{year}' and 1930 <= int(year) <= 1998
        assert set(f[5:]) == {'0', '1'} and f[5] == '0'
    with pytest.raises(UnicodeDecodeError):
        (twin/'u.item').read_bytes().decode('utf-8')    # as in the real set: some accents, latin-1


def test_ratings(twin):
    u = np.array(rows(twin/'u.data', '\t'), int)
    assert len(u) == movielens.expected['ratings'] and set(u[:,2].tolist()) == {1, 2, 3, 4, 5}
    assert len({(a, b) for a, b in u[:,:2].tolist()}) == len(u), 'nobody rates a film twice'
    assert np.bincount(u[:,0])[1:].min() >= 20 and np.bincount(u[:,1])[1:].min() >= 20
    # autumn 1997 to spring 1998
    assert 874_000_000 < u[:,3].min() and u[:,3].max() < 894_000_000
    assert (np.diff(u[:,0]) < 0).mean() > .4, 'in random order'


def digest(path):
    return hashlib.sha256(b''.join((path/n).read_bytes()
                                   for n in sorted(p.name for p in path.iterdir()))).hexdigest()


def test_the_same_bytes_in_another_process(twin, tmp_path):
    code = f'from lesson6.mini.movielens import draw; draw({str(tmp_path)!r})'
    subprocess.run([sys.executable, '-c', code], check=True,
                   env={**os.environ, 'PYTHONHASHSEED': '7'})
    assert digest(tmp_path) == digest(twin)


def test_no_global_state(tmp_path):
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    draw(tmp_path, seed=5)
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.parametrize('seed', [0, 1, 7])
def test_other_seeds(seed, tmp_path, twin):
    draw(tmp_path, seed)
    assert digest(tmp_path) != digest(twin)
    assert len(rows(tmp_path/'u.data', '\t')) == movielens.n_ratings
    assert len(set(film_titles(truth(seed), seed))) == movielens.n_films


def test_progress_goes_over_all_files(tmp_path):
    seen = []
    def progress(items):
        for i in items: seen.append(i); yield i
    draw(tmp_path, progress=progress)
    assert set(seen) == {p.name for p in tmp_path.iterdir()}


def test_truth_is_what_was_drawn(twin):
    u, t = np.array(rows(twin/'u.data', '\t'), int), truth()
    mean, variance = best_guess(t, u[:,0], u[:,1])
    left = ((u[:,2]-mean)**2).mean()
    assert left == pytest.approx(variance.mean(), rel=.03)
    other, _ = best_guess(truth(43), u[:,0], u[:,1])
    assert ((u[:,2]-other)**2).mean() > 1.3*left, 'another seed is another truth'
    assert u[:,2].var() > 1.3*left, 'there is something to learn'


def test_best_guess_is_the_mean_over_all_moods():
    t = truth()
    users, films = np.full(4, 5), np.array([1, 60, 120, 240])
    many = np.stack([stars(t, users, films, seed) for seed in range(4000)])
    mean, variance = best_guess(t, users, films)
    np.testing.assert_allclose(many.mean(0), mean, atol=.07)
    np.testing.assert_allclose(many.var(0), variance, rtol=.1)


def test_old_films_have_early_years():
    t = truth()
    assert np.corrcoef(t.film_factors[:,1], film_years(t))[0,1] < -.98


def test_similarity_is_the_cosine_of_what_is_planted():
    t, s = truth(), film_similarity(truth())
    a, b = t.film_factors[3], t.film_factors[9]
    assert s[3,9] == pytest.approx(a@b/np.linalg.norm(a)/np.linalg.norm(b))
    assert s.min() >= -1-1e-12 and s.max() <= 1+1e-12


@pytest.mark.parametrize('n_users, n_films, n', [(50, 40, 1000), (50, 40, 1800),
                                                 (3000, 900, 200_000), (1000, 20_000, 50_000)])
def test_any_size(n_users, n_films, n):
    t = plant(n_users, n_films)
    users, films = who_rates_what(t, n)
    assert len(users) == n == len(np.unique(users*(n_films+1) + films))
    assert (users.min() == 1 and users.max() == n_users and films.min() >= 1
            and films.max() <= n_films)
    assert np.bincount(users)[1:].min() >= 20
    assert set(stars(t, users, films).tolist()) <= {1, 2, 3, 4, 5}


def test_more_films_leave_the_users_as_they_are():
    assert (plant(100, 50).user_factors == plant(100, 500).user_factors).all()


@pytest.mark.parametrize('n', [999, 1801])
def test_too_few_or_too_many(n):
    with pytest.raises(ValueError, match='50 users and 40 films take 1,000 to 1,800 ratings, not '
                                         f'{n:,}'):
        who_rates_what(plant(50, 40), n)
