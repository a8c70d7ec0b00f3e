"""AVIF files are decoded in a process of their own, with limits on its memory and CPU time.

The frames in such a file may be far larger than the file declares, and are decoded before anyone
can see that.
"""

import json
import subprocess
import sys
from pathlib import Path

import PIL
from PIL import Image

from .structure import Structure, broken, exif_orientation

CPU_SECONDS = 2

_WALL_SECONDS = 60.0
"""On a busy machine."""

_SPARE_BYTES = 256 * 2**20
"""Address space for the interpreter and its libraries."""

_BYTES_PER_PIXEL = 24
"""Planes of the frame, and copies in the decoder and in Pillow."""

_WORKER = Path(__file__).with_name("avif_worker.py")


def decode_avif(file: Structure) -> tuple[Image.Image, int, bytes | None]:
    """Decode the first frame; takes 0.05 s more than in this process.

    Returns:
        The pixels, the orientation and the colour profile.

    Raises:
        RowError: IMAGE_BROKEN: it is damaged, or decoding it exceeds a limit.
    """
    width, height = file.size
    space = _SPARE_BYTES + 2 * file.length + _BYTES_PER_PIXEL * width * height
    libraries = str(Path(PIL.__file__).parent.parent)
    # -I and -S: it needs neither the environment nor other packages.
    command = [sys.executable, "-I", "-S", str(_WORKER), libraries, str(CPU_SECONDS), str(space)]
    try:
        done = subprocess.run(  # noqa: S603 - fixed program
            command,
            input=file.joined(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_WALL_SECONDS,
            env={},
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise broken("AVIF", f"not decoded within {_WALL_SECONDS:g} s") from None
    except subprocess.CalledProcessError:
        raise broken("AVIF", f"decoding it takes over {CPU_SECONDS} s or too much memory") from None
    line, _, pixels = done.stdout.partition(b"\n")
    head = json.loads(line)
    if "error" in head:
        raise broken("AVIF", head["error"])
    image = Image.frombytes(head["mode"], head["size"], pixels)
    exif, profile = bytes.fromhex(head["exif"]), bytes.fromhex(head["profile"])
    return image, exif_orientation(exif) or 1, profile or None
