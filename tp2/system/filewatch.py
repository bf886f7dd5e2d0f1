"""Knowing at once when a file has changed, however it is changed: written in place, replaced, or relinked.

What a path leads to changes in any directory of its chain of symlinks, so those are watched, and watched anew when the
chain itself changes; so is the file at its end, which may be mounted there from elsewhere, as in containers. A
notification takes about a millisecond. What nobody is notified of, a mount over the file, is seen by a look each
second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import ObservedWatch

logger = logging.getLogger(__name__)

#: Seconds between looks at what no notification tells.
LOOK_EVERY: Final = 1.0

#: As many symlinks as Linux follows before it gives up (path_resolution(7)).
LONGEST_CHAIN: Final = 40


# All but opening and reading: every program on the machine reads resolv.conf, and so do we after each event.
_CHANGES: Final[list[type[FileSystemEvent]]] = [
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
]


def _tell_renames_at_once() -> None:
    """Let watchdog tell each half of a rename when it comes.

    On Linux it holds back the first half, and all that comes after it, for up to half a second, to make one event of
    the two: that is how long programs would ask a new nameserver past tp2. Whether there are one or two events is the
    same here.
    """
    with suppress(ImportError):
        from watchdog.observers.inotify_move_event_grouper import InotifyMoveEventGrouper

        InotifyMoveEventGrouper.delay = 0.0


class _Handler(FileSystemEventHandler):
    """Passes every event on as a call, from the observer's thread."""

    def __init__(self, changed: Callable[[], object]) -> None:
        self._changed = changed

    def on_any_event(self, event: FileSystemEvent) -> None:
        """See :class:`FileSystemEventHandler`."""
        self._changed()


@asynccontextmanager
async def watching(paths: Sequence[Path]) -> AsyncIterator[asyncio.Event]:
    """Give an event that is set whenever one of *paths* may lead to something else than before.

    It is set once for any number of changes until it is cleared; clear it before looking at the files. The files, and
    directories on their way, need not exist.
    """
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()
    _tell_renames_at_once()
    observer = Observer()
    handler = _Handler(lambda: loop.call_soon_threadsafe(look_again))
    # By path and inode: a file that was replaced by another is another one to watch.
    watches: dict[tuple[Path, int], ObservedWatch] = {}

    def look_again() -> None:
        wanted = _places(paths)
        for place in watches.keys() - wanted:
            with suppress(KeyError, OSError):
                observer.unschedule(watches.pop(place))
        for place in wanted - watches.keys():
            try:
                watches[place] = observer.schedule(handler, str(place[0]), event_filter=_CHANGES)
            except OSError as error:
                logger.debug("cannot watch %s: %s", place[0], error)
        changed.set()

    async def look_now_and_then() -> None:
        last = _states(paths)
        while True:
            await asyncio.sleep(LOOK_EVERY)
            if (states := _states(paths)) != last:
                last = states
                look_again()

    observer.start()
    looking = asyncio.create_task(look_now_and_then())
    try:
        look_again()
        yield changed
    finally:
        looking.cancel()
        observer.stop()
        await asyncio.gather(asyncio.to_thread(observer.join), looking, return_exceptions=True)


def _places(paths: Sequence[Path]) -> set[tuple[Path, int]]:
    """Return what has to be watched: the directories of every chain, and the files at their ends."""
    found = {directory for path in paths for directory in chain_directories(path)}
    found |= {path.resolve() for path in paths if path.is_file()}
    places = set()
    for place in found:
        with suppress(OSError):
            places.add((place, place.stat().st_ino))
    return places


def _states(paths: Sequence[Path]) -> list[tuple[int, ...] | None]:
    """Return what tells the files of *paths* from what they were before."""
    states: list[tuple[int, ...] | None] = []
    for path in paths:
        try:
            status = path.stat()
            states.append((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
        except OSError:
            states.append(None)
    return states


def chain_directories(path: Path) -> tuple[Path, ...]:
    """Return the directories in which a change can change what *path* leads to: those of every link of its chain.

    Of a directory that does not exist, the nearest one above it that does.
    """
    directories: list[Path] = []
    current = path.absolute()
    for _ in range(LONGEST_CHAIN):
        parent = current.parent
        while not parent.is_dir():
            parent = parent.parent
        directories.append(parent.resolve())
        try:
            target = current.readlink()
        except OSError:
            break
        current = current.parent.resolve() / target
    return tuple(dict.fromkeys(directories))
