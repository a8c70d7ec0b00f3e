"""Decodes an AVIF file in a process of its own; see `avif_process`, which runs this as a script.

It reads the file from standard input; it writes one line of JSON, and then the pixels.
"""

import io
import json
import resource
import sys


def main(libraries: str, seconds: int, address_space: int) -> None:
    """Decode within limits.

    Args:
        libraries: folder of Pillow.
        seconds: of CPU time.
        address_space: bytes.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    sys.path.append(libraries)
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    try:
        image = AvifImagePlugin.AvifImageFile(io.BytesIO(sys.stdin.buffer.read()))
        image.load()
        head = {
            "mode": image.mode,
            "size": image.size,
            "exif": image.info.get("exif", b"").hex(),
            "profile": image.info.get("icc_profile", b"").hex(),
        }
        pixels = image.tobytes()
    except Exception as error:
        head, pixels = {"error": f"{type(error).__name__}: {error}"}, b""
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n")
    sys.stdout.buffer.write(pixels)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
