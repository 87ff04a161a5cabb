"""No decoder ends a command: one that crashes or hangs costs one image, wherever images are decoded."""

import os
import re
from dataclasses import replace

import pytest

from shardline.pipeline import executors
from shardline.pipeline.dataset import open_dataset
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import nobody_reads
from shardline.pipeline.image_files import load_files
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.sources_table import read_sources
from shardline.tools.adopt import AdoptConfig, adopt
from shardline.tools.conversion.run import convert, dry_run
from shardline.tools.inspect import InspectConfig, inspect
from shardline.tools.verify import VerifyConfig, verify
from tests.pipeline.deadly import make_deadly
from tests.tools.folders import class_folders, config, records
from tests.tools.test_adopt_others import ints, jpeg, put

SECONDS = 1.5  # for an image, in these tests


@pytest.fixture(params=["crash", "hang"])
def way(request, monkeypatch):
    monkeypatch.setitem(executors.run.__kwdefaults__, "image_timeout", SECONDS)
    return request.param


@pytest.mark.slow
def test_a_conversion_sets_the_image_aside(tmp_path, monkeypatch, way):
    source = class_folders(tmp_path / "s", 2, 4)
    victim = source / "class1" / "img_002.jpg"
    make_deadly(monkeypatch, tmp_path / "site", victim.read_bytes(), way)
    changes = {"engine": "processes", "workers": 1, "image_timeout": SECONDS}
    manifest = convert(config(source, tmp_path / "d", **changes))
    assert (manifest.ledger.written, manifest.ledger.quarantined) == (7, 1)
    rows = read_sources(tmp_path / "d", ["path", "reason", "detail"], [("status", "=", "quarantined")]).to_pylist()
    reason = {"crash": "crashes-decoder", "hang": "decoder-timeout"}[way]
    assert [(row["path"], row["reason"]) for row in rows] == [("class1/img_002.jpg", reason)]
    assert ("--image_timeout" in rows[0]["detail"]) == (way == "hang")
    assert "class1/img_002.jpg" in dry_run(config(source, tmp_path / "e", **changes)).examples[0]


@pytest.mark.slow
def test_verification_names_the_record_and_goes_on(tmp_path, monkeypatch, way):
    convert(config(class_folders(tmp_path / "s", 2, 4), tmp_path / "d"))
    make_deadly(monkeypatch, tmp_path / "site", bytes(records(tmp_path / "d", "train")[5].image), way)
    found = verify(VerifyConfig(data=tmp_path / "d"))
    reason = {"crash": "crashes-decoder", "hang": "decoder-timeout"}[way]
    (fault,) = found.faults
    assert f": {reason}: its decoder " in fault and found.checked == 8


@pytest.mark.slow
def test_adoption_leaves_the_record_out(tmp_path, monkeypatch, way, capsys):
    put(tmp_path / "d" / "train.tfrecord", [ints(number % 2) for number in range(8)])
    make_deadly(monkeypatch, tmp_path / "site", jpeg(5), way)
    assert adopt(AdoptConfig(data=tmp_path / "d")).splits["train"].records == 7
    assert re.search(
        r"train.tfrecord, byte [\d,]+: [a-z-]+: its decoder .*, twice; left out\n", capsys.readouterr().err
    )
    assert [example.label for example in records(tmp_path / "d", "train")] == [0, 1, 0, 1, 0, 0, 1]
    assert len(Manifest.load(tmp_path / "d").labels) == 2


@pytest.mark.slow
def test_prediction_gives_the_file_a_row_with_the_reason(tmp_path, monkeypatch, way):
    paths = [tmp_path / f"{number}.jpg" for number in range(20)]
    for number, path in enumerate(paths):
        path.write_bytes(jpeg(number))
    paths[3].write_bytes(b"no image")
    make_deadly(monkeypatch, tmp_path / "site", jpeg(11), way)
    found = dict(load_files(list(map(str, paths)), ImageOptions(size=16)))
    assert sorted(found) == list(range(20))
    reasons = {number: image for number, image in found.items() if isinstance(image, str)}
    assert set(reasons) == {3, 11} and reasons[3].startswith("not-an-image")
    assert reasons[11].startswith({"crash": "crashes-decoder", "hang": "decoder-timeout"}[way])
    assert found[0].shape == (16, 24, 3)


@pytest.mark.slow
def test_inspection_shows_all_other_images_and_names_the_record(tmp_path, monkeypatch, capsys):
    convert(config(class_folders(tmp_path / "s", 2, 4), tmp_path / "d"))
    deadly = bytes(records(tmp_path / "d", "train")[5].image)
    make_deadly(monkeypatch, tmp_path / "site", deadly, "crash")
    drawn = []
    monkeypatch.setattr("shardline.tools.inspect._draw", lambda *given: drawn.append(given))
    grid = {"data": tmp_path / "d", "save": str(tmp_path / "g.png")}
    inspect(InspectConfig(**grid))
    images, captions, *_ = drawn[0]
    assert [image.shape == (1, 1, 3) for image in images] == [n == 5 for n in range(8)] and captions[5] == "damaged"
    assert re.search(r"note: record 5 of train .*: crashes-decoder: its decoder", capsys.readouterr().err)
    inspect(InspectConfig(**grid, augmented=True, image_size=16))
    images, captions, *_ = drawn[1]
    assert captions.count("damaged") == sum(image.shape == (1, 1, 3) for image in images) in (0, len(images) // 6)
    with pytest.raises(UsageError, match=r"record=train:5: damaged .*crashes-decoder"):
        inspect(InspectConfig(data=tmp_path / "d", record="train:5"))
    assert "image    " in inspect(InspectConfig(data=tmp_path / "d", record="train:4"))


def test_no_dataset_is_replaced_under_its_readers(tmp_path):
    source = class_folders(tmp_path / "s", 2, 4)
    settings = config(source, tmp_path / "d", engine="inline")
    digest = convert(settings).digest
    reader = open_dataset(tmp_path / "d")
    names = sorted(os.listdir(tmp_path / "d"))
    for replacing in (
        lambda: convert(replace(settings, overwrite=True)),
        lambda: adopt(AdoptConfig(data=tmp_path / "d", overwrite=True, workers=1)),
    ):
        with pytest.raises(Failure, match=f"is being read by process {os.getpid()} on "):
            replacing()
    assert sorted(os.listdir(tmp_path / "d")) == names and reader.manifest.digest == digest
    assert verify(VerifyConfig(data=tmp_path / "d", workers=1)).faults == ()
    del reader
    assert convert(replace(settings, overwrite=True)).digest == digest
    with nobody_reads(tmp_path / "d" / "manifest.json", "it"):
        for read in (open_dataset, lambda d: verify(VerifyConfig(data=d)), lambda d: inspect(InspectConfig(data=d))):
            with pytest.raises(Failure, match="is being replaced by process"):
                read(tmp_path / "d")
