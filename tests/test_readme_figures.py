"""Every figure of the README and of docs/explanation/speed.md comes from a file in benchmarks/results: their sentences
and the README's table, as the evidence gives them.

When a file was measured anew, the failing test shows the sentence to write.
"""

import json
import re
import statistics
from pathlib import Path

import pytest

from shardline.benchmarks.bench_object_store import FAR, FAR_BLOCKS, LOCAL, NEAR, NEAR_BLOCKS, WARM
from shardline.benchmarks.fine_tuning import spread
from shardline.benchmarks.measure import CONTROL, load_results, ratio

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CPU = {(m.suite, m.name): m for m in load_results(RESULTS / "epyc-2-cores")}
SLEEPING = {(m.suite, m.name): m for m in load_results(RESULTS / "simulated_gpu")}
COMPARISONS = "from_scratch", "fine_tuning"
RECIPES = [load_results(RESULTS / name) for name in COMPARISONS]
H200 = json.loads((RESULTS / "h200" / "gpu_report.json").read_text())
DEMO = json.loads((RESULTS / "demo.json").read_text())
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "docs/explanation/speed.md")}
README, SPEED = PAGES

LOADERS, CONVERTERS, MEGAPIXELS = "input", "convert", "convert 12 megapixels"
OURS = "shardline host"
WORDS = {3: "three", 5: "five", 7: "seven", 9: "nine"}


def times(suite, ours, other):
    """Median, smallest and largest of the ratios within a turn."""
    return ratio(CPU[suite, ours], CPU[suite, other])


def median(suite, ours, other):
    return times(suite, ours, other)[0]


def per_cpu_second(suite, ours, other):
    a, b = CPU[suite, ours].cpu_seconds, CPU[suite, other].cpu_seconds
    return statistics.median(y / x for x, y in zip(a, b, strict=True))


def gpu(part, what):
    rows = [row for rows in H200.values() for row in rows if (row["part"], row.get("what")) == (part, what)]
    (row,) = [row for row in rows if "images_per_second" in row]
    return row


def demo():
    low, high = DEMO["top1_interval95"]
    minutes, seconds = divmod(DEMO["seconds"], 60)
    cores = {2: "two"}[DEMO["machine"]["cores"]]
    took = f"{minutes} min {seconds} s on {cores} cores with AVX512-BF16"
    yield f"Once installed, `make demo` needs some minutes ({took})"
    yield (
        f"after six epochs on {DEMO['training_images']} drawn images, scores {DEMO['top1']:.1%} on "
        f"{DEMO['test_images']} others (95% interval {low:.1%} to {high:.1%}; a nearest-mean-color classifier: "
        f"{DEMO['nearest_mean_color_top1']:.0%})"
    )


def one_gpu():
    synthetic, real = gpu("batches", "mixed_bfloat16, 128"), gpu("real", "default")
    yield (
        f"VGG16 trains {synthetic['images_per_second']:,.0f} images/s at 224 px (bfloat16, batches of 128, "
        f"augmentation on the GPU), {real['images_per_second']:,.0f} from JPEGs that 16 cores decode, waiting "
        f"{real['waiting_percent']:.1f}% of the time; determinism costs nothing, and runs repeat, also after a kill, "
        "to the same SHA-256"
    )


def sleeping_gpus():
    rows = [SLEEPING["simulated GPUs", f"shardline, {name}"] for name in ("1 replica", "8 replicas")]
    rate = rows[0].settings["step_rate"]
    one, eight = (row.median / (rate * n) for row, n in zip(rows, (1, 8), strict=True))
    yield (
        f"Of GPUs that only sleep through their work ({rate:,.0f} images/s each), the trainer keeps one busy for "
        f"{one:.1%} of the time and eight for {eight:.1%}"
    )


def loaders():
    """Beside other people's loaders."""
    torch = "PyTorch DataLoader + OpenCV"
    middle, low, high = times(LOADERS, OURS, torch)
    count = len(CPU[LOADERS, OURS].repeats)
    turns = WORDS.get(count, count)
    grain, tfds, dali, garden = (
        median(LOADERS, OURS, other)
        for other in ("Grain + ArrayRecord + OpenCV", "TFDS", "DALI on the CPU", "Model Garden, float32")
    )
    yield (
        f"shardline's default is {middle:.2f} times as fast as PyTorch's DataLoader with OpenCV, the fastest other "
        f"({low:.2f} to {high:.2f} in {turns} turns; per second of CPU {per_cpu_second(LOADERS, OURS, torch):.2f}), "
        f"{grain:.1f} times Grain with ArrayRecord, {tfds:.1f} times TFDS, {dali:.1f} times DALI, {garden:.1f} times a "
        "Model-Garden-style pipeline"
    )
    middle, low, high = times(LOADERS, OURS, "bare loop, whole images")
    yield (
        f"Of a bare loop that decodes whole images, crops, resizes and flips them, without shuffling and checks, it is "
        f"{middle:.2f} times ({low:.2f} to {high:.2f})"
    )


def converters():
    """Beside other people's converters."""
    loop, turns = "plain loop", WORDS[len(CPU[CONVERTERS, "shardline"].repeats)]
    middle, low, high = times(CONVERTERS, "shardline", loop)
    tfds, mds, img2dataset = (
        median(CONVERTERS, "shardline", other) for other in ("TFDS builder", "MDSWriter", "img2dataset")
    )
    yield (
        f"it is {middle:.2f} times as fast as the plain OpenCV loop ({low:.2f} to {high:.2f} in {turns} runs that took "
        f"turns of a quarter of a second; control {median(CONVERTERS, CONTROL, loop):.2f}), {tfds:.2f} times TFDS's "
        f"builder, {mds:.2f} times MDSWriter and {img2dataset:.1f} times img2dataset"
    )
    two = median("scaling of the converter", "shardline, 2 workers on 2 cores", "shardline")
    yield f"two cores convert {two:.1f} times as fast as one"
    yield f"of 12-megapixel photographs {median(MEGAPIXELS, 'shardline', loop):.1f} times the loop"
    yield (
        f"medians of the same thing measured twice differ by up to {100 * max(map(stray, quoted_suites())):.0f}% there"
    )


def stores():
    """An object store beside a folder."""
    suite, rates = "object_store", {}
    for name in (WARM, NEAR, FAR, NEAR_BLOCKS, FAR_BLOCKS, CONTROL):
        rates[name] = times(suite, name, LOCAL)
    yield (
        f"shardline reads it {rates[WARM][0]:.2f} times as fast as from a folder once its shards are in the cache "
        f"({rates[WARM][1]:.2f} to {rates[WARM][2]:.2f} in {WORDS[len(CPU[suite, LOCAL].repeats)]} turns), "
        f"{rates[NEAR][0]:.2f} times when none is, and {rates[FAR][0]:.2f} times when each answer comes 50 ms late "
        f"({rates[FAR][1]:.2f} to {rates[FAR][2]:.2f})"
    )
    yield (
        f"In blocks, with a cache for half of the shards, it is {rates[NEAR_BLOCKS][0]:.2f} times, and "
        f"{rates[FAR_BLOCKS][0]:.2f} times 50 ms away; the folder, measured twice, {rates[CONTROL][0]:.2f} times itself"
    )


def beside():
    """The rows of the README's table: the fastest others first, then the same thing measured twice."""
    jobs = (
        ("reading", LOADERS, OURS, OURS),
        ("converting", CONVERTERS, "shardline", "plain loop"),
    )
    for job, suite, ours, reference in jobs:
        others = {name: times(suite, ours, name) for name in NAMES[suite]}
        for name in sorted(others, key=others.get):
            yield row(NAMES[suite][name], job, others[name])
        yield row("*control: one program, measured twice*", job, times(suite, CONTROL, reference))


def recipes():
    """What is learned in equal wall time: mean, lowest and highest of the seeds."""
    for found in RECIPES:
        for run in found:
            seconds, named = run.settings["wall_seconds"], re.match(r"--recipe=(\w+)", run.what)
            what = f"`{named[1]}`: {run.name}" if named else "Keras's `fit`"
            yield (
                f"| {what} | {'fresh' if run.settings['weights'] == 'none' else 'pretrained'} | "
                f"{run.settings['image_size']} px | {min(seconds):.0f} to {max(seconds):.0f} s | "
                f"{spread(run.repeats)} | {spread(run.settings['flip_top1'])} |"
            )


def row(what, job, found):
    middle, low, high = found
    return f"| {what} | {job} | {middle:.2f} ({low:.2f} to {high:.2f}) |"


NAMES = {
    LOADERS: {
        "PyTorch DataLoader + OpenCV": "PyTorch's DataLoader, OpenCV",
        "webdataset + OpenCV": "webdataset, OpenCV",
        "Grain + ArrayRecord + OpenCV": "Grain with ArrayRecord, OpenCV",
        "TFDS": "TFDS",
        "DALI on the CPU": "DALI on the CPU",
        "MosaicML Streaming + OpenCV": "MosaicML Streaming, OpenCV",
        "Model Garden, float32": "tf.data as in TensorFlow's Model Garden, to float32",
        "Keras from directory, float32": "Keras's `image_dataset_from_directory`, to float32, squashed, not cropped",
    },
    CONVERTERS: {
        "plain loop": "a plain OpenCV loop",
        "TFDS builder": "TFDS's builder",
        "MDSWriter": "MosaicML Streaming's MDSWriter, OpenCV",
        "webdataset": "webdataset's writer, OpenCV",
        "img2dataset": "img2dataset",
    },
}


def stray(suite):
    """How far a suite's control strays from its reference."""
    settings = {"input": OURS, "scaling of the converter": "shardline"}
    return abs(median(suite, CONTROL, settings.get(suite, "plain loop")) - 1)


def quoted_suites():
    return LOADERS, CONVERTERS, MEGAPIXELS, "scaling of the converter"


CLAIMS = [
    (page, source.__name__, claim)
    for page, sources in {
        README: (demo, beside, one_gpu, recipes),
        SPEED: (loaders, stores, converters, one_gpu, sleeping_gpus),
    }.items()
    for source in sources
    for claim in source()
]


@pytest.mark.parametrize(
    ("page", "claim"),
    [(page, claim) for page, _, claim in CLAIMS],
    ids=[f"{Path(page).stem}-{name}{number}" for number, (page, name, _) in enumerate(CLAIMS)],
)
def test_a_page_says_what_the_evidence_gives(page, claim):
    assert claim in " ".join(PAGES[page].split()), f"{page} has to say:\n{claim}"


@pytest.mark.parametrize("page", PAGES)
def test_no_other_figure_stands_there(page):
    prose = " ".join(re.sub(r"```.*?```|Python 3\.\d+ to 3\.\d+", " ", PAGES[page], flags=re.DOTALL).split())
    for _, _, claim in CLAIMS:
        prose = prose.replace(claim, " ")
    pattern = r"\d[\d,.]*(?: ?%| times| images/s|/s\b| points| min\b| seconds)|\d\.\d\d"
    figures = re.findall(pattern, re.sub(r"`[^`]*`", " ", prose))
    assert figures == [], f"figures without evidence: {figures}"


def test_the_table_leaves_out_no_other_tool():
    """Beside rows that decode only, or whose images are read by the slower of two libraries."""
    for suite, less in (
        (LOADERS, {"TensorFlow, decode only", "bare loop, whole images", "PyTorch DataLoader + Pillow"}),
        (CONVERTERS, set()),
    ):
        measured = {name for found, name in CPU if found == suite and not name.startswith(("shardline", "control"))}
        assert measured - less == set(NAMES[suite])


def test_the_readme_is_one_screen():
    assert len(PAGES[README].splitlines()) < 120


def test_others_are_named_honestly():
    """The fastest other loader and converter are among those that the sentences name."""
    others = {
        name: median(suite, name, OURS)
        for suite, name in CPU
        if suite == LOADERS and not name.startswith(("shardline", "TensorFlow", "bare loop", "control"))
    }
    assert max(others, key=others.get) == "PyTorch DataLoader + OpenCV"
    others = {
        name: median(suite, name, "plain loop")
        for suite, name in CPU
        if suite == CONVERTERS and not name.startswith(("shardline", "plain", "control"))
    }
    assert max(others, key=others.get) == "TFDS builder"


def test_the_same_bits_on_a_gpu_are_in_the_evidence():
    rows = [row for rows in H200.values() for row in rows if row["part"] == "same_bits" and "weights_sha256" in row]
    assert len(rows) == 3 and len({row["weights_sha256"] for row in rows}) == 1 and "killed" in rows[2]["what"]
    with_it, without = gpu("batches", "mixed_bfloat16, 128"), gpu("nondeterministic", "--nodeterministic")
    assert with_it["images_per_second"] >= 0.99 * without["images_per_second"]  # "determinism costs nothing"


def test_recipes_were_compared_on_one_machine_and_by_one_clean_commit():
    lines = [line for name in COMPARISONS for line in (RESULTS / name / "results.jsonl").read_text().splitlines()]
    machines = {(m["cpu"], m["cores"], m["commit"]) for m in (json.loads(line)["machine"] for line in lines)}
    assert len(machines) == 1 and not str(machines).count("-dirty")


def test_every_published_suite_is_of_one_clean_commit():
    commits = {}
    for line in (RESULTS / "epyc-2-cores" / "results.jsonl").read_text().splitlines():
        row = json.loads(line)
        commits.setdefault(row["suite"], set()).add(row["machine"]["commit"])
    assert all(len(found) == 1 for found in commits.values()), commits
    assert not {suite for suite, (commit,) in commits.items() if commit.endswith("-dirty")}
