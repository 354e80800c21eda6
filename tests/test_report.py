"""gpt2flat report: one page that holds everything, loads and runs nothing, and shows untrusted text as text."""

from html.parser import HTMLParser

import pytest
from made_runs import HOSTILE, make, train, update

from gpt2flat.inspection import page
from gpt2flat.inspection.chart import panel_svg
from gpt2flat.inspection.curves import PANELS
from gpt2flat.inspection.runs import open_run
from gpt2flat.report import main

TAGS = set("html head meta title style body main h1 h2 h3 p section div span b i figure svg path text polyline circle rect details "
           "summary pre table tr td th".split())  # fmt: skip
VOID = {"meta"}
ATTRIBUTES = set("lang charset http-equiv content name class style viewbox role d x y width height points cx cy r fill fill-opacity "
                 "stroke stroke-width text-anchor font-family font-size font-weight open xmlns".split())  # fmt: skip


class Reader(HTMLParser):
    """Fails on any tag or attribute that could load or run something, and on tags that do not close in order."""

    def __init__(self, document: str):
        super().__init__()
        self.open, self.words, self.tags = [], [], []
        self.feed(document)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert tag in TAGS and {name for name, _ in attributes} <= ATTRIBUTES, (tag, attributes)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def read(document: str) -> Reader:
    assert "url(" not in document and "@import" not in document and "javascript" not in document.lower()
    return Reader(document)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("report") / "one", "--checkpoint-every", "4")


def test_a_page_holds_everything(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(run)]) == 0 and capsys.readouterr().out == "one.html\n"
    found = read((tmp_path / "one.html").read_text())
    words = " ".join(found.words)
    for title in ("Curves", "Samples", "Memory", "What happened", "Checkpoints", "Settings", "Machine"):
        assert title in found.words
    assert (
        "finished" in words
        and "512 tokens" in words.replace("  ", " ")
        and "step_00000008" in words
        and "all sizes as in its manifest" in words
    )
    assert [w for w in found.words if w.startswith("step ")] == ["step 8", "step 4"] and found.tags.count("pre") == 2
    assert (
        {panel.title for panel in PANELS} <= set(found.words)
        and found.tags.count("polyline") == 5
        and "qkvw" in found.words
    )
    assert open_run(run).env["cpu"] in words and "weight_decay" in found.words and "stopped: finished" in words


def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    for name in ("a", "b"):
        assert main([str(run), "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_untrusted_text_stays_text(tmp_path):
    from gpt2flat.training.config import toml

    records = [update(0), {"step": 0, "sample": HOSTILE * 2}, {"step": 1, "control": {HOSTILE: [HOSTILE]}}, {"step": 1, HOSTILE: HOSTILE},
               {"step": 2, "sample": "\ud800"}, {"step": 2, "stopped": HOSTILE}]  # fmt: skip
    run = make(
        tmp_path / HOSTILE.replace("/", "|"),
        records,
        toml({"init": HOSTILE, "steps": 3}),
        {"cpu": HOSTILE, HOSTILE: [HOSTILE]},
    )
    document = page.page(open_run(run))
    found = read(document)
    assert "alert" in " ".join(found.words) and document.count("<script") == 0 and found.tags.count("pre") == 2
    assert not set(document) & {chr(c) for c in [*range(10), *range(11, 32), *range(127, 160), 0x202E, 0x2028, 0xD800]}
    assert any(
        "</pre><script>alert(1)</script>\\x1b]0;x\\x07 $\\frac{ \\u202e\\u2028 <b onclick=x>" in words
        for words in found.words
    )


@pytest.mark.parametrize("name, records, config", [
    ("empty", [], ""),
    ("broken", ["{", "[", ""], "steps = 'x'\nn_layer = 1.5\nbatch_size = [1]\n"),
    ("huge", [update(0)], "n_layer = 9999999999999999999\n"),
    ("too large", [update(0)], "n_layer = 1024\nn_head = 1\nn_embd = 65536\nblock_size = 65536\nvocab_size = 1000\nbatch_size = 1\nseq_len = 1\n"),
    ("zeros", [update(i, loss=0, lr=0, grad_norm=0, tokens_per_s=0, ms=0) for i in range(9)], ""),
    ("large", [update(i, loss=9e99, lr=9e99, grad_norm=9e99, tokens_per_s=9e99, ms=9e99) for i in range(9)], ""),
    ("small", [update(i, loss=1e-320, lr=1e-320, grad_norm=1e-320, tokens_per_s=1e-320) for i in range(9)], ""),
    ("same", [update(i, loss=1e16) for i in range(9)], ""),
    ("far", [update(i * 10**15) for i in range(9)], ""),
    ("long", [r for i in range(3000) for r in (update(i), {"step": i, "val_loss": 3.0}, {"step": i, "sample": "x" * 30_000 * (i == 2999)})], ""),
])  # fmt: skip
def test_odd_runs(tmp_path, name, records, config):
    found = read(page.page(open_run(make(tmp_path / name, records, config))))
    words = " ".join(found.words)
    assert (
        ("No update yet" in words) == (name in ("empty", "broken"))
        and "nan" not in words.split()
        and "cannot be drawn here" in words
    )
    if name == "long":
        assert found.tags.count("pre") == page.SAMPLES and "40 of 3000." in words and found.tags.count("circle") == 0
        assert max(map(len, found.words)) < 21_000 and "step 2,999" in words and "step 0" in words


def test_a_chart_fits_its_frame(tmp_path):
    records = [update(i, grad_norm=10.0 ** (i % 5), loss=5 - i / 100 + (i == 200) * 99) for i in range(300)]
    history = open_run(make(tmp_path / "run", [*records, {"step": 300, "val_loss": 2.5}])).history
    for panel in PANELS:
        svg = panel_svg(panel, history, 9)
        points = [
            tuple(map(float, p.split(","))) for part in svg.split('points="')[1:] for p in part.split('"')[0].split()
        ]
        assert len(points) > 50 and all(40 < x < 480 and 5 < y < 245 for x, y in points)
        assert 3 <= svg.count('class="grid"') <= 12
    assert '<circle class="val"' in panel_svg(PANELS[0], history, 9) and "2.5000 at step 300" in panel_svg(
        PANELS[0], history, 9
    )


@pytest.mark.parametrize(
    "argv, code, says",
    [([], 2, "RUN"), (["absent"], 5, "is no run directory"), (["RUN", "--out", "no/x.html"], 5, "no/x.html")],
)
def test_what_is_wrong_is_one_line(run, capsys, argv, code, says):
    capsys.readouterr()
    assert main([str(run) if word == "RUN" else word for word in argv]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and says in error
