"""Compressed frames are decoded apart: damage that ends the decoder is one damaged frame, and nothing is left behind."""

from __future__ import annotations

import io

import numpy as np
import psutil
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.encaps import generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless

from oncofed_client.imaging.decoding import FrameDecoder
from oncofed_client.imaging.decoding_process import ANSWER, FAILED, REQUEST, serve
from oncofed_client.imaging.pixels import codestream_size

SHAPE = (32, 24)


@pytest.fixture(scope="module")
def codestreams(dicom, tmp_path_factory):
    """Transfer syntax -> codestream of one frame, and the frame."""
    folder = tmp_path_factory.mktemp("coded")
    values = np.random.default_rng(0).integers(0, 4096, SHAPE).astype(np.uint16)
    found = {}
    for syntax, name in ((JPEG2000Lossless, "JPEG2000"), (JPEGLosslessSV1, "JPEG")):
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetCompressor(name)
        writer.SetFileName(str(folder / "x.dcm"))
        writer.Execute(sitk.GetImageFromArray(values[None]))
        found[syntax] = pydicom.dcmread(folder / "x.dcm").PixelData
    one = dicom.slice_of(pixels=values)
    one.compress(JPEGLSLossless)
    found[JPEGLSLossless] = one.PixelData
    return {k: next(generate_frames(v, number_of_frames=1)) for k, v in found.items()}, values


def decode(decoder, syntax, data, shape=SHAPE):
    return decoder.decode(data, syntax=str(syntax), shape=shape, bits=(16, 16), signed=False)


def children():
    return [p.pid for p in psutil.Process().children(recursive=True)]


def test_damage_that_ends_the_decoder_is_one_damaged_frame(codestreams):
    found, values = codestreams
    before = children()
    with FrameDecoder() as decoder:
        ended = 0
        for syntax, at in ((JPEGLosslessSV1, 15), (JPEGLSLossless, 6), (JPEG2000Lossless, 42)):
            damaged = bytearray(found[syntax])
            damaged[at] = 255 if at != 15 else 0
            assert decode(decoder, syntax, bytes(damaged)) is None
            ended += children() == before
            assert np.array_equal(decode(decoder, syntax, found[syntax]), values)
    assert ended, "none of these ends this version of the decoder: look for one that does"
    assert children() == before


def test_a_file_in_the_working_folder_is_never_run(codestreams, tmp_path, monkeypatch):
    found, values = codestreams
    for name in ("numpy", "pydicom", "resource", "struct"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    with FrameDecoder() as decoder:
        assert np.array_equal(decode(decoder, JPEG2000Lossless, found[JPEG2000Lossless]), values)
    assert not (tmp_path / "ran").exists()


def test_a_frame_that_takes_too_long_is_damaged_and_the_next_is_read(codestreams):
    found, values = codestreams
    with FrameDecoder(seconds=0.0) as decoder:
        assert decode(decoder, JPEG2000Lossless, found[JPEG2000Lossless]) is None
        decoder._seconds = 60.0
        assert np.array_equal(decode(decoder, JPEG2000Lossless, found[JPEG2000Lossless]), values)


def test_another_shape_than_was_asked_is_damaged(codestreams):
    found, _ = codestreams
    with FrameDecoder() as decoder:
        assert decode(decoder, JPEG2000Lossless, found[JPEG2000Lossless], shape=(24, 16)) is None
        assert decode(decoder, "1.2.3", found[JPEG2000Lossless]) is None


def test_the_process_answers_every_request_and_ends_with_them(codestreams):
    found, values = codestreams
    head = REQUEST.pack(str(JPEG2000Lossless).encode(), *SHAPE, 16, 16, 0, len(found[JPEG2000Lossless]))
    bad = REQUEST.pack(str(JPEG2000Lossless).encode(), *SHAPE, 16, 16, 0, 3)
    answers = io.BytesIO()
    serve(io.BytesIO(head + found[JPEG2000Lossless] + bad + b"xyz"), answers)
    kind, size = ANSWER.unpack(answers.getvalue()[: ANSWER.size])
    assert (kind.rstrip(b"\0"), size) == (b"<u2", values.nbytes)
    assert answers.getvalue()[ANSWER.size :] == values.tobytes() + ANSWER.pack(FAILED, 0)


def test_a_codestream_says_its_size(codestreams):
    found, _ = codestreams
    assert {codestream_size(data) for data in found.values()} == {SHAPE}
    assert [
        codestream_size(d) for d in (b"", b"\xff\xd8", b"\xff\xd8\xff\xda\0\2", b"\xff\x4f\xff\x51", b"x" * 99)
    ] == [None] * 5
