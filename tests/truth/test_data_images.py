"""Images from parquet in the hub's layout and from class folders, against the arrays they were made of; damage is named by file and row."""

import io
import json

import numpy as np
import pytest
import torch

from velodrome.data import decoding, images
from velodrome.data.folder import folder
from velodrome.data.hashing import digest

pa = pytest.importorskip("pyarrow", reason='needs pip install "velodrome[data]"')
pq = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (12, 5, 4, 3), dtype=np.uint8)
GREY = RANDOM.integers(0, 256, (12, 5, 4), dtype=np.uint8)
LABELS = [0, 1, 2] * 4


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write(file, arrays, labels, image="image", label="label", metadata=None, raw=None):
    cells = raw if raw is not None else [{"bytes": png(array), "path": f"{i}.png"} for i, array in enumerate(arrays)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {"id": pa.array([str(i) for i in range(len(cells))]), image: pa.array(cells, kind), label: pa.array(labels, pa.int64())}
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), file, row_group_size=5)
    return file


def tree(root, arrays=COLOUR, names=("ant", "bee", "cat")):
    for i, array in enumerate(arrays):
        (root / names[i % 3]).mkdir(parents=True, exist_ok=True)
        (root / names[i % 3] / f"{i:02}.png").write_bytes(png(array))
    return root


def chw(arrays):
    return torch.from_numpy(arrays.transpose(0, 3, 1, 2).copy() if arrays.ndim == 4 else arrays[:, None].copy())


@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "labels"), ("picture", "kind")])
def test_shards_are_read_in_order_whatever_the_columns_are_called(tmp_path, image, label):
    write(tmp_path / "train-00001-of-00002.parquet", COLOUR[7:], LABELS[7:], image, label)
    write(tmp_path / "train-00000-of-00002.parquet", COLOUR[:7], LABELS[:7], image, label)
    write(tmp_path / "test-00000-of-00001.parquet", COLOUR[:2], LABELS[:2], image, label)
    train, test = images.load(tmp_path, "train"), images.load(tmp_path, split="test")
    assert train.inputs.dtype == torch.uint8
    assert train.inputs.is_contiguous()
    assert torch.equal(train.inputs, chw(COLOUR))
    assert train.targets.tolist() == LABELS
    assert train.targets.dtype == torch.int64
    assert train.digest == digest(train.inputs, train.targets) != test.digest
    assert len(test.inputs) == 2


def test_the_hubs_data_folder_and_class_names_are_understood(tmp_path):
    info = {"info": {"features": {"label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}}}
    write(tmp_path / "data" / "train-00000-of-00001.parquet", GREY, LABELS, metadata={b"huggingface": json.dumps(info).encode()})
    found = images.load(tmp_path, "train")
    assert found.classes == ("ant", "bee", "cat")
    assert torch.equal(found.inputs, chw(GREY))


def test_named_columns_win_and_a_wrong_name_says_what_there_is(tmp_path):
    file = write(tmp_path / "a.parquet", GREY, LABELS)
    assert images.load(file, image="image", label="label").targets.tolist() == LABELS
    for wrong in ({"image": "id"}, {"label": "coarse"}):
        with pytest.raises(ValueError, match=r"a.parquet has no .*it has id: string, image: struct"):
            images.load(file, **wrong)


def test_grey_and_colour_convert_on_request(tmp_path):
    file = write(tmp_path / "a.parquet", COLOUR, LABELS)
    grey = images.load(file, mode="L").inputs.double()
    truth = torch.einsum("nchw,c->nhw", chw(COLOUR).double(), torch.tensor([0.299, 0.587, 0.114]).double())  # ITU-R 601-2
    assert grey.shape == (12, 1, 5, 4)
    assert (grey[:, 0] - truth).abs().max() <= 1
    other = write(tmp_path / "b.parquet", GREY, LABELS)
    assert torch.equal(images.load(other, mode="RGB").inputs, chw(GREY).expand(-1, 3, -1, -1))


def test_a_tree_of_class_folders_has_classes_in_the_order_of_their_names(tmp_path):
    found = images.load(tree(tmp_path / "photos"))
    assert found.classes == ("ant", "bee", "cat")
    assert torch.equal(found.inputs, chw(np.concatenate([COLOUR[0::3], COLOUR[1::3], COLOUR[2::3]])))
    assert found.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_tree_with_splits_reads_the_split_and_wants_to_know_which(tmp_path):
    tree(tmp_path / "train"), tree(tmp_path / "test", COLOUR[:3])
    assert len(images.load(tmp_path, "train").inputs) == 12
    assert len(images.load(tmp_path, "test").inputs) == 3
    for split in (None, "validation"):
        with pytest.raises(ValueError, match="splits test, train"):
            images.load(tmp_path, split)


@pytest.mark.parametrize("make", [lambda p: tree(p / "photos"), lambda p: write(p / "a.parquet", COLOUR, LABELS)], ids=["tree", "file"])
def test_data_without_splits_is_cut_into_two_disjoint_stratified_parts(tmp_path, make):
    path = make(tmp_path)
    whole, train, valid = (images.load(path, split, holdout=0.25) for split in (None, "train", "validation"))
    assert valid.targets.bincount().tolist() == [1, 1, 1]
    assert train.targets.bincount().tolist() == [3, 3, 3]
    parts = [image.numpy().tobytes() for image in (*train.inputs, *valid.inputs)]
    assert sorted(parts) == sorted(image.numpy().tobytes() for image in whole.inputs)
    with pytest.raises(ValueError, match="no splits of its own"):
        images.load(path, "test")


def test_images_of_different_sizes_are_refused_by_row_and_resized_on_request(tmp_path):
    odd = [*COLOUR[:8], RANDOM.integers(0, 256, (9, 9, 3), dtype=np.uint8), *COLOUR[9:]]
    file = write(tmp_path / "a.parquet", odd, LABELS)
    with pytest.raises(ValueError, match=r"a.parquet row 8: the image is 9x9 pixels, the first one 5x4: write resize=\(5, 4\)"):
        images.load(file)
    found = images.load(file, resize=(5, 4))
    assert torch.equal(found.inputs[:8], chw(COLOUR[:8]))
    assert images.load(file, resize=6).inputs.shape == (12, 3, 6, 6)


@pytest.mark.parametrize(
    ("row", "cell", "label", "message"),
    [
        (7, {"bytes": png(COLOUR[0])[:60], "path": None}, 0, "row 7: the image is damaged"),
        (6, {"bytes": b"no image", "path": None}, 0, "row 6: the image is damaged"),
        (5, {"bytes": None, "path": "5.png"}, 0, "row 5: there is no encoded image"),
        (4, None, 0, "row 4: there is no encoded image"),
        (11, {"bytes": png(COLOUR[0]), "path": None}, None, "row 11: label must be .* got None"),
        (0, {"bytes": png(COLOUR[0]), "path": None}, -1, "row 0: label must be .* got -1"),
        (3, {"bytes": png(GREY[0]), "path": None}, 0, 'row 3: a L image, where the first is RGB: write mode="RGB"'),
        (2, {"bytes": png(GREY[0].astype(np.uint16) * 9), "path": None}, 0, "row 2: pixels of kind 'I;16' have more than 8 bits"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, cell, label, message):
    cells = [{"bytes": png(array), "path": None} for array in COLOUR]
    labels = list(LABELS)
    cells[row], labels[row] = cell, label
    file = write(tmp_path / "train-00000-of-00001.parquet", None, labels, raw=cells)
    with pytest.raises(ValueError, match=message) as raised:
        images.load(tmp_path, "train")
    assert str(file) in str(raised.value)


def test_a_damaged_or_empty_parquet_file_is_named(tmp_path):
    file = write(tmp_path / "train-00000-of-00001.parquet", COLOUR, LABELS)
    whole = file.read_bytes()
    middle = bytearray(whole)
    middle[40:400] = bytes(360)
    for content in (b"", whole[: len(whole) // 2], b"PAR1" + bytes(100), bytes(middle)):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"train-00000-of-00001.parquet"):
            images.load(tmp_path, "train")
    write(file, [], [])
    with pytest.raises(ValueError, match="without a row"):
        images.load(tmp_path, "train")


def test_missing_things_are_named(tmp_path):
    with pytest.raises(ValueError, match="no file or folder"):
        images.load(tmp_path / "none")
    with pytest.raises(ValueError, match=r"neither SPLIT-\*.parquet files nor class folders"):
        images.load(tmp_path)
    (tmp_path / "b.csv").write_text("x")
    with pytest.raises(ValueError, match=r"is not a .parquet file"):
        images.load(tmp_path / "b.csv")
    write(tmp_path / "train-00000-of-00002.parquet", COLOUR, LABELS)
    with pytest.raises(ValueError, match="has 1 shards where their names say 2"):
        images.load(tmp_path, "train")
    tree(tmp_path / "photos")
    (tmp_path / "photos" / "dog").mkdir()
    with pytest.raises(ValueError, match="dog holds no image"):
        images.load(tmp_path / "photos")
    (tmp_path / "photos" / "dog" / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1.png: the image is damaged"):
        images.load(tmp_path / "photos")


@pytest.mark.parametrize("options", [{"mode": "P"}, {"resize": 0}, {"resize": (3,)}])
def test_options_that_make_no_sense_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match="must be"):
        images.load(tmp_path, **options)


def test_a_slow_decode_is_kept_found_again_and_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "SLOW", -1.0)
    file = write(tmp_path / "a.parquet", COLOUR, LABELS)
    first = images.load(file)
    [kept] = (tmp_path / "cache" / "velodrome" / "decoded").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(decoding, "decode", None)  # a second decode would fail
        again = images.load(file)
    assert again.digest == first.digest
    assert torch.equal(again.inputs, first.inputs)
    damaged = bytearray(kept.read_bytes())
    damaged[-5] ^= 1
    for content in (bytes(damaged), kept.read_bytes()[:50], b""):
        kept.write_bytes(content)
        assert images.load(file).digest == first.digest
    write(file, COLOUR[::-1], LABELS)
    assert images.load(file).digest != first.digest
    assert images.load(file, mode="L").inputs.shape[1] == 1


def test_a_cache_folder_that_cannot_be_written_only_costs_time(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "SLOW", -1.0)
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert torch.equal(images.load(write(tmp_path / "a.parquet", COLOUR, LABELS)).inputs, chw(COLOUR))


@pytest.mark.parametrize(("name", "split", "shape"), [("mnist", "test", (5000, 1, 28, 28)), ("cifar10", "test", (10000, 3, 32, 32))])
def test_the_shared_data_sets_load(name, split, shape):
    if folder() is None or not (folder() / name).exists():
        pytest.skip(f"needs {name} in the data folder (VELODROME_DATA)")
    found = images.load(folder() / name, split)
    assert found.inputs.shape == shape
    assert found.targets.bincount().tolist() == [shape[0] // 10] * 10
