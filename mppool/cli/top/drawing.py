"""The screen of `mppool top` as lines of text, for any width and height. Pure."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.text import Text

from mppool.cli.looking import duration, quantiles
from mppool.cli.output import printable
from mppool.stats import words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mppool.cli.top.watch import Watch

USED, IDLE, BAD, WARN, DIM, TITLE = "bold green", "cyan", "bold red", "yellow", "dim", "bold cyan"

_WORDS = {
    "checkouts": "checkouts/s",
    "opened": "opened",
    "moved": "moved",
    "open_failed": "failed",
    "timeouts": "timeouts",
}
_BAD = ("open_failed", "timeouts")

SORTS = ("name", "used", "waiting", "checkouts")

KEYS = (
    ("up, down", "choose a pool, or a process"),
    ("enter", "look into it; esc: back"),
    ("s", "sort by name, used, waiting, checkouts a second"),
    ("p, space", "pause, go on"),
    ("+, -", "look more often, less often"),
    ("?", "this help"),
    ("q", "leave"),
)


@dataclass
class Choices:
    """What the user has chosen. pool, pid: into what is looked; cursor: the line that is marked."""

    name: str
    interval: float
    cursor: int = 0
    pool: str | None = None
    pid: int | None = None
    sort: str = SORTS[0]
    is_paused: bool = False
    has_help: bool = False
    rows: list[Any] = field(default_factory=list)


def draw(watch: Watch, choices: Choices, width: int, height: int) -> Text:
    """The whole screen; `choices.rows` is what the cursor moves over."""
    body = height - 2
    stats = watch.stats
    if choices.has_help:
        lines = _help()
    elif stats is None:
        lines = [Text("no server runs at present; the next checkout starts one", WARN)]
    elif choices.pid is not None:
        lines = _process(stats, choices, body)
    elif choices.pool is not None and choices.pool in stats["pools"]:
        lines = _pool(watch, stats["pools"][choices.pool], choices, width, body)
    else:
        lines = _overview(watch, choices, width, body)
    lines = [_header(watch, choices), *lines[:body]]
    lines += [Text()] * (height - 1 - len(lines))
    lines.append(_footer(choices))
    return Text("\n").join(_fit(line, width) for line in lines)


def _fit(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    return line


def _header(watch: Watch, choices: Choices) -> Text:
    text = Text(f"mppool top: {choices.name}", TITLE)
    if watch.stats is not None:
        stats = watch.stats
        text.append(
            f"   server {stats['server_pid']}, up {duration(stats['uptime'])}   "
            f"{words.processes(len(stats['processes']))}   "
            f"{words.counted(len(stats['pools']), 'pool', 'pools')}",
            "none",
        )
        left = [one["expires_in"] for one in stats["tokens"] if one["expires_in"] is not None]
        if left:
            text.append(f"   token: {duration(max(0.0, min(left)))} left", WARN)
    if choices.is_paused:
        text.append("   PAUSED", BAD)
    return text


def _footer(choices: Choices) -> Text:
    text = f"? help  s sort: {choices.sort}  p pause  enter open  esc back  q leave   every {choices.interval:g} s"
    return Text(text, "reverse")


def _help() -> list[Text]:
    lines = [Text("Keys", TITLE)]
    lines += [Text(f"  {key:<10} {text}") for key, text in KEYS]
    lines += [Text(), Text("What is shown", TITLE)]
    legend = Text("  ")
    legend.append("█", USED).append(" in use  ").append("▒", IDLE).append(" idle  ")
    legend.append("·", DIM).append(" free below the cap (max_size)")
    meanings = (
        "waiting    checkouts that wait now, and the longest wait of them",
        "lately     the longest of the waits that have just ended",
        "opened     new connections a second, each with a login; so are all rates",
        "moved      closed in one process, to be opened in another; see sizing",
        "breaker    open: opening fails, so checkouts that need a new one fail at once",
    )
    lines.append(Text("  =          a budget: the cap that several pools share"))
    return [*lines, legend, *(Text(f"  {meaning}") for meaning in meanings)]


def _overview(watch: Watch, choices: Choices, width: int, height: int) -> list[Text]:
    assert watch.stats is not None
    pools = sorted(watch.stats["pools"].values(), key=_key(watch, choices.sort))
    choices.rows = [pool["name"] for pool in pools]
    _hold_cursor(choices)
    room = max(1, min(len(pools), (height - 4) // 4 if len(pools) > 3 else 3))
    first = _first_shown(choices.cursor, room, len(pools))
    lines: list[Text] = []
    for number, pool in list(enumerate(pools))[first : first + room]:
        lines += _pool_lines(watch, pool, width, is_marked=number == choices.cursor)
    if len(pools) > room:
        lines.append(Text(f"  ({len(pools)} pools; up and down show the others)", DIM))
    if not pools:
        lines.append(Text("no pool has been declared", DIM))
    lines += [
        _budget_line(watch.stats, one, width) for one in watch.stats.get("budgets", {}).values()
    ]
    left = height - len(lines)
    leases = _leases([(pool["name"], pool) for pool in pools], watch.stats)
    shown = max(2, min(len(leases), (left - 4) // 2))
    lines += [Text(), Text("Oldest leases", TITLE), *(leases[:shown] or [Text("  none", DIM)])]
    lines += [Text(), Text("Events", TITLE), *_events(watch, height - len(lines) - 2)]
    return lines


def _key(watch: Watch, sort: str) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    most: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "used": lambda pool: -pool["in_use"],
        "waiting": lambda pool: -pool["waiting"],
        "checkouts": lambda pool: -watch.rate(pool["name"], "checkouts"),
    }
    first = most.get(sort)
    return lambda pool: (first(pool) if first else 0, pool["name"])


def _hold_cursor(choices: Choices) -> None:
    choices.cursor = max(0, min(choices.cursor, len(choices.rows) - 1))


def _first_shown(cursor: int, room: int, length: int) -> int:
    return max(0, min(cursor - room // 2, length - room))


def _pool_lines(
    watch: Watch, pool: Mapping[str, Any], width: int, *, is_marked: bool
) -> list[Text]:
    cap = "no" if pool["max_size"] is None else pool["max_size"]
    if pool.get("share") is not None:
        cap = f"{pool['share']} of {cap}"
    figures = Text()
    figures.append(f"{pool['in_use']:>5} used", USED).append(f"{pool['idle']:>5} idle", IDLE)
    figures.append(f"{cap:>5} cap")
    figures.append(f"{pool['waiting']:>5} waiting", BAD if pool["waiting"] else DIM)
    name = printable(pool["name"])
    line = Text("> " if is_marked else "  ", TITLE)
    line.append(f"{name[:13]:<13} ", "bold")
    line.append_text(bar(pool, width - len(line) - len(figures))).append_text(figures)
    return [line, _rates(watch, pool, width), *_lane_lines(pool), *_pin_lines(pool, width)]


def _rates(watch: Watch, pool: Mapping[str, Any], width: int) -> Text:
    """What happens, the alarming first: of the other rates a narrow screen has those that fit."""
    rates = Text("    ")
    if pool["closed"]:
        rates.append("closed  ", BAD)
    elif pool["breaker"] != "closed":
        rates.append(f"breaker {pool['breaker']}  ", BAD)
    if pool["waiting"] and pool.get("longest_wait"):
        rates.append(f"longest wait {duration(pool['longest_wait'])}  ", BAD)
    longest = watch.longest_wait(pool["name"])
    if longest is not None:
        rates.append(f"lately {duration(longest)}  ", WARN)
    found = {counter: watch.rate(pool["name"], counter) for counter in _WORDS}
    bad = [counter for counter in _BAD if found[counter]]
    for counter in [*bad, *(one for one in _WORDS if one not in bad)]:
        text = f"{brief(found[counter])} {_WORDS[counter]}  "
        if counter not in bad and len(rates) + len(text.rstrip()) > width:
            break
        rates.append(text, BAD if counter in bad else DIM)
    return rates


def _lane_lines(pool: Mapping[str, Any]) -> list[Text]:
    lines = []
    for name, lane in (pool.get("lanes") or {}).items():
        line = Text(f"    lane {printable(name or '(common)')[:13]:<13} ", DIM)
        line.append(f"{lane['in_use']:>5} used", USED).append(f"{lane['reserved']:>5} reserved")
        line.append(f"{lane['waiting']:>5} waiting", BAD if lane["waiting"] else DIM)
        lines.append(line)
    return lines


def _pin_lines(pool: Mapping[str, Any], width: int) -> list[Text]:
    """What ties leases to their sessions in hosts, with the seconds since the hosts began; the most first."""
    pins = {reason: pin for reason, pin in (pool.get("pins") or {}).items() if pin["leases"]}
    if not pins:
        return []
    line = Text("    tied by  ", DIM)
    for reason, pin in sorted(pins.items(), key=lambda item: -item[1]["seconds"]):
        text = f"{printable(reason)} {duration(pin['seconds'])} in {pin['leases']}  "
        if len(line) + len(text.rstrip()) > width:
            break
        line.append(text, DIM)
    return [line]


def _budget_line(stats: Mapping[str, Any], budget: Mapping[str, Any], width: int) -> Text:
    """The cap that several pools share: what of it is in use, idle and free."""
    in_use = sum(
        stats["pools"][name]["in_use"] for name in budget["pools"] if name in stats["pools"]
    )
    figures = Text()
    figures.append(f"{in_use:>5} used", USED).append(f"{budget['size'] - in_use:>5} idle", IDLE)
    figures.append(f"{budget['max_size']:>5} cap")
    figures.append(f"{budget['waiting']:>5} waiting", BAD if budget["waiting"] else DIM)
    line = Text(f"= {printable(budget['name'])[:13]:<13} ", TITLE)
    bars = bar({**budget, "in_use": in_use}, width - len(line) - len(figures))
    return line.append_text(bars).append_text(figures)


def bar(pool: Mapping[str, Any], width: int) -> Text:
    """In use, idle and free, against the cap; without a cap against what there is."""
    room = max(1, width - 1)
    whole = max(1, pool["max_size"] or pool["size"], pool["size"])
    used = round(room * pool["in_use"] / whole)
    if pool["in_use"]:
        used = max(1, used)
    idle = min(room - used, round(room * (pool["size"] - pool["in_use"]) / whole))
    text = Text("█" * used, USED)
    return text.append("▒" * idle, IDLE).append("·" * (room - used - idle), DIM)


def brief(rate: float) -> str:
    """A rate for people, in four characters or so."""
    if rate >= 10_000:
        return f"{rate / 1000:.0f}k"
    return f"{rate:.0f}" if rate >= 10 or rate == round(rate) else f"{rate:.1f}"


def _leases(
    pools: Sequence[tuple[str, Mapping[str, Any]]], stats: Mapping[str, Any], pid: int | None = None
) -> list[Text]:
    labels = {one["pid"]: one["label"] for one in stats["processes"]}
    held = [
        (one["held_for"], name, one)
        for name, pool in pools
        for one in pool["resources"]
        if one["held_for"] is not None and pid in (None, one["pid"])
    ]
    held.sort(key=lambda row: -row[0])
    lines = []
    for age, name, one in held:
        said = [one.get("label"), labels.get(one["pid"]), one.get("thread")]
        text = f"  {duration(age):>9}  {name[:13]:<13}  pid {one['pid']:<8} "
        text += ", ".join(each for each in said if each) or "-"
        if one["identity_key"]:
            text += f"  {one['identity_key']}"
        lines.append(Text(printable(text)))
    return lines


def _events(watch: Watch, room: int) -> list[Text]:
    if not watch.events:
        return [Text("  none since this began to look", DIM)]
    return [
        Text(
            printable(f"  {time.strftime('%H:%M:%S', time.localtime(one.at))}  {one.text}"),
            WARN if one.bad else "none",
        )
        for one in list(watch.events)[-max(1, room) :][::-1]
    ]


def _pool(
    watch: Watch, pool: Mapping[str, Any], choices: Choices, width: int, height: int
) -> list[Text]:
    """One pool: by process, its times, and what was counted."""
    assert watch.stats is not None
    processes = sorted(pool["processes"], key=lambda one: (-one["slots"], one["pid"]))
    choices.rows = [one["pid"] for one in processes]
    _hold_cursor(choices)
    lines = _pool_lines(watch, pool, width, is_marked=False)
    title = (
        f"  {'pid':>8} {'slots':>6} {'used':>5} {'idle':>5} {'waiting':>8} {'checkouts':>10}  label"
    )
    lines += [Text(), Text(title, TITLE)]
    room = max(2, height - 13)
    first = _first_shown(choices.cursor, room, len(processes))
    for number, one in list(enumerate(processes))[first : first + room]:
        marker = "> " if number == choices.cursor else "  "
        text = (
            f"{marker}{one['pid']:>8} {one['slots']:>6} {one['in_use']:>5} {one['idle']:>5} "
            f"{one['waiting']:>8} {one['checkouts']:>10}  {one['label'] or '-'}"
        )
        if one["stale"]:
            text += "  does not answer"
        lines.append(Text(printable(text), WARN if one["stale"] else "none"))
    lines += [Text(), Text("Times", TITLE)]
    for kind, histogram in pool["histograms"].items():
        lines.append(Text(f"  {kind:<5} {quantiles(histogram) or 'nothing measured'}"))
    counted = [
        f"{count} {name.replace('_', ' ')}" for name, count in pool["counters"].items() if count
    ]
    lines += [Text(), Text("Counted so far", TITLE), *_wrapped(counted, width)]
    return lines


def _wrapped(words: Sequence[str], width: int) -> list[Text]:
    lines, line = [], "  "
    for word in words:
        if len(line) + len(word) + 2 > width and line.strip():
            lines.append(Text(line))
            line = "  "
        line += f"{word}, "
    return [*lines, Text(line.rstrip(", "))]


def _process(stats: Mapping[str, Any], choices: Choices, height: int) -> list[Text]:
    """One process: what it holds, in all pools."""
    choices.rows = []
    pid = choices.pid
    title = f"Process {pid}"
    for one in stats["processes"]:
        if one["pid"] == pid:
            title += f"  {one['label']}" + ("  does not answer" if one["stale"] else "")
    lines = [Text(printable(title), TITLE)]
    head = f"  {'pool':<13} {'state':<8} {'uses':>8} {'age':>9} {'for':>9}  what"
    lines.append(Text(head, TITLE))
    for name, pool in stats["pools"].items():
        for one in pool["resources"]:
            if one["pid"] != pid:
                continue
            since = one["held_for"] if one["held_for"] is not None else one["idle_for"]
            age, since = (
                "-" if seconds is None else duration(seconds) for seconds in (one["age"], since)
            )
            text = (
                f"  {name[:13]:<13} {one['state'].replace('_', ' '):<8} {one['uses']:>8} {age:>9} "
                f"{since:>9}  {one['label'] or one['description'] or '-'}"
            )
            lines.append(Text(printable(text), USED if one["state"] == "in_use" else "none"))
    return lines if len(lines) > 2 else [*lines, Text("  it holds nothing", DIM)]
