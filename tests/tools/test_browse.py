"""The page of a dataset: who may read it, what it shows, and that it shows what is stored."""

import html.parser
import http.client
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode, urlsplit

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as parquet
import pytest

from shardline import pipeline
from shardline.pipeline.errors import UsageError
from shardline.pipeline.shards import Shards
from shardline.tools.adopt import AdoptConfig, adopt
from shardline.tools.browse import BrowseConfig, browse
from shardline.tools.conversion.run import convert
from shardline.trainer.evaluation import results
from shardline.trainer.evaluation.inference import Predictions
from shardline.trainer.evaluation.leakage import Leakage
from tests.browser import Browser
from tests.pipeline.tiny import payloads, write_dataset
from tests.test_scripts import BIN
from tests.tools.folders import Run, config, draw

MARKUP = "<img src=x onerror=alert(1)>\"'&"


def photos(folder):
    """Two classes, one with a hostile name; a copy, a look-alike, two broken files and one that is too small."""
    for number in range(12):
        draw(folder / "plain" / f"{number}.png", number, 40 + number, 60)
        draw(folder / MARKUP / f"{number}.png", 100 + number, 60, 40 + number)
    shutil.copy(folder / "plain" / "3.png", folder / "plain" / "3 again.png")
    image = cv2.imread(str(folder / "plain" / "4.png"))
    cv2.imwrite(str(folder / "plain" / "4 brighter.png"), np.minimum(image, 251) + 4)
    (folder / "plain" / f"{MARKUP.replace('/', '')}.jpg").write_bytes(b"no image")
    (folder / "plain" / "cut.png").write_bytes((folder / "plain" / "5.png").read_bytes()[:60])
    draw(folder / "plain" / "small.png", 999, 20, 20)
    return folder


def converted(folder, encoding):
    image = {"encoding": encoding, "min_side": 30, "size": 32}
    splits = {"train": 0.6, "test": 0.4}
    convert(config(photos(folder / "s"), folder / "d", image=image, splits=splits, duplicates="drop"))
    return folder / "d"


@pytest.fixture(scope="module", params=["jpeg", "png", "raw"])
def encoded(request, tmp_path_factory):
    return converted(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("browse"), "jpeg")


def evaluated(data, folder, split="test", seed=0):
    """What shardline-evaluate writes, of a model that guesses."""
    dataset = pipeline.open_dataset(data)
    number = dataset.num_records(split)
    rows = list(dataset.records(split, range(number)))
    shares = np.random.default_rng(seed).random((number, len(dataset.labels))).astype(np.float32)
    predictions = Predictions(
        np.arange(number), np.array([label for _, label, _ in rows]), shares / shares.sum(1, keepdims=True), number
    )
    paths = [path for _, _, path in rows]
    evaluation = results.compute(predictions, split, dataset.labels, paths, Leakage((), "not searched for"))
    evaluation.metrics.update(run="run", digest=dataset.manifest.digest, weights={"step": 3, "sha256": "0" * 64})
    folder.mkdir(parents=True)
    results.write(evaluation, {}, folder)
    return predictions


class Page:
    """A served page and a client of it."""

    def __init__(self, data, **settings):
        self.server = browse(BrowseConfig(data=data, **settings))
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.root = f"/{self.server.token}/"

    def ask(self, path, method="GET", **headers):
        """Status, headers and body of any request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=60)
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, response.headers, body

    def get(self, path, **query):
        """Type and body of what stands there."""
        status, headers, body = self.ask(self.root + path + ("?" + urlencode(query) if query else ""))
        assert status == 200, (status, body)
        return headers["Content-Type"], body

    def total(self, **query):
        return int(re.search(r"of ([\d,]+)</strong>", self.get("", **query)[1].decode())[1].replace(",", ""))

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve():
    pages = []

    def start(data, **settings):
        pages.append(Page(data, **settings))
        return pages[-1]

    yield start
    for page in pages:
        page.close()


class Tags(html.parser.HTMLParser):
    """Elements of a page, the values of its options, and its text."""

    def __init__(self, body):
        super().__init__()
        self.tags, self.options, self.text, self._select = [], {}, "", ""
        self.feed(body.decode())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "select":
            self._select = dict(attributes)["name"]
        if tag == "option":
            self.options.setdefault(self._select, {})[dict(attributes)["value"]] = ""

    def handle_data(self, text):
        self.text += text
        if self.tags and self.tags[-1][0] == "option":
            values = self.options[self._select]
            values[list(values)[-1]] += text


# ------------------------------------------------------------------------------------------------- who may read


def test_only_who_has_the_address_is_answered(data, serve):
    page = serve(data)
    own = f"127.0.0.1:{page.server.server_port}"
    token = page.server.token
    for path in (
        "/",
        "/image/0",
        f"/{token[:-1]}/",
        f"/{token}x/",
        f"/x/../{token}/",
        "/%00/",
        "*",
        f"/?{token}",
    ):
        assert page.ask(path)[0] == 403, path
    for host in (
        "evil.example",
        f"evil.example:{page.server.server_port}",
        "127.0.0.1",
        f"{own}.evil.example",
        f"x@{own}",
        "",
    ):
        assert page.ask(page.root, Host=host)[0] == 403, host
    for host in (own, f"localhost:{page.server.server_port}", own.upper()):
        assert page.ask(page.root, Host=host)[0] == 200, host
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT"):
        assert page.ask(page.root, method)[0] == 501, method
    assert len(token) == 32 and serve(data).server.token != token
    assert page.server.server_address[0] == "127.0.0.1"


def test_two_host_headers_or_none_are_refused(data, serve):
    page = serve(data)
    own = f"Host: 127.0.0.1:{page.server.server_port}\r\n"
    for headers, status in ((own, b"200"), (own + "Host: evil.example\r\n", b"403"), ("", b"403")):
        with socket.create_connection(page.server.server_address) as connection:
            connection.sendall(f"GET {page.root} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n".encode())
            assert connection.makefile("rb").readline().split()[1] == status


def test_every_answer_keeps_others_out(data, serve):
    page = serve(data)
    for path in ("/", page.root, page.root + "image/0", page.root + "record/0", page.root + "nothing"):
        _, headers, body = page.ask(path, Origin="http://evil.example")
        assert "default-src 'none'" in headers["Content-Security-Policy"] and "unsafe" not in str(headers)
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert not [name for name in headers if name.lower().startswith("access-control")]
        assert page.server.token.encode() not in body
    assert page.ask(page.root.rstrip("/"))[1]["Location"] == page.root


def test_a_single_use_address_leads_to_the_page_once(data, serve):
    page = serve(data)
    path = urlsplit(page.server.single_use_url()).path
    status, headers, _ = page.ask(path)
    assert (status, headers["Location"]) == (303, page.root)
    assert page.ask(path)[0] == 403
    assert page.ask("//")[0] == 403  # none is open


@pytest.mark.parametrize(
    "path",
    ["../manifest.json", "..%2fmanifest.json", "image/..%2f..%2fmanifest.json", "image/-1", "image/99999", "image/1e3",
     "image/", "image/%C2%B2", "record/0/x", "manifest.json", "%00", "image/0%00", "image/" + "9" * 400],
)  # fmt: skip
def test_nothing_but_pages_and_images_is_there(data, serve, path):
    page = serve(data)
    assert page.ask(page.root + path)[0] == 404


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"side_low": "x"}, "side_low=x: use a number"),
        ({"side_high": "nan"}, "side_high=nan: use a number"),
        ({"page": "inf"}, "page=inf: use a number"),
        ({"order": "<b>"}, "order=<b>: use one of"),
        ({"order": "most confident first"}, "use one of"),  # without a run
    ],
)
def test_a_query_that_cannot_be_is_refused(data, serve, query, told):
    page = serve(data)
    status, headers, body = page.ask(page.root + "?" + urlencode(query))
    assert status == 400 and told in body.decode() and headers["Content-Type"].startswith("text/plain")


# ------------------------------------------------------------------------------------------------ what is shown


def test_names_are_text_whatever_they_hold(data, serve):
    page = serve(data)
    plain = {"html", "head", "meta", "title", "link", "script", "body", "h1", "h2", "p", "form", "label", "select",
             "br", "option", "span", "input", "button", "a", "div", "strong", "figure", "figcaption", "img", "table",
             "tbody", "tr", "th", "td"}  # fmt: skip
    table = parquet.read_table(data / "sources.parquet").to_pylist()
    hostile = [row for row, facts in enumerate(table) if "onerror" in facts["path"]]
    for path, query in [
        ("", {}),
        ("", {"text": MARKUP}),
        ("", {"class": MARKUP}),
        *((f"record/{r}", {}) for r in hostile),
    ]:
        found = Tags(page.get(path, **query)[1])
        assert {tag for tag, _ in found.tags} <= plain
        assert not [a for _, attributes in found.tags for a in attributes if a.startswith("on")]
        assert all(
            re.fullmatch(r"(thumbnail|\.\./(image|thumbnail))/\d+", a["src"]) for tag, a in found.tags if tag == "img"
        )
        assert [a["src"] for tag, a in found.tags if tag == "script"] == [("../" if path else "") + "browse.js"]
        assert MARKUP in found.text
    assert found.text.count(MARKUP) > 1


def test_counts_of_filters_are_those_of_the_table(data, serve):
    page = serve(data)
    table = parquet.read_table(data / "sources.parquet")
    columns = {"class": "label_name", "split": "split", "status": "status", "reason": "reason"}
    shown = Tags(page.get("")[1]).options
    for facet, column in columns.items():
        counts = {v["values"]: v["counts"] for v in pc.value_counts(table[column]).to_pylist() if v["values"]}
        assert {
            value: int(re.search(r"\(([\d,]+)\)$", text)[1]) for value, text in shown[facet].items() if value
        } == counts
        for value, number in counts.items():
            assert page.total(**{facet: value}) == number
    assert page.total() == len(table) and set(shown["status"]) == {
        "",
        "written",
        "quarantined",
        "filtered",
        "duplicate",
    }


def test_filters_act_together_and_counts_leave_their_own_out(data, serve):
    page = serve(data)
    rows = parquet.read_table(data / "sources.parquet").to_pylist()
    side = [min(row["source_height"], row["source_width"]) for row in rows]

    fitting = Counter(
        row["label_name"]
        for number, row in enumerate(rows)
        if row["split"] == "train" and 44 <= side[number] <= 60 and "png" in row["path"]
    )
    query = {"class": "plain", "split": "train", "side_low": 44, "side_high": 60, "text": "PNG"}
    assert page.total(**query) == fitting["plain"] > 2
    shown = Tags(page.get("", **query)[1]).options["class"]
    assert shown == {"": "any", **{name: f"{name} ({number})" for name, number in fitting.items()}}
    assert page.total(side_low=0) == sum(map(bool, side))  # broken files have no size


def test_rows_come_in_the_order_asked_for(data, serve):
    page = serve(data)
    rows = parquet.read_table(data / "sources.parquet").to_pylist()
    for order, sign in (("smallest first", 1), ("largest first", -1)):
        body = page.get("", order=order, side_low=1)[1].decode()
        sides = [
            min(rows[int(n)][s] for s in ("source_height", "source_width")) for n in re.findall(r'"record/(\d+)"', body)
        ]
        assert len(sides) > 20 and sides == sorted(sides, key=lambda side: sign * side)


def test_images_are_the_bytes_that_are_stored(encoded, serve):
    page = serve(encoded)
    dataset = pipeline.open_dataset(encoded)
    rows = parquet.read_table(encoded / "sources.parquet").to_pylist()
    kind = dataset.manifest.image.encoding
    for number, row in enumerate(rows):
        if row["status"] != "written":
            continue
        ((stored, _, path),) = dataset.records(row["split"], [row["record"]])
        assert path == row["path"]
        served, body = page.get(f"image/{number}")
        if kind == "raw":
            pixels = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
            assert served == "image/png" and pixels.shape[:2] == (row["height"], row["width"])
            assert pixels.tobytes() == stored
        else:
            assert (served, body) == (f"image/{kind}", stored)


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_a_grid_gets_thumbnails_of_what_is_large(encoding, serve, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (300, 900, 3), np.uint8)
    for name, pixels in (("large", noise), ("small", noise[:40, :60])):
        (tmp_path / "s" / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "s" / name / "1.png"), pixels)
    image = {"encoding": encoding, "resize": "none", "size": 32}
    convert(config(tmp_path / "s", tmp_path / "d", image=image, splits={"train": 1.0}))
    page = serve(tmp_path / "d")
    sizes = {}
    rows = re.findall(r'src="thumbnail/(\d)" alt="(large|small)/1.png"', page.get("")[1].decode())
    for row, name in rows:
        assert f'src="thumbnail/{row}"' in page.get("")[1].decode()
        assert f'src="../image/{row}"' in page.get(f"record/{row}")[1].decode()
        whole, small = page.get(f"image/{row}"), page.get(f"thumbnail/{row}")
        assert (whole == small) == (name == "small")
        sizes[name] = cv2.imdecode(np.frombuffer(small[1], np.uint8), cv2.IMREAD_COLOR).shape[:2]
        assert len(small[1]) <= len(whole[1])
    assert sizes == {"large": (107, 320), "small": (40, 60)}


def test_a_dataset_is_opened_once(data, serve, monkeypatch):
    opened, index = [], Shards.__init__
    monkeypatch.setattr(Shards, "__init__", lambda self, *a: opened.append(a[2]) or index(self, *a))
    page = serve(data)
    assert page.get("image/0") and page.get("record/0")
    assert sorted(opened) == ["test", "train"]  # the index of each split, once


def test_threads_do_not_share_a_buffer(data, serve):
    page = serve(data)
    alone = [page.get(f"image/{row}")[1] for row in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda n: page.get(f"image/{n % 8}")[1], range(200)))
    assert together == [alone[n % 8] for n in range(200)]


def test_a_record_tells_where_it_lies(data, serve):
    page = serve(data)
    rows = parquet.read_table(data / "sources.parquet").to_pylist()
    for number, row in enumerate(rows[:6]):
        found = Tags(page.get(f"record/{number}")[1]).text
        assert row["path"] in found and row["sha256"] in found and row["label_name"] in found
        if row["status"] == "written":
            assert f"{row['shard']}, byte {row['offset']:,}" in found and f"{row['split']}:{row['record']}" in found
        else:
            assert row["reason"] in found and row["detail"] in found
        assert "quality" in found and "opencv" in found


def test_copies_and_look_alikes_find_each_other(data, serve):
    page = serve(data)
    paths = parquet.read_table(data / "sources.parquet")["path"].to_pylist()
    for first, second, words in (("3.png", "3 again.png", "equal pixels"), ("4.png", "4 brighter.png", "look alike")):
        rows = [paths.index(f"plain/{name}") for name in (first, second)]
        for row, other in (rows, rows[::-1]):
            body = page.get(f"record/{row}")[1].decode()
            assert f"{words.capitalize()}: 1 other" in body and f'href="../record/{other}"' in body
    assert page.total(duplicates="equal pixels") == 2
    assert page.total(duplicates="look alike") >= 2


def test_what_was_not_stored_is_shown_from_its_file(data, serve):
    rows = parquet.read_table(data / "sources.parquet").to_pylist()
    number = {row["path"]: n for n, row in enumerate(rows)}
    page = serve(data, sources=data.parent / "s")
    kind, body = page.get(f"image/{number['plain/small.png']}")
    shown = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    file = cv2.imread(str(data.parent / "s" / "plain" / "small.png"))
    assert kind == "image/jpeg" and shown.shape == file.shape and np.abs(shown.astype(int) - file).mean() < 12
    status, _, body = page.ask(f"{page.root}image/{number['plain/cut.png']}")
    assert status == 422 and b"it cannot be shown" in body
    bare = serve(data)  # without the sources: names and reasons
    assert bare.ask(f"{bare.root}image/{number['plain/small.png']}")[0] == 404
    assert f'image/{number["plain/small.png"]}"' not in bare.get("", status="filtered")[1].decode()
    assert "too-small" in bare.get("", status="filtered")[1].decode()


@pytest.mark.parametrize("path", ["../secret.png", "/SECRET", "plain/../../secret.png", "x/../../secret.png"])
def test_a_path_in_the_table_leads_nowhere_else(data, serve, tmp_path, path):
    shutil.copytree(data, tmp_path / "d")
    shutil.copytree(data.parent / "s", tmp_path / "s")
    secret = draw(tmp_path / "secret.png", 5)
    path = path.replace("/SECRET", str(secret))
    table = parquet.read_table(tmp_path / "d" / "sources.parquet")
    row = table["path"].to_pylist().index("plain/small.png")
    paths = table["path"].to_pylist()
    paths[row] = path
    table = table.set_column(table.column_names.index("path"), "path", pa.array(paths))
    parquet.write_table(table, tmp_path / "d" / "sources.parquet")
    page = serve(tmp_path / "d", sources=tmp_path / "s")
    assert page.ask(f"{page.root}image/{row}")[0] == 404
    assert page.get(f"record/{row}")  # the rest is shown


# ------------------------------------------------------------------------------------------------- predictions


def test_mistakes_and_confidence_are_those_of_the_evaluation(data, serve, tmp_path):
    predictions = evaluated(data, tmp_path / "run" / "evaluation-test")
    best = 100 * predictions.probabilities.max(axis=1)
    wrong = predictions.predicted != predictions.labels
    assert 0 < wrong.sum() < len(wrong)
    for run in (tmp_path / "run", tmp_path / "run" / "evaluation-test"):
        page = serve(data, run=run)
        assert page.total(prediction="wrong") == wrong.sum() and page.total(prediction="right") == (~wrong).sum()
        assert page.total(prediction="wrong", confidence_low=60) == (wrong & (best >= 60)).sum()
        assert page.total(confidence_high=70) == (best <= 70).sum()
        assert page.total(predicted="plain") == (predictions.predicted == predictions.labels.max()).sum()
    body = page.get("", prediction="wrong", order="most confident first")[1].decode()
    rows = [int(number) for number in re.findall(r'"record/(\d+)"', body)]
    table = parquet.read_table(data / "sources.parquet").to_pylist()
    shown = [best[table[row]["record"]] for row in rows]
    assert len(rows) == wrong.sum() and shown == sorted(shown, reverse=True) and "✗ " in body and "✓" not in body
    labels = pipeline.open_dataset(data).labels
    record = table[rows[0]]["record"]
    text = Tags(page.get(f"record/{rows[0]}")[1]).text
    assert f"{labels[predictions.predicted[record]]}{best[record]:.1f}%" in text


def test_of_two_evaluations_of_a_split_one_is_shown_and_the_other_named(data, serve, tmp_path, capsys):
    run = tmp_path / "run"
    first, second = (
        evaluated(data, run / name, seed=seed) for seed, name in enumerate(("evaluation-test", "evaluation-test-flip"))
    )
    ours, theirs = (np.sort(100 * found.probabilities.max(axis=1)) for found in (first, second))
    page = serve(data, run=run)
    found = [page.total(confidence_high=limit) for limit in ours + 0.01]
    assert (
        found == [(ours <= limit).sum() for limit in ours + 0.01] != [(theirs <= limit).sum() for limit in ours + 0.01]
    )
    assert f"{run}/evaluation-test-flip evaluates it, too: --run={run}/evaluation-test-flip" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["none", "other dataset", "damaged", "missing"])
def test_a_run_without_a_fitting_evaluation_is_one_line(data, tmp_path, change):
    run = tmp_path / "run"
    if change == "none":
        run.mkdir()
    elif change != "missing":
        evaluated(data, run / "evaluation-test")
    if change == "damaged":
        (run / "evaluation-test" / "predictions.parquet").write_bytes(b"PAR1")
    if change == "other dataset":
        write_dataset(tmp_path / "other", {"train": payloads(6), "test": payloads(3)})
        data = tmp_path / "other"
    result = Run("shardline.tools.browse", data, f"--run={run}")
    told = {"missing": "no such directory", "damaged": "run shardline-evaluate again"}
    assert result.code == 2 and told.get(change, "no evaluation of this dataset there") in result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""


# ------------------------------------------------------------------------------------------------ other datasets


def test_adopted_shards_are_shown_too(serve, tmp_path):
    write_dataset(tmp_path / "d", {"train": payloads(9), "test": payloads(4)})
    for name in ("manifest.json", "sources.parquet"):
        (tmp_path / "d" / name).unlink(missing_ok=True)
    for path in (tmp_path / "d").glob("*.idx"):
        path.unlink()
    adopt(AdoptConfig(data=tmp_path / "d"))
    page = serve(tmp_path / "d")
    dataset = pipeline.open_dataset(tmp_path / "d")
    assert page.total() == 13 and page.total(split="test") == 4
    first = next(iter(dataset.manifest.splits))
    ((stored, label, path),) = dataset.records(first, [1])
    assert page.get("image/1") == ("image/jpeg", stored)
    text = Tags(page.get("record/1")[1]).text
    assert path in text and dataset.labels[label] in text and "byte" in text
    counts = np.bincount([label for _, label, _ in dataset.records("train", range(9))])
    for name, number in zip(dataset.labels, counts, strict=True):
        assert page.total(split="train", **{"class": name}) == number


def test_a_damaged_record_is_named_and_the_rest_is_shown(data, serve, tmp_path):
    shutil.copytree(data, tmp_path / "d")
    row = parquet.read_table(data / "sources.parquet", filters=[("status", "=", "written")]).to_pylist()[0]
    shard = tmp_path / "d" / row["shard"]
    content = bytearray(shard.read_bytes())
    content[row["offset"] + row["size"] // 2] ^= 1
    shard.write_bytes(content)
    page = serve(tmp_path / "d")
    status, _, body = page.ask(page.root + "image/0")
    assert status == 422 and b"cannot be shown" in body and page.get("image/1") and page.get("record/0")


def replaced(table, name, values):
    column = table.column_names.index(name)
    return table.set_column(column, table.schema.field(name), pa.array(values, table.schema.field(name).type))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: table.slice(1), r"\d+ rows, the manifest says \d+"),
        (
            lambda table: replaced(table, "record", [7] * len(table)),
            r"are not its .* records; shardline-verify tells more",
        ),
        (lambda table: replaced(table, "label", [2] * len(table)), "values of label are not this dataset's"),
        (lambda table: replaced(table, "path", [None] * len(table)), "values of path are missing"),
        (lambda table: replaced(table, "label", [None] * len(table)), "values of label are missing"),
        (lambda table: table.drop_columns(["pixel_hash"]), "its columns are"),
    ],
)
def test_a_table_that_is_not_the_datasets_is_refused(data, tmp_path, change, told):
    shutil.copytree(data, tmp_path / "d")
    table = parquet.read_table(tmp_path / "d" / "sources.parquet")
    parquet.write_table(change(table), tmp_path / "d" / "sources.parquet")
    with pytest.raises(UsageError, match=told):
        browse(BrowseConfig(data=tmp_path / "d"))


# ----------------------------------------------------------------------------------------------------- the command


def test_the_command_prints_its_address_and_ends_with_ctrl_c(data):
    command = [BIN / "shardline-browse", data]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    url = process.stdout.readline().strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32}/", url)
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    connection.request("GET", urlsplit(url).path)
    assert connection.getresponse().status == 200
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "\nCtrl-C ends it\n" in err
    assert err.splitlines()[-1] == "shardline-browse: error: interrupted" and "Traceback" not in err
    assert "index: " in err and "near duplicates: " in err  # each phase told of itself


def test_a_port_in_use_is_one_line(data, serve):
    port = serve(data).server.server_port
    result = Run("shardline.tools.browse", data, f"--port={port}")
    assert (
        result.code == 2
        and f"--port={port}: Address already in use; use another, or 0 for any free one" in result.stderr
    )


def test_the_index_is_small(data):
    from shardline.tools.browse_index import read_index

    index = read_index(pipeline.open_dataset(data), "")
    columns = [index.records, index.groups, *index.numbers.values(), *(facet.codes for facet in index.facets.values())]
    assert sum(column.nbytes for column in columns) / len(index) < 60  # bytes a row, beside its path


# ----------------------------------------------------------------------------------------------- in a real browser

LOADED = (
    "document.readyState === 'complete' && document.images.length > 0 && "
    "[...document.images].filter(i => i.getBoundingClientRect().top < innerHeight).every(i => i.naturalWidth > 0)"
)


def walk_through(page, browser, total):
    """What a person does: look, filter, turn the page, open a record."""
    browser.open(page.server.url)
    browser.wait(LOADED)
    assert browser.run("document.querySelectorAll('.gallery figure').length") == min(total, 120)
    assert browser.run("document.querySelector('.pager strong').textContent").endswith(f" of {total:,}")
    for width in (1200, 390):
        browser.size(width, 900)
        assert browser.run("document.documentElement.scrollWidth") <= width
    wanted = browser.run("document.querySelector('select[name=class]').options[1].textContent")
    number = int(re.search(r"\(([\d,]+)\)$", wanted)[1].replace(",", ""))
    browser.run(
        "{ const s = document.querySelector('select[name=class]'); s.selectedIndex = 1; "
        "s.dispatchEvent(new Event('change', {bubbles: true})); }"
    )
    browser.wait(f"document.querySelector('.pager strong')?.textContent.endsWith(' of {number:,}')")
    assert "?class=" in (address := browser.run("location.href")) and "=&" not in address  # no empty fields
    browser.wait(LOADED)
    if number > 120:
        key = {"key": "ArrowRight", "code": "ArrowRight", "windowsVirtualKeyCode": 39}
        browser.send("Input.dispatchKeyEvent", type="keyDown", **key)
        browser.wait("location.search.includes('page=2')")
        browser.wait(LOADED)
    browser.run("document.querySelector('.gallery a').click()")
    browser.wait("location.pathname.includes('/record/') && document.readyState === 'complete'")
    browser.wait(LOADED)
    assert "byte" in browser.run("document.body.textContent")
    assert browser.problems() == []


@pytest.mark.browser
def test_a_browser_filters_and_opens_a_record(data, serve, tmp_path):
    with Browser(tmp_path) as browser:
        page = serve(data)
        walk_through(page, browser, 29)
        browser.open(page.server.url + "?" + urlencode({"text": "<img"}))
        assert browser.run("document.querySelectorAll('[onerror]').length") == 0
        assert MARKUP in browser.run("document.body.textContent")


@pytest.mark.browser
@pytest.mark.slow
def test_a_browser_walks_through_60_000_images(serve, tmp_path):
    random = np.random.default_rng(0)
    for number in range(60_000):
        folder = tmp_path / "s" / f"{number % 12}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = cv2.resize(random.integers(0, 255, (5, 5, 3), np.uint8), (40, 32 + number % 17))
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
    splits = {"train": 0.8, "test": 0.2}
    convert(config(tmp_path / "s", tmp_path / "d", image={"size": 32}, splits=splits, engine="processes"))
    predictions = evaluated(tmp_path / "d", tmp_path / "run" / "evaluation-test")
    page = serve(tmp_path / "d", run=tmp_path / "run")
    with Browser(tmp_path) as browser:
        walk_through(page, browser, 60_000)
        browser.open(page.server.url + "?prediction=wrong&page=3")
        browser.wait(LOADED)
        wrong = int((predictions.predicted != predictions.labels).sum())
        assert browser.run("document.querySelector('.pager strong').textContent") == f"241 to 360 of {wrong:,}"
        assert browser.run("document.querySelectorAll('figure.wrong').length") == 120
