"""Bad input: a table of what people give by mistake, each with the sentence it gets; and every
parser against made-up files.

LESSON6_ROUNDS=50, or LESSON6_EXAMPLES=3000, tries a few thousand made-up files on each parser
instead of 200.
"""
import atexit
import contextlib
import csv
import io
import os
import random
import re
import sys
import tempfile
import unicodedata
import warnings
from fractions import Fraction
from functools import cache, partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.learner import Learner
from fastai.losses import MSELossFlat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from promises import kept, rounds
from torchvision.models import resnet18

from lesson6.book.command import main
from lesson6.collab import DotProductBias, ratings_dls, read_ratings
from lesson6.data import check_dataset
from lesson6.engine.training import StopAtNaN
from lesson6.head_pose import get_ctr, read_calibration, read_centre, read_points
from lesson6.multilabel import read_labels, voc_labels
from lesson6.pets import is_cat
from lesson6.pets import breed as breed_of
from lesson6.train import section_learner

examples = int(os.environ.get('LESSON6_EXAMPLES') or (200 if rounds < 50 else 3000))
fuzz = settings(max_examples=examples, deadline=None, derandomize=True, database=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow,
                                       HealthCheck.data_too_large, HealthCheck.filter_too_much])


# A table of mistakes: section, mistake, what is done in an empty folder `p`, what the sentence must
# say

table = []

def mistakes(section, *rows):
    for what, do, says in rows: table.append((section, what, do, says))

def calls(module, name, *args, **kw):
    "What calls a function of lesson6; what is a function among the arguments gets the folder first"
    def f(p):
        def made(o): return o(p) if callable(o) else o
        function = getattr(import_module(f'lesson6.{module}'), name)
        return function(*map(made, args), **{k: made(o) for k,o in kw.items()})
    return f


# Pets

def picture(path, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, 'orange').save(path)
    return path

def pets(p, *names):
    for n in names or [f'{b}_{i}.jpg' for b in ('Bengal', 'pug') for i in range(8)]:
        picture(p/'images'/n)
    return p

def cut(path, keep=.5): path.write_bytes(path.read_bytes()[:int(keep*path.stat().st_size)])

def pet_labels(p, **kw): return calls('pets', 'pet_labels', p, **kw)(p)

def pets_dls(p, **kw): return calls('pets', 'pets_dls', p, 32, 32, **{'bs': 4, **kw})(p)

breed = partial(calls, 'pets', 'breed')

def weights(write=lambda file: None):
    def f(p):
        write(p/'weights.pth')
        calls('pets', 'pets_learner', pets_dls(pets(p)), lambda _: resnet18, p/'weights.pth')(p)
    return f

mistakes('pets',
    ('a file name without a number', breed('Bengal.jpg'),
     'Bengal.jpg: there is no breed in this file name'),
    ('no file name at all', breed(''), 'there is no breed'),
    ('the folder has no images/', lambda p: pets_dls(p), 'images is not there'),
    ('images/ is empty', lambda p: ((p/'images').mkdir(), pets_dls(p)), 'images holds no pictures'),
    ('one picture has another kind of name',
     lambda p: pets_dls(pets(p, 'Bengal_1.jpg', 'holiday.jpg')), 'holiday.jpg: there is no breed'),
    ('one picture is empty', lambda p: ((pets(p)/'images'/'Bengal_3.jpg').write_bytes(b''),
                                        pets_dls(p)), 'Bengal_3.jpg is empty'),
    ('one picture is a web page', lambda p: ((pets(p)/'images'/'pug_3.jpg').write_text('<html>'),
                                             pets_dls(p)), 'pug_3.jpg is no picture'),
    ('one picture is cut off', lambda p: (cut(pets(p)/'images'/'pug_3.jpg', .7), pets_dls(p)),
     'pug_3.jpg cannot be read to its end'),
    ('there is one breed only', lambda p: pets_dls(pets(p, *[f'pug_{i}.jpg' for i in range(8)])),
     'holds one breed only, pug'),
    ('fewer pictures than a batch', lambda p: pets_dls(pets(p), bs=64), 'fewer than a batch of 64'),
    ('saved weights that are not there', weights(), 'weights.pth is not there'),
    ('saved weights that are something else', weights(lambda f: f.write_bytes(b'no weights')),
     'weights.pth holds no weights that can be read'),
    ('saved weights of another network',
     weights(lambda f: torch.save({'0.weight': torch.zeros(3)}, f)),
     "doesn't fit resnet18 with 2 breeds"),
    ('activations and targets that do not belong together',
     calls('pets', 'cross_entropy', torch.zeros(4, 3), torch.zeros(5, dtype=torch.long)),
     'it got (4, 3) and (5,)'),
)



# Several labels

def pascal(p, rows, n=8, columns='fname,labels,is_valid'):
    for i in range(n): picture(p/'train'/f'{i:06d}.jpg')
    (p/'train.csv').write_bytes((columns + '\n' + rows).encode() if isinstance(rows, str) else rows)
    return p

good_rows = ''.join(f'{i:06d}.jpg,car person,{i > 5}\n' for i in range(8))

def labels(rows, vocab=None, **kw):
    return calls('multilabel', 'read_labels', lambda p: pascal(p, rows, **kw), vocab)

def written(cell): return labels(good_rows.replace('car person', cell, 1)) # in the first row

def multilabel_dls(p, **kw):
    return calls('multilabel', 'multilabel_dls', calls('multilabel', 'read_labels', p), p, **kw)(p)

def own_table(**columns):
    def f(p):
        given = {'fname': [f'{i:06d}.jpg' for i in range(8)], 'labels': ['car person']*8,
                 'is_valid': [i > 5 for i in range(8)], **columns}
        own = pd.DataFrame({k: v for k,v in given.items() if v is not None})
        calls('multilabel', 'multilabel_dls', own, pascal(p, good_rows), size=16, bs=2)(p)
    return f

mistakes('multilabel',
    ('no train.csv', calls('multilabel', 'read_labels', Path), 'train.csv is missing'),
    ('train.csv is a spreadsheet', labels(b'PK\x03\x04\xff\xfe\x00\x00'),
     'train.csv is not text in UTF-8 or UTF-16'),
    ('a column has another name', labels(good_rows, columns='where,labels,is_valid'),
     'no column for the picture'),
    ('one picture and no split', labels('000000.jpg,car\n', columns='fname,labels'),
     'with one picture nothing can be learnt and checked'),
    ('train.csv is in another encoding', labels(good_rows.replace('car', 'Möwe').encode('latin-1')),
     'not text in UTF-8 or UTF-16'),
    ('train.csv in UTF-16 without its mark', labels(good_rows.encode('utf-16-le')),
     'not text in UTF-8 or UTF-16'),
    ('an unknown label', labels(good_rows.replace('car', 'cra', 1), vocab=['car', 'person']),
     "line 2 has the label 'cra', which is not one of car, person"),
    ('a label that the vocabulary of the loaders lacks',
     lambda p: multilabel_dls(pascal(p, good_rows), vocab=['car']),
     "row 0 has the label 'person', which is not one of car"),
    ('labels with commas', written('"car,person"'), "'car,person'"),
    ('labels with commas and spaces', written('"car, person"'), "label_delim=','"),
    ('labels with bars', written('car|person'), "label_delim='|'"),
    ('labels with semicolons', written('car;person'), "label_delim=';'"),
    ('a list written as text', written('"[\'car\', \'person\']"'),
     'line 2 has a list written as text'),
    ('one cell in quotes', written('"car person"'), "'car person' in quotes"),
    ('a number for a label', written('7'), "line 2 has the label '7', a number"),
    ('a table of my own without rows', own_table(fname=[], labels=[], is_valid=[]),
     'The table has no rows'),
    ('a table of my own without labels', own_table(labels=None),
     'The table has no column for the labels'),
    ('a table of my own with commas', own_table(labels=['car', 'car,person']*4),
     "row 1 has the label 'car,person'"),
    ('a table of my own with a picture that is not there',
     own_table(fname=[f'{i:06d}.jpg' for i in range(1, 9)]),
     "row 7: there is no picture '000008.jpg'"),
    ('a table of my own with a picture twice', own_table(fname=['000001.jpg']*8), 'second time'),
    ('a table of my own with a split that is none', own_table(is_valid=[False, 'later']*4),
     "row 1: the column is_valid says 'later'"),
    ('a table of my own without validation', own_table(is_valid=[False]*8),
     'nothing to validate on'),
    ('no label', written(''), 'line 2 has no label'),
    ('a label of blanks', written('"  "'), 'line 2 has no label'),
    ('is_valid is yes or no', labels(good_rows.replace('True', 'yes').replace('False', 'no')),
     'is_valid'),
    ('a file name that leads elsewhere', labels(good_rows + '../train.csv,car,True\n'),
     '../train.csv'),
    ('one picture is cut off',
     lambda p: (cut(pascal(p, good_rows)/'train'/'000003.jpg', .7), multilabel_dls(p, size=16)),
     '000003.jpg cannot be read to its end'),
    ('fewer pictures than a batch', lambda p: multilabel_dls(pascal(p, good_rows), bs=64),
     'fewer than a batch of 64'),
    ('a label that the vocabulary lacks',
     calls('multilabel', 'one_hot_encode', ['unicorn'], ['car', 'dog']),
     "'unicorn' is not in the vocabulary"),
    ('more numbers than labels',
     calls('multilabel', 'decode_one_hot', torch.zeros(3), ['car', 'dog']),
     '3 numbers cannot stand for the 2 labels'),
    ('activations instead of probabilities',
     calls('multilabel', 'best_threshold', torch.tensor([[3., -2.]]), torch.tensor([[1., 0.]])),
     'not probabilities between 0 and 1'),
    ('activations and targets of different shapes',
     calls('multilabel', 'binary_cross_entropy', torch.zeros(4, 1), torch.zeros(4)),
     'do not match'),
)



# Head pose

cal_text = ('517.679 0 320 \n0 517.679 240.5 \n0 0 1 \n\n0 0 0 0 \n\n1 0 0 \n0 1 0 \n0 0 1 \n\n0 0 '
            '0 \n\n640 480 \n')
pose_text = '1 0 0 \n0 1 0 \n0 0 1 \n\n112.78 48.95 900 \n'

def frame(p, pose=pose_text, cal=cal_text, person='01', n=3):
    f = picture(p/person/f'frame_{n:05d}_rgb.jpg', (640, 480))
    for name, text in (f'frame_{n:05d}_pose.txt', pose), ('rgb.cal', cal):
        if text is not None:
            (p/person/name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return f

def centre(**kw): return calls('head_pose', 'get_ctr', lambda p: frame(p, **kw))

def biwi_dls(p, **kw):
    return calls('head_pose', 'biwi_dls', p, size=(60, 80), **{'bs': 2, **kw})(p)

def people(p, n=2, frames=3):
    for i in range(1, n+1):
        for j in range(frames): frame(p, person=f'{i:02d}', n=j)
    return p

mistakes('head_pose',
    ('a pose is missing', centre(pose=None), 'frame_00003_pose.txt is missing'),
    ('a pose is cut off', centre(pose='1 0 0 \n0 1 0 \n0 0 1 \n\n112.78 48.95 '),
     'frame_00003_pose.txt is cut short'),
    ('a pose holds words', centre(pose=pose_text.replace('900', 'near')), 'frame_00003_pose.txt'),
    ('a pose is behind the camera', centre(pose=pose_text.replace('900', '-900')), '-900 mm away'),
    ('a pose is in the camera', centre(pose=pose_text.replace('900', '0')), '0 mm away'),
    ('a calibration is missing', centre(cal=None), 'rgb.cal is missing'),
    ('a calibration is cut off', centre(cal='517.679 0 320 \n'),
     'rgb.cal does not begin with a 3×3 camera matrix'),
    ('a calibration of zeros', centre(cal=cal_text.replace('517.679', '0')),
     'rgb.cal does not begin with a 3×3 camera matrix'),
    ('a file that is no frame', calls('head_pose', 'img2pose', '01/frame_00003_depth.bin'),
     'is not named like a frame'),
    ('a folder without frames', lambda p: biwi_dls(p), 'holds no frames'),
    ('no such folder', lambda p: biwi_dls(p/'nowhere'), 'nowhere holds no frames'),
    ('nobody has this number', lambda p: biwi_dls(people(p), valid_person='13'),
     'no frames of person 13; there are frames of 01, 02'),
    ('fewer frames than a batch', lambda p: biwi_dls(people(p), valid_person='01', bs=64),
     'fewer than a batch of 64'),
    ('one pose of many is missing',
     lambda p: ((people(p)/'02'/'frame_00001_pose.txt').unlink(), biwi_dls(p, valid_person='01')),
     'frame_00001_pose.txt is missing'),
    ('one picture is cut off',
     lambda p: (cut(people(p)/'02'/'frame_00001_rgb.jpg', .5), biwi_dls(p, valid_person='01')),
     'frame_00001_rgb.jpg cannot be read to its end'),
    ('more predictions than targets',
     calls('head_pose', 'pixel_error', torch.zeros(3, 2), torch.zeros(2, 2), (480, 640)),
     'There are 3 predicted points but 2 true ones'),
)



# Ratings

good_data = ''.join(f'{u}\t{m}\t{(u + m) % 5 + 1}\t88125094{m}\n' for u in range(1, 5)
                    for m in range(1, 6))
good_item = ''.join(f'{m}|Film {m} (1995)|01-Jan-1995||http://example.org|' + '|'.join('0'*19)
                    + '\n' for m in range(1, 6))

def with_field(i, word): # in the second line
    first, second, rest = good_data.split('\n', 2)
    fields = second.split('\t')
    return '\n'.join([first, '\t'.join([*fields[:i], word, *fields[i+1:]]), rest])

def ratings(data=good_data, item=good_item):
    def f(p):
        for name, text in ('u.data', data), ('u.item', item):
            if text is not None:
                (p/name).write_bytes(text if isinstance(text, bytes) else text.encode('latin-1'))
        return read_ratings(p)
    return f

def learner(p):
    dls = ratings_dls(ratings()(p), bs=4)
    return Learner(dls, DotProductBias(len(dls.classes['user']), len(dls.classes['title']), 3),
                   loss_func=MSELossFlat())

def collab(name, *args, **kw): return calls('collab', name, learner, *args, **kw)
def dls_of(**kw): return calls('collab', 'ratings_dls', ratings(), **kw)

def without_biases(p):
    learn = learner(p)
    learn.model = calls('collab', 'DotProduct', 5, 6, 3)(p)
    return learn

mistakes('collab',
    ('u.data is missing', ratings(data=None), 'u.data is missing'),
    ('u.item is missing', ratings(item=None), 'u.item is missing'),
    ('u.data is empty', ratings(data=''), 'u.data is empty'),
    ('a row is cut off', ratings(good_data[:-14]), 'u.data, line 20'),
    ('a row has a field too many', ratings(good_data.replace('\t881250941', '\t881250941\t7', 1)),
     'u.data has no first line'),
    ('blanks instead of tabs', ratings(good_data.replace('\t', ' ')),
     'u.data has no column for the user'),
    ('a field is empty', ratings(good_data.replace('2\t1\t', '2\t\t', 1)), 'u.data, line 6'),
    *((f'{word[:9]} for the {what}', ratings(with_field(i, word)),
       f"u.data, line 2: the {what} is '{word[:9]}")
      for i, what, word in ((0, 'user', 'two'), (0, 'user', '2.5'), (0, 'user', '1'*30),
                            (1, 'item', 'one'), (2, 'rating', 'five'), (3, 'time', 'today'))),
    ('a word for the number of a film', ratings(item=good_item + 'x|Quiet Raid (1980)\n'),
     "u.item, line 6: the item is 'x'"),
    ('a rating of NaN', ratings(good_data.replace('\t3\t', '\tnan\t', 1)),
     'u.data, line 1 has no rating'),
    ('a film without a title', ratings(good_data + '1\t99\t4\t881250949\n'),
     'u.data, line 21: item 99 has no title'),
    ('a title is empty', ratings(item=good_item.replace('Film 3 (1995)', '')),
     'u.item, line 3 has no title'),
    ('a film with two titles', ratings(item=good_item + '3|Again|x\n'),
     'u.item, line 6: item 3 already has a title'),
    ('u.data is a picture', ratings(bytes(range(256))), 'u.data, line 3'),
    ('fewer ratings than a batch', dls_of(bs=64), 'fewer than a batch of 64'),
    ('a batch of nothing', dls_of(bs=0), 'bs is 0'),
    ('everything held back', dls_of(bs=4, valid_pct=1.), 'valid_pct is 1.0'),
    ('a misspelt title', collab('similar_items', 'Flim 3'),
     "has not seen the title 'Flim 3'; the nearest it knows are"),
    ('an unknown user', collab('recommend', 77), 'has not seen the user 77'),
    ('no recommendation', collab('recommend', 1, n=0), 'n is 0'),
    ('biases of a model that has none', calls('collab', 'extreme_items', without_biases),
     'DotProduct has no biases of titles'),
    ('a column is missing',
     calls('collab', 'ratings_dls', lambda p: ratings()(p).drop(columns='rating')),
     'no column for the rating'),
)



# Regularisation, and training from the shell

regularisation = partial(calls, 'regularisation')

mistakes('regularisation',
    ('a negative weight decay', regularisation('l2_penalty', torch.ones(3), -0.1), 'wd is -0.1'),
    ('a weight decay of NaN',
     regularisation('weight_decay_step', [torch.ones(3)], .1, float('nan')), 'wd is nan'),
    ('nothing to penalise', regularisation('l2_penalty', [], 0.1),
     'There are no weights to penalise'),
    ('nothing to try', regularisation('wd_sweep', None, []), 'There is nothing to try'),
    ('nothing to try side by side', regularisation('ratings_sweep', None, []),
     'There is nothing to try'),
    ('a negative weight decay to try', regularisation('wd_sweep', None, [.1, -.1]), 'wd is -0.1'),
    ('a weight decay of NaN to try', regularisation('wd_sweep', None, [float('nan')]), 'wd is nan'),
    ('a weight decay that turns weights over', regularisation('wd_sweep', None, [1000]),
     'wd is 1000'),
    ('a picture squeezed into a line',
     regularisation('affine_points', torch.zeros(1, 1, 2), torch.zeros(2, 3)),
     'into a line, so its points have no place to go; its determinant must not be 0'),
)

def train(*args, **kw):
    return calls('train', 'train_section', *args, out=lambda p: p/'runs', **kw)

mistakes('train',
    ('an unknown section', train('cats'),
     "no section 'cats' to train; there are pets, multilabel, head_pose, collab"),
    ('no epoch', train('collab', epochs=0), '--epochs 0'),
    ('a batch of one', train('collab', bs=1), '--bs 1'),
    ('a learning rate below 0', train('collab', lr=-.1), '--lr -0.1'),
    ('a learning rate of NaN', train('collab', lr=float('nan')), '--lr nan'),
    ('the runs go into a file', lambda p: ((p/'runs').write_text(''), train('collab')(p)),
     'choose another folder'),
)


# Data, and the command line

def command(*words):
    def f(p):
        before = sys.argv
        sys.argv = ['lesson6', *(w.format(p=p) for w in words)]
        try: code = main()
        except SystemExit as e: code = e.code
        finally: sys.argv = before
        assert code not in (0, None), 'the command did as if all were well'
        if isinstance(code, str): raise ValueError(code)
        raise ValueError(f'exit {code}')
    return f

def among(do, **env): # environment variables
    def f(p):
        with pytest.MonkeyPatch.context() as m:
            for k, v in env.items(): m.setenv(k, v.format(p=p))
            do(p)
    return f

def data(name, **env): return among(calls('data', 'lesson_path', name), **env)

mistakes('data',
    ('a data set that there is not', data('cats'),
     "no data set named 'cats'; there are pets, pascal, biwi, movielens"),
    ('LESSON6_DATA is misspelt', data('pets', LESSON6_DATA='mni'),
     "'mni', which is neither mini, nor full, nor a folder"),
    ('LESSON6_DATA is a folder without the set', data('pets', LESSON6_DATA='{p}'),
     'holds no folder oxford-iiit-pet/'),
    ('LESSON6_ARCH is misspelt', among(calls('engine.networks', 'lesson_arch', 'resnet34'),
                                       LESSON6_ARCH='resnet35'), "no network named 'resnet35'"),
    ('LESSON6_CACHE is a file',
     lambda p: ((p/'file').write_text(''), data('pets', LESSON6_CACHE='{p}/file')(p)),
     'set LESSON6_CACHE to a folder that can be written'),
)

# Sets of one's own, in the forms of other collections

def own_pets(table=None, ending='.jpg', name='metadata.csv', **kw):
    def f(p):
        for i in range(8): picture(p/f'{i}{ending}')
        if table is not None: (p/name).write_text(table, encoding='utf-8')
        pets_dls(p, **kw)
    return f

def rows_of_pets(*odd):
    return ('file_name,label\n' + ''.join(f'{i}.jpg,{("pug", "Bengal")[i%2]}\n' for i in range(8))
            + ''.join(o + '\n' for o in odd))

mistakes('pets',
    ('pictures in the form of a phone that cannot be read here',
     lambda p: [(pets(p)/'images'/f'pug_{i}.heic').write_bytes(b'ftypheic') for i in (8, 9)]
     and pets_dls(p), 'pug_8.heic is a picture of a kind that cannot be read here (2 such files)'),
    ('neither names nor folders nor a table say the breed', own_pets(),
     'nor does every picture lie in one of several folders'),
    ('one picture is in no folder',
     lambda p: pet_labels(pets(p, 'pug/1.jpg', 'Bengal/1.jpg', 'stray.jpg')),
     'nor does every picture lie in one of several folders'),
    ('one picture is in no folder, and folders are asked for',
     lambda p: pet_labels(pets(p, 'pug/1.jpg', 'Bengal/1.jpg', 'pug_1.jpg'), by='folder'),
     'pug_1.jpg lies in no folder of its breed'),
    ('a table is asked for, and there is none', lambda p: pet_labels(pets(p), by='table'),
     'metadata.csv is missing'),
    ('something else is asked for', lambda p: pet_labels(pets(p), by='colour'), "by is 'colour'"),
    ('a column that the table lacks', own_pets(rows_of_pets(), column='breeds'),
     "has no column 'breeds'; it has file_name, label"),
    ('a table that says two things of one picture', own_pets(rows_of_pets('0.jpg,Bengal')),
     'line 10: 0.jpg is there a second time, with another label'),
    ('a table that puts one picture into two parts',
     own_pets('file_name,label,split\n0.jpg,pug,train\n1.jpg,cat,valid\n0.jpg,pug,valid\n'),
     'line 4: 0.jpg is there a second time, with another part'),
    ('a table of JSON with a line cut off',
     own_pets('{"file_name": "0.jpg", "label": "pug"}\n{"file_name": "1.jpg", "la',
              name='metadata.jsonl'), 'line 2: that is no JSON'),
    ('a table of JSON with two labels',
     own_pets('{"file_name": "0.jpg", "label": ["x", "y"]}', name='metadata.jsonl'),
     "line 1: the label ['x', 'y'] is no single one"),
    ('a table of JSON with a list', own_pets('["0.jpg", "pug"]', name='metadata.jsonl'),
     'line 1: that is no object'),
)

def points(table, n=8):
    def f(p):
        for i in range(n): picture(p/f'{i}.jpg')
        (p/'points.csv').write_text(table, encoding='utf-8')
        calls('head_pose', 'points_dls', p, (32, 32))(p)
    return f

def rows_of_points(*odd, head='fname,x,y'):
    return (head + '\n' + ''.join(f'{i}.jpg,{10+i},{12+i}\n' for i in range(8))
            + ''.join(o + '\n' for o in odd))

mistakes('head_pose',
    *((f'points.csv has {o!r} for a number',
       points(rows_of_points().replace('3.jpg,13', f'3.jpg,{o}')),
       f"line 5: x and y should be numbers, in pixels; they are {o!r} and '15'")
      for o in ('left', '', 'nan', '1e999', '1_0')),
    ('points.csv names a file that is no picture', points(rows_of_points('/etc/passwd,1,2')),
     "line 10: there is no picture '/etc/passwd'"),
    ('points.csv has shares on both sides of zero',
     points('fname,x,y\n' + ''.join(f'{i}.jpg,-.{i+1},.5\n' for i in range(8))),
     'multiply x by the width'),
)

def own_ratings(text, name='shop.csv', **kw):
    def f(p):
        (p/name).write_text(text, encoding='utf-8')
        with warnings.catch_warnings(action='ignore'):
            ratings_dls(read_ratings(p), **{'bs': 2, **kw})
    return f

def rows_of_ratings(rating=lambda i: i%5+1):
    return 'user,title,rating\n' + ''.join(f'{i%4},film {i%6},{rating(i)}\n' for i in range(20))

mistakes('collab',
    ('all ratings are alike', own_ratings(rows_of_ratings(lambda i: 4)),
     'All 20 ratings are 4: there is nothing to learn'),
    ('a film that movies.csv lacks',
     lambda p: ((p/'movies.csv').write_text('movieId,title,genres\n1,Waltz (1960),Drama\n'),
                own_ratings('userId,movieId,rating\n2,9,4\n', 'ratings.csv')(p)),
     'ratings.csv, line 2: item 9 has no title in movies.csv; add it there'),
    ('a table with a word for a rating',
     own_ratings(rows_of_ratings(lambda i: 'good' if i == 2 else 3+i%2)),
     "line 4: the rating is 'good'"),
    ('a table with a field without an end',
     own_ratings(rows_of_ratings() + '1,"' + 'film'*50_000 + '",3\n1,2\n'), 'is no row of a table'),
    ('a split by a column that is not there', own_ratings(rows_of_ratings(), valid='fold'),
     "has no column 'fold'"),
    ('a split by time without a time', own_ratings(rows_of_ratings(), valid='time'),
     'needs a column timestamp'),
    ('a folder without ratings',
     lambda p: ((p/'notes.txt').write_text(''), calls('collab', 'read_ratings', p)(p)),
     'u.data is missing, and so are ratings.dat and ratings.csv; there is notes.txt'),
    ('no such file of ratings', calls('collab', 'read_ratings', lambda p: p/'nowhere'),
     'nowhere is missing'),
    ('a scale that the ratings leave', own_ratings(rows_of_ratings(), scale=(1, 3)),
     'must be a number from 1 to 3'),
)


mistakes('command line',
    ('no such command', command('dance'), 'usage: lesson6 COMMAND'),
    ('no command', command(), 'usage: lesson6 COMMAND'),
    ('no such notebook', command('run', '04_colab'), "There is no notebook '04_colab'; there are "),
    ('data that are not there', command('run', 'datasets', '--data', '{p}/nowhere'),
     'nowhere: that is neither mini, nor full, nor a folder.'),
    ('an option that there is not', command('run', '--fast'), '--fast'),
    ('no notebook at once', command('run', '--at-once', '-1'),
     'give how many notebooks may run at the same time'),
    ('a number that is none', command('run', '--timeout', 'soon'), 'soon'),
    ('a data set that there is not', command('data', 'cats'),
     "There is no section and no data set 'cats'; there are pets, multilabel, head_pose, collab, "
     'regularisation, pascal, biwi, movielens.'),
    ('notebooks into a file',
     lambda p: ((p/'file').write_text(''), command('notebooks', '{p}/file')(p)),
     'file is a file; name a folder'),
    ('notebooks to nowhere', command('notebooks'), 'folder'),
)


def one_sentence(text):
    return '\n' not in text.strip() and text.strip().endswith(('.', '!')) and len(text) <= 300


@pytest.mark.parametrize('section,what,do,says', table, ids=[f'{s}: {w}' for s, w, *_ in table])
def test_a_mistake_gets_one_sentence(section, what, do, says, environment, tmp_path, capsys,
                                     monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError, OSError)) as e: do(tmp_path)
    text = str(e.value)
    if 'is missing' in says: assert type(e.value) is FileNotFoundError
    # argparse and `main` print theirs: the line that says it, not the list of options above it
    if re.fullmatch(r'exit \d', text):
        out = capsys.readouterr()
        text = (out.err or out.out).strip()
        assert 'Traceback' not in text and says in text, text
        text = next(l for l in text.splitlines() if says in l)
    else:
        assert says in text, text
        assert one_sentence(text.replace(str(tmp_path), '...')), text
    said[section, what] = section, what, text.replace(str(tmp_path), '...')

said = {}


# The same mistake in each of the four kinds of tables gets the same sentence

def four_tables(p):
    "A reader, the table it reads, and its right text, for each kind"
    parts = ['train', 'train', 'valid', 'train', 'test', 'valid']
    rows = {'ratings': ('ratings.csv', 'user,title,rating,split',
                        [f'{i//2},tea{i},{i%5+1},{part}' for i, part in enumerate(parts)]),
            'labels': ('train.csv', 'fname,labels,note,split',
                       [f'{i}.jpg,{("car", "dog")[i%2]},n,{part}' for i, part in enumerate(parts)]),
            'pictures': ('metadata.csv', 'file_name,label,note,split',
                         [f'{i}.jpg,{("car", "dog")[i%2]},n,{part}'
                          for i, part in enumerate(parts)]),
            'points': ('points.csv', 'fname,x,y,group',
                       [f'{i}.jpg,1{i},12,g{i%2}' for i in range(6)])}
    read = {'ratings': lambda: ratings_dls(p/'ratings.csv', bs=2, valid='split'),
            'labels': lambda: read_labels(p),
            'pictures': lambda: pet_labels(p, by='table'), 'points': lambda: read_points(p)}
    if not (p/'0.jpg').exists():
        for i in range(6): picture(p/f'{i}.jpg')
    return {kind: (read[kind], p/name, [head, *lines])
            for kind, (name, head, lines) in rows.items()}

def in_row(i, j, value): # the row, the column, what is written there
    return lambda lines: '\n'.join(','.join([*w[:j], value, *w[j+1:]] if k == i else w)
                                   for k, w in enumerate(l.split(',') for l in lines))

pictured, split = ('labels', 'pictures', 'points'), ('ratings', 'labels', 'pictures')
# what is done to the lines, the sentence in which F is the file, the kinds that have such a thing
same = [
    ('nothing in it', lambda ls: '', r'F is empty; its first line should name the columns\.'),
    ('names of columns and no row', lambda ls: ls[0], r'F has no rows; it needs a line for each\.'),
    ('a web page', lambda ls: '<!doctype html>\n<p>Log in</p>',
     r'F is a web page or XML and no table; get it again\.'),
    ('a column twice',
     lambda ls: '\n'.join([re.sub('split|group', ls[0].split(',')[1], ls[0]), *ls[1:]]),
     r"F has two columns of the same name, '\w+'; leave one of them out\."),
    ('a column missing',
     lambda ls: '\n'.join([ls[0].replace(ls[0].split(',')[1], 'colour'), *ls[1:]]),
     r'F has no column for the \w+, such as [\w, ]+; it has [\w, ]+\. Rename it, or name it as an '
     r'argument\.'),
    ('a field too many', lambda ls: '\n'.join([*ls[:2], ls[2] + ',z', *ls[3:]]),
     r'F, line 3 \(\S+\), has 5 fields where there should be 4\.'),
    ('a row cut off', lambda ls: '\n'.join([*ls[:2], ls[2][:5], *ls[3:]]),
     r'F, line 3 \(\S+\), has \d fields where there should be 4\.'),
    ('a quote that is not closed', lambda ls: '\n'.join([*ls[:2], '"' + ls[2]]),
     r'F, line 3, is no row of a table: unexpected end of data\.'),
    ('a gap', lambda ls: in_row(2, 1 if 'label' in ls[0] else 3 if 'group' in ls[0] else 0, '')(ls),
     r'F, line 3 has no \w+; fill it in, or [\w= ]+\.'),
    ('a picture that is not there', in_row(2, 0, '77.jpg'),
     r"F, line 3: there is no picture '77.jpg' in P/; put it there, or remove the row\.",
     *pictured),
    ('a row without a picture', in_row(2, 0, ''),
     r'F, line 3 names no picture; fill it in, or remove the row\.', *pictured),
    ('a picture twice', in_row(2, 0, '0.jpg'),
     r'F, line 3: 0\.jpg is there a second time.*; keep one of its rows.*\.', *pictured),
    ('a split that is no word for one', in_row(2, 3, 'later'), r"(F, line 3|The table, row 1): the "
     r"column split says 'later', which is no part of a set; write train, valid or test\.", *split),
    ('a split with a gap', in_row(2, 3, ''),
     r'(F, line 3|The table, row 1) has no split; fill it in, or empty the whole column\.', *split),
    ('a split that holds nothing back', lambda ls: re.sub('valid|test', 'train', '\n'.join(ls)),
     r'(F|The table): the column split leaves nothing to validate on; write valid in some rows\.',
     *split),
    ('a split that is all held back', lambda ls: '\n'.join(ls).replace('train', 'valid'), r'(F|The '
     r'table): the column split leaves nothing to train on; write train in some rows\.', *split),
]

same = [(w, c, s, k or ('ratings', *pictured)) for w, c, s, *k in same]

@pytest.mark.parametrize('what, change, says, kinds', same, ids=[o[0] for o in same])
def test_the_same_mistake_gets_the_same_sentence(what, change, says, kinds, tmp_path):
    for kind in kinds:
        read, file, lines = four_tables(tmp_path)[kind]
        file.write_text(change(lines) + '\n')
        with (pytest.raises((ValueError, FileNotFoundError)) as e,
              warnings.catch_warnings(action='ignore')):
            read()
        text = str(e.value).replace(str(file), 'F').replace(tmp_path.name, 'P')
        assert re.fullmatch(says, text) and len(text) <= 300, (kind, text)
        said[kind, what] = f'a table of {kind}', what, text
        file.unlink()


def test_all_mistakes_are_told():
    assert len(table) >= 60 and len({(s, w) for s, w, *_ in table}) == len(table)
    if len(said) == len(table) + sum(len(kinds) for *_, kinds in same):
        kept('Bad input', 'A mistake gets one sentence',
             f"mistakes in {', '.join(dict.fromkeys(s for s, *_ in said.values()))}, as listed "
             'below', len(said),
             'each time one sentence that names the file, the line or the value, before any '
             'training', rows=[('In', 'Mistake', 'What it says'), *said.values()])


@pytest.mark.ci
@pytest.mark.parametrize('kind', ['ratings', *pictured])
def test_two_hundred_wrong_tables_get_a_short_sentence_each(kind, tmp_path):
    """Whatever was done to a table: it is read, or one sentence of at most 300 letters names the
    file, a row or a column"""
    read, file, right = four_tables(tmp_path)[kind]
    if kind == 'ratings': read = lambda: read_ratings(file)
    refused = seed = 0
    while refused < 200:
        r, seed = random.Random(seed), seed + 1
        words = [l.split(',') for l in right]
        for _ in range(r.randint(1, 3)):
            row = r.choice(words)
            if not row: continue
            j, odd = r.randrange(len(row)), ['', 'nan', '"', 'x'*500, '\u0663', '-1', '1e999',
                                             'a;b|c', '../0.jpg', '/etc/passwd', '0', 'später',
                                             '1,5', '\t', '<', '{}']
            how = r.randrange(6)
            if how <= 2: row[j] = r.choice(odd)
            elif how == 3: del row[j]
            elif how == 4: row.insert(j, r.choice(odd))
            else: words.insert(r.randrange(len(words)), [r.choice(odd)])
        text = '\n'.join(map(','.join, words))
        file.write_bytes(text[:r.randint(0,
                                         len(text))].encode(r.choice(
            ['utf-8', 'utf-16', 'latin-1']), 'replace') if r.random() < .2 else text.encode())
        try:
            with warnings.catch_warnings(action='ignore'), contextlib.redirect_stdout(None): read()
        except Exception as e:
            said = str(e).replace(str(file), file.name).replace(str(tmp_path), '...')
            assert (type(e) in (ValueError, FileNotFoundError) and '\n' not in said
                    and said.endswith('.') and len(said) <= 300), (seed, words, repr(e))
            assert re.search(rf'{file.name}|The table|row|column|ratings|batch|picture',
                             said), (seed, said)
            refused += 1
    assert seed < 800


# Training that diverges

sections = ['pets', 'multilabel', 'head_pose', 'collab']
stopped = {}

def diverges(train):
    "The sentence that a training ends with."
    with pytest.raises(FloatingPointError) as e: train()
    text = str(e.value).splitlines()[-1].strip() # fastai puts a line before what a callback raises
    assert (one_sentence(text) and 'the training has diverged and was stopped; make a new '
                                   'learner' in text)
    return text


@pytest.mark.parametrize('section', sections)
def test_a_training_that_diverges_stops_and_says_so(section, environment, twins):
    "With a learning rate of 1e30 the first step spoils every weight."
    environment.setattr('lesson6.data.draw_twin', lambda name, progress=None: twins[name])
    learn = section_learner(section, bs=16)
    with learn.no_bar(), learn.no_logging():
        stopped[section] = diverges(lambda: learn.fit_one_cycle(3, 1e30))
    assert ('loss became nan in epoch 0' in stopped[section]
            or 'loss became inf in epoch 0' in stopped[section])
    # after a few batches, not after an epoch
    assert len(learn.recorder.values) == 0 and len(learn.recorder.losses) < 5
    if len(stopped) == len(sections):
        kept('Bad input', 'Training that diverges stops and says so',
             'the learner of each section trained with a learning rate of 1e30', len(sections),
             f'each stopped within five batches, with one sentence: "{stopped[section]}"')


def test_a_training_on_numbers_that_are_none_stops(environment, twins):
    "And what is meant to diverge may: the search for a learning rate goes on."
    dls = ratings_dls(read_ratings(twins['movielens']), bs=256)
    learn = Learner(dls, DotProductBias(len(dls.classes['user']), len(dls.classes['title']), 5),
                    loss_func=MSELossFlat(), cbs=StopAtNaN())
    with learn.no_bar(), learn.no_logging():
        assert 0 < learn.lr_find(end_lr=1e20, show_plot=False).valley < 1e20
        learn.fit(1, 5e-3)
        assert len(learn.recorder.values) == 1
        with torch.no_grad(): learn.model.movie_bias.weight[:] = float('nan')
        assert 'loss became nan in epoch 0, batch 0' in diverges(lambda: learn.fit(1, 5e-3))


# Every parser against made-up files: a right answer, checked by a second reading, or a clear error

def clear(e, path):
    """An error that a person can use: of the two kinds, one line, with the file's name, and not
    from inside pandas or Python."""
    text = str(e)
    assert type(e) in (ValueError, FileNotFoundError), f'{type(e).__name__}: {e}'
    assert '\n' not in text and text.endswith('.') and Path(path).name in text, text


tally = {}

def outcome(parser, right): tally.setdefault(parser, [0, 0])[0 if right else 1] += 1

@cache
def folder():
    d = tempfile.TemporaryDirectory()
    atexit.register(d.cleanup)
    return Path(d.name)


number = st.one_of(st.floats(width=32).map(str), st.integers(-10**6, 10**6).map(str),
                   st.sampled_from(['1e400', '-1e400', 'nan', '1_000', '٣', '0x10', '1e-320',
                                    '9'*5000, '1,5', '', 'x', '-0', '+1', '1.', '.5']))
blank = st.sampled_from([' ', '  ', '\t', ' \t '])
newline = st.sampled_from(['\n', '\r\n', '\n\n', ' \n'])

@st.composite
def matrix_file(draw, right):
    "The text `right` with some of it changed, or anything at all."
    how = draw(st.integers(0, 5))
    if how == 0: return draw(st.binary(max_size=200))
    if how == 1: return draw(st.text(max_size=200)).encode('utf-8', 'replace')
    words = [line.split() for line in right.splitlines()]
    if how >= 3:
        for _ in range(draw(st.integers(0, 3))):
            row = draw(st.sampled_from([i for i, w in enumerate(words) if w]))
            if words[row]: words[row][draw(st.integers(0, len(words[row])-1))] = draw(number)
    text = ''.join(draw(blank).join(w) + draw(newline) for w in words)
    if how == 2: text = text[:draw(st.integers(0, len(text)))]
    if how == 5: text = text + draw(st.text(max_size=20))
    return text.encode('utf-8', 'replace')


def plain_rows(raw):
    "A second reading: rows of plain decimal numbers, or None."
    rows = [w for w in (line.split() for line in re.split(r'\r\n|\r|\n', raw.decode('utf-8'))) if w]
    if not all(re.fullmatch(r'[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?', o, flags=re.ASCII)
               for r in rows for o in r):
        return None
    rows = [[float(o) for o in r] for r in rows]
    return rows if all(np.isfinite(o) for r in rows for o in r) else None


@fuzz
@given(raw=matrix_file(pose_text))
def test_any_pose(raw):
    f = folder()/'pose'/'frame_00001_rgb.jpg'
    f.parent.mkdir(exist_ok=True)
    (f.parent/'frame_00001_pose.txt').write_bytes(raw)
    (f.parent/'rgb.cal').write_text(cal_text)
    try: x, y, z = read_centre(f)
    except Exception as e: clear(e, 'frame_00001_pose.txt'); outcome('poses', False); return
    rows = plain_rows(raw)
    assert (rows is not None and [len(r) for r in rows] == [3]*4 and [x, y, z] == rows[3]
            and z > 0), (raw, x, y, z)
    try: ctr = get_ctr(f)
    except Exception as e: clear(e, 'frame_00001_pose.txt'); outcome('poses', False); return
    assert ctr.isfinite().all() and np.allclose(ctr, [517.679*x/z + 320, 517.679*y/z + 240.5],
                                                rtol=1e-5)
    outcome('poses', True)


@fuzz
@given(raw=matrix_file(cal_text))
def test_any_calibration(raw):
    path = folder()/'rgb.cal'
    path.write_bytes(raw)
    try: cal = read_calibration(path)
    except Exception as e: clear(e, path); outcome('calibrations', False); return
    rows = plain_rows(b'\n'.join(b' '.join(l.split()) for l in raw.splitlines()
                                 if l.strip()).split(b'\n')[0]) and plain_rows(
        b'\n'.join([l for l in re.split(rb'\r\n|\r|\n', raw) if l.strip()][:3]))
    assert (rows and cal.tolist() == rows and cal[0, 0] > 0 and cal[1, 1] > 0
            and rows[2] == [0, 0, 1]), (raw, cal)
    outcome('calibrations', True)


name_part = st.text(st.characters(blacklist_characters='/\x00', blacklist_categories=('Cs',)),
                    max_size=12)

@fuzz
@given(folders=st.lists(name_part, max_size=2),
       breed_=st.one_of(name_part, st.sampled_from(['Bengal', 'great_pyrenees', 'pug_2'])),
       number=st.one_of(st.integers(0, 999).map(str), name_part),
       end=st.sampled_from(['.jpg', '.JPG', '.jpeg', '.png', '', '.jpg.txt']),
       sep=st.sampled_from(['_', '-', '']))
def test_any_file_name(folders, breed_, number, end, sep):
    path = Path(*folders, breed_ + sep + number + end)
    try: got = breed_of(path)
    except Exception as e:
        assert type(e) is ValueError and str(path) in str(e) and str(e).endswith('.')
        outcome('file names', False)
        assert not re.fullmatch(r'[A-Za-z_]+_[0-9]+\.jpg', path.name), path
        return
    base, underscore, rest = path.name.rpartition('_')
    assert (underscore and got == unicodedata.normalize('NFC', base) and base
            and re.fullmatch(r'[0-9]+\.(jpe?g|png)', rest, re.IGNORECASE)), (path, got)
    assert is_cat(path) == got[0].isupper()
    outcome('file names', True)


field = st.one_of(st.sampled_from(['car', 'car person', 'dog', '', 'True', 'False', ' car ', 'nan',
                                   'NA', '"car"', 'unicorn', '1', '0', '000001.jpg', '../x',
                                   '"a\nb"', 'car;dog']), st.text(max_size=8))

@st.composite
def labels_file(draw):
    how = draw(st.integers(0, 4))
    if how == 0: return draw(st.binary(max_size=200))
    head = draw(st.sampled_from(['fname,labels,is_valid']*6
                        + ['fname,labels', 'fname;labels;is_valid', 'labels,fname,is_valid',
                           'fname,labels,is_valid,labels', 'fname,labels,is_valid,notes', '']))
    rows = [f'{i:06d}.jpg,{draw(st.sampled_from(["car", "car person", "dog"]))},'
            f'{draw(st.sampled_from(["True", "False"]))}' for i in draw(st.permutations(range(8)))]
    if 'notes' in head: rows = [r + ',x' for r in rows]
    if head.startswith('labels'):
        rows = [','.join([r.split(',')[1], r.split(',')[0], r.split(',')[2]]) for r in rows]
    for _ in range(draw(st.integers(0, 2)) if how > 1 else 0):
        i = draw(st.integers(0, len(rows)-1)); words = rows[i].split(',')
        j = draw(st.integers(0, len(words)-1))
        what = draw(st.integers(0, 3))
        if what == 0: words[j] = draw(field)
        if what == 1: words.append(draw(field))
        if what == 2: words.pop()
        rows[i] = ','.join(words)
    text = draw(newline).join([head, *rows]) + draw(st.sampled_from(['', '\n']))
    if how == 4: text = text[:draw(st.integers(0, len(text)))]
    return (draw(st.sampled_from(['', '\ufeff'])).encode()
            + text.encode(draw(st.sampled_from(['utf-8']*5 + ['utf-16', 'latin-1'])), 'replace'))


@fuzz
@given(raw=labels_file())
def test_any_table_of_labels(raw):
    p = folder()/'labels'
    if not p.is_dir():
        for i in range(8): picture(p/'train'/f'{i:06d}.jpg', (2, 2))
    (p/'train.csv').write_bytes(raw)
    try:
        with warnings.catch_warnings():
            # a split that is missing is sampled, and said
            warnings.simplefilter('ignore', UserWarning)
            df = read_labels(p, voc_labels)
    except Exception as e:
        assert type(e) in (ValueError,
                           FileNotFoundError) and '\n' not in str(e) and str(e).endswith(
            '.') and ('train' in str(e) or 'is_valid' in str(e)), f'{type(e).__name__}: {e}'
        outcome('labels', False)
        return
    rows = list(csv.reader(io.StringIO(raw.decode('utf-16' if raw[:2] in (b'\xff\xfe', b'\xfe\xff')
                                                  else 'utf-8-sig'), newline='')))
    rows = [r for r in rows if r and any(x.strip() for x in r)]
    head, rows = rows[0], rows[1:]
    if 'fname' not in head:
        head, rows = ['fname', 'labels', 'is_valid'][:len(head)], [head, *rows] # and it was said
    assert all(len(r) == len(head) for r in rows), (raw, df)
    want = [[r[head.index('fname')], r[head.index('labels')].split()] for r in rows]
    got = [[f, l.split()] for f, l in zip(df['fname'], df['labels'])]
    assert got == want and all(l in voc_labels for _, ls in got for l in ls), (raw, got, want)
    if 'is_valid' in head:
        assert df['is_valid'].tolist() == [r[head.index('is_valid')].strip().lower()
                                           in ('true', '1') for r in rows], (raw, df)
    outcome('labels', True)


@st.composite
def ratings_files(draw):
    "`u.data` and `u.item`: right, with something changed, cut off, or anything at all."
    def damage(text, sep, words):
        how = draw(st.integers(0, 6))
        if how == 0: return draw(st.binary(max_size=200))
        lines = text.split('\n')
        for _ in range(draw(st.integers(1, 2)) if how in (1, 2, 3) else 0):
            i = draw(st.integers(0, len(lines)-2))
            fields = lines[i].split(sep); j = draw(st.integers(0, min(len(fields)-1, 4)))
            what = draw(st.integers(0, 4))
            if what <= 1: fields[j] = draw(words)
            if what == 2: fields.append(draw(words))
            if what == 3: fields.pop()
            lines[i] = sep.join(fields) if what < 4 else draw(st.text(max_size=20))
        text = draw(newline).join(lines)
        if how == 4: text = text[:draw(st.integers(0, len(text)))]
        return text.encode(draw(st.sampled_from(['utf-8', 'latin-1', 'utf-8-sig'])), 'replace')
    words = st.one_of(number, st.integers(-2, 7).map(str), st.text(max_size=6))
    return damage(good_data, '\t', words), damage(good_item, '|', words)


@fuzz
@given(files=ratings_files())
def test_any_ratings(files):
    p = folder()/'ratings'
    p.mkdir(exist_ok=True)
    for name, raw in zip(('u.data', 'u.item'), files): (p/name).write_bytes(raw)
    try: df = read_ratings(p, scale=(1, 5))
    except Exception as e:
        clear(e, 'u.data' if 'u.data' in str(e) else 'u.item'); outcome('ratings', False); return
    def rows(raw, sep):
        try: text = raw.decode('utf-8-sig')
        except UnicodeDecodeError: text = raw.decode('latin-1')
        return [line.rstrip('\r').split(sep) for line in text.split('\n') if line.strip()]
    def whole(number): # also `+1` and `1.`
        assert Fraction(number).denominator == 1, (files, number)
        return int(Fraction(number))
    titles = {whole(r[0]): r[1].strip() for r in rows(files[1], '|')}
    want = [(whole(u), whole(m), float(r), whole(t), titles[whole(m)])
            for u, m, r, t in rows(files[0], '\t')]
    assert list(df[['user', 'movie', 'rating', 'timestamp',
                    'title']].itertuples(index=False, name=None)) == want, (files, df)
    assert all(re.fullmatch(r' *[-+]?[0-9.]+ *', o, re.ASCII) for r in rows(files[0], '\t')
               for o in r) and df.rating.between(1, 5).all() and len(df)
    outcome('ratings', True)


@fuzz
@given(table=labels_file(), ratings=st.one_of(st.binary(max_size=60), st.lists(
    st.sampled_from(['1\t2\t3\t4', '', ' ', '\r', 'x'])).map(lambda o: '\n'.join(o).encode())))
def test_any_folder_of_data(table, ratings):
    "What is counted before a section reads it: the table that names the pictures, and the ratings."
    p = folder()/'counted'
    if not p.is_dir():
        for i in range(8): picture(p/'train'/f'{i:06d}.jpg', (2, 2))
        (p/'u.item').write_text(good_item)
    (p/'train.csv').write_bytes(table)
    (p/'u.data').write_bytes(ratings)
    for name in 'pascal', 'movielens':
        try: counts = check_dataset(name, p)
        except Exception as e: clear(e, p); outcome('data folders', False); continue
        if name == 'movielens':
            n = len(re.findall(rb'[^\r\n]*\S[^\r\n]*', ratings))
            assert n and counts == {'ratings': n, 'films': 5}, ratings
        else: assert 0 < counts['pictures'] <= 9 and counts.get('labels', 0) <= 16, (table, counts)
        outcome('data folders', True)


def test_what_the_parsers_made_of_it():
    for parser, (right, refused) in tally.items():
        assert right >= examples/50 and refused >= examples/50, (
            f'{parser}: {right} read, {refused} refused')
        kept('Bad input', f'Made-up {parser}',
             'files that hypothesis makes up: right ones, right ones with something changed, cut '
             'off, or bytes of any kind', right + refused,
             f'{right:,} read, with the numbers of a second, independent reading; {refused:,} '
             'refused with a clear ValueError or FileNotFoundError; no other error, no wrong '
             'number')
