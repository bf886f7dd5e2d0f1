"""What a person's ``curl`` loop sees: run inside a sandbox's host, by path, with nothing but the standard library.

Usage: visits.py URL... Fetches them in turn, each with a lookup and a connection of its own, until standard input ends.
Prints a line for each visit: when it began and ended (monotonic seconds), and what was wrong with it, if anything.
"""

import json
import select
import sys
import time
import urllib.request

# Seconds. A visit that takes longer has failed, as curl --max-time would have it.
PATIENCE = 20.0
# Seconds between visits: a busy person, not a flood.
PAUSE = 0.02

while not select.select([sys.stdin], [], [], PAUSE)[0]:
    for url in sys.argv[1:]:
        began = time.monotonic()
        wrong = ""
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:  # noqa: S310 - the caller's own
                answer.read()
        except OSError as error:
            wrong = str(error)
        print(json.dumps([began, time.monotonic(), wrong]), flush=True)
