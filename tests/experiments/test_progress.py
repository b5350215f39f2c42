"""Which bars are shown, and what they know of the time left."""

from experiments import progress


def _shown(display):
    (table,) = display.get_renderables()
    return table.row_count


def test_only_what_lasts_has_a_bar():
    now = [0.0]
    display = progress._Lasting(get_time=lambda: now[0])
    slow, fast = (display.add_task(name, total=2) for name in ("slow", "fast"))
    now[0] = 0.5
    display.update(fast, completed=2)
    assert _shown(display) == 0
    now[0] = 1.5
    assert _shown(display) == 1
    display.update(slow, completed=2)
    now[0] = 9.0
    assert _shown(display) == 1  # it stays


def test_time_left_counts_neither_earlier_runs_nor_compilation(monkeypatch):
    shown = []
    monkeypatch.setattr(progress._Lasting, "start", lambda self: shown.append(self))
    now = [0.0]
    with progress.bars() as report:
        (display,) = shown
        display.get_time = lambda: now[0]
        report("train", 900, 1000)  # goes on where it was
        for done, at in ((910, 40.0), (920, 42.0), (930, 44.0)):
            now[0] = at
            report("train", done, 1000)
        (task,) = display.tasks
        assert task.time_remaining == 14  # 70 steps at 5 a second; the first ten were compiled
        report("train", 0, 10)  # again
        assert not task.finished
        assert task.speed is None
