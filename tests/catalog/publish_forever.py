"""Publishes one version after another until it is killed; says so after each. Run by test_readers.py."""

import sys
from pathlib import Path

from catalog_samples import publication

from catalog import Store, publish

store = Store.open(Path(sys.argv[1]))
train = int(sys.argv[2])
while True:
    published = publish(store, publication(8, train=train, content=train))
    sys.stdout.write(f"{published.snapshot}\n")
    sys.stdout.flush()
    train += 1
