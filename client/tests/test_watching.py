from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable

import pytest
from screen import Screen, TerminalSession
from scripted_server import Answer, ScriptedServer, answer, problem

from headstart_client import Client, InvalidResponse, Metric, Run, RunFailed, Timeout
from headstart_client.curve import ASCII, UNICODE
from headstart_client.display import LiveBlock, glyphs_for, terminal_size
from headstart_client.history import History
from headstart_client.progress import amount, describe, duration, figure, frame
from headstart_client.wire import parse

TEN = {"seconds": 10}
AT_TWO = "m [=====...................]  20%  iteration 0  2 s passed"


def run(state: str = "running", iterations: int = 0, **members: object) -> dict[str, object]:
    progress = {
        "fraction": 0.4,
        "iterations": iterations,
        "environment_steps": iterations * 1000,
        "seconds": iterations / 2,
    }
    return {"id": "r1", "state": state, "model": "m", "attempts": 1, "progress": progress, **members}


def row(i: int, **values: float) -> dict[str, object]:
    """Two iterations a second, and two thousand steps."""
    chosen = values or {"return_before": 20.0, "return_after": 20.0 + i}
    return {"sequence": i, "iteration": i, "environment_steps": i * 1000, "seconds": i / 2, "values": chosen}


def history(iterations: int, told: dict[str, object], now_s: float = 0.0) -> History:
    known = History()
    known.take_run(parse(Run, told), now_s)
    for i in range(1, iterations + 1):
        known.take_metric(parse(Metric, row(i)), now_s)
    return known


def event(kind: str, data: dict[str, object]) -> bytes:
    identity = f"id: {data['sequence']}\n" if "sequence" in data else ""
    return f"event: {kind}\n{identity}data: {json.dumps(data)}\n\n".encode()


def stream(*events: bytes, held: bool = False) -> Answer:
    return Answer(200, b"".join(events), {"Content-Type": "text/event-stream"}, held=held)


def text(known: History, now_s: float, columns: int, rows: int, ascii_only: bool = True) -> list[str]:
    lines = frame(known, now_s, columns, rows, ASCII if ascii_only else UNICODE)
    return ["".join(part for part, _ in line) for line in lines]


def test_a_run_is_one_line_of_numbers() -> None:
    known = history(
        80, run(stop={"iterations": 200}, metrics={"held_out_return_before": 5, "held_out_return_after": -0.5})
    )
    known.values["generalisation_gap"] = 100.5
    assert describe(known, 1.0) == (
        "m [==========..............]  40%  iteration 80  2.00K steps/s  41 s passed  59 s left"
        "  return 20.0 -> 100.0  held-out return 5.00 -> -0.500  gap 100.5"
    )


def test_the_block_has_the_numbers_the_curves_and_their_axes() -> None:
    assert text(history(40, run(stop={"seconds": 40})), 0.0, 60, 9) == [
        "m [====....]  50%  iteration 40  2.00K steps/s  20 s passed",
        "20 s left  return 20.0 -> 60.0",
        "60 +                                                ********",
        "   |                                   *************",
        "   |                    ***************",
        "   |       *************",
        "20 +*******.................................................",
        "   +--------------------------------------------------------",
        "    1          iteration   ** after   .. before           40",
    ]


@pytest.mark.parametrize("columns", [1, 10, 40, 79, 300])
@pytest.mark.parametrize("rows", [1, 3, 8, 24, 100])
@pytest.mark.parametrize("iterations", [0, 1, 2, 500])
def test_the_block_fits_every_terminal(columns: int, rows: int, iterations: int) -> None:
    for ascii_only in (True, False):
        lines = text(history(iterations, run(stop={"iterations": 600})), 0.0, columns, rows, ascii_only)
        assert 1 <= len(lines) <= rows
        assert all(len(line) <= columns for line in lines)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (run("queued"), "m: queued"),
        (run("queued", 40), "m [==========..............]  40%  iteration 40  20 s passed  queued"),
        (run("failed", 40), "m [==========..............]  40%  iteration 40  2.00K steps/s  failed after 20 s"),
        (run(stop={"return_at_least": 5}) | {"progress": {}}, "m  iteration 0  2 s passed"),
        (run(stop=TEN, attempts=2), f"{AT_TWO}  8 s left  attempt 2"),
        (run(stop={**TEN, "plateau": {}}), f"{AT_TWO}  at most 8 s left"),
        (run(stop=TEN, cancel_requested=True), f"{AT_TWO}  8 s left  asked to stop"),
    ],
)
def test_only_what_is_known_is_shown(told: dict[str, object], words: str) -> None:
    assert describe(history(0, told), 2.0) == words


def test_a_name_cannot_rewrite_the_terminal_nor_fill_it() -> None:
    assert describe(history(0, run("queued", model="\x1b[2J" + "n" * 99)), 0.0) == "\\x1b[2J" + "n" * 22 + "...: queued"


def test_the_speed_is_that_of_the_last_ten_seconds() -> None:
    known = history(100, run(stop={"iterations": 1000}))
    assert known.rates() == (2.0, 2000.0)
    slow = {"sequence": 101, "iteration": 101, "environment_steps": 101_000, "seconds": 70.0}
    known.take_metric(parse(Metric, slow), 0.0)
    assert known.rates() == pytest.approx((1 / 20, 50.0))
    known.take_run(parse(Run, run("succeeded", 102)), 0.0)
    assert known.rates() == (2.0, 2000.0)


@pytest.mark.parametrize(
    ("stop", "left_s"),
    [
        ({"iterations": 200}, 60.0),
        ({"environment_steps": 100_000}, 10.0),
        ({"seconds": 45.0}, 5.0),
        ({"iterations": 200, "environment_steps": 1_000_000, "seconds": 500}, 60.0),
        ({"return_at_least": 3.0}, None),
    ],
)
def test_the_time_left_is_that_of_the_first_stop_condition(stop: dict[str, object], left_s: float | None) -> None:
    known = history(80, run(stop=stop), now_s=7.0)
    assert known.left_s(7.0) == left_s
    assert known.left_s(9.0) == (None if left_s is None else left_s - 2)


def test_numbers_are_short() -> None:
    assert [duration(s) for s in (47, 185, 7800)] == ["47 s", "3 min 05 s", "2 h 10 min"]
    assert [amount(n) for n in (0, 7.4, 999, 999.6, 12_345, 456_789, 2.5e6, 9e9, 1e13)] == [
        "0", "7", "999", "1.00K", "12.3K", "457K", "2.50M", "9.00G", "10000G",
    ]  # fmt: skip
    assert [figure(value) for value in (187, -4.2, 2 / 3, 0, -12345678)] == [
        "187.0",
        "-4.20",
        "0.667",
        "0.000",
        "-1.235e+07",
    ]


def test_a_worker_that_takes_a_run_over_goes_on_from_the_checkpoint() -> None:
    known = history(50, run())
    known.take_run(parse(Run, run(iterations=30, attempts=2)), 0.0)
    assert (known.iterations, known.elapsed_s(1.0)) == (30, 16.0)
    known.take_metric(parse(Metric, row(51)), 1.0)
    assert (known.iterations, known.after.points[-1]) == (51, (51.0, 71.0))


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("no_color", "colours"), [("", {"32", "36"}), ("1", set())])
def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch, no_color: str, colours: set[str]) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    LiveBlock(terminal := Terminal()).show(history(40, run()), 0.0)
    (screen := Screen()).feed(terminal.getvalue().replace("\n", "\r\n"))
    assert screen.colours == colours


def test_a_terminal_without_braille_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    assert glyphs_for(Terminal()) is UNICODE
    assert glyphs_for(io.TextIOWrapper(io.BytesIO(), "latin-1")) is ASCII
    monkeypatch.setenv("TERM", "linux")
    assert glyphs_for(Terminal()) is ASCII
    assert terminal_size(Terminal()) == (80, 24)


def test_a_block_is_drawn_over_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "12")
    block = LiveBlock(terminal := Terminal())
    for i in (30, 0, 40):
        block.show(history(i, run(stop={"seconds": 40})), i + 0.0)
        block.close(history(i, run(stop={"seconds": 40})), 0.0)
    (screen := Screen()).feed(f"above\n{terminal.getvalue()}below".replace("\n", "\r\n"))
    assert screen.lines[0] == "above"
    assert screen.lines[1].startswith("m [████░░░░]  50%  iteration 40")
    assert (screen.lines[-1], len(screen.lines), screen.cursor_shown) == ("below", 13, True)


def test_a_pipe_gets_lines_only_when_asked(
    server: ScriptedServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = stream(
        event("state", run("running")), event("state", run("running", 1)), event("state", run("succeeded", 2))
    )
    for wanted, count in ((None, 0), (False, 0), (True, 3)):
        monkeypatch.setattr(sys, "stderr", pipe := io.StringIO())
        followed = [answer(run("queued")), answer({"metrics": []}), states]
        server.script(*(followed if count else [answer(run("succeeded"))]))
        assert client.runs.wait("r1", progress=wanted).state == "succeeded"
        assert pipe.getvalue().count("\n") == count


def test_a_run_is_followed_through_pages_and_broken_streams(server: ScriptedServer, client: Client) -> None:
    server.script(
        answer(run()),
        answer({"metrics": [row(1)], "next_page_token": "p"}),
        answer({"metrics": [row(2)]}),
        *[problem(503)] * 9,
        stream(event("state", run()), event("metrics", row(3))),
        Answer(cut=0),
        stream(event("metrics", row(4)), event("state", run("cancelled", 4))),
    )
    items = list(client.runs.follow("r1"))
    assert [item.sequence for item in items if isinstance(item, Metric)] == [1, 2, 3, 4]
    assert [item.state for item in items if isinstance(item, Run)] == ["running", "running", "cancelled"]
    assert [request.headers.get("last-event-id") for request in server.requests[-3:]] == ["2", "3", "3"]


def test_a_run_that_has_ended_is_its_metrics_and_its_end(server: ScriptedServer, client: Client) -> None:
    server.script(answer(run("failed", 2)), answer({"metrics": [row(1), row(2)]}))
    assert [type(item) for item in client.runs.follow("r1")] == [Metric, Metric, Run]
    server.script(answer(run("failed", 2)), answer({"metrics": []}))
    with pytest.raises(RunFailed):
        client.runs.wait("r1", progress=True)


def test_a_run_that_never_ends_is_given_up_in_time(server: ScriptedServer, client: Client) -> None:
    server.script(answer(run()), answer({"metrics": []}), stream(event("state", run()), held=True))
    with pytest.raises(Timeout, match=r"run r1 was not finished after 0\.3 s; it goes on"):
        list(client.runs.follow("r1", timeout_s=0.3))


def test_a_stream_that_is_over_before_the_run_is_an_invalid_response(server: ScriptedServer, client: Client) -> None:
    server.script(answer(run()), answer({"metrics": []}), Answer(204))
    with pytest.raises(InvalidResponse, match="has not ended"):
        list(client.runs.follow("r1"))


def watch(server: ScriptedServer, columns: int = 80, rows: int = 24, **environ: str) -> TerminalSession:
    words = [sys.executable, "-m", "headstart_client", "--url", server.url, "runs", "watch", "r1"]
    return TerminalSession(words, os.environ | {"TERM": "xterm", "PYTHONUTF8": "1"} | environ, columns, rows)


def shows(words: str) -> Callable[[Screen], bool]:
    return lambda screen: words in screen.text


def test_a_terminal_shows_the_curve_follows_its_size_and_survives_ctrl_c(server: ScriptedServer) -> None:
    told = run(stop={"iterations": 80})
    rows = [row(i) for i in range(1, 41)]
    server.script(answer(told), answer({"metrics": rows}), stream(event("state", told), held=True))
    with watch(server, 80, 40) as terminal:
        screen = terminal.screen
        terminal.until(shows("iteration 40"))
        assert screen.lines[0].startswith("m [████░░░░░]  50%  iteration 40")
        assert screen.lines[2].startswith("60 ┤")
        assert screen.lines[2].endswith("⣀⠤⠔⠒⠉")
        assert "⠤⠤ after   ⠄⠄ before" in screen.lines[17]
        assert (len(screen.lines), max(map(len, screen.lines))) == (19, 79)
        terminal.resize(70, 40)
        terminal.until(lambda screen: max(map(len, screen.lines)) == 69)
        assert len(screen.lines) == 19
        terminal.resize(70, 12)
        terminal.until(lambda screen: screen.visible[0].startswith("m ["))
        assert len(screen.visible) == 12
        terminal.type(b"\x03")
        assert terminal.end() == 130
        assert screen.lines[-3:-1] == ["interrupted", "run r1 goes on; stop it with: headstart runs cancel r1"]
        assert screen.lines[-4].endswith("40")
        assert screen.cursor_shown


def test_a_terminal_keeps_the_end_of_the_run(server: ScriptedServer) -> None:
    ended = run("succeeded", 3, version=7, stopped_by="iterations")
    events = [event("state", run()), *(event("metrics", row(i)) for i in (1, 2, 3)), event("state", ended)]
    server.script(answer(run("queued")), answer({"metrics": []}), stream(*events))
    with watch(server, rows=12, NO_COLOR="1") as terminal:
        assert terminal.end() == 0
    screen = terminal.screen
    assert screen.lines[0].startswith("m [█████████] 100%  iteration 3  2.00K steps/s  succeeded after 2 s")
    assert screen.text.index("return 20.0 -> 23.0") < screen.text.index("version        m/7")
    assert not screen.colours
