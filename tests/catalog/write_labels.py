"""Appends labels until it has written enough or is killed; acknowledges each after `append` has returned.

Run by test_label_store.py: store folder, author, count, file of acknowledgements.
"""

import os
import sys
import time
from pathlib import Path

from catalog import Event, SQLiteLabels

folder, author, count, acknowledged = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
with SQLiteLabels(folder) as labels, open(acknowledged, "a", buffering=1) as done:
    for i in range(count):
        values = {"sae_id": "a@1", "feature": i, "text": f"{author} says {i}", "tags": ["t"]}
        event = Event("label_event", author, "write", values, event_id=f"{author}-{i}-{os.getpid()}")
        labels.append([event])
        done.write(event.event_id + "\n")
        if i == 0:  # all begin together
            while len(list(folder.glob("ack-*"))) < 8:
                time.sleep(0.005)
