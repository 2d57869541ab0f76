"""What a server says is masked before it is kept: tokens in every form, contract numbers as whole words."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from urllib.parse import quote

import pytest

from gpu_monitor.core.outcome import Parcel
from gpu_monitor.sinks.http import HttpSink, Target
from gpu_monitor.sinks.secrets import mask_tokens, mask_word
from tests.fakes.server import ServerProcess, Step

TOKEN = "s3cret/To+ken=0815"


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


FORMS = {
    "quoted in a URL": (f"seen %22{TOKEN}%22 there", "seen %22***%22 there"),
    "after a letter": (f"key_{TOKEN}", "key_***"),
    "before a letter": (f"{TOKEN}x", "***x"),
    "twice": (f"{TOKEN}{TOKEN}", "******"),
    "in capitals": (TOKEN.upper(), "***"),
    "URL-encoded": ("a s3cret%2FTo%2Bken%3D0815 b", "a *** b"),
    "URL-encoded in small letters": ("a s3cret%2fTo%2bken%3d0815 b", "a *** b"),
    "URL-encoded twice": ("a s3cret%252FTo%252Bken%253D0815 b", "a *** b"),
    "every letter encoded": ("".join(f"%{ord(letter):02X}" for letter in TOKEN), "***"),
    "JSON of other languages": ("a s3cret\\/To+ken\\u003d0815 b", "a *** b"),
    "HTML": ("a s3cret&#x2F;To&#43;ken=0815 b", "a *** b"),
    "cut by the longest line": (f"said {TOKEN[:9]}… (told to wait 5 s)", "said ***… (told to wait 5 s)"),
    "cut at the end": (f"said {TOKEN[:-1]}", "said ***"),
}


@pytest.mark.parametrize(("text", "expected"), FORMS.values(), ids=FORMS)
def test_a_token_is_masked_in_every_form(text: str, expected: str) -> None:
    assert mask_tokens(text, [TOKEN]) == expected


@pytest.mark.parametrize("before", ["", "x", "xy", "Bearer ", "user:", "Authorization: Bearer "])
@pytest.mark.parametrize("after", ["", "z", "zz", " and more"])
def test_a_token_within_base64_is_masked(before: str, after: str) -> None:
    whole = b64(before + TOKEN + after)
    for form in (whole, whole.replace("+", "-").replace("/", "_"), quote(whole, safe="")):
        assert mask_tokens(f"got [{form}] here", [TOKEN]) == "got [***] here"


def test_other_text_stays() -> None:
    text = "HTTP 401 from http://127.0.0.1:8080/api: no such bearer, s3c… is cut"
    assert mask_tokens(text, [TOKEN, "", "1", "127"]) == text


@pytest.mark.parametrize(
    ("text", "contract", "expected"),
    [
        ("HTTP 400 from http://127.0.0.1:80/x", "1", "HTTP 400 from http://127.0.0.1:80/x"),
        ("HTTP 400 from http://127.0.0.127/x", "127", "HTTP 400 from http://127.0.0.127/x"),
        ("contract 4711 is unknown", "4711", "contract *** is unknown"),
        ("contract '4711'.", "4711", "contract '***'."),
        ("port 47110, id 14711, key_4711", "4711", "port 47110, id 14711, key_4711"),
        ("contract c-47/11 is unknown", "c-47/11", "contract *** is unknown"),
    ],
)
def test_a_contract_number_is_masked_as_a_whole_word(text: str, contract: str, expected: str) -> None:
    assert mask_word(text, contract) == expected


def test_nothing_of_an_outcome_holds_the_token_that_was_sent(tmp_path: Path) -> None:
    """In a refusal as in an acknowledgement, and also when the token was changed while the answer was on its way."""
    tokens = iter([TOKEN, TOKEN, "another-token", "another-token"])
    said = json.dumps({"error": f"key_{TOKEN} of 1: %22{quote(TOKEN, safe='')}%22 {b64('Bearer ' + TOKEN)}"})
    taken = json.dumps({"uid": f"u-{TOKEN}", "outcome": TOKEN, "quarantined": [f"x{TOKEN}x"]})
    with ServerProcess(tmp_path) as server:
        server.behave(Step("status", status=400, body=said), Step("status", status=200, body=taken))
        sink = HttpSink(Target(server.url, "1", timeout_seconds=5), lambda: next(tokens), threading.Event())
        body = json.dumps({"report_id": "r", "revision": 1, "node": {"id": "n"}, "aggregation_time": "t"})
        refused, kept = (sink.send([Parcel("r", body.encode())])[0] for _ in range(2))
        sink.close()
    assert refused.error == f"HTTP 400 from {server.url}: key_*** of 1: %22***%22 ***"
    assert (kept.uid, kept.outcome) == ("u-***", "***")
    assert str(kept.note).endswith("x***x")
