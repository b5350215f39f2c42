"""Progress bars with the time left, by rich."""

import contextlib
from collections.abc import Callable, Iterator

from rich import progress


@contextlib.contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """Gives `report(task, done, total)`, which shows one bar a task.

    To be called first before anything is done. A task that begins again has its bar again.
    """
    columns = (
        progress.TextColumn("{task.description:<34}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
    )
    with _Lasting(*columns) as display:
        tasks: dict[str, progress.TaskID] = {}

        def report(task: str, done: int, total: int) -> None:
            if task not in tasks:
                # Not from 0: what an earlier run has done says nothing about the speed of this.
                tasks[task] = display.add_task(task, total=total, completed=done)
            elif done < display.tasks[tasks[task]].completed:  # it is done again
                display.reset(tasks[task], total=total, completed=done)
            display.update(tasks[task], completed=done, total=total)

        yield report


class _Lasting(progress.Progress):
    """Shows a task once it has lasted a second: what is done at once needs no bar."""

    def get_renderables(self):
        lasting = [task for task in self.tasks if (_seconds(task) or 0) > 1]
        yield self.make_tasks_table(lasting)


def _seconds(task: progress.Task) -> float | None:
    return task.finished_time if task.finished else task.elapsed
