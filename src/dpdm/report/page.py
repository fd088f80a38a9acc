"""The page itself: one HTML file that needs no network, from the facts and the release's own images."""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from PIL import Image

from dpdm.evaluation import image_grid
from dpdm.files import read_json, write_atomically, write_json
from dpdm.privacy.accounting import downwards, upwards
from dpdm.report.charts import bar_chart, line_chart, roc_chart
from dpdm.report.facts import gather
from dpdm.runs import Release
from dpdm.runs.run_folder import release_folder
from dpdm.runs.verification import percent
from dpdm.types import Images, InputError

_PER_CLASS, _MOST_CLASSES = 20, 20
_CLASSIFIERS = {"logreg": "logistic regression", "mlp": "MLP", "cnn": "CNN"}


def write_report(run: Path, output: Path, *, scores: Path | None = None, private: bool = False) -> None:
    """Write the page to `output`, and the facts beside it as JSON; each wholly or not at all.

    Args:
        run: A finished run's folder, or its `release/`.
        output: A file name that ends in .html; its twin gets .json.
        scores: What `dpdm evaluate --json` printed, in a file.
        private: Whether losses, norms, an audit's findings and its pictures come in.

    Raises:
        InputError: See `gather`; or `output` is no .html name.
    """
    if output.suffix != ".html":
        raise InputError(f"{output}: a report's name must end in .html")
    twin = output.with_suffix(".json")
    if twin.exists() and "audience" not in read_json(twin):
        raise InputError(f"{twin} exists and is no report's: choose another name for the page, its twin goes there")
    if output.resolve().parent == release_folder(run).resolve():
        raise InputError(f"{output} would lie in the release, which holds nothing but its own files: choose another -o")
    facts, release = gather(run, scores=scores, private=private)
    nearest = run / "private" / "audit" / "nearest.png"
    picture = nearest.read_bytes() if private and nearest.is_file() else None
    output.parent.mkdir(parents=True, exist_ok=True)
    page = render(facts, release, nearest=picture)
    write_json(twin, facts)
    write_atomically(output, lambda path: path.write_text(page, encoding="utf-8"))


def render(facts: dict[str, Any], release: Release, *, nearest: bytes | None = None) -> str:
    """Return the page.

    Args:
        facts: What `gather` returned.
        release: Whose images are shown.
        nearest: A PNG of generated images beside the nearest training images: private.
    """
    claim, here = facts["claim"], files("dpdm.report")
    private = facts.get("private")
    parts = [
        f"<h1>Images like {escape(facts['name'])}, at ε ≤ {upwards(claim['epsilon'])}</h1>",
        f'<p class="claim">{escape(claim["statement"])}</p>',
        '<p class="warn">PRIVATE: for the data owner alone. Losses, norms and audits are covered by no ε.</p>'
        if private
        else '<p class="soft">Everything on this page may be published'
        + (", but for its scores if they come of private images: see there.</p>" if facts["scores"] else ".</p>"),
        _claim(claim),
        _samples(release),
        _budget(facts),
        _scores(facts["scores"], release.facts.class_names),
        *([] if private is None else [_training(private["metrics"]), _audit(private["audit"], claim, nearest)]),
        _secrets(),
        _configuration(facts),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f'<link rel="icon" href="data:,"><title>{escape(facts["name"])}: images under differential privacy</title>'
        f"<style>{here.joinpath('page.css').read_text(encoding='utf-8')}</style></head><body><main>{''.join(parts)}"
        f"</main><script>{here.joinpath('page.js').read_text(encoding='utf-8')}</script></body></html>\n"
    )


def _claim(claim: dict[str, Any]) -> str:
    numbers = [("ε at most", upwards(claim["epsilon"])), ("δ", str(claim["delta"]))]
    numbers.append(("as likely at most", _times(claim["factor"])))
    for false, true in claim["true_positive_rates"].items():
        numbers.append((f"found at {100 * float(false):g} % false alarms", percent(true)))
    boxes = "".join(f"<div>{escape(name)}<b>{value}</b></div>" for name, value in numbers)
    return (
        '<h2>What is promised</h2><div class="numbers">' + boxes + "</div>"
        f"<p>{escape(claim['protects'])}</p><p>{escape(claim['bounds'])}</p>"
        f'<p class="soft">ε was computed anew from the events for this page: {upwards(claim["epsilon"])} by privacy '
        f"loss distributions, {upwards(claim['epsilon_rdp'])} by Rényi accounting. That training ran as its files say, "
        "no file can show.</p>"
    )


def _samples(release: Release) -> str:
    names = release.facts.class_names or ("all",)
    shown = names[:_MOST_CLASSES]
    labels = np.repeat(np.arange(len(shown)), _PER_CLASS)
    images, _ = release.sample(len(labels), labels=labels, seed=0)
    rows, buttons = [], []
    for label, name in enumerate(shown):
        png = _png(images[label * _PER_CLASS :][:_PER_CLASS])
        rows.append(
            f'<figure class="class" data-class="{label}"><figcaption>{escape(name)}</figcaption>'
            f'<img alt="{_PER_CLASS} generated images of {escape(name)}" src="{png}"></figure>'
        )
        buttons.append(f'<button data-class="{label}" aria-pressed="false">{escape(name)}</button>')
    every = '<button data-class="" aria-pressed="true">every class</button>'
    choice = f'<div class="filter">{every}{"".join(buttons)}</div>' if len(shown) > 1 else ""
    more = f" The first {len(shown)} of {len(names)} classes." if len(names) > len(shown) else ""
    return (
        f'<h2>What it draws</h2><p class="soft">The first {_PER_CLASS} images of each class, none picked.{more} '
        f"They carry the claim; no real image is among them.</p>{choice}{''.join(rows)}"
    )


def _budget(facts: dict[str, Any]) -> str:
    parts = ["<h2>Where the budget went</h2>"]
    if facts["spent"]:
        points = [(row["step"], row["epsilon"]) for row in facts["spent"]]
        chart = line_chart(
            points, title="ε against steps", x_label="step", y_label="ε", limit=facts["claim"]["epsilon"], said=upwards
        )
        parts.append(f'<div class="chart">{chart}<output></output></div>')
    rows = [(row["part"], row["epsilon_alone"]) for row in facts["budget"]]
    chart = bar_chart(rows, title="What each part would cost alone", said=upwards)
    parts.append(
        f'<h3>What each part would cost alone, as ε</h3><div class="chart">{chart}<output></output></div>'
        '<p class="soft">They do not add up: together they cost the ε of the claim.</p>'
    )
    return "".join(parts)


def _scores(scores: dict[str, Any] | None, classes: Sequence[str]) -> str:
    head = "<h2>How good the images are</h2>"
    if scores is None:
        return head + '<p class="soft">No scores were given: <code>dpdm evaluate … --json</code> computes them.</p>'
    baseline = scores.get("baseline")
    columns = ["trained on", *[name for key, name in _CLASSIFIERS.items() if key in scores]]
    rows = [["synthetic", *_accuracies(scores)]]
    if baseline:
        rows.append([f"real ({baseline['source']})", *_accuracies(baseline)])
    if found := scores.get("dp_sgd"):
        name = f"real, its own CNN by DP-SGD at ε = {upwards(found['epsilon'])}"
        rows.append([name, *[""] * (len(columns) - 2), f"{100 * found['accuracy']:.1f}"])
    parts = [
        head,
        '<p class="warn">Scores were computed from real images, and ε does not cover them. If those are private, '
        "so is this page.</p>",
        f"<p>Accuracy in % of classifiers on {escape(str(scores['reference']))} [95 % of resamples]"
        f"{', after few epochs' if scores.get('quick') else ''}.</p>",
        _table(columns, rows),
        _by_class(scores, classes),
    ]
    bars = [(name, 100 * scores[key]["accuracy"]) for key, name in _CLASSIFIERS.items() if key in scores]
    if bars:
        title = "Accuracy of classifiers trained on synthetic images"
        marks = [100 * baseline[key]["accuracy"] for key in _CLASSIFIERS if key in scores] if baseline else []
        chart = bar_chart(bars, title=title, said=_percents, most=100.0, references=marks)
        said = "<p class='soft'>Dashed: trained on real images.</p>" if marks else ""
        parts.append(f'<div class="chart">{chart}<output></output></div>{said}')
    for key, name in _CLASSIFIERS.items():
        if scores.get(key, {}).get("confusion"):
            table = _confusion(scores[key]["confusion"], classes)
            parts.append(f"<details><summary>Answers of the {name}, class by class</summary>{table}</details>")
    if fidelity := scores.get("fidelity"):
        parts.append(_fidelity(fidelity, baseline.get("fidelity") if baseline else None))
    return "".join(parts)


def _by_class(scores: dict[str, Any], classes: Sequence[str]) -> str:
    """Return balanced accuracies, and the recall of each class; nothing for scores that do not say them."""
    found = {name: scores[key] for key, name in _CLASSIFIERS.items() if "recalls" in scores.get(key, {})}
    if not found:
        return ""
    first = next(iter(found.values()))
    rows = [["balanced accuracy", *(f"{100 * score['balanced_accuracy']:.1f}" for score in found.values())]]
    for place, name in enumerate(classes):
        recalls = [score["recalls"][place] for score in found.values()]
        rows.append([f"recall of {name}", *("" if recall is None else f"{100 * recall:.1f}" for recall in recalls)])
    return (
        f"<p>Always answering the largest class would be right for {100 * first['largest_class']:.1f} %. Balanced "
        "accuracy is the mean of the recalls: each class counts the same.</p>"
        f"<details><summary>Balanced accuracy and the recall of each class, in %</summary>"
        f"{_table(['', *found], rows)}</details>"
    )


def _fidelity(fidelity: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    names = [key for key, value in fidelity.items() if isinstance(value, dict) and "value" in value]
    rows = []
    for name in names:
        row = [name, _interval(fidelity[name])]
        rows.append([*row, _interval(baseline[name])] if baseline else row)
    columns = ["", "synthetic", *(["real"] if baseline else [])]
    return (
        f"<h3>Fidelity on {escape(str(fidelity['features']))}, {fidelity['num_images']:,} images of each</h3>"
        + _table(columns, rows)
        + f'<p class="soft digest">Features: {escape(str(fidelity["digest"]))}</p>'
    )


def _training(metrics: list[dict[str, Any]]) -> str:
    parts = ["<h2>Losses and norms <span class='warn'>(private)</span></h2>"]
    for key, name in (("loss", "mean loss"), ("median_grad_norm", "median norm"), ("clipped", "part clipped")):
        points = [(row["step"], row[key]) for row in metrics if row.get(key) is not None]
        if points:
            chart = line_chart(points, title=f"{name} against steps", x_label="step", y_label=name)
            parts.append(f'<div class="chart">{chart}</div>')
    return "".join(parts) if len(parts) > 1 else parts[0] + "<p>No network was trained.</p>"


def _audit(audit: dict[str, Any] | None, claim: dict[str, Any], nearest: bytes | None) -> str:
    head = "<h2>Audit <span class='warn'>(private)</span></h2>"
    if audit is None:
        return head + "<p>Not audited: <code>dpdm audit</code> attacks the claim.</p>"
    white, rows = audit["white_box"], []
    audited = audit["audited"]
    rows.append(["claimed by the run", upwards(claim["epsilon"])])
    if not audited["whole"]:
        rows.append([f"cost of what was audited by itself, {audited['part']}", upwards(audited["epsilon"])])
    rows.append([f"proved by {white['canaries']:,} canaries in one run", downwards(white["one_run"])])
    rows.append(["proved by them, Clopper-Pearson", downwards(white["clopper_pearson"])])
    rows.append(["estimated, if the trade-off is Gaussian", downwards(white["gaussian"])])
    attacks = {
        name: [(rate["false_positive_rate"], rate["true_positive_rate"]) for rate in found["rates"]]
        for name, found in audit["black_box"].items()
    }
    ceiling = [(row["false_positive_rate"], row["true_positive_rate"]) for row in audit["ceiling"]]
    findings = "".join(f'<p class="warn">{escape(finding)}</p>' for finding in audit["findings"])
    said = f"<p>Audited: {escape(audited['scope'])}.</p>{findings}<p>{escape(audit['conclusion'])}</p>"
    parts = [head, said, _table(["", "ε"], rows)]
    parts.append(
        f'<h3>Attacks on the generator</h3><div class="chart">{roc_chart(attacks, ceiling)}<output></output></div>'
    )
    checks = [
        ["ok" if check["passed"] else "FAILED", check["name"], f"{check['value']:.6g}", f"{check['expected']:g}"]
        for check in audit["parametric"]
    ]
    parts.append(
        "<details><summary>Statistics of the mechanism</summary>"
        + _table(["", "", "measured", "expected"], checks)
        + "</details>"
    )
    if nearest is not None:
        data = base64.b64encode(nearest).decode()
        parts.append(
            "<h3>Generated images beside the nearest training images</h3><figure class='class'>"
            f'<img alt="Pairs, generated and nearest training image" src="data:image/png;base64,{data}"></figure>'
        )
    return "".join(parts)


def _secrets() -> str:
    rows = [
        ["release/: settings, weights, the claim", "public: post-processing of noisy sums"],
        ["watch/: steps, ε, learning rate, pictures", "public, for the same reason"],
        ["every image ever sampled", "public"],
        ["private/: losses, norms, journal, checkpoint, audits", "secret: covered by no noise"],
        ["scores against private images", "secret: they look at the images again"],
    ]
    return "<h2>What is secret and what is not</h2>" + _table(["what", "who may see it"], rows)


def _configuration(facts: dict[str, Any]) -> str:
    versions = [[name, value] for name, value in {**facts["versions"], **facts["machine"]}.items()]
    settings = tomli_w.dumps(facts["settings"])
    return (
        f"<h2>Configuration</h2><p>{facts['parameters']:,} parameters; images of "
        f"{' × '.join(map(str, facts['shape']))} (channels, height, width). How long training took is not said: it "
        "depends on how many images each step drew.</p>"
        f"<details><summary>All settings</summary><pre>{escape(settings)}</pre></details>"
        f"<details><summary>Versions of what wrote this page</summary>{_table(['', ''], versions)}</details>"
    )


def _accuracies(scores: dict[str, Any]) -> list[str]:
    found = [scores[key] for key in _CLASSIFIERS if key in scores]
    return [f"{100 * s['accuracy']:.1f} [{100 * s['low']:.1f}, {100 * s['high']:.1f}]" for s in found]


def _percents(value: float) -> str:
    return f"{value:.3g} %"


def _times(factor: float) -> str:
    """Say a bound as a factor, rounded up to three digits."""
    step = 10.0 ** (math.floor(math.log10(factor)) - 2)
    above = math.ceil(factor / step) * step
    return f"{above:,.0f} ×" if 1000 <= above < 1e9 else f"{above:.3g} ×"


def _interval(score: dict[str, Any]) -> str:
    if score.get("low") is None:
        return f"{score['value']:.4g}"
    return f"{score['value']:.4g} [{score['low']:.4g}, {score['high']:.4g}]"


def _confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    rows = []
    for name, row in zip(classes, counts, strict=True):
        whole = max(1, sum(row))
        cells = "".join(
            f'<td class="heat" style="background:color-mix(in srgb, var(--accent) {round(45 * n / whole)}%, '
            f'transparent)" title="{escape(name)} taken for {escape(other)}">{n}</td>'
            for other, n in zip(classes, row, strict=True)
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in classes)
    return (
        f'<div class="scroll"><table class="heat"><thead><tr><th>true, answered</th>{head}</tr></thead>'
        f"{''.join(rows)}</table></div>"
    )


def _table(columns: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _png(images: Images) -> str:
    """Return one row of images as a data URL."""
    grid = image_grid(images, columns=len(images), scale=max(1, 64 // images.shape[1]))
    kept = grid[..., 0] if grid.shape[2] == 1 else grid
    with io.BytesIO() as stream:
        Image.fromarray(np.ascontiguousarray(kept)).save(stream, "PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
