"""List what the image installs, with versions, licences and hashes: `python -m tests.sbom requirements.lock dist`.

Writes `ionos-poller-VERSION.cdx.json` (CycloneDX 1.6) and fails if nobody has checked the licence of a package. The list
contains no time and no random number, so that the same lock gives the same file.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from packaging.markers import Marker

# SPDX identifiers that are compatible with Apache-2.0, and the names that packages use for them.
LICENCES = {
    "Apache-2.0": ("Apache-2.0", "Apache License 2.0", "Apache Software License"),
    "BSD-2-Clause": ("BSD-2-Clause",),
    "BSD-3-Clause": ("BSD-3-Clause", "BSD License", "3-Clause BSD License"),
    # Only for an unchanged library in an extra: the program keeps its own licence.
    "LGPL-3.0-only": ("LGPL-3.0-only",),
    "MIT-0": ("MIT-0",),
    "MIT": ("MIT", "MIT License"),
    "MPL-2.0": ("MPL-2.0", "Mozilla Public License 2.0 (MPL 2.0)"),
    "PSF-2.0": ("PSF-2.0",),
    "Apache-2.0 AND BSD-2-Clause": ("Apache-2.0 AND BSD-2-Clause",),
}
# Looked up by hand, because the package's metadata does not say it.
BY_HAND = {
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",  # its metadata says "Dual License"
    "ionoscloud-logging": "Apache-2.0",  # its metadata says "NoLicense"; this is the LICENSE file in its wheel
}


class Package(NamedTuple):
    """A package in the lock, for this platform."""

    name: str
    version: str
    hashes: tuple[str, ...]


def main(lock: Path, directory: Path) -> int:
    packages = list(read_lock(lock.read_text(encoding="utf-8")))
    licences = {package.name: licence_of(package.name, metadata.metadata(package.name)) for package in packages}
    unknown = [f"{name}: {licence}" for name, licence in licences.items() if licence not in accepted()]
    for line in unknown:
        print(f"sbom: nobody has looked at the licence of {line}", file=sys.stderr)
    version = metadata.version("ionos-poller")
    directory.mkdir(exist_ok=True)
    path = directory / f"ionos-poller-{version}.cdx.json"
    path.write_text(json.dumps(bom(version, packages, licences), indent=1) + "\n", encoding="utf-8")
    print(f"sbom: {len(packages)} packages, {len(set(licences.values()))} licences, in {path}", flush=True)
    return int(bool(unknown))


def read_lock(text: str) -> Iterator[Package]:
    """The packages of a lock that are installed on this platform."""
    for block in re.split(r"\n(?=[a-z0-9])", text.replace("\\\n", " ")):
        found = re.match(r"([a-z0-9-]+)(?:\[[^\]]*\])?==([^ ;]+)(?: ; ([^-]+?))?(?= *--hash)", block)
        if found and (not found[3] or Marker(found[3].strip()).evaluate()):
            yield Package(found[1], found[2], tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", block)))


def licence_of(name: str, data: Message[str, str]) -> str:
    """The SPDX expression of a package's licence, or the words of its metadata if they are not known."""
    if name in BY_HAND:
        return BY_HAND[name]
    classifiers = data.get_all("Classifier") or []
    words = [data.get("License-Expression") or data.get("License") or ""]
    words += [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License")]
    told = [word for word in words if word and len(word) < 100]
    return next((spdx for word in told for spdx, names in LICENCES.items() if word in names), ", ".join(told) or "none")


def accepted() -> set[str]:
    return {*LICENCES, *BY_HAND.values()}


def bom(version: str, packages: list[Package], licences: dict[str, str]) -> dict[str, Any]:
    """Source: the CycloneDX 1.6 JSON schema."""
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": _component("application", "ionos-poller", version, "Apache-2.0")},
        "components": [
            {
                **_component("library", package.name, package.version, licences[package.name]),
                # One hash for each file that the index offers. The platform decides which file is installed.
                "properties": [{"name": "sha256", "value": value} for value in package.hashes],
            }
            for package in packages
        ],
    }


def _component(kind: str, name: str, version: str, licence: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{version}"
    return {
        "type": kind,
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "licenses": [{"expression": licence}],
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
