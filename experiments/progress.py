"""Progress bars with the time left, by rich."""

import contextlib
from collections.abc import Callable, Iterator

from rich import progress


@contextlib.contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """Gives `report(task, done, total)`, which shows one bar a task."""
    columns = (
        progress.TextColumn("{task.description:<34}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns) as display:
        tasks: dict[str, progress.TaskID] = {}

        def report(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = display.add_task(task, total=total)
            display.update(tasks[task], completed=done, total=total)

        yield report
