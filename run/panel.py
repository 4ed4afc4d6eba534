"""The panel: a run's state on a terminal, as wide as that is."""

import time
from collections.abc import Callable, Iterable

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from run.state import GOING, State
from support.json_object import JsonObject

TWO_COLUMNS = 120  # from this width on what is told stands side by side
OTHER_LINES = 15  # of the panel at most, beside those of the parts of the data
LABEL = 11  # columns of a name and a blank
FEW_RANKS = 4  # whose memory is told one by one
BLOCKS, LETTERS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
UNKNOWN = "-"
Row = tuple[str, RenderableType]


class RunPanel:
    """Draws a state as it is when it is drawn."""

    def __init__(self, state: State, clock: Callable[[], float] = time.time) -> None:
        self.state, self.clock = state, clock

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        value = self.state.value(self.clock())
        inside = options.max_width - 4  # the frame and a blank on each side
        wide = options.max_width >= TWO_COLUMNS
        half = (inside - 3) // 2 if wide else inside
        losses = [loss.loss for loss in self.state.losses]
        line = sparkline(losses, min(half - 26, 60), LETTERS if options.ascii_only else BLOCKS)
        left, right = _training(value, line), _machine(value)
        body: list[RenderableType] = [
            _grid([("start", _phases(value, inside - LABEL)), ("step", _progress(value, inside - LABEL))])
        ]
        if value["step"] is None:
            body.append(_grid([("time", duration(value["seconds"]))]))
        elif wide:
            sides = Table.grid(padding=(0, 3, 0, 0), expand=True, pad_edge=False)
            sides.add_column(ratio=1)
            sides.add_column(ratio=1)
            sides.add_row(_grid(left), _grid(right))
            body.append(sides)
        else:
            body.append(_grid(left + right))
        if value["parts"]:
            room = console.height - OTHER_LINES if console.is_terminal else len(value["parts"])
            body.append(_grid([("epochs", _parts(value["parts"], inside - LABEL, room))]))
        body.append(_grid(_last(value)))
        alarm = value["status"] not in (*GOING, "finished")
        title = f"{value['recipe'] or 'run'}  [bold]{value['status']}[/]  {_safe(value['run'])}"
        yield Panel(Group(*body), title=title, title_align="left", border_style="red" if alarm else "dim")


def sparkline(values: list[float | None], width: int, blocks: str) -> str:
    """A curve of at most `width` letters: each the mean of its part of the values, `!` where one was not finite."""
    count = min(len(values), max(width, 1))
    means: list[float | None] = []
    for place in range(count):
        part = values[place * len(values) // count : (place + 1) * len(values) // count]
        known = [value for value in part if value is not None]
        means.append(sum(known) / len(known) if len(known) == len(part) else None)
    finite = [mean for mean in means if mean is not None]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join("!" if mean is None else blocks[round((mean - low) * scale)] for mean in means)


def duration(seconds: float | None) -> str:
    """Seconds as a person says them, in at most two units."""
    if seconds is None:
        return UNKNOWN
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, below, next_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // below} {next_name}"
    return f"{whole} s"


def count(value: float | None) -> str:
    """A count with three or four digits and a unit."""
    if value is None:
        return UNKNOWN
    for size, name in ((1e12, " T"), (1e9, " B"), (1e6, " M")):
        if value >= size:
            return f"{value / size:.2f}{name}"
    return f"{value:,.0f}"


def _number(value: float | None, form: str, missing: str = UNKNOWN) -> str:
    return missing if value is None else format(value, form)


def _safe(text: str) -> str:
    return text.replace("[", r"\[")


def _grid(rows: Iterable[Row]) -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0), expand=True, pad_edge=False)
    grid.add_column(style="dim", width=LABEL - 1, no_wrap=True)
    grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for name, what in rows:
        grid.add_row(name, what)
    return grid


def _phases(value: JsonObject, width: int) -> Text:
    """What the start is busy with, or what it was; none is broken in two."""
    phases = value["phases"]
    said = [f"{each['phase']} {duration(each['seconds'])}" for each in phases]
    going = value["status"] == "starting"
    if not going and len(phases) > 1:
        said.append(f"all {duration(sum(each['seconds'] for each in phases))}")
    text, column = Text(), 0
    for number, words in enumerate(said, start=1):
        if column and column + 2 + len(words) > width:
            text.append("\n")
            column = 0
        text.append("  " if column else "")
        text.append(words, style="bold" if going and number == len(said) else "")
        column += len(words) + (2 if column else 0)
    return text


def _progress(value: JsonObject, width: int) -> RenderableType:
    step, last = value["step"], value["last_step"]
    if last is None or step is None:
        return _number(step, ",", f"none of {last:,} yet" if last else "none yet")
    told, share = f"{step:,}/{last:,}", f"{step / last:.1%}"
    bar = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    bar.add_row(told, ProgressBar(last, step, width=max(8, min(60, width - len(told) - len(share) - 4))), share)
    return bar


def _training(value: JsonObject, line: str) -> list[Row]:
    validation = UNKNOWN
    if value["validation_step"] is not None:
        validation = f"{_number(value['validation_loss'], '.4f', 'nan')} at {value['validation_step']:,}"
        if value["best_validation_step"] is not None:
            validation += f", best {value['best_validation_loss']:.4f} at {value['best_validation_step']:,}"
    loss = _number(value["loss"], ".3f", UNKNOWN if value["step"] is None else "nan")
    rates = f"{_number(value['lr'], '.3g')}  norm {_number(value['grad_norm'], '.3g')}"
    rates += f"  scale {_number(value['loss_scale'], ',.0f')}"
    final = value["final_validation_loss"]
    return [
        ("tokens", f"{count(value['tokens'])} of {count(value['train_tokens'])} in the budget"),
        ("loss", Text.assemble((f"{loss}  ", "bold"), (line, "cyan"))),
        ("validation", validation),
        *([("final", f"{final:.4f} over the most samples")] if final is not None else []),
        ("rate", rates + (f"  skipped {value['skipped']:,}" if value["skipped"] else "")),
    ]


def _machine(value: JsonObject) -> list[Row]:
    so_far = duration(value["seconds"])
    left = (
        f"{duration(value['seconds_left'])} left, {so_far} so far" if value["status"] in GOING else f"{so_far} in all"
    )
    save = duration(value["seconds_to_save"])
    if value["next_save_step"] is not None:
        save = f"after step {value['next_save_step']:,}" + ("" if save == UNKNOWN else f", in {save}")
    elif save != UNKNOWN:
        save = f"in {save}"
    return [
        ("speed", f"{_number(value['tokens_per_second'], ',.0f')} tokens/s  MFU {_number(value['mfu'], '.1%')}"),
        ("memory", _memory(value["memory_bytes"])),
        ("time", left),
        ("next save", save),
    ]


def _memory(ranks: list[float] | None) -> str:
    if not ranks:
        return UNKNOWN
    giga = [size / 1e9 for size in ranks]
    if len(giga) <= FEW_RANKS:
        return "  ".join(f"{size:.2f}" for size in giga) + " GB"
    fullest = max(range(len(giga)), key=giga.__getitem__)
    return f"{min(giga):.2f} to {max(giga):.2f} GB (rank {fullest:,} of {len(giga):,})"


def _parts(parts: list[JsonObject], width: int, room: int) -> RenderableType:
    """How often each part of the data was read, in at most `room` lines: those at least that were read most."""
    names = [part["corpus"].rstrip("/").rsplit("/", 1)[-1][:15] for part in parts]
    cells = [f"{part['epochs']:.2f} {name}" for name, part in zip(names, parts, strict=True)]
    columns = max(1, (width + 2) // (max(map(len, cells)) + 2))
    most = max(1, room) * columns
    if len(cells) > most:
        order = sorted(range(len(parts)), key=lambda place: -parts[place]["epochs"])[: most - 1]
        cells = [*(cells[place] for place in sorted(order)), f"and {len(cells) - most + 1} more"]
    grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    for first in range(0, len(cells), columns):
        grid.add_row(*cells[first : first + columns])
    return grid


def _last(value: JsonObject) -> list[Row]:
    rows: list[Row] = []
    if value["last_event"]:
        at = time.strftime("%H:%M:%S", time.localtime(value["last_event_time"]))
        rows.append(("last", f"{at}  {_safe(value['last_event'])}"))
    if value["reason"]:
        rows.append(("why", Text(value["reason"], overflow="fold", no_wrap=False)))
    slow = value["slow_ranks"]
    if slow:
        more = f", and {len(slow) - 1} more" if len(slow) > 1 else ""
        rows.append(("slow", Text(slow[0].removeprefix("slow: ") + more, style="bold", overflow="fold", no_wrap=False)))
    silent, usual = value["silent_seconds"], 60.0
    if silent is not None and silent > usual and value["status"] != "starting":
        rows.append(("silent", Text(f"for {duration(silent)}", style="bold")))
    return rows
