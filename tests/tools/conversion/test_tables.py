"""Tables as people have them: separators, encodings, names of columns, suffixes left out, a column a class."""

import re

import pytest

from shardline.pipeline.errors import UsageError, command_line
from shardline.tools.conversion.labels import LabelOptions
from shardline.tools.conversion.scan import ScanOptions
from shardline.tools.conversion.scan import scan as scan_sources


def scan(source, **options):
    found = scan_sources(str(source), ScanOptions(**options))
    return found, {
        path.decode(): (found.labels[label] if label >= 0 else None, found.splits[split] if split >= 0 else "")
        for path, label, split in zip(found.paths(), found.label.tolist(), found.split.tolist(), strict=True)
    }


def refusal(source, **options):
    with pytest.raises(UsageError) as error:
        scan(source, **options)
    with command_line():
        message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


def images(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


@pytest.fixture
def folder(tmp_path):
    images(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    return tmp_path


ROWS = (("1.jpg", "cat", "train"), ("2.jpg", "dog", "test"), ("3.jpg", "cat", "train"))
EXPECTED = {path: (label, split) for path, label, split in ROWS}


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_and_encodings(folder, mark, encoding, suffix, end):
    text = end.join(mark.join(row) for row in [("path", "label", "split"), *ROWS]) + end
    data = b"\xff\xfe" + text.encode("utf-16-le") if encoding == "utf-16-le-bom" else text.encode(encoding)
    (folder / f"t{suffix}").write_bytes(data)
    assert scan(folder / f"t{suffix}")[1] == EXPECTED


def test_a_label_with_the_separator_of_others(folder):
    (folder / "t.csv").write_text('path,label\n1.jpg,"cat; big"\n2.jpg,dog|small\n3.jpg,"a ""b"", c"\n')
    assert [label for label, _ in scan(folder / "t.csv")[1].values()] == ["cat; big", "dog|small", 'a "b", c']


@pytest.mark.parametrize(
    "header",
    ["path,label", "image,class", "filename,target", "file_name,category", "Image,Label", " image_path , class_name ",
     "image_id,label", "id,label", "ID,Class", "Path,ClassId"],
)  # fmt: skip
def test_columns_by_other_names(folder, header):
    (folder / "t.csv").write_text(f"{header}\n1.jpg,cat\n2.jpg,dog\n")
    found, listed = scan(folder / "t.csv")
    assert listed == {"1.jpg": ("cat", ""), "2.jpg": ("dog", "")}
    if header != "path,label":
        assert any("read column" in note for note in found.notes)


def test_the_usual_name_goes_before_others(folder):
    (folder / "t.csv").write_text("id,path,class_id,label\n77,1.jpg,0,cat\n78,2.jpg,1,dog\n")
    assert scan(folder / "t.csv")[1] == {"1.jpg": ("cat", ""), "2.jpg": ("dog", "")}


def test_other_columns_are_named_by_flags(folder):
    (folder / "t.csv").write_text("Bild,breed\n1.jpg,cat\n2.jpg,dog\n")
    message = refusal(folder / "t.csv")
    assert "no column 'path'" in message and "--path_column and --label_column" in message and "Bild,breed" in message
    message = refusal(folder / "t.csv", path_column="Bild")
    assert "no column 'label'" in message and "--label_column" in message
    assert len(scan(folder / "t.csv", path_column="Bild", label_column="breed")[1]) == 2
    message = refusal(folder / "t.csv", path_column="picture", label_column="breed")
    assert "--path_column=picture: the table has the columns bild, breed" in message


@pytest.mark.parametrize(
    ("files", "cells", "form"),
    [
        (("7.jpg", "8.jpg"), ("7", "8"), "{}.jpg"),
        (("train_images/a7.JPEG", "train_images/a8.JPEG"), ("a7", "a8"), "train_images/{}.JPEG"),
        (("train/7.png", "train/8.png"), ("7.png", "8.png"), "train/{}"),
    ],
)
def test_paths_without_suffix_or_folder_are_refused_with_the_flag_that_finds_them(tmp_path, files, cells, form):
    images(tmp_path, *files)
    (tmp_path / "t.csv").write_text("image_id,label\n" + "".join(f"{cell},c{i}\n" for i, cell in enumerate(cells)))
    message = refusal(tmp_path / "t.csv")
    advised = re.search(r"--path_format='([^']*)'", message)[1]
    assert advised == form and files[0] in message
    assert list(scan(tmp_path / "t.csv", path_format=advised)[1]) == list(files)


@pytest.mark.parametrize(
    ("files", "forms"),
    [
        (
            ("test/7.png", "train/7.png"),
            ["test/{}.png", "train/{}.png"],
        ),  # Kaggle's CIFAR-10: labels are of one of them
        (("images/7.jpg", "annotations/7.png"), ["annotations/{}.png", "images/{}.jpg"]),
    ],
)
def test_where_several_folders_have_such_files_none_is_advised_alone(tmp_path, files, forms):
    images(tmp_path, *files)
    (tmp_path / "t.csv").write_text("id,label\n7,frog\n")
    named = ", ".join(form.format(7) for form in forms)
    assert (
        f"; {named} do: write the folders into the paths, or use the one of --path_format={', '.join(forms)} that"
        in refusal(tmp_path / "t.csv")
    )
    assert list(scan(tmp_path / "t.csv", path_format=forms[1])[1]) == [forms[1].format(7)]


def test_a_form_that_finds_the_first_image_alone_is_not_all_that_is_advised(tmp_path):
    """HAM10000's images lie in two folders."""
    images(tmp_path, "part_1/7.jpg", "part_2/8.jpg")
    (tmp_path / "t.csv").write_text("image_id,label\n7,nv\n8,mel\n")
    assert (
        "; part_1/7.jpg does, and part_1/8.jpg does not: write into each path the folder that its image lies in, or, "
        "if images are missing, use --path_format='part_1/{}.jpg'" in refusal(tmp_path / "t.csv")
    )


def test_a_table_of_one_label_is_noted(folder):
    (folder / "sample_submission.csv").write_text("path,label\n1.jpg,0\n2.jpg,0\n")
    assert scan(folder / "sample_submission.csv")[0].notes == ("every row has the label '0'",)
    assert scan(folder / "sample_submission.csv", labels=LabelOptions(("0",)))[0].notes == ()


@pytest.mark.parametrize("cell", ["7", "no\0folder/7"])
def test_paths_that_are_nowhere_name_the_flag(tmp_path, cell):
    (tmp_path / "t.csv").write_text(f"image_id,label\n{cell},a\n")
    assert "--path_format='FOLDER/{}.jpg' says what they are made of" in refusal(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("cell", "hint"),
    [
        ("a/1.JPG", "a/1.jpg does: write names in the case and Unicode form that they have on disk"),
        ("a/cafe\u0301.jpg", "a/caf\u00e9.jpg does: write names in the case and Unicode form"),
        ("/data/set/a/1.jpg", "a/1.jpg does: write the paths from the table's folder on"),
        ("C:\\data\\a\\1.jpg", "a/1.jpg does: write the paths from the table's folder on"),
        ("data/a/1.jpg", "a/1.jpg does: write the paths from the table's folder on"),
    ],
)
def test_paths_of_another_machine_or_case_are_refused_with_the_path_that_is_there(tmp_path, cell, hint):
    images(tmp_path, "a/1.jpg", "a/caf\u00e9.jpg")
    (tmp_path / "t.csv").write_text(f"path,label\n{cell},cat\n", encoding="utf-8")
    assert f"; {hint}" in refusal(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text(f"path,label\n{hint.partition(' does')[0]},cat\n", encoding="utf-8")
    assert len(scan(tmp_path / "t.csv")[1]) == 1


def test_another_column_of_paths_is_named_where_the_usual_one_holds_none(folder):
    (folder / "t.csv").write_text("image,my file,label\n0,1.jpg,cat\n1,2.jpg,dog\n")
    message = refusal(folder / "t.csv")
    assert "; those in the column 'my file' do: use --path_column='my file'" in message
    assert scan(folder / "t.csv", path_column="my file")[1] == {"1.jpg": ("cat", ""), "2.jpg": ("dog", "")}


def test_a_row_of_more_columns_than_the_first_line_is_refused(folder):
    """Taken by position, its label would be the first half of it."""
    (folder / "t.csv").write_text("path,label\n1.jpg,elephant, African\n2.jpg,dog\n")
    assert "line 2: 3 columns, but the first line names 2; a value that holds" in refusal(folder / "t.csv")
    (folder / "t.csv").write_text('path,label\n1.jpg,"elephant, African"\n2.jpg,dog,,\n')
    assert scan(folder / "t.csv")[1] == {"1.jpg": ("elephant, African", ""), "2.jpg": ("dog", "")}


def test_columns_of_one_name_are_refused_and_those_left_out_named(folder):
    (folder / "t.csv").write_text("path,label,label\n1.jpg,cat,7\n2.jpg,dog,8\n")
    assert "two columns are called 'label'; rename one" in refusal(folder / "t.csv")
    (folder / "t.csv").write_text("path,label,x,x,note\n1.jpg,cat,7,8,1\n2.jpg,dog,8,9,0\n")
    assert scan(folder / "t.csv")[0].notes == ("left out the columns x, x, note",)


def test_a_file_in_several_rows(folder):
    (folder / "t.csv").write_text(f"path,label\n1.jpg,cat\n2.jpg,dog\n./1.jpg,cat\n{folder}/1.jpg,cat\n")
    assert scan(folder / "t.csv")[0].notes == ("2 rows list a file that another row lists, e.g. 1.jpg",)
    (folder / "t.csv").write_text("path,label\n1.jpg,cat\n2.jpg,dog\n./1.jpg,dog\n")
    message = refusal(folder / "t.csv")
    assert "./1.jpg is listed with the labels 'cat' and 'dog'; shardline takes one label an image" in message


def test_a_table_without_a_header_is_refused(folder):
    (folder / "t.csv").write_text("1.jpg,cat\n2.jpg,dog\n")
    assert "the first line must name the columns path and label" in refusal(folder / "t.csv")


# ------------------------------------------------------------------------------------------------ splits


@pytest.mark.parametrize("name", ["split", "set", "subset", "partition", "data set", "dataset", "Phase", "Usage"])
def test_split_columns(folder, name):
    rows = "".join(f"{path},{label},{split}\n" for path, label, split in ROWS)
    (folder / "t.csv").write_text(f"path,label,{name}\n{rows}")
    assert scan(folder / "t.csv")[1] == EXPECTED


def test_a_column_that_only_may_be_of_splits_is_none_by_what_it_holds(folder):
    (folder / "t.csv").write_text("path,label,set\n1.jpg,cat,blue\n2.jpg,dog,red\n")
    found = scan(folder / "t.csv")[0]
    assert found.splits == () and found.notes == ("left out the column set",)


def test_rows_without_a_label(folder):
    (folder / "t.csv").write_text("path,label,split\n1.jpg,cat,train\n2.jpg,,test\n3.jpg,dog,train\n")
    message = refusal(folder / "t.csv")
    assert "row 3: path and label must not be empty; --unlabelled=test" in message
    found, listed = scan(folder / "t.csv", unlabelled=("test",))
    assert listed["2.jpg"] == (None, "test") and found.unlabelled == ("test",)
    assert found.label.tolist() == [0, -1, 1]
    assert "the table has the splits train, test" in refusal(folder / "t.csv", unlabelled=("tset", "test"))


def test_rows_may_be_excluded(folder):
    (folder / "t.csv").write_text("path,label\n1.jpg,cat\n2.jpg,dog\n3.jpg,dog\n")
    assert list(scan(folder / "t.csv", exclude=("2.jpg",))[1]) == ["1.jpg", "3.jpg"]


@pytest.mark.parametrize(
    "cells",
    [("0", "1"), ("1", "2"), ("True", "False"), ("yes", "no"), ("", "train"), ("5-fold", "x"), ("NaN", "None")],
)
def test_what_names_no_split_is_refused_with_two_remedies_that_work(folder, cells):
    text = "path,label,split\n1.jpg,cat,{}\n2.jpg,dog,{}\n"
    (folder / "t.csv").write_text(text.format(*cells))
    message = refusal(folder / "t.csv")
    assert f"row 2: {cells[0]!r} is no split's name" in message and "a letter first; write train" in message
    (folder / "t.csv").write_text(text.format("train", "test"))
    assert scan(folder / "t.csv")[1] == {"1.jpg": ("cat", "train"), "2.jpg": ("dog", "test")}
    assert "give the column another name to leave it out" in message
    (folder / "t.csv").write_text(text.format(*cells).replace("split", "fold"))
    found, listed = scan(folder / "t.csv")
    assert listed == {"1.jpg": ("cat", ""), "2.jpg": ("dog", "")} and found.notes == ("left out the column fold",)


@pytest.mark.parametrize("first", ["", "extra"])
def test_a_column_that_tells_splits_from_a_later_row_on_is_never_left_out_silently(folder, first):
    text = f"path,label,set\n1.jpg,cat,{first}\n2.jpg,dog,train\n3.jpg,cat,test\n"
    (folder / "t.csv").write_text(text)
    message = refusal(folder / "t.csv")
    assert "row 3: column 'set' holds 'train', but no split in the first row" in message
    (folder / "t.csv").write_text(text.replace(f"cat,{first}\n2", "cat,train\n2"))
    assert scan(folder / "t.csv")[1] == EXPECTED | {"2.jpg": ("dog", "train"), "3.jpg": ("cat", "test")}
    (folder / "t.csv").write_text(text.replace("set", "colour"))
    assert scan(folder / "t.csv")[0].splits == ()


def test_a_column_of_another_name_that_tells_splits_is_told_of_and_the_remedy_works(folder):
    text = "path,label,kind\n" + "".join(f"{','.join(row)}\n" for row in ROWS)
    (folder / "t.csv").write_text(text)
    assert scan(folder / "t.csv")[0].notes == (
        "left out the column kind; if kind tells splits, call that column split",
    )
    (folder / "t.csv").write_text(text.replace("kind", "split"))
    assert scan(folder / "t.csv")[1] == EXPECTED


def test_what_programs_write_for_nothing_is_no_group(folder):
    (folder / "t.csv").write_text("path,label,group\n1.jpg,cat,nan\n2.jpg,dog,None\n3.jpg,cat,p\n")
    assert (scan(folder / "t.csv")[0].group > 0).tolist() == [False, False, True]


def test_splits_of_vertex_are_read(folder):
    (folder / "t.csv").write_text("ml_use,image,label\ntraining,1.jpg,cat\ntest,2.jpg,dog\n")
    assert scan(folder / "t.csv")[1] == {"1.jpg": ("cat", "training"), "2.jpg": ("dog", "test")}


def test_paths_in_folders_of_splits_are_noted_where_no_column_tells_splits(tmp_path):
    """As Hugging Face's metadata.csv has them: images of both would be mixed."""
    images(tmp_path, "train/1.jpg", "test/2.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,label\ntrain/1.jpg,cat\ntest/2.jpg,dog\n")
    note = "paths lie in the folders test, train, but no column tells splits"
    assert any(note in line for line in scan(tmp_path / "metadata.csv")[0].notes)
    (tmp_path / "metadata.csv").write_text("file_name,label,split\ntrain/1.jpg,cat,train\ntest/2.jpg,dog,test\n")
    found, listed = scan(tmp_path / "metadata.csv")
    assert not any(note in line for line in found.notes)
    assert listed == {"train/1.jpg": ("cat", "train"), "test/2.jpg": ("dog", "test")}


def test_rows_that_contradict_their_folder_are_noted(tmp_path):
    images(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "test/dog/3.jpg", "new/4.jpg")
    rows = "train/cat/1.jpg,dog,train\ntrain/dog/2.jpg,cat,test\ntest/dog/3.jpg,dog,train\nnew/4.jpg,cat,test\n"
    (tmp_path / "t.csv").write_text(f"path,label,split\n{rows}")
    assert scan(tmp_path / "t.csv")[0].notes == (
        "2 rows with a path in the folder of another class, e.g. train/cat/1.jpg in class 'dog'",
        "2 rows with a path in the folder of another split, e.g. train/dog/2.jpg in split 'test'",
    )
    (tmp_path / "t.csv").write_text("path,label,split\ntrain/cat/1.jpg,cat,train\ntest/dog/3.jpg,dog,test\n")
    assert not any("folder of another" in note for note in scan(tmp_path / "t.csv")[0].notes)


def test_a_column_that_may_be_of_groups_is_told_of(folder):
    (folder / "t.csv").write_text("path,label,lesion_id\n1.jpg,cat,7\n2.jpg,dog,7\n")
    assert scan(folder / "t.csv")[0].notes == (
        "left out the column lesion_id; if images of one lesion_id belong into one split, call that column group",
    )


def test_groups_that_the_table_itself_parts_are_noted(folder):
    text = "path,label,split,group\n1.jpg,cat,train,p1\n2.jpg,dog,test,{}\n3.jpg,cat,train,p1\n"
    (folder / "t.csv").write_text(text.format("p1"))
    assert "1 group of the table in several splits, e.g. that of 1.jpg" in scan(folder / "t.csv")[0].notes
    for other in ("p2", ""):
        (folder / "t.csv").write_text(text.format(other))
        assert scan(folder / "t.csv")[0].notes == ()


def test_labels_that_tell_images_are_noted(tmp_path):
    images(tmp_path, *(f"{i}.jpg" for i in range(12)))
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(f"{i}.jpg,id{i}\n" for i in range(12)))
    assert "each of the 12 classes has one image: if the labels are names" in scan(tmp_path / "t.csv")[0].notes[-1]
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(f"{i}.jpg,id{i % 11}\n" for i in range(12)))
    assert scan(tmp_path / "t.csv")[0].notes == ()


def test_the_first_line_again_is_no_image(folder):
    """As in tables that were joined by cat."""
    (folder / "t.csv").write_text("path,label\n1.jpg,cat\npath,label\n2.jpg,dog\n")
    assert "line 3: the first line again; remove it" in refusal(folder / "t.csv")


# ----------------------------------------------------------------------------------------------- one-hot

ISIC = "image,MEL,NV,BCC\n1.jpg,1.0,0.0,0.0\n2.jpg,0,1,0\n3.jpg,0,0,1\n"


def test_a_column_for_each_class(folder):
    (folder / "t.csv").write_text(ISIC)
    assert "--label_kind=onehot takes a column for each class" in refusal(folder / "t.csv")
    found, listed = scan(folder / "t.csv", labels=LabelOptions(kind="onehot"))
    assert listed == {"1.jpg": ("MEL", ""), "2.jpg": ("NV", ""), "3.jpg": ("BCC", "")}
    assert found.labels == ("BCC", "MEL", "NV")


@pytest.mark.parametrize("index", ["", "Unnamed: 0", "__index_level_0__"])
def test_columns_of_a_spreadsheet_or_a_program_are_no_classes(folder, index):
    """A column of row numbers, as pandas writes it, and words for 1 and 0."""
    (folder / "t.csv").write_text(f"{index},image,MEL,NV\n0,1.jpg,True,False\n1,2.jpg,FALSE,TRUE\n2,3.jpg,1,\n")
    found, listed = scan(folder / "t.csv", labels=LabelOptions(kind="onehot"))
    assert listed == {"1.jpg": ("MEL", ""), "2.jpg": ("NV", ""), "3.jpg": ("MEL", "")}
    assert found.labels == ("MEL", "NV")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,1,0", "row 2: MEL, NV are set; shardline takes one label an image"),
        ("0,0,0", "row 2: path and label must not be empty"),
        ("0.7,0.2,0.1", "row 2: '0.7' in column 'MEL' is not 0 or 1"),
        ("x,0,1", "row 2: 'x' in column 'MEL' is not 0 or 1"),
    ],
)
def test_rows_that_are_not_one_hot_are_refused(folder, row, message):
    (folder / "t.csv").write_text(f"image,MEL,NV,BCC\n1.jpg,{row}\n")
    assert message in refusal(folder / "t.csv", labels=LabelOptions(kind="onehot"))


def test_a_column_that_no_row_sets_is_no_class_and_said_so(folder):
    (folder / "t.csv").write_text("image,sex,MEL,NV\n1.jpg,0,1,0\n2.jpg,0,0,1\n")
    found = scan(folder / "t.csv", labels=LabelOptions(kind="onehot"))[0]
    assert found.labels == ("MEL", "NV") and "no row sets sex, so it is no class" in found.notes
    (folder / "t.csv").write_text("image,MEL,NV,MEL\n1.jpg,1,0,0\n2.jpg,0,1,0\n")
    assert "two columns are called 'MEL'; rename one" in refusal(folder / "t.csv", labels=LabelOptions(kind="onehot"))


def test_lists_with_a_single_one(folder):
    (folder / "t.csv").write_text('path,label\n1.jpg,"[0, 0, 1]"\n2.jpg,"[1.0, 0.0, 0.0]"\n')
    assert "one label an image" in refusal(folder / "t.csv")
    options = {"label_column": "label", "labels": LabelOptions(names=("a", "b", "c"), kind="onehot")}
    assert scan(folder / "t.csv", **options)[1] == {"1.jpg": ("c", ""), "2.jpg": ("a", "")}
    (folder / "t.csv").write_text('path,label\n1.jpg,"[0, 1, 1]"\n')
    assert "no list of zeros and a single 1" in refusal(folder / "t.csv", **options)


def test_a_label_a_row_for_each_of_several_labels_is_told_by_their_kind(folder):
    (folder / "t.csv").write_text("path,label\n1.jpg,cat|dog\n2.jpg,cat\n3.jpg,dog\n")
    assert "'cat|dog' is a list; shardline takes one label an image" in refusal(folder / "t.csv")


# ----------------------------------------------------------------------------------------------- damaged


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\3\4 a spreadsheet", "save it as .csv"),
        ("path,label\n1.jpg,café\n".encode("latin-1"), "save it as UTF-8"),
        ("path,label\n1.jpg,a\n".encode("utf-16")[:-1], "save it as UTF-8"),
        (b"", "no column 'path'"),
        (b'path,label\n"1.jpg,a\n', "line 2"),
    ],
)
def test_what_is_no_table_is_said(folder, data, message):
    (folder / "t.csv").write_bytes(data)
    assert message in refusal(folder / "t.csv")


def test_numbers_are_called_as_a_parquet_files_class_label_does(folder):
    import json

    import pyarrow as pa
    import pyarrow.parquet as parquet

    features = {
        "path": {"dtype": "string", "_type": "Value"},
        "label": {"names": ["owl", "cat"], "_type": "ClassLabel"},
    }
    table = pa.table({"path": ["1.jpg", "2.jpg", "3.jpg"], "label": [1, 0, 1]})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}  # as datasets.Dataset.to_parquet writes it
    parquet.write_table(table.replace_schema_metadata(metadata), folder / "t.parquet")
    found, listed = scan(folder / "t.parquet")
    assert found.labels == ("owl", "cat") and found.label.tolist() == [1, 0, 1]
    assert listed == {"1.jpg": ("cat", ""), "2.jpg": ("owl", ""), "3.jpg": ("cat", "")}
    assert found.notes == ("called the classes as the table's ClassLabel does (owl, cat)",)
    assert scan(folder / "t.parquet", labels=LabelOptions(("cat", "owl")))[1] == listed  # in another order
    assert scan(folder / "t.parquet", labels=LabelOptions(("a", "b"), kind="index"))[1]["1.jpg"] == ("b", "")
    for broken in ("[", "{}", json.dumps({"info": {"features": {"label": {"names": 7}}}})):
        parquet.write_table(table.replace_schema_metadata({"huggingface": broken}), folder / "t.parquet")
        assert scan(folder / "t.parquet")[0].labels == ("0", "1")


@pytest.mark.parametrize("name", ["is_valid", "is_training_img", "train", "isTest"])
def test_columns_that_may_tell_splits_by_numbers_are_noted(folder, name):
    (folder / "t.csv").write_text(f"path,label,{name}\n1.jpg,a,0\n2.jpg,b,1\n")
    assert scan(folder / "t.csv")[0].notes == (
        f"left out the column {name}; if {name} tells splits, write train, validation or test into a column split",
    )
    (folder / "t.csv").write_text("path,label,trainer,validated,manifold\n1.jpg,a,0,1,2\n2.jpg,b,1,1,2\n")
    assert scan(folder / "t.csv")[0].notes == ("left out the columns trainer, validated, manifold",)


@pytest.mark.parametrize(
    "flag", [{"path_column": "image"}, {"label_column": "breed"}, {"path_format": "{}.jpg"}, {"label_from": "parent"}]
)
def test_flags_for_another_kind_of_source_are_refused(folder, flag):
    (name, value), *_ = flag.items()
    images(folder, "s/cat/1.jpg", "s/dog/2.jpg")
    (folder / "t.csv").write_text("path,label\n1.jpg,cat\n2.jpg,dog\n")
    other = folder / ("t.csv" if name == "label_from" else "s")
    assert f"--{name}={value} is for " in refusal(other, **flag)
    assert "no such folder or table" in refusal(folder / "none.csv", **flag)
    (folder / "order.txt").write_text("1 cat\n2 dog\n")
    order = str(folder / "order.txt")
    assert f"--label_order={order} says which classes" in refusal(folder / "s", label_order=order)


def test_a_column_that_may_have_the_names_of_classes_is_noted(folder):
    (folder / "t.csv").write_text("path,label,label_name\n1.jpg,1,cat\n2.jpg,0,dog\n")
    assert scan(folder / "t.csv")[0].notes == (
        "left out the column label_name; if label_name has the names of the classes, use --label_column=label_name",
    )
    assert scan(folder / "t.csv", label_column="label_name")[1] == {"1.jpg": ("cat", ""), "2.jpg": ("dog", "")}


def test_a_table_of_folders_is_told_so(folder):
    images(folder, "cat/1.jpg", "dog/2.jpg")
    (folder / "t.csv").write_text("path,label\ncat,cat\ndog,dog\n")
    assert "; cat is a folder: list the images in it" in refusal(folder / "t.csv")


def test_a_damaged_parquet_file_is_named_in_one_line_whatever_is_raised(folder):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = {"path": ["1.jpg", "2.jpg", "3.jpg"] * 50, "label": ["cat", "dog", "cat"] * 50}
    for compression in ("snappy", "none"):  # which raise OSError, UnicodeDecodeError and Arrow's own
        parquet.write_table(pa.table(rows), folder / "t.parquet", compression=compression, use_dictionary=False)
        whole = (folder / "t.parquet").read_bytes()
        for start in range(4, len(whole), 7):
            (folder / "t.parquet").write_bytes(whole[:start] + bytes([whole[start] ^ 0xFF]) + whole[start + 1 :])
            try:
                scan_sources(str(folder / "t.parquet"))
            except UsageError as error:
                with command_line():
                    assert "t.parquet" in str(error) and "\n" not in str(error), start


# ------------------------------------------------------------------------------------- of other programs


def test_excel_tells_the_separator_in_a_line_of_its_own(folder):
    for first in ("sep=;", '"sep=;"', "sep=|", "sep=\t"):
        mark = first.strip('"')[-1]
        rows = [first, *(mark.join(row) for row in [("path", "label", "split"), *ROWS])]
        (folder / "t.csv").write_text("\r\n".join(rows) + "\r\n", newline="")
        assert scan(folder / "t.csv")[1] == EXPECTED
    (folder / "t.csv").write_text("sep=;\npath;label\n1.jpg\n")
    assert "line 3: 1 column" in refusal(folder / "t.csv")


def test_blanks_after_separators_are_no_part_of_values(folder):
    (folder / "t.csv").write_text(
        'path, label, split\n1.jpg, "cat", train\n2.jpg,  "a, b", test\n"3.jpg", cat, train\n'
    )
    assert scan(folder / "t.csv")[1] == EXPECTED | {"2.jpg": ("a, b", "test")}


def test_line_breaks_in_quotes_and_blank_lines_before_the_header(folder):
    (folder / "t.csv").write_text('\n\npath,label,"my\nnote"\n1.jpg,cat,"two\nlines"\n2.jpg,dog,\n1,2,3,4\n')
    assert "line 8: 4 columns, but the first line names 3" in refusal(folder / "t.csv")
    text = (folder / "t.csv").read_text().replace("1,2,3,4\n", "")
    (folder / "t.csv").write_text(text)
    assert scan(folder / "t.csv")[1] == {"1.jpg": ("cat", ""), "2.jpg": ("dog", "")}


def test_rows_of_a_spreadsheet_that_hold_nothing_are_none(folder):
    (folder / "t.csv").write_text("path;label;;\n1.jpg;cat;;\n;;;\n  \n2.jpg;dog;;\n;;;\n;;;\n")
    assert scan(folder / "t.csv")[1] == {"1.jpg": ("cat", ""), "2.jpg": ("dog", "")}
    (folder / "t.csv").write_text("path;label;;\n1.jpg;cat;;\n;dog;;\n")
    assert "row 3: path and label must not be empty" in refusal(folder / "t.csv")


def test_addresses_are_files_here_or_refused_with_a_remedy(folder):
    (folder / "my cat.jpg").write_bytes((folder / "1.jpg").read_bytes())
    (folder / "t.csv").write_text(f"path,label\nfile://{folder}/1.jpg,cat\nfile://{folder}/my%20cat.jpg,dog\n")
    assert list(scan(folder / "t.csv")[1].values()) == [("cat", ""), ("dog", "")]
    (folder / "t.csv").write_text("path,label\n1.jpg,cat\nhttps://example.com/2.jpg,dog\n")
    assert "row 3: https://example.com/2.jpg does not lie below the table's folder; download" in refusal(
        folder / "t.csv"
    )
    (folder / "t.csv").write_text("path,label\n1.jpg,cat\nfile://2.jpg,dog\n")
    assert "row 3: file://2.jpg is a file of another host, '2.jpg'; copy or mount it" in refusal(folder / "t.csv")
    (folder / "t.csv").write_text("path,label\nmy%20cat.jpg,cat\n")
    assert "my cat.jpg does: write the paths without percent signs" in refusal(folder / "t.csv")


def test_paths_of_windows_are_read_where_no_file_is_called_so(tmp_path):
    images(tmp_path, "a/b/1.jpg", "a\\2.jpg")
    (tmp_path / "t.csv").write_text("path,label\na\\b\\1.jpg,cat\na\\2.jpg,dog\n")
    assert scan(tmp_path / "t.csv")[1] == {"a/b/1.jpg": ("cat", ""), "a\\2.jpg": ("dog", "")}
    assert list(scan(tmp_path / "t.csv", exclude=("a/b/1.jpg",))[1]) == ["a\\2.jpg"]


def test_a_table_that_holds_its_images_is_refused_in_words(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table = pa.table({"image": [{"bytes": b"x" * 9999, "path": None}], "label": [3]})
    parquet.write_table(table, tmp_path / "t.parquet")
    plain = pa.table({"image": [b"\x89PNG\r\n\x1a\n" + bytes(99)], "label": [3]})
    parquet.write_table(plain, tmp_path / "plain.parquet")
    assert "column 'image' holds binary and no paths; write its images into files" in refusal(
        tmp_path / "plain.parquet"
    )
    message = refusal(tmp_path / "t.parquet")
    assert "column 'image' holds struct<bytes: binary, path: null>" in message and len(message) < 400
    assert "write its images into files, and their paths and labels into a .csv, and give that" in message
    images(tmp_path, "1.jpg")
    (tmp_path / "t.csv").write_text("path,label\n1.jpg,3\n")
    assert scan(tmp_path / "t.csv")[1] == {"1.jpg": ("3", "")}
