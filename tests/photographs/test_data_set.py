"""Which photographs a data set holds: the same of a folder and of the tar of it, and what is not taken is named."""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from elit_serve.errors import DamagedPicture, DataError, DataSetGone
from elit_serve.photographs import DataSet, Part, decode, open_data_set

Fill = Callable[[Path], object]


def picture(shade: int = 90) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 30, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def write(root: Path, *names: str) -> Path:
    """Pictures of different colours at these places; what has no picture's name has text in it."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"text" if name.endswith((".txt", ".db", ".ini")) else picture(number))
    return root


def tar_of(folder: Path, *, wrapped: bool = True) -> Path:
    """What `tar` makes of a folder; not wrapped, what it makes inside the folder."""
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname=folder.name if wrapped else ".")
    return path


def listed(found: DataSet) -> list[tuple[str, str]]:
    return [(each.label, each.name) for each in found.photographs]


def assert_alike(folder: Path, part: Part = "training") -> DataSet:
    """Opens a folder and the two usual tars of it, compares all that is known of them, and gives the folder's."""
    expected = open_data_set(folder, part)
    pixels = [decode(each).tobytes() for each in expected.photographs]
    for wrapped in (True, False):
        found = open_data_set(tar_of(folder, wrapped=wrapped), part)
        assert listed(found) == listed(expected)
        assert [decode(each).tobytes() for each in found.photographs] == pixels
        assert found.left_out == expected.left_out
    return expected


def test_classes_are_folders_and_their_pictures_are_sorted_by_name(tmp_path: Path) -> None:
    found = assert_alike(write(tmp_path / "set", "tulip/b.png", "tulip/a.jpg", "daisy/c.webp"))
    assert listed(found) == [("daisy", "c.webp"), ("tulip", "a.jpg"), ("tulip", "b.png")]
    assert found.note is None


def test_what_systems_leave_behind_is_no_class_and_no_damage(tmp_path: Path) -> None:
    litter = ("rose/._1.jpg", "rose/@eaDir/1.jpg/thumb.jpg", "rose/Thumbs.db", "rose/.thumbnails/1.png", "desktop.ini")
    litter += (".hidden/2.jpg", "__MACOSX/rose/._1.jpg", "lost+found/3.jpg", "#recycle/rose/4.jpg")
    found = assert_alike(write(tmp_path / "set", "rose/1.jpg", "tulip/2.jpg", *litter))
    assert listed(found) == [("rose", "1.jpg"), ("tulip", "2.jpg")]
    assert found.note is None


def test_pictures_of_all_usual_suffixes_in_any_case_are_taken(tmp_path: Path) -> None:
    names = ("1.jpg", "2.JPG", "3.jpeg", "4.Png", "5.webp", "6.tif", "7.TIFF", "8.bmp", "9.gif", "a.jfif")
    found = assert_alike(write(tmp_path / "set", *(f"rose/{name}" for name in names)))
    assert [name for _, name in listed(found)] == sorted(names)


def test_files_of_other_kinds_are_named_in_one_line_with_their_number(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "rose/1.jpg", "rose/2.heic", "rose/3.HEIC", "rose/notes.txt", "LICENSE")
    note = assert_alike(folder).note
    assert note == f"{folder}: left out files of other kinds (.heic 2, .txt 1, no suffix 1): 4"


def test_a_picture_beside_the_class_folders_has_no_class_and_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "rose/1.jpg", "tulip/2.jpg", "cover.jpg")
    found = assert_alike(folder)
    assert len(found.photographs) == 2
    assert found.note == f"{folder}: left out pictures in no class: 1"


def test_deeper_folders_belong_to_their_class(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "rose/images/a/1.jpg", "rose/0.jpg", "tulip/images/2.jpg")
    assert listed(assert_alike(folder)) == [("rose", "0.jpg"), ("rose", "images/a/1.jpg"), ("tulip", "images/2.jpg")]


def test_folders_around_all_classes_do_not_matter(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "any/where/rose/1.jpg", "any/where/tulip/2.jpg", "any/cover.jpg")
    found = assert_alike(folder)
    assert listed(found) == [("rose", "1.jpg"), ("tulip", "2.jpg")]
    assert listed(open_data_set(folder / "any" / "where")) == listed(found)


@pytest.mark.parametrize(("training", "held_out"), [("train", "val"), ("Training", "test"), ("train", "validation")])
def test_of_a_set_with_splits_one_is_taken_and_the_others_are_counted(
    training: str, held_out: str, tmp_path: Path
) -> None:
    names = (f"{training}/rose/1.jpg", f"{training}/tulip/images/2.jpg", f"{held_out}/rose/3.jpg")
    folder = write(tmp_path / "set", *names)
    found = assert_alike(folder)
    assert listed(found) == [("rose", "1.jpg"), ("tulip", "images/2.jpg")]
    assert found.note == f"{folder}: left out pictures of {held_out}/: 1"
    assert listed(assert_alike(folder, "held out")) == [("rose", "3.jpg")]


def test_splits_without_the_one_that_is_asked_for_are_an_error(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "val/rose/1.jpg", "test/rose/2.jpg")
    with pytest.raises(DataError, match=r"is split into test/, val/, and none of them is train/"):
        open_data_set(folder)


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    assert len(open_data_set(write(tmp_path / "vehicles", "train/1.jpg", "bus/2.jpg")).photographs) == 2
    assert len(open_data_set(write(tmp_path / "flat", "train/1.jpg", "test/2.jpg")).photographs) == 2


def test_links_in_a_folder_and_in_its_tar_lead_to_the_same_pictures(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "rose/1.jpg", "rose/2.jpg", "tulip/3.jpg", ".store/4.jpg")
    os.link(folder / "rose" / "1.jpg", folder / "tulip" / "same-inode.jpg")  # `tar` writes it as a hard link
    (folder / "tulip" / "soft.jpg").symlink_to("../rose/2.jpg")
    (folder / "tulip" / "stored.jpg").symlink_to("../.store/4.jpg")
    (folder / "peony").symlink_to("rose")
    (folder / "rose" / "broken.jpg").symlink_to("nowhere.jpg")
    (folder / "rose" / "around").symlink_to("..")
    found = assert_alike(folder)
    assert [name for label, name in listed(found) if label == "tulip"] == [
        "3.jpg",
        "same-inode.jpg",
        "soft.jpg",
        "stored.jpg",
    ]
    assert [name for label, name in listed(found) if label == "peony"] == ["1.jpg", "2.jpg"]
    assert found.left_out["links that lead nowhere"] == 2  # once more by way of the link `peony`
    with tarfile.open(tar_of(folder)) as tar:
        assert any(member.islnk() for member in tar)


def test_links_out_of_a_tar_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "rose/1.jpg", "tulip/2.jpg")
    outside = write(tmp_path / "outside", "3.jpg") / "3.jpg"
    (folder / "tulip" / "absolute.jpg").symlink_to(outside)
    (folder / "tulip" / "relative.jpg").symlink_to("../../outside/3.jpg")
    assert len(open_data_set(folder).photographs) == 4
    found = open_data_set(tar_of(folder))
    assert len(found.photographs) == 2
    assert found.left_out == {"links that lead nowhere": 2}


def test_links_to_one_another_come_to_an_end(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "rose/1.jpg", "tulip/2.jpg")
    for level in range(30):
        (folder / f"d{level}").mkdir()
        for name in ("x", "y"):
            (folder / f"d{level}" / name).symlink_to(f"../d{level + 1}")
    (folder / "circle").symlink_to("circle")
    assert listed(assert_alike(folder)) == [("rose", "1.jpg"), ("tulip", "2.jpg")]


def test_what_is_neither_file_nor_folder_is_not_opened(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "rose/1.jpg", "tulip/2.jpg")
    os.mkfifo(folder / "rose" / "pipe.jpg")
    assert assert_alike(folder).left_out == {"things that are neither files nor folders": 1}


FOLDERS = ("rose", "tulip", "train", "val", "test", "images", "__MACOSX", ".git", "Löwenzahn", "Lo\u0308wenzahn")
FILES = ("1.jpg", "2.PNG", "notes.txt", "._1.jpg", "Thumbs.db")
PLACES = st.builds(lambda folders, file: "/".join((*folders, file)), st.lists(st.sampled_from(FOLDERS), max_size=4),
                   st.sampled_from(FILES))  # fmt: skip


def problem_of(source: Path, part: Part) -> str | None:
    """What opening it raises."""
    try:
        open_data_set(source, part)
    except DataError as error:
        return str(error).removeprefix(str(source))
    return None


@settings(max_examples=40, deadline=None)
@given(names=st.sets(PLACES, min_size=1, max_size=8), part=st.sampled_from(["training", "held out"]))
def test_any_folder_and_its_tar_are_the_same_data_set(names: set[str], part: Part) -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = write(Path(parent) / "set", *sorted(names))
        problem = problem_of(folder, part)
        assert problem_of(tar_of(folder, wrapped=False), part) == problem
        if problem is None:
            assert_alike(folder, part)


def test_names_are_compared_in_one_unicode_form(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Löwenzahn") for form in ("NFC", "NFD"))
    assert composed != decomposed
    folder = write(tmp_path / "set", f"{decomposed}/1.jpg", f"{composed}/2.jpg", f"{decomposed}/ä.jpg", "rose/3.jpg")
    found = assert_alike(folder)
    assert listed(found) == [(composed, "1.jpg"), (composed, "2.jpg"), (composed, "ä.jpg"), ("rose", "3.jpg")]


@pytest.mark.parametrize("label", ["گل\u200cسرخ", "黒　薔薇", "rose\u00a0rouge", "🏴\U000e0067", "t-rose 2"])
def test_class_names_of_all_scripts_are_taken(label: str, tmp_path: Path) -> None:
    found = assert_alike(write(tmp_path / "set", f"{label}/1.jpg", "tulip/2.jpg"))
    assert {each.label for each in found.photographs} == {label, "tulip"}


def test_a_class_whose_name_is_no_text_is_an_error_and_such_a_file_is_not(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "rose/1.jpg", "tulip/2.jpg")
    (folder / "rose" / os.fsdecode(b"\xff.jpg")).write_bytes(b"damaged")
    damaged = assert_raises_damage(folder)
    assert str(damaged).isprintable()
    (folder / os.fsdecode(b"L\xf6we")).mkdir()
    (folder / os.fsdecode(b"L\xf6we") / "3.jpg").write_bytes(picture())
    for source in (folder, tar_of(folder)):
        with pytest.raises(DataError, match=r"the class folder 'L\\udcf6we' has a name that cannot be written down"):
            open_data_set(source)


def assert_raises_damage(source: Path) -> DamagedPicture:
    photographs = open_data_set(source).photographs
    with pytest.raises(DamagedPicture) as caught:
        list(map(decode, photographs))
    return caught.value


def test_files_of_one_name_in_a_tar_are_all_taken_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as tar:
        for shade in (3, 2, 1):
            member = tarfile.TarInfo("rose/1.png")
            member.size = len(picture(shade))
            tar.addfile(member, io.BytesIO(picture(shade)))
    found = open_data_set(path)
    assert [decode(each).getpixel((0, 0)) for each in found.photographs] == [(3, 30, 90), (2, 30, 90), (1, 30, 90)]
    assert found.note == f"{path}: 2 photographs have the name of another; all are taken"


def test_sets_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_data_set(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no class/name\.jpg, nor any of"):
        open_data_set(tmp_path)
    with pytest.raises(DataError, match=r"holds no class/.*; left out files of other kinds \(\.heic 1\): 1"):
        open_data_set(write(tmp_path / "phone", "rose/1.heic"))
    not_a_tar = tmp_path / "set.tar"
    for content in (b"x" * 4096, b"", b"text"):
        not_a_tar.write_bytes(content)
        with pytest.raises(DataError, match="not an uncompressed tar"):
            open_data_set(not_a_tar)


@pytest.mark.parametrize(
    ("suffix", "remedy"),
    [
        (".zip", "is a zip, .*unzip .* -d photos"),
        (".tar.gz", "is compressed with gzip, .*tar -xzf .* -C photos"),
        (".tar.bz2", "is compressed with bzip2, .*tar -xjf "),
        (".tar.xz", "is compressed with xz, .*tar -xJf "),
    ],
)
def test_how_to_unpack_what_is_compressed_is_said(suffix: str, remedy: str, tmp_path: Path) -> None:
    kind = {".zip": "zip", ".tar.gz": "gztar", ".tar.bz2": "bztar", ".tar.xz": "xztar"}[suffix]
    packed = shutil.make_archive(str(tmp_path / "photos"), kind, write(tmp_path / "set", "rose/1.jpg"))
    with pytest.raises(DataError, match=rf"photos{re.escape(suffix)} {remedy}.*and give the folder$"):
        open_data_set(Path(packed))


def test_a_tar_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    path = tar_of(write(tmp_path / "set", *(f"rose/{number}.jpg" for number in range(4))))
    whole = path.read_bytes()
    for size in (4000, 7100):  # in a header, and in a picture
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="is damaged or cut off"):
            open_data_set(path)


@pytest.mark.parametrize("content", [b"", b"not a picture", picture()[:45]])
def test_a_damaged_picture_is_named(content: bytes, tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "rose/1.jpg", "tulip/2.jpg")
    (folder / "tulip" / "2.jpg").write_bytes(content)
    assert str(assert_raises_damage(folder)).startswith("tulip/2.jpg: ")


def test_the_name_does_not_matter_where_the_content_is_a_picture(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "rose/png-in-truth.jpg", "tulip/2.jpg")
    Image.new("RGB", (8, 8)).save(folder / "rose" / "3.png", "EPS")  # would need Ghostscript
    assert str(assert_raises_damage(folder)) == "rose/3.png: not a picture"


def gone_file(path: Path) -> None:
    path.unlink()


def exchanged(path: Path) -> None:
    """Another file in its place, of the same size and time."""
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(bytes(before.st_size))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def cut_off(path: Path) -> None:
    os.truncate(path, 100)


def no_file(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [gone_file, exchanged, cut_off, no_file])
def test_a_tar_that_is_not_the_one_any_more_is_gone_and_not_damaged(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tar_of(write(tmp_path / "set", "rose/1.jpg", "tulip/2.jpg"))
    found = open_data_set(path)
    change(path)
    with pytest.raises(DataSetGone, match=r"set\.tar (cannot be read: |is not the file any more)"):
        decode(found.photographs[0])


@pytest.mark.parametrize("change", [gone_file, cut_off, no_file])
def test_a_file_of_a_folder_that_is_not_there_any_more_is_gone_and_not_damaged(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    found = open_data_set(write(tmp_path / "set", "rose/1.jpg", "tulip/2.jpg"))
    change(tmp_path / "set" / "rose" / "1.jpg")
    with pytest.raises(DataSetGone, match=r"rose/1\.jpg (cannot be read: |is not the file any more)"):
        decode(found.photographs[0])
