"""The program that decodes compressed frames in a process of its own: `python -m oncofed_client.imaging.decoding_process`.

It reads one request after the other from its input and answers each on its output, until the input ends. GDCM ends the whole
process on some damaged data; here that ends nothing else. It has bounded memory and leaves no core file, which would hold pixels.
"""

from __future__ import annotations

import resource
import struct
import sys
import warnings
from typing import BinaryIO

import numpy as np
from pydicom import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import pixel_array

__all__ = ["ANSWER", "FAILED", "REQUEST", "main", "serve"]

REQUEST = struct.Struct("<64sHHHHHI")
"""Transfer syntax, rows, columns, bits allocated and stored, pixel representation, bytes of the codestream that follows."""
ANSWER = struct.Struct("<4sI")
"""numpy's name of the type, bytes of the values that follow."""
FAILED = b"none"
_MEMORY = 4 * 2**30


def _decoded(request: bytes, codestream: bytes) -> np.ndarray:
    """Decode one frame with GDCM."""
    syntax, rows, columns, allocated, stored, signed, _ = REQUEST.unpack(request)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax.rstrip(b"\0").decode("ascii")
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, stored - 1
    dataset.PixelRepresentation, dataset.SamplesPerPixel = signed, 1
    dataset.PhotometricInterpretation, dataset.NumberOfFrames = "MONOCHROME2", 1
    dataset.PixelData = encapsulate([codestream])
    dataset["PixelData"].VR = "OB"
    return np.ascontiguousarray(pixel_array(dataset, raw=True, decoding_plugin="gdcm"))


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until they end."""
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        codestream = requests.read(REQUEST.unpack(head)[-1])
        try:
            values = _decoded(head, codestream)
            answers.write(ANSWER.pack(values.dtype.str.encode(), values.nbytes) + values.tobytes())
        except Exception:  # noqa: BLE001 - a decoder raises whatever the broken bytes lead to
            answers.write(ANSWER.pack(FAILED, 0))
        answers.flush()


def main() -> None:
    """Bound this process, then serve."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
