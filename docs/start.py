"""Puts the first figure of each section, as it is stored, onto JupyterLab's start page: python
docs/start.py

The pictures are attachments of the page's texts, so that no cell of code stands between a section's
name and its picture.
"""
import base64
import io
import re

import nbformat
from PIL import Image

from lesson6.book.running import describe_figures, notebooks_path, pictures, sections, write_whole


def first_figure(nb):
    "A figure and its words"
    describe_figures(nb)
    output, mime = next(p for c in nb.cells if c.cell_type == 'code' for p in pictures(c))
    return Image.open(io.BytesIO(base64.b64decode(output.data[mime]))), output.metadata[mime]['alt']


def main():
    page = nbformat.read(notebooks_path()/'index.ipynb', 4)
    for cell in page.cells:
        if (not (m := re.match(r'## \[.*?\]\((\w+)\.ipynb\)\n\n.*', cell.source))
            or m[1] not in sections):
            continue
        picture, words = first_figure(nbformat.read(notebooks_path()/f'{m[1]}.ipynb', 4))
        picture = picture.convert('RGB')
        picture.thumbnail((420, 420), Image.LANCZOS)
        picture.save(to := io.BytesIO(), 'JPEG', quality=85, optimize=True)
        cell.source = f"{m[0]}\n\n![{words}](attachment:{m[1]}.jpg)"
        cell.attachments = {f'{m[1]}.jpg': {'image/jpeg': base64.b64encode(to.getvalue()).decode()}}
    write_whole(notebooks_path()/'index.ipynb', nbformat.writes(page)+'\n')


if __name__ == '__main__': main()
