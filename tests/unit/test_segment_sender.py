"""A segment goes to a server exactly as it lies on disk, whatever the server does on the way."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_monitor.sinks.blobs import BlobSender
from gpu_monitor.sinks.experiments import ExperimentServer, Meaning, Told
from gpu_monitor.sinks.patience import Patience
from gpu_monitor.sinks.segments import SegmentSender
from gpu_monitor.sinks.sent import Sent, read_sent, sent_path
from tests.fakes.experiments import Fault, Shelf
from tests.fakes.segments import add_blob, header, line, make, points

MIB = 1 << 20


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with Shelf() as started:
        yield started


@pytest.fixture
def server(shelf: Shelf) -> Iterator[ExperimentServer]:
    made = ExperimentServer(shelf.url, lambda: "a-good-token", timeout_seconds=5)
    yield made
    made.close()


def send(server: ExperimentServer, path: Path, most: int = 200) -> tuple[SegmentSender, list[Told]]:
    """Step until nothing is left."""
    sender = SegmentSender(server, BlobSender(server), path)
    told = []
    for _ in range(most):
        one = sender.step()
        if one is None:
            return sender, told
        told.append(one)
    raise AssertionError(f"no end after {most} steps: {told[-3:]}")


def test_whole_lines_go_and_a_torn_tail_stays(shelf: Shelf, server: ExperimentServer, tmp_path: Path) -> None:
    path = make(tmp_path, count=100)
    whole = path.read_bytes()
    path.write_bytes(whole + b'["p",1,1,0,[0.5')
    sender, told = send(server, path)
    assert shelf.held("e1", "seg-a0000000") == whole
    assert (sender.held, sender.problem, len(told)) == (len(whole), None, 1)
    assert shelf.asked[0].token == "a-good-token"


def test_pieces_are_whole_records_of_at_most_a_mebibyte(
    shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path, count=70_000)
    send(server, path)
    assert shelf.held("e1", "seg-a0000000") == path.read_bytes()
    sizes = [one.size for one in shelf.asked]
    assert max(sizes) <= MIB
    assert min(sizes[:-1]) > MIB - 200, "pieces are as large as records allow"


def test_damaged_lines_go_as_they_are(shelf: Shelf, server: ExperimentServer, tmp_path: Path) -> None:
    path = make(tmp_path)
    path.write_bytes(path.read_bytes() + b'["p",1,1,0,[0.5],"00000000"]\n\xff\xfe\n["m",\n' + points(5, 10))
    send(server, path)
    assert shelf.held("e1", "seg-a0000000") == path.read_bytes()


def test_a_lost_answer_loses_and_doubles_nothing(
    shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path, count=30_000)
    shelf.behave("lost", "reset", Fault("status", status=500), "lost")
    _, told = send(server, path)
    assert [one.meaning for one in told[:3]] == [Meaning.LATER] * 3, (
        "the fourth is asked again at once: it was open"
    )
    assert shelf.held("e1", "seg-a0000000") == path.read_bytes()


def test_the_server_says_where_to_go_on(shelf: Shelf, server: ExperimentServer, tmp_path: Path) -> None:
    path = make(tmp_path, count=200)
    sender, _ = send(server, path)
    sender.save()
    # Brought back from an older backup: it holds less than is remembered here.
    del shelf.segments["e1", "seg-a0000000"][1000:]
    with path.open("ab") as more:
        more.write(points(5, 200))
    again, told = send(server, path)
    assert (told[0].meaning, told[0].offset) == (Meaning.ELSEWHERE, 1000)
    assert shelf.held("e1", "seg-a0000000") == path.read_bytes()
    assert again.held == path.stat().st_size


def test_what_was_sent_is_remembered_for_each_server(
    shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path)
    sender, _ = send(server, path)
    sender.save()
    whole = Sent(path.stat().st_size, zlib.crc32(path.read_bytes()))
    assert read_sent(path) == {shelf.url: whole}
    before = len(shelf.asked)
    send(server, path)
    assert len(shelf.asked) == before, "nothing is asked for what is known to be held"
    with Shelf() as other:
        elsewhere = ExperimentServer(other.url, lambda: None)
        sender, _ = send(elsewhere, path)
        sender.save()
        elsewhere.close()
        assert other.held("e1", "seg-a0000000") == path.read_bytes()
        assert read_sent(path) == {shelf.url: whole, other.url: whole}


@pytest.mark.parametrize("text", ["", "{", '{"a": "b"}', '{"a": -1}', "[1]", "\x00" * 10])
def test_a_damaged_memory_is_no_memory(text: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    sent_path(path).write_text(text)
    assert read_sent(path) == {}


def test_other_bytes_at_the_same_place_are_a_problem_and_change_nothing(
    shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path)
    shelf.segments["e1", "seg-a0000000"] = bytearray(header("e1", "seg-a0000000", name="other") + points(2))
    kept = shelf.held("e1", "seg-a0000000")
    sender, _ = send(server, path)
    assert sender.problem is not None
    assert "differs from what is held" in sender.problem
    assert shelf.held("e1", "seg-a0000000") == kept
    assert shelf.count("PUT") == 2, "it is tried twice: the first may have been damaged on its way"


def test_a_server_that_holds_more_than_the_disk_holds_what_is_here(
    shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path, count=200)
    send(server, path)
    whole = shelf.held("e1", "seg-a0000000")
    place = whole.index(b"\n", 3000) + 1
    os.truncate(path, place + 5)
    sender, _ = send(server, path)
    assert (sender.problem, sender.held, sender.there) == (None, place, len(whole))
    assert sender.left() == 0, "a torn tail is nobody's"


@pytest.mark.parametrize("size", [0, 3000])
def test_a_file_that_was_cut_and_grew_again_is_seen_whatever_is_remembered(
    size: int, shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path, count=200)
    sender, _ = send(server, path)
    sender.save()
    kept = shelf.held("e1", "seg-a0000000")
    os.truncate(path, size)
    with path.open("ab") as more:
        more.write(points(300, 200))
    for live in (True, False, False):
        if not live:
            sender = SegmentSender(server, BlobSender(server), path)
        while sender.step() is not None:
            pass
        assert sender.problem is not None
        assert "is not what was uploaded any more, from byte 0 on" in sender.problem
        assert sender.left() == path.stat().st_size
        sender.save()
    assert shelf.held("e1", "seg-a0000000") == kept
    # It is put back as it was: it goes on by itself.
    path.unlink()
    path.write_bytes(kept + points(5, 200))
    while sender.step() is not None:
        pass
    assert (sender.problem, sender.left()) == (None, 0)
    assert shelf.held("e1", "seg-a0000000") == path.read_bytes()


def test_a_byte_that_changed_in_what_was_sent_is_seen(
    shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path, count=200)
    sender, _ = send(server, path)
    sender.save()
    with path.open("r+b") as file:
        file.seek(2000)
        file.write(b"#")
    for _ in range(2):
        again, _ = send(server, path)
        again.save()
        assert again.problem is not None
        assert "cut short or changed here" in again.problem


def test_a_file_that_is_gone_for_a_while_ends_nothing(
    shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path)
    sender, _ = send(server, path)
    path.rename(tmp_path / "aside")
    assert sender.step() is None
    assert sender.problem is not None
    assert "is gone" in sender.problem
    (tmp_path / "aside").rename(path)
    with path.open("ab") as more:
        more.write(points(5, 10))
    while sender.step() is not None:
        pass
    assert sender.problem is None
    assert shelf.held("e1", "seg-a0000000") == path.read_bytes()


def test_nothing_is_taken_for_held_that_was_not_compared(
    shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path, count=40_000)
    sha256 = add_blob(path, b"weights")
    send(server, path)
    del shelf.blobs[sha256]
    shelf.whole.clear()
    for text in (None, json.dumps({shelf.url: path.stat().st_size})):  # none, and one of an earlier version
        if text is not None:
            sent_path(path).write_text(text)
        before = len(shelf.asked)
        send(server, path)
        offsets = [one.offset for one in shelf.asked[before:] if "segments" in one.path]
        assert offsets[0] == 0
        assert sum(one.size for one in shelf.asked[before:] if "segments" in one.path) == path.stat().st_size
        assert bytes(shelf.blobs[sha256]) == b"weights"


def test_a_server_that_takes_nothing_is_left_for_later(
    shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path)
    shelf.behave(then=Fault("says", offset=0))
    sender = SegmentSender(server, BlobSender(server), path)
    meanings = [told.meaning for told in (sender.step() for _ in range(8)) if told is not None]
    assert Meaning.LATER in meanings


@pytest.mark.parametrize("most", [MIB // 4, 300])
def test_a_server_that_takes_less_at_once_gets_less(most: int, tmp_path: Path) -> None:
    path = make(tmp_path, count=300 if most == 300 else 20_000)
    with Shelf(most=most) as small:
        server = ExperimentServer(small.url, lambda: None)
        sender, _ = send(server, path, most=500)
        server.close()
        assert (small.held("e1", "seg-a0000000"), sender.problem) == (path.read_bytes(), None)


def test_one_record_that_is_too_large_for_the_server_is_a_problem(tmp_path: Path) -> None:
    path = make(tmp_path)
    with path.open("ab") as more:
        more.write(line("n", 1, "x" * 5000))
    with Shelf(most=2000) as small:
        server = ExperimentServer(small.url, lambda: None)
        sender, _ = send(server, path)
        server.close()
        assert sender.problem is not None
        assert "413" in sender.problem
        assert sender.held == path.read_bytes().index(b'["n"')


def test_no_line_end_within_a_mebibyte_is_damage(
    shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path)
    size = path.stat().st_size
    with path.open("ab") as more:
        more.write(b"x" * (MIB + 10))
    sender, _ = send(server, path)
    assert sender.held == size
    assert sender.problem is not None
    assert f"damaged at {size}" in sender.problem


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_refused_is_never_shown(status: int, tmp_path: Path) -> None:
    path = make(tmp_path)
    secret = "gm_secret0123456789"
    with Shelf() as shelf:
        shelf.behave(Fault("status", status=status, body=json.dumps({"detail": f"no {secret} here"})))
        server = ExperimentServer(shelf.url, lambda: secret)
        told = SegmentSender(server, BlobSender(server), path).step()
        server.close()
    assert told is not None
    assert told.meaning is Meaning.UNAUTHORISED
    assert told.is_for_all
    assert secret not in told.text
    assert "no *** here" in told.text


def test_the_server_says_how_long_to_wait(shelf: Shelf, server: ExperimentServer, tmp_path: Path) -> None:
    shelf.behave(Fault("status", status=503, headers={"Retry-After": "77"}))
    told = SegmentSender(server, BlobSender(server), make(tmp_path)).step()
    assert told is not None
    assert (told.meaning, told.after) == (Meaning.LATER, 77.0)
    assert Patience(lambda: 0.0).failed(told) == 77.0


def test_patience_doubles_to_a_minute_and_begins_anew() -> None:
    patience = Patience(lambda: 1.0)
    gone = Told(Meaning.UNREACHABLE)
    assert [patience.failed(gone) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    patience.succeeded()
    assert patience.failed(gone) == 1
    assert Patience(lambda: 0.0).failed(gone) == 0.5, "by chance up to half less"
    assert Patience(lambda: 1.0).failed(Told(Meaning.UNAUTHORISED)) == 60


def test_a_dead_server_is_unreachable(tmp_path: Path) -> None:
    with Shelf() as shelf:
        url = shelf.url
    server = ExperimentServer(url, lambda: None)
    told = SegmentSender(server, BlobSender(server), make(tmp_path)).step()
    assert told is not None
    assert told.meaning is Meaning.UNREACHABLE
    assert "Connection refused" in told.text


@pytest.mark.parametrize("kind", ["hang", "drip"])
def test_an_exchange_ends_at_its_deadline(kind: str, shelf: Shelf, tmp_path: Path) -> None:
    server = ExperimentServer(shelf.url, lambda: None, timeout_seconds=0.3)
    shelf.behave(Fault(kind))
    told = SegmentSender(server, BlobSender(server), make(tmp_path)).step()
    assert told is not None
    assert told.meaning is Meaning.LATER
    assert "within 0.3 s" in told.text
    shelf.release.set()
    server.close()


def test_a_restarted_server_is_found_again(shelf: Shelf, server: ExperimentServer, tmp_path: Path) -> None:
    path = make(tmp_path)
    send(server, path)
    shelf.stop()
    shelf.start()
    with path.open("ab") as more:
        more.write(points(5, 10))
    _, told = send(server, path)
    assert [one.meaning for one in told] == [Meaning.HELD], (
        "the idle connection is opened anew within the step"
    )
    assert shelf.held("e1", "seg-a0000000") == path.read_bytes()


def test_records_go_first_and_their_files_once_after_them(
    shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path)
    content = bytes(range(256)) * 10_000
    sha256 = add_blob(path, content)
    add_blob(path, content, "again")
    with path.open("ab") as more:
        more.write(points(5, 10))
    send(server, path)
    assert bytes(shelf.blobs[sha256]) == content
    assert shelf.held("e1", "seg-a0000000") == path.read_bytes()
    order = [(one.method, "blob" if "blobs" in one.path else "segment") for one in shelf.asked]
    assert order == [("PUT", "segment"), ("HEAD", "blob"), *[("PUT", "blob")] * 3]


def test_what_is_logged_while_files_go_does_not_wait_for_them(
    shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path)
    for number in range(20):
        add_blob(path, b"%d" % number)
    sender = SegmentSender(server, BlobSender(server), path)
    sender.step()
    assert shelf.held("e1", "seg-a0000000") == path.read_bytes()
    for number in range(20):
        with path.open("ab") as more:
            more.write(points(5 + number, 6 + number))
        sender.step()
        assert shelf.held("e1", "seg-a0000000") == path.read_bytes()
        sender.step()
        assert (len(shelf.whole), sender.has_files_to_send) == (number + 1, True)
    assert (len(shelf.whole), sender.step(), sender.has_files_to_send) == (20, None, False)
    assert shelf.count("HEAD", "blobs") == 0, "of small files it is not asked whether they are there"


def test_a_file_goes_on_where_the_server_stands(
    shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path)
    content = b"0123456789" * 300_000
    sha256 = add_blob(path, content)
    shelf.blobs[sha256] = bytearray(content[:2_000_000])
    send(server, path)
    assert bytes(shelf.blobs[sha256]) == content
    assert [one.offset for one in shelf.asked if one.method == "PUT" and "blobs" in one.path] == [2_000_000]


def test_a_file_that_was_held_already_is_not_sent(
    shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path)
    content = b"content" * 20_000
    sha256 = add_blob(path, content)
    shelf.blobs[sha256] = bytearray(content)
    shelf.whole.add(sha256)
    send(server, path)
    assert shelf.count("PUT", "blobs") == 0
    assert shelf.held("e1", "seg-a0000000") == path.read_bytes()


@pytest.mark.parametrize("status", [507, 413, 422, 410])
def test_a_file_the_server_will_not_have_holds_no_records_up(
    status: int, shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path)
    sha256 = add_blob(path, b"x")
    shelf.behave("good", Fault("status", status=status, body='{"detail": "not this one"}'))
    blobs = BlobSender(server)
    sender = SegmentSender(server, blobs, path)
    while sender.step() is not None:
        pass
    assert shelf.held("e1", "seg-a0000000") == path.read_bytes()
    assert "not this one" in blobs.problems[sha256]


@pytest.mark.parametrize("harm", ["no room", "gone", "changed"])
def test_a_file_that_is_owed_is_not_forgotten(
    harm: str, shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path)
    sha256 = add_blob(path, b"weights", file="media/x.bin", kind="artifact")
    with path.open("ab") as more:
        more.write(points(5, 10))
    file = path.parent / "media/x.bin"
    if harm == "no room":
        shelf.behave("good", Fault("status", status=507, body='{"detail": "no room"}'))
    elif harm == "gone":
        file.rename(tmp_path / "aside")
    else:
        file.write_bytes(b"another size")
    for _ in range(2):
        blobs = BlobSender(server)
        sender = SegmentSender(server, blobs, path)
        while sender.step() is not None:
            pass
        sender.save()
        assert (sender.held, sender.owed_files) == (path.stat().st_size, {sha256})
        assert list(blobs.problems) == [sha256]
        assert read_sent(path)[shelf.url].owed == (path.read_bytes().index(b'["m"'),)
        if harm == "no room":
            shelf.behave(Fault("status", status=507, body='{"detail": "no room"}'))
    shelf.behave()
    if harm == "gone":
        (tmp_path / "aside").rename(file)
    file.write_bytes(b"weights")
    puts = shelf.count("PUT", "segments")
    sender, _ = send(server, path)
    sender.save()
    assert (bytes(shelf.blobs[sha256]), sender.owed_files) == (b"weights", set())
    assert read_sent(path)[shelf.url].owed == ()
    assert shelf.count("PUT", "segments") == puts, "the records are there"


def test_a_server_that_was_brought_back_is_asked_for_its_files(
    shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path)
    sha256 = add_blob(path, b"weights")
    with path.open("ab") as more:
        more.write(points(50, 10))
    sender, _ = send(server, path)
    sender.save()
    del shelf.segments["e1", "seg-a0000000"][path.read_bytes().index(b"\n", 1200) + 1 :]
    del shelf.blobs[sha256]
    shelf.whole.clear()
    again = SegmentSender(server, BlobSender(server), path)
    again.look_again()
    while again.step() is not None:
        pass
    assert shelf.held("e1", "seg-a0000000") == path.read_bytes()
    assert bytes(shelf.blobs[sha256]) == b"weights"


def test_an_experiment_that_was_deleted_there_is_not_asked_about_again(
    shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    shelf.behave(then=Fault("status", status=410, body='{"detail": "it was deleted"}'))
    sender, _ = send(server, make(tmp_path))
    assert sender.problem is not None
    assert "it was deleted" in sender.problem
    assert len(shelf.asked) == 1


def test_an_empty_file_goes_too(shelf: Shelf, server: ExperimentServer, tmp_path: Path) -> None:
    path = make(tmp_path)
    sha256 = add_blob(path, b"")
    send(server, path)
    assert sha256 in shelf.whole
    assert shelf.held("e1", "seg-a0000000") == path.read_bytes()


@pytest.mark.parametrize("harm", ["gone", "changed", "link", "outside"])
def test_a_file_that_cannot_go_holds_nothing_up(
    harm: str, shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path / "runs")
    secret = tmp_path / "secret"
    secret.write_bytes(b"private")
    sha256 = add_blob(path, b"private", file="media/x.bin")
    file = path.parent / "media/x.bin"
    if harm == "gone":
        file.unlink()
    elif harm == "changed":
        file.write_bytes(b"another size")
    elif harm == "link":
        file.unlink()
        file.symlink_to(secret)
    else:
        file.unlink()
        file.parent.rmdir()
        (path.parent / "media").symlink_to(tmp_path)
        secret.rename(tmp_path / "x.bin")
    blobs = BlobSender(server)
    sender = SegmentSender(server, blobs, path)
    while sender.step() is not None:
        pass
    assert shelf.held("e1", "seg-a0000000") == path.read_bytes()
    assert list(blobs.problems) == [sha256]
    assert shelf.count("PUT", "blobs") == 0


def test_a_checkpoint_that_its_policy_removed_is_no_problem(
    shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path)
    checkpoint = add_blob(path, b"weights", file="checkpoints/epoch-0001.bin", kind="checkpoint")
    picture = add_blob(path, b"pixels", file="media/x.png")
    for gone in ("checkpoints/epoch-0001.bin", "media/x.png"):
        (path.parent / gone).unlink()
    blobs = BlobSender(server)
    sender = SegmentSender(server, blobs, path)
    while sender.step() is not None:
        pass
    assert shelf.held("e1", "seg-a0000000") == path.read_bytes()
    assert list(blobs.problems) == [picture]
    assert checkpoint not in shelf.blobs


@pytest.mark.parametrize("file", ["../secret", "/etc/hostname", "media/../../secret", "a\\b", ""])
def test_a_record_names_no_file_outside_its_experiment(
    file: str, shelf: Shelf, server: ExperimentServer, tmp_path: Path
) -> None:
    path = make(tmp_path / "runs")
    content = b"private"
    (tmp_path / "runs/secret").write_bytes(content)
    more = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "file": file}
    with path.open("ab") as out:
        out.write(line("m", 5, 1, "artifact", "a", more))
    send(server, path)
    assert shelf.held("e1", "seg-a0000000") == path.read_bytes()
    assert shelf.blobs == {}
    assert shelf.count("HEAD") == 0
