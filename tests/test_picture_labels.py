"""One label a picture, in the ways that people write it down: what is right is read, and what is
not is named."""
import json
import pickle
import random
import unicodedata
import warnings

import numpy as np
import pytest
from PIL import Image
from promises import rounds

from lesson6.engine.picture_labels import LabelledPictures, labelled_pictures
from lesson6.engine.pictures import picture_files
from lesson6.pets import breed, pet_labels, pets_dls, pets_learner


def draw(folder, *names, side=24):
    for i,name in enumerate(names):
        path = folder/name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (side, side+i%5, 3),
                                                          dtype=np.uint8)).save(path)
    return folder


def truth(found): return {f.name: found.label(f) for f in found.files}


# The three layouts

@pytest.mark.parametrize('where', ['', 'images/'])
@pytest.mark.parametrize('ending', ['.jpg', '.JPEG', '.png', '.webp', '.bmp', '.tif'])
def test_in_the_name(where, ending, tmp_path):
    draw(tmp_path, *(f'{where}{b}_{i}{ending}' for b in ('pug', 'great_pyrenees')
                     for i in range(3)), f'{where}._pug_1.png', '.hidden/pug_9.png')
    found = pet_labels(tmp_path)
    assert (found.vocab == ['great_pyrenees', 'pug'] and len(found) == 6
            and found.where == 'the names of the files')


@pytest.mark.parametrize('share', [-.8, 1, 20])
def test_a_share_that_is_none(share, tmp_path):
    draw(tmp_path, *(f'{b}_{i}.png' for b in ('pug', 'corgi') for i in range(6)))
    with pytest.raises(ValueError, match=f'valid_pct is {share}; it must lie between 0 and 1'):
        pets_dls(tmp_path, 24, 16, valid_pct=share)


def test_a_table_in_the_folder_of_a_breed_is_none_of_the_set(tmp_path):
    draw(tmp_path, *(f'{b}/{i}.png' for b in ('pug', 'corgi') for i in range(3)))
    (tmp_path/'pug'/'metadata.csv').write_text('file_name,label\n0.png,spaniel\n')
    assert pet_labels(tmp_path).vocab == ['corgi', 'pug']


def test_an_empty_line_between_two_is_no_end(tmp_path):
    draw(tmp_path, 'a.png', 'b.png')
    for name, text in (('metadata.jsonl', '{"file_name": "a.png", "label": "x"}\n\n{"file_name": '
                                          '"b.png", "label": "y"}\n'),
                       ('metadata.csv', 'file_name,label\na.png,x\n\nb.png,y\n')):
        (tmp_path/name).write_text(text)
        assert truth(pet_labels(tmp_path)) == {'a.png': 'x', 'b.png': 'y'}
        (tmp_path/name).unlink()


def test_a_split_that_says_nothing_at_all_is_none(tmp_path):
    names = [f'{b}_{i}.png' for b in ('pug', 'corgi') for i in range(3)]
    draw(tmp_path, *names)
    (tmp_path/'metadata.csv').write_text('file_name,label,split\n'
                                         + ''.join(f'{n},{n[:3]},\n' for n in names))
    assert pet_labels(tmp_path).valid is None


@pytest.mark.parametrize('inside, held', [('', 'test'), ('images/', 'valid')])
def test_tables_in_the_folders_of_a_split(inside, held, tmp_path):
    for part, n in ('train', 6), (held, 3):
        names = [f'{i}.png' for i in range(n)]
        draw(tmp_path, *(f'{inside}{part}/{name}' for name in names))
        (tmp_path/inside/part/'metadata.csv').write_text('file_name,label\n' + ''.join(
            f'{name},{"pug" if i%2 else "corgi"}\n' for i, name in enumerate(names)))
    found = pet_labels(tmp_path)
    assert (sorted(found.files[i].parent.name for i in found.valid) == [held]*3
            and len(found) == 9)


@pytest.mark.parametrize('words', [('0.0', '1.0'), ('False', 'True'), ('0', '1'), ('train', 'val')])
def test_words_for_a_split(words, tmp_path):
    names = [f'{b}_{i}.png' for b in ('pug', 'corgi') for i in range(3)]
    draw(tmp_path, *names)
    (tmp_path/'metadata.csv').write_text('file_name,label,is_valid\n'
                                         + ''.join(f'{n},{n[:3]},{words[i%3 == 0]}\n'
                                                   for i, n in enumerate(names)))
    assert (sorted(pet_labels(tmp_path).files[i].name for i in pet_labels(tmp_path).valid)
            == ['corgi_0.png', 'pug_0.png'])


def test_a_link_to_a_folder_above_shows_nothing_twice(tmp_path):
    draw(tmp_path/'set', 'pug_1.png', 'more/pug_2.png')
    draw(tmp_path/'elsewhere', 'pug_3.png')
    (tmp_path/'set'/'again').symlink_to('.')
    (tmp_path/'set'/'more'/'up').symlink_to(tmp_path/'set', target_is_directory=True)
    (tmp_path/'set'/'linked').symlink_to(tmp_path/'elsewhere', target_is_directory=True)
    found = [f.name for f in picture_files(tmp_path/'set')]
    assert found == ['pug_3.png', 'pug_2.png', 'pug_1.png']


def test_the_folder_because_it_is_asked_for(tmp_path):
    "Also where the names would do"
    draw(tmp_path,
         *(f'{f}/{b}_{i}.png' for f, b in (('home', 'pug'), ('away', 'corgi')) for i in range(3)))
    assert (pet_labels(tmp_path, by='folder').vocab == ['away', 'home']
            and pet_labels(tmp_path, by='name').vocab == ['corgi', 'pug'])


@pytest.mark.parametrize('where', ['', 'images/'])
def test_in_the_folder(where, tmp_path):
    draw(tmp_path,
         *(f'{where}{b}/IMG_{i}.jpg' for b in ('pug', 'Golden retriever') for i in range(3)))
    found = pet_labels(tmp_path)
    assert found.vocab == ['Golden retriever', 'pug'] and found.valid is None


def test_one_folder_with_names_is_read_by_name(tmp_path):
    draw(tmp_path, *(f'images/sub/{b}_{i}.jpg' for b in ('pug', 'Corgi') for i in range(3)))
    assert pet_labels(tmp_path).vocab == ['Corgi', 'pug']


@pytest.mark.parametrize('held', ['valid', 'validation', 'val', 'test', 'Test'])
def test_a_split_in_folders_is_used(held, tmp_path):
    draw(tmp_path, *(f'{part}/{b}/{i}.jpg' for part,n in (('train', 4), (held, 2))
                     for b in ('a', 'b') for i in range(n)))
    found = labelled_pictures(tmp_path, breed)
    train, valid = found.split()
    assert [found.files[i].parts[-3] for i in valid] == [held]*4 and len(train) == 8
    dls = pets_dls(tmp_path, 24, 16)
    assert ({f.parts[-3] for f in dls.valid_ds.items} == {held}
            and {f.parts[-3] for f in dls.train_ds.items} == {'train'})


def test_a_split_with_breeds_in_the_names(tmp_path):
    draw(tmp_path, *(f'{part}/{b}_{i}.jpg' for part in ('train', 'test') for b in ('a', 'b')
                     for i in range(4)))
    found = labelled_pictures(tmp_path, breed)
    assert (found.vocab == ['a', 'b'] and len(found.valid) == 8 and found.where == 'the names of '
            'the files')


def test_beside_a_validation_set_the_test_set_is_left_out(tmp_path):
    draw(tmp_path, *(f'{part}/{b}/{i}.jpg' for part in ('train', 'valid', 'test')
                     for b in ('a', 'b') for i in range(3)))
    found = labelled_pictures(tmp_path, breed)
    assert len(found) == 12 and {f.parts[-3] for f in found.files} == {'train', 'valid'}


def test_train_alone_is_no_split(tmp_path):
    draw(tmp_path, *(f'train/{b}/{i}.jpg' for b in ('a', 'b') for i in range(3)))
    found = labelled_pictures(tmp_path, breed)
    assert found.vocab == ['a', 'b'] and found.valid is None


@pytest.mark.parametrize('coding', ['utf-8', 'utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('sep', [',', ';', '\t'])
def test_a_table(sep, coding, tmp_path):
    draw(tmp_path, *(f'deep/{i}.png' for i in range(4)))
    rows = [('file_name', 'Breed', 'note'),
            *((f'deep/{i}.png', ('pug', 'Bär')[i%2], '"a, b; c"') for i in range(4))]
    (tmp_path/'metadata.csv').write_text('\n'.join(sep.join(r) for r in rows), encoding=coding)
    found = labelled_pictures(tmp_path, breed)
    assert (truth(found) == {'0.png': 'pug', '1.png': 'Bär', '2.png': 'pug', '3.png': 'Bär'}
            and 'Breed' in found.where)


def test_a_table_of_json_lines_with_a_split(tmp_path):
    draw(tmp_path, *(f'{i}.png' for i in range(6)))
    (tmp_path/'metadata.jsonl').write_text(
        '\n'.join(json.dumps({'file_name': f'{i}.png', 'label': i%2,
                              'split': ('train', 'validation')[i > 3]}) for i in range(6)))
    found = labelled_pictures(tmp_path, breed)
    assert found.labels == ['0', '1']*3 and found.valid == [4, 5]


def test_a_table_that_names_pictures_in_images(tmp_path):
    draw(tmp_path, 'images/a.png', 'images/b.png')
    (tmp_path/'metadata.csv').write_text('file_name,label\na.png,x\nb.png,y\n')
    assert truth(labelled_pictures(tmp_path, breed)) == {'a.png': 'x', 'b.png': 'y'}


def test_names_that_another_system_wrote(tmp_path):
    composed, apart = (unicodedata.normalize(form, 'Épagneul') for form in ('NFC', 'NFD'))
    draw(tmp_path, f'images/{composed}_1.jpg', f'images/{apart}_2.jpg', 'images/柴犬_1.jpg')
    assert pet_labels(tmp_path).vocab == [composed, '柴犬']
    (tmp_path/'images'/'metadata.csv').write_text(f'file_name,label\n{apart}_1.jpg,{apart}\n'
                                                  f'{composed}_2.jpg,{composed}\n柴犬_1.jpg,b\n',
                                                  encoding='utf-8')
    assert pet_labels(tmp_path).vocab == ['b', composed]


# What is doubtful is said

def test_folders_and_names_that_differ(tmp_path):
    draw(tmp_path, *(f'{where}/{b}_{i}.jpg' for where in ('holiday', 'home')
                     for b in ('pug', 'Corgi') for i in range(2)))
    with pytest.warns(UserWarning, match="perhaps another in their name.*by=\"name\""):
        assert pet_labels(tmp_path).vocab == ['holiday', 'home']
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert pet_labels(tmp_path, by='name').vocab == ['Corgi', 'pug']
    same = draw(tmp_path/'same', *(f'{b}/{b}_{i}.jpg' for b in ('pug', 'Corgi') for i in range(2)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert pet_labels(same).vocab == ['Corgi', 'pug']


def test_labels_that_differ_in_case_only(tmp_path):
    draw(tmp_path, 'images/pug_1.jpg', 'images/Pug_2.jpg', 'images/Corgi_1.jpg')
    with pytest.warns(UserWarning, match="'Pug' and 'pug' count as different labels"):
        pet_labels(tmp_path)


def test_pictures_that_the_table_leaves_out(tmp_path):
    draw(tmp_path, 'a.png', 'b.png', 'c.png')
    (tmp_path/'metadata.csv').write_text('file_name,label\na.png,x\nb.png,y\n')
    with pytest.warns(UserWarning, match='1 of 3 pictures .* have no row .*c.png'):
        assert len(labelled_pictures(tmp_path, breed)) == 2


# The split

def test_every_label_has_a_picture_to_train_on(tmp_path):
    draw(tmp_path, *(f'{b}_{i}.jpg' for b in 'abcdefghij' for i in range(2)))
    found = pet_labels(tmp_path)
    for seed in range(30):
        train, valid = found.split(.5, seed)
        assert ({found.labels[i] for i in train} == set(found.vocab)
                and sorted(train+valid) == list(range(20)) and valid)


def test_a_split_that_cannot_be(tmp_path):
    draw(tmp_path, 'train/a/1.jpg', 'train/b/1.jpg', 'valid/a/2.jpg', 'valid/c/1.jpg')
    with pytest.raises(ValueError, match=r"c.1.jpg shows 'c', and no picture to train on does"):
        labelled_pictures(tmp_path, breed).split()
    few = draw(tmp_path/'few', 'a_1.jpg', 'b_1.jpg')
    with pytest.raises(ValueError, match='leave none to judge by'):
        labelled_pictures(few, breed).split()


def test_the_split_of_a_set_without_one_is_fastais(tmp_path):
    from fastai.data.transforms import RandomSplitter
    found = LabelledPictures([f'{i}.jpg' for i in range(40)], lambda f: int(f[:-4])%2, 'here')
    assert [list(o) for o in found.split(.25, 7)] == [list(o)
                                                      for o in RandomSplitter(.25, 7)(found.files)]


# Any plausible set, through reading, loaders and a pickle; some through a short training

def plausible(folder, seed):
    """A small set of made-up kind; returns what each picture shows, by its path, and which are held
    back"""
    r = random.Random(seed)
    classes = r.sample(['pug', 'Corgi', 'great_pyrenees', 'chat perché', '柴犬', 'no.5', 'Bär',
                        'a-b', '12', 'кот'], r.randint(2, 5))
    ending, layout, split = (r.choice(['.jpg', '.jpeg', '.JPG', '.png', '.webp', '.bmp']),
                             r.choice(['name', 'folder', 'csv', 'jsonl']), r.random() < .4)
    where, sep, coding = (r.choice(['', 'images/']), r.choice([',', ';', '\t']),
                          r.choice(['utf-8', 'utf-8-sig', 'utf-16']))
    train, held = r.choice([('train', o) for o in ('valid', 'validation', 'val', 'test')]
                           + [('training_set', 'test_set'), ('seg_train', 'seg_test'),
                              ('train2017', 'val2017')])
    around, shows, rows = r.choice(['', 'around/']), {}, []
    for i in range(r.randint(20, 40)):
        b, part = classes[i % len(classes)], (train if i < 14 else held) if split else ''
        top = where + (f'{around}{part}/' if split and layout in ('name', 'folder') else '')
        name = (f'{top}{b}_{i}{ending}' if layout == 'name' else f'{top}{b}/{i}{ending}'
                if layout == 'folder' else f'{where}{i}{ending}')
        shows[name] = (unicodedata.normalize('NFC', b), part == held)
        rows.append((name.removesuffix(ending) if layout == 'csv' and seed % 3 == 0 else name,
                     b, part))
    draw(folder, *shows)
    if split and layout == 'folder' and seed % 2:
        draw(folder/where, *(f'{around}test/{i}{ending}' for i in range(3))) # a test without labels
    if layout == 'csv':
        text = '\n'.join(map(sep.join, [('file_name', 'label', 'split'), *rows]))
        (folder/'metadata.csv').write_text(text, encoding=coding)
    if layout == 'jsonl':
        (folder/'metadata.jsonl').write_text(
            '\n'.join(json.dumps({'file_name': n, 'breed': b, **({'split': p} if p else {})})
                      for n,b,p in rows), encoding='utf-8')
    return shows, split


sets = max(40, rounds)


@pytest.mark.parametrize('part', range(4))
def test_any_plausible_set(part, tmp_path):
    for seed in range(part, sets, 4):
        folder = tmp_path/str(seed)
        shows, split = plausible(folder, seed)
        found = pet_labels(folder)
        assert ({f.relative_to(folder).as_posix(): b for f,b in zip(found.files, found.labels)}
                == {n: b for n,(b,_) in shows.items()}), seed
        dls = pickle.loads(pickle.dumps(pets_dls(folder, 24, 16)))
        if split:
            assert ({f.relative_to(folder).as_posix() for f in dls.valid_ds.items}
                    == {n for n,(_,held) in shows.items() if held}), seed
        x, y = dls.one_batch()
        assert (x.shape == (dls.train.bs, 3, 16, 16)
                and 2 <= dls.train.bs <= max(2, len(dls.train_ds)//4))
        assert ([dls.vocab[i] for i in y]
                and list(dls.vocab) == sorted({b for b,_ in shows.values()}))


@pytest.mark.parametrize('seed', [0, 1, 2, 3])
def test_a_plausible_set_can_be_trained_on(seed, tmp_path):
    from test_pets import small_net
    plausible(tmp_path/'set', seed)
    dls = pets_dls(tmp_path/'set', 24, 16)
    learn = pets_learner(dls, small_net, pretrained=False, path=tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-3)
    with learn.no_bar(): assert learn.predict(picture_files(tmp_path/'set')[0])[0] in dls.vocab
