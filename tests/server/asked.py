"""What the known experiments (`tests.server.runs`) are asked, and what is found: of a server and of a directory alike."""

from __future__ import annotations

from tests.server.runs import LONG, NEW, OLD, VIT, WAVE

WHERE: list[tuple[str, list[str]]] = [
    ("val_loss < 0.3 and lr = 0.001", [NEW]),
    ("val_loss < 0.9", [OLD, NEW]),
    ("min(val_loss) < 0.8", [OLD, NEW]),
    ("min(loss) = 0.5", [OLD]),  # 0.5 on the way, 0.75 at the end
    ("loss = 0.75", [OLD]),
    ("max(metrics.loss) >= 3", [VIT, WAVE]),
    ("not loss < 1", [WAVE]),  # of wave 1.0 is last; vit's is NaN, long has none: not known
    ("loss = nan", [VIT]),
    ("loss != nan", [OLD, NEW, WAVE]),
    ("heat = inf", [VIT]),
    ("heat > 1e300", [VIT]),
    ("heat < inf", []),
    # `lr` is a parameter of new, and a metric there, too: the parameter counts, the prefix says otherwise.
    ("lr = 0.0005", []),
    ("metrics.lr = 0.0005", [NEW]),
    ("lr < 0.05", [NEW, WAVE]),
    ("lr = auto", [VIT]),
    ("lr != auto", [OLD, NEW, WAVE]),
    ("not lr < 0.05", [OLD]),
    ("lr = null", [LONG]),
    ("lr != null", [OLD, NEW, VIT, WAVE]),
    ("params.optimizer = 'adam'", [NEW, VIT]),
    ('optimizer = "adam" or optimizer = sgd', [OLD, NEW, VIT]),
    ("amp = true", [NEW]),
    ("amp = 0", [OLD]),
    ("amp != true", [OLD]),
    ("tags.model = resnet and tags.stage != dev", [NEW]),
    ("stage = prod", [NEW]),
    ("tags.removed = null and tags.model != null", [OLD, NEW, VIT]),
    ("seed > 1e21", [NEW]),  # 2 to the 70th is 1.18e21
    ("layers = 64", []),
    ("layers != 64", [OLD, NEW]),
    ("not layers = 64", [OLD, NEW]),
    ("loss != 0.75", [NEW, VIT, WAVE]),
    ("status = completed", [OLD, NEW]),
    ("simulated = true", [LONG]),
    ("duration_seconds > 40", [NEW, LONG, WAVE]),
    ("last_step < 3 and status = completed", [NEW]),
    ("project = speech or name = 'vit'", [VIT, WAVE]),
    ("id = run-old", [OLD]),
    ("user != ada", [VIT]),
    ("exit_code = 1", [WAVE]),
    ("exit_code = null", [VIT, LONG]),
    ('"child/loss" = 0.5', [WAVE]),
    ("child/loss <= 0.5 and not (status = completed)", [WAVE]),
    ("(val_loss < 0.3 or lr = 0.01) and (name = wave or name = resnet)", [NEW, WAVE]),
]
"""An expression, and the experiments of which it is so, archived ones too, the oldest first."""

WHERE_STALLED: list[tuple[str, list[str]]] = [("stalled = true or archived = true", [VIT, WAVE])]
"""Of servers alone."""

HINTS: list[tuple[str, str | None]] = [
    (
        "vall_loss < 0.3",
        "no experiment has a parameter, metric or tag called vall_loss; did you mean val_loss?",
    ),
    ("loss > 100", None),
    ("status = failed and name = vit", None),
    (
        "not (min(metrics.loss) > 100) and max(metrics.losses) > 1",
        "no experiment has a metric called losses; did you mean loss?",
    ),
    ("params.zzz = 1", "no experiment has a parameter called zzz"),
    ("tags.modle = resnet", "no experiment has a tag called modle; did you mean model?"),
]
"""An expression that is so of none, and what is said of its names."""

REFUSED: list[tuple[str, str]] = [
    ("loss < ", "column 8: expected a number or a text, found the end"),
    ("loss < abc and metrics.loss = abc", "column 31: a metric is a number"),
    (
        "status = done",
        "column 10: a status is one of running, completed, failed, stopped, crashed",
    ),
    ("status = stalled", "column 10: stalled is no status but a flag: write stalled = true"),
    ("archived = 1", "column 12: archived is true or false"),
    ("started > true", "column 11: true has no order: use = or !="),
    ("started = true", "column 11: started is a time: write 2024-03-20 or -2h"),
    ("last_step = ten", "column 13: last_step is a number"),
    (
        "tags.model < 3",
        "column 14: tags are texts: put the value in quotes to compare letters",
    ),
    ("min(loss) = nan", "column 13: loss is never nan"),
]
"""What is no expression, and why."""
