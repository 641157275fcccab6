"""A strict reader of Chrome trace-event JSON: what Perfetto would silently drop or misplace is an error here."""

from __future__ import annotations

import json
from typing import Any

KEYS = {
    "X": ({"ph", "pid", "tid", "ts", "dur", "name"}, {"args"}),
    "i": ({"ph", "s", "pid", "tid", "ts", "name"}, {"args"}),
    "M": ({"ph", "pid", "tid", "name", "args"}, set[str]()),
}
METADATA = {"process_name": ("name", str), "thread_name": ("name", str), "thread_sort_index": ("sort_index", int)}


class Track(list[dict[str, Any]]):
    """The events of a thread, in the order of the file, and its name."""

    name = ""

    @property
    def names(self) -> list[str]:
        """Return the names of the events."""
        return [event["name"] for event in self]

    def told(self, name: str) -> list[str]:
        """Return what is said of the events of this name."""
        return [event.get("args", {}).get("what", "") for event in self if event["name"] == name]


def read(text: str) -> dict[str, Track]:
    """Check the whole file, and return its tracks by name."""
    document = json.loads(text)
    assert set(document) == {"displayTimeUnit", "traceEvents"}
    assert document["displayTimeUnit"] in ("ms", "ns")
    tracks: dict[int, Track] = {}
    processes, metadata = set(), set()
    for event in document["traceEvents"]:
        required, optional = KEYS[event["ph"]]
        assert required <= set(event) <= required | optional, event
        assert type(event["pid"]) is type(event["tid"]) is int
        assert type(event["name"]) is str
        processes.add(event["pid"])
        track = tracks.setdefault(event["tid"], Track())
        if event["ph"] == "M":
            key, kind = METADATA[event["name"]]
            assert type(event["args"][key]) is kind
            assert (event["tid"], event["name"]) not in metadata
            metadata.add((event["tid"], event["name"]))
            if event["name"] == "thread_name":
                track.name = event["args"]["name"]
            continue
        assert type(event["ts"]) is float
        assert event["ts"] >= 0
        assert event["ph"] == "i" or (type(event["dur"]) is float and event["dur"] >= 0)
        assert event["ph"] == "X" or event["s"] in ("g", "p", "t")
        track.append(event)
    assert len(processes) == 1
    assert [name for _, name in metadata].count("process_name") == 1
    for track in tracks.values():
        check_order(track)
        check_nesting(track)
        assert track.name or all(event["s"] == "g" for event in track)
    named = {track.name: track for track in tracks.values() if track.name}
    assert len(named) == sum(name == "thread_name" for _, name in metadata), "two tracks have one name"
    return named


def check_order(track: Track) -> None:
    """See that time does not go back."""
    times = [event["ts"] for event in track]
    assert times == sorted(times)


def check_nesting(track: Track) -> None:
    """See that each span lies within the one that is open when it begins, or behind it."""
    open_until: list[int] = []
    for event in track:
        if event["ph"] != "X":
            continue
        start, end = (round(value * 1000) for value in (event["ts"], event["ts"] + event["dur"]))
        while open_until and open_until[-1] <= start:
            open_until.pop()
        assert not open_until or end <= open_until[-1], f"{event} overlaps the span around it"
        open_until.append(end)


def in_order(wanted: list[str], found: list[str]) -> bool:
    """Tell whether `found` has all that is wanted, in that order, perhaps with others between."""
    rest = iter(found)
    return all(name in rest for name in wanted)
