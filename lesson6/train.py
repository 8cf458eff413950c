"What `python -m lesson6.train` runs, for launchers of several processes such as torchrun; it is written in nbs/book/train.ipynb"
from lesson6.book.train import main

if __name__ == '__main__': main()
