"""Secrets in command lines, diffs and addresses are masked; what is none stays readable."""

from __future__ import annotations

import pytest

from gpu_monitor.training.masking import mask_arguments, mask_text

HEX = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["t.py", "--lr", "0.1"], ["t.py", "--lr", "0.1"]),
        (["--hf-token", "abc"], ["--hf-token", "***"]),
        (["--hftoken=abc"], ["--hftoken=***"]),
        (["--api_key", "-5", "x"], ["--api_key", "***", "x"]),
        (["--password=a=b"], ["--password=***"]),
        (["--client-secret", "a b", "c"], ["--client-secret", "***", "c"]),
        (["-token", "x"], ["-token", "***"]),
        (["--token", "--flag", "y"], ["--token", "--flag", "y"]),
        (["--token"], ["--token"]),
        (["--TOKEN", "X"], ["--TOKEN", "***"]),
        (["--tokenizer", "gpt2", "--keys", "3"], ["--tokenizer", "gpt2", "--keys", "3"]),
        (["model.api_key=abc", "+hub.token=1", "model.depth=3"], ["model.api_key=***", "+hub.token=***", "model.depth=3"]),
        (["--url=https://me:pw@host/x"], ["--url=https://me:***@host/x"]),
        (["hf_abcdefghijklmnopqrst"], ["***"]),
        (["-c", "import x; login(key='sk-proj-abcdefghijklmnop')"], ["-c", "import x; login(key='***')"]),
    ],
)  # fmt: skip
def test_command_lines(given: list[str], kept: list[str]) -> None:
    assert mask_arguments(given) == kept


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("hf_" + "a" * 34, "***"),
        ("sk-" + "A1" * 24, "***"),
        ("sk-ant-api03-" + "x" * 40, "***"),
        ("ghp_" + "a" * 36, "***"),
        ("github_pat_" + "a" * 40, "***"),
        ("glpat-" + "a" * 20, "***"),
        ("AKIA" + "A" * 16, "***"),
        ("gpm_" + "a" * 43, "***"),
        ("xoxb-" + "1" * 20, "***"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-DEF_1", "***"),
        (f"wandb login {HEX}", "wandb login ***"),
        (f"WANDB_API_KEY={HEX}", "WANDB_API_KEY=***"),
        (f"commit {HEX}", f"commit {HEX}"),
        (f"index {HEX[:7]}..{HEX[7:14]} 100644", f"index {HEX[:7]}..{HEX[7:14]} 100644"),
        ("https://x-access-token:abc@github.com/a/b", "https://x-access-token:***@github.com/a/b"),
        ("https://abcdef@github.com/a/b", "https://***@github.com/a/b"),
        ("postgresql://u:p@ss@h/db", "postgresql://u:***@h/db"),
        ("ssh://git@host/a git@host:a.git", "ssh://git@host/a git@host:a.git"),
        ("Authorization: Bearer abcdefgh123", "Authorization: Bearer ***"),
        ('+api_key = "hello"', '+api_key = "***"'),
        ("+    'password': 'pw',", "+    'password': '***',"),
        ('os.environ["MY_SECRET"] = "pw"', 'os.environ["MY_SECRET"] = "***"'),
        ("+password: hunter2", "+password: ***"),
        ("PASSWORD=hunter2 python t.py", "PASSWORD=*** python t.py"),
        ("python t.py --hf-token abc --lr 3", "python t.py --hf-token *** --lr 3"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfi", "aws_secret_access_key = ***"),
        ("a\n-----BEGIN RSA PRIVATE KEY-----\nabc\ndef\n-----END RSA PRIVATE KEY-----\nb",
         "a\n-----BEGIN RSA PRIVATE KEY-----***-----END RSA PRIVATE KEY-----\nb"),
        ("-----BEGIN PRIVATE KEY-----\nabc", "-----BEGIN PRIVATE KEY-----***"),
    ],
)  # fmt: skip
def test_secrets_in_text(given: str, kept: str) -> None:
    assert mask_text(given) == kept


@pytest.mark.parametrize(
    "text",
    [
        'tokenizer.pad_token = "<pad>"',
        "sorted(items, key=lambda item: item.size)",
        "def login(token=None, password: str = None):",
        "password = settings.password",
        "api_key: SecretStr",
        "secret = getenv(name)",
        "for key, token in tokens.items():",
        "key = self.layer_12.weights",
        "+++ b/src/keys/token.py",
        "max_tokens=4096",
        "monkey: banana",
        "https://host/path?key#a@b",
    ],
)
def test_source_text_stays_readable(text: str) -> None:
    assert mask_text(text) == text


@pytest.mark.parametrize(
    "name",
    [
        "api_key",
        "API_KEY",
        "api_\u212aey",
        "pa\u017f\u017fword",
        "credent\u0131als",
        "to\u212aen",
        "PWD",
        "\u017fecret",
    ],
)
def test_names_that_expressions_take_for_secrets_in_any_case_are_looked_for(name: str) -> None:
    # A Kelvin sign, a long s and an i without a dot are k, s and i to whoever ignores case.
    assert mask_arguments([f"--{name}", "hunter2"]) == [f"--{name}", "***"]
    assert mask_text(f'{name} = "hunter2hunter2"') == f'{name} = "***"'
    assert mask_text("Ba\u017f\u0131c aHVudGVyMjpodW50ZXIy") == "Ba\u017f\u0131c ***"
