"lesson6 predict: what a trained learner says about pictures, and what it recommends."
import json

import numpy as np
import pytest
import torch
from fastai.callback.progress import ProgressCallback # noqa: F401, gives Learner its no_bar
from fastai.vision.learner import vision_learner
from PIL import Image
from test_command import lesson6

from lesson6.book import predict
from lesson6.mini.network import drawnet10

pytestmark = pytest.mark.ci


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    folder, r = tmp_path_factory.mktemp('pictures')/'images', np.random.default_rng(0)
    folder.mkdir()
    for i in range(24):
        Image.fromarray(r.integers(0, 255, (40, 60, 3), np.uint8)).save(
            folder/f'{("Corgi", "Persian")[i%2]}_{i}.png')
    return folder


@pytest.fixture(scope='module')
def pets(pictures):
    from lesson6.pets import pets_dls, pets_learner
    learn = pets_learner(pets_dls(pictures.parent, 40, 32, bs=4), drawnet10)
    learn.export(pictures.parent/'pets.pkl')
    return pictures.parent/'pets.pkl'


def test_labels_of_pictures(pets, pictures, environment, capsys):
    files = sorted(pictures.iterdir())[:3]
    assert lesson6(environment, 'predict', pets, *files, '--json') == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert [r['file'] for r in rows] == list(map(str, files))
    assert all(r['label'] in ('Corgi', 'Persian') and .5 <= r['probability'] <= 1 for r in rows)
    assert 'was not written by `lesson6 train` here: loading it runs whatever code it holds' in err
    from fastai.learner import load_learner
    learn = load_learner(pets)
    with learn.no_bar(), learn.no_logging():
        for f,row in zip(files, rows):
            label,_,probs = learn.predict(f)
            assert (label == row['label']
                    and float(probs.max()) == pytest.approx(row['probability'], abs=1e-3))


def test_a_learner_that_was_written_here_needs_no_warning(pets, pictures, environment, capsys):
    predict.remember_learner(pets)
    assert lesson6(environment, 'predict', pets, next(pictures.iterdir())) == 0
    out, err = capsys.readouterr()
    assert err == '' and 'probability' in out


def test_folders_and_patterns(pets, pictures, environment, capsys):
    every = sorted(map(str, pictures.iterdir()))
    for item, files in ((pictures, every),
                        (f'{pictures}/Corgi*', [f for f in every if '/Corgi' in f])):
        assert lesson6(environment, 'predict', pets, item, '--csv') == 0
        head, *rows = capsys.readouterr().out.splitlines()
        assert head == 'file,label,probability' and [r.split(',')[0] for r in rows] == files
    pets.with_name('learner.pkl').write_bytes(pets.read_bytes())
    assert lesson6(environment, 'predict', pets.parent, every[0]) == 0, (
        'the folder of a learner will do')


def test_several_labels(pictures, environment, capsys):
    from lesson6.multilabel import multilabel_dls, read_labels
    root = pictures.parent/'several'
    (root/'train').mkdir(parents=True)
    names = sorted(p.name for p in pictures.iterdir())
    for n in names: (root/'train'/n).write_bytes((pictures/n).read_bytes())
    (root/'train.csv').write_text('fname,labels,is_valid\n'
                                  + ''.join(f'{n},{"sea beach" if i%2 else "snow"},{i>17}\n'
                                            for i,n in enumerate(names)))
    learn = vision_learner(multilabel_dls(read_labels(root, vocab=None), root, size=32, bs=4),
                           drawnet10)
    learn.export(root/'several.pkl')
    assert lesson6(environment, 'predict', root/'several.pkl', root/'train'/names[0], '--json') == 0
    row, = json.loads(capsys.readouterr().out)
    assert (set(row['labels']) <= {'sea', 'beach', 'snow'}
            and all(.5 < p <= 1 for p in row['labels'].values()))


def test_a_point(pictures, environment, capsys):
    from lesson6.head_pose import pixel_point, points_dls
    root = pictures.parent/'points'
    root.mkdir()
    names = sorted(p.name for p in pictures.iterdir())
    for n in names: (root/n).write_bytes((pictures/n).read_bytes())
    (root/'points.csv').write_text('fname,x,y\n'
                                   + ''.join(f'{n},{20+i},{10+i}\n' for i,n in enumerate(names)))
    learn = vision_learner(points_dls(root, size=(32, 48), bs=4), drawnet10, y_range=(-1, 1))
    learn.export(root/'point.pkl')
    assert lesson6(environment, 'predict', root/'point.pkl', root/names[0], '--json') == 0
    row, = json.loads(capsys.readouterr().out)
    assert torch.allclose(torch.tensor([row['x'], row['y']]), pixel_point(learn, root/names[0]),
                          atol=.1)


def test_recommendations(environment, capsys, tmp_path):
    import pandas as pd
    from lesson6.collab import ratings_dls, ratings_learner, recommend
    r = np.random.default_rng(0)
    df = (pd.DataFrame({'user': r.integers(1, 30, 900),
                        'title': [f'Book {i}' for i in r.integers(1, 40, 900)],
                        'rating': r.integers(1, 6, 900)}).drop_duplicates(['user', 'title']))
    learn = ratings_learner(ratings_dls(df, bs=64))
    learn.export(tmp_path/'books.pkl')
    assert lesson6(environment, 'predict', tmp_path/'books.pkl', '--user', '7', '-n', '3',
                   '--json') == 0
    assert ([row['title'] for row in json.loads(capsys.readouterr().out)]
            == recommend(learn, 7, 3).title.tolist())
    # somebody new
    assert lesson6(environment, 'predict', tmp_path/'books.pkl', '-n', '2', '--json') == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert lesson6(environment, 'predict', tmp_path/'books.pkl', '--user', '99') == 1
    assert "has not seen the user '99'" in capsys.readouterr().err


def test_what_cannot_be_predicted_is_said_in_one_sentence(pets, pictures, environment, capsys,
                                                          tmp_path):
    whole = next(pictures.iterdir()).read_bytes()
    (tmp_path/'half.png').write_bytes(whole[:len(whole)//2])
    (tmp_path/'none.pkl').write_text('no learner')
    torch.save({'settings': {}, 'model': {}}, tmp_path/'checkpoint.pt')
    (tmp_path/'bare').mkdir()
    for words, says in (([pets], 'name one or more of them'),
                        ([pets, tmp_path/'nowhere.jpg'], 'nowhere.jpg is not there'),
                        ([pets, tmp_path/'half.png'], 'half.png cannot be read'),
                        ([tmp_path/'none.pkl'], 'none.pkl cannot be loaded'),
                        ([pets, tmp_path/'half.png', '--user', '1'], '--user means nothing'),
                        ([tmp_path/'checkpoint.pt'], 'holds the checkpoint of a training'),
                        (['https://host/pets.pkl'], 'is an address'),
                        ([tmp_path/'bare'], 'is a folder without learner.pkl')):
        assert lesson6(environment, 'predict', *words) == 1
        err = capsys.readouterr().err.strip().splitlines()
        assert says in err[-1] and 'Traceback' not in ''.join(err), err
