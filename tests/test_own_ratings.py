"""Ratings as people have them: any number of people and titles, any scale, names in any script, in
any usual file.

Two hundred sets through reading, loaders and a short training; test_own_pictures sends ten through
the whole section.
"""
import gzip
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
from fastai.torch_core import set_seed

from lesson6.collab import (DotProductBias, LeanLearner, extreme_items, ratings_dls,
                            ratings_learner, read_ratings, recommend, similar_items)
from lesson6.engine.rating_scales import range_for

words = ('كتاب 本 Музей हिन्दी Book Film Tea Café Straße Ølbrød "Quoted", Semi;colon Comma, '
         'Pipe'.split())
latin = words[4:]
scales = [(1, 5, 1), (.5, 5, .5), (1, 10, 1), (-10, 10, .5), (0, 1, 1), (0, 100, 1), (1, 7, 1),
          (2, 4, 1)]
forms = ['u.data', 'ratings.dat', 'ratings.csv', 'csv', 'csv with semicolons', 'tsv', 'utf-16',
         'parquet', 'split', 'no names', 'a remark', 'gz', 'zip']


def own_set(folder, seed, form=None, small=False):
    "Writes a set of ratings in one of the forms; what was written"
    r = np.random.default_rng(seed)
    form = form or forms[seed % len(forms)]
    lo, hi, step = scales[seed % len(scales)]
    users, items = (int(o) for o in ((40, 40) if small else r.integers(4, 80, 2)))
    n = min(users*items, int(r.integers(25, 1500)) if not small else int(r.integers(300, 800)))
    pairs = r.permutation(users*items)[:n]
    good, mild = r.normal(size=items), r.normal(size=users)
    rating = (np.clip(np.round(((lo+hi)/2 + (hi-lo)/5*(good[pairs%items] + mild[pairs//items]
                                       + .5*r.normal(size=n)))/step)*step, lo, hi).round(1))
    rating[:2] = lo, hi
    year = ' (1999)' if r.random() < .3 else ''
    some = latin if form == 'ratings.dat' else words
    titles = [f'{some[i % len(some)]} {i}{year}' for i in range(items)]
    text_users = form not in ('u.data', 'ratings.dat', 'ratings.csv') and r.random() < .5
    names = [f'{words[u % 6]}-{u:03d}' if text_users else u + 1 for u in range(users)]
    table = pd.DataFrame({'user': [names[u] for u in pairs//items], 'movie': pairs%items + 1,
                          'rating': rating, 'timestamp': 880_000_000 + r.integers(0, 10**6, n)})
    if (table.rating % 1 == 0).all(): table['rating'] = table.rating.astype(int)
    whole = table.assign(title=[titles[i] for i in pairs%items])
    four = table.to_numpy(dtype=object).tolist()
    if form in ('u.data', 'ratings.dat'):
        sep, items_file, tsep, encoding = (('\t', 'u.item', '|', 'utf-8') if form == 'u.data'
                                           else ('::', 'movies.dat', '::', 'latin-1'))
        (folder/form).write_text(''.join(sep.join(map(str, row)) + '\n' for row in four))
        (folder/items_file).write_text(''.join(f'{i}{tsep}{t}{tsep}Comedy|Drama\n'
                                               for i, t in enumerate(titles, 1)), encoding=encoding)
    elif form == 'ratings.csv':
        table = table.set_axis(['userId', 'movieId', 'rating', 'timestamp'], axis=1)
        table.to_csv(folder/form, index=False)
        movies = pd.DataFrame({'movieId': range(1, items+1), 'title': titles})
        movies.assign(genres='Comedy|Drama').to_csv(folder/'movies.csv', index=False)
        (folder/'tags.csv').write_text('userId,movieId,tag,timestamp\n')
    elif form == 'parquet': whole.to_parquet(folder/'shop.parquet')
    elif form == 'tsv':
        whole.rename(columns={'user': 'User ID', 'title': 'Title', 'rating': 'Stars',
                              'movie': 'item_id'}).to_csv(folder/'shop.tsv', sep='\t', index=False)
    elif form == 'split':
        whole.drop(columns='movie').assign(is_valid=r.random(n) < .3).rename(
            columns={'title': 'item'}).to_csv(folder/'shop.csv', index=False)
    elif form in ('no names', 'a remark', 'gz', 'zip'):
        four = whole[['user', 'title', 'rating', 'timestamp']]
        text = four.to_csv(sep=';', decimal=',', index=False, header=form != 'no names')
        if form == 'zip':
            with zipfile.ZipFile(folder/'shop.csv.zip', 'w') as z:
                z.writestr('export/shop.csv', text)
        elif form == 'gz': (folder/'shop.csv.gz').write_bytes(gzip.compress(text.encode()))
        else:
            (folder/'shop.csv').write_text(('what we sold\n' if form == 'a remark' else '') + text,
                                           encoding='utf-8')
    else:
        sep, name, encoding = {'csv': (',', 'shop.csv', 'utf-8-sig'),
                               'csv with semicolons': (';', 'shop.csv', 'utf-8'),
                               'utf-16': (';', 'shop.csv', 'utf-16')}[form]
        whole.drop(columns='movie').to_csv(folder/name, sep=sep, index=False, encoding=encoding)
    return form, whole, (rating.min(), rating.max())


@pytest.mark.parametrize('form', forms)
def test_the_forms_are_read_alike(tmp_path, form):
    _, wrote, _ = own_set(tmp_path, forms.index(form), form)
    with warnings.catch_warnings(action='ignore'): table = read_ratings(tmp_path)
    if form in ('ratings.dat', 'ratings.csv'): assert (table.pop('genres') == 'Comedy, Drama').all()
    if form == 'split': table.pop('is_valid')
    numbered = form in ('u.data', 'ratings.dat', 'ratings.csv', 'tsv', 'parquet')
    columns = (['user', 'movie', 'rating', 'timestamp', 'title'] if numbered
               else ['user', 'title', 'rating', 'timestamp'])
    pd.testing.assert_frame_equal(table, wrote[columns])
    pd.testing.assert_frame_equal(read_ratings(wrote[columns[::-1]]), table)


@pytest.mark.ci
@pytest.mark.parametrize('first', range(0, 200, 20))
def test_any_set_is_read_and_learnt(tmp_path, first):
    """Twenty sets: what was written is read, predictions stay in the range, and what reads a model
    reads this one"""
    for seed in range(first, first+20):
        here = tmp_path/str(seed)
        here.mkdir()
        form, wrote, scale = own_set(here, seed)
        with warnings.catch_warnings(action='ignore'):
            table = read_ratings(here) # what is above the names, or that there are none, is said
        for column in ('user', 'title', 'rating'):
            assert table[column].tolist() == wrote[column].tolist(), (seed, form, column)
        if form in ('ratings.dat', 'ratings.csv'): assert (table.genres == 'Comedy, Drama').all()
        with warnings.catch_warnings():
            warnings.simplefilter('error', UserWarning)
            dls = ratings_dls(table, valid='is_valid' if form == 'split' else 'time'
                              if seed % 5 == 0 else None, device='cpu')
        assert (dls.scale == pytest.approx(scale) and dls.y_range == pytest.approx(range_for(scale))
                and len(dls.train) >= 4)
        set_seed(seed)
        learn = (ratings_learner(dls, 5) if seed % 2
                 else LeanLearner(dls, DotProductBias(*map(len, dls.classes.values()), 5)))
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(2, 1e-2)
            preds = learn.get_preds()[0]
        assert preds.min() > dls.y_range[0] and preds.max() < dls.y_range[1]
        some = dls.classes['title'][1]
        assert recommend(learn, dls.classes['user'][1]).title.isin(dls.classes['title'][1:]).all()
        assert len(similar_items(learn, some, 2)) and len(extreme_items(learn, 2)) == 4
